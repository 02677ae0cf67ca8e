"""Data and networks of an autoencoder: what is refused, with its numbers and its advice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from probmix.decoder_likelihoods import BernoulliPixels, NormalNoise, decoder_likelihood
from probmix.errors import DataError, ProgramError
from probmix.trained_networks import checked_labels, checked_rows, in_blocks, networks_for


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3), r"rows \(n, d\) or images.*got \(3,\). A single column is x\[:, None\]"),
        (torch.zeros(0, 3), r"got \(0, 3\)"),
        (torch.tensor([[0.0, 1.0], [2.0, math.nan]]), "x: expected finite numbers, got nan in row 1. Drop such rows"),
    ],
)
def test_rows_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        checked_rows(x)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 3, 1]), "y: expected labels 0 to 2, or -1 where there is none, got 3 in row 1"),
        (torch.tensor([0.0, 1.0, 0.5]), "got 0.5 in row 2"),
        (torch.tensor([0, -2, 1]), "got -2 in row 1"),
        (torch.zeros(3, 3), r"y: expected a label for each of 3 rows, got shape \(3, 3\).*y.argmax"),
    ],
)
def test_labels_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        checked_labels("y", y, 3, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, 1.0], [7.0, 255.0]]), "got 7 in row 1. Divide by 255"),
        (torch.tensor([[0.0, 1.0], [-0.5, 1.5]]), r"got -0.5 in row 1. Rescale each column.*likelihood=\"normal\""),
    ],
)
def test_pixels_are_from_0_to_1(x, message):
    with pytest.raises(DataError, match=message):
        BernoulliPixels().check(x)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ((nn.Linear(3, 5), None), r"encoder: expected an output of shape \(2, 4\) for 2 rows.*got \(2, 5\)"),
        ((nn.Linear(7, 4), None), r"encoder: expected a network of inputs \(2, 3\), got an error: .*first layer"),
        (
            (None, nn.Linear(2, 4)),
            r"decoder: expected an output of shape \(2, 3\).*got \(2, 4\). Change its last layer",
        ),
        ((None, nn.GRU(2, 3)), r"decoder: expected an output of shape \(2, 3\).*got tuple"),
    ],
)
def test_networks_are_refused(networks, message):
    with pytest.raises(ProgramError, match=message):
        networks_for(torch.zeros(5, 3), 2, *networks, 8)


def test_trying_networks_does_not_change_them():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    networks_for(torch.ones(5, 3), 2, encoder, None, 8)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training


@pytest.mark.parametrize("likelihood", [BernoulliPixels(), NormalNoise(0.3)])
def test_log_prob_is_that_of_the_distribution(likelihood):
    generator = torch.Generator().manual_seed(0)
    output, x = torch.randn(4, 5, 1, 2, 3, generator=generator), torch.rand(5, 1, 2, 3, generator=generator).round()
    expected = likelihood.distribution(output, 3).log_prob(x)
    assert expected.shape == (4, 5)
    assert torch.allclose(likelihood.log_prob(output, x), expected, rtol=1e-5)
    assert torch.allclose(likelihood.mean(output), likelihood.distribution(output, 3).mean)


def test_a_learnt_noise_starts_from_the_data_once():
    noise = NormalNoise(None)
    noise.start(torch.tensor([[0.0, 4.0], [4.0, 0.0]]))
    first = noise.noise_std
    assert torch.allclose(first, torch.tensor(2.0 / math.sqrt(3)))
    noise.start(torch.ones(2, 2))
    assert torch.equal(noise.noise_std, first)
    constant = NormalNoise(None)
    constant.start(torch.ones(2, 2))
    assert constant.noise_std == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("poisson", None), 'likelihood: expected "bernoulli" or "normal", got \'poisson\''),
        (("bernoulli", 0.1), 'noise_std: expected None with likelihood="bernoulli", got 0.1'),
        (("normal", 0.0), "noise_std: expected a positive number, or None to learn it, got 0.0"),
    ],
)
def test_likelihoods_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        decoder_likelihood(*settings)


def test_blocks_are_put_together():
    rows = torch.arange(7.0)
    assert torch.equal(in_blocks(lambda block: (block, -block), rows, 3)[1], -rows)

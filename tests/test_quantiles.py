"""Quantiles of Student-t distributions and of mixtures, against scipy and against their own distribution functions."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from gpytorch.kernels import RBFKernel
from scipy import stats
from torch import Tensor

from probmix.errors import DataError
from probmix.process import Process
from probmix.quantiles import quantile

LEVELS = [1e-6, 0.001, 0.05, 0.3, 0.5, 0.9, 0.975, 1 - 1e-6]


@pytest.mark.parametrize("df", [1.0, 2.9, 3.0, 5.0, 9.9, 10.0, 39.0, 40.0, 1e4, 1e8])
def test_student_t_against_scipy(df):
    law = dist.StudentT(
        torch.tensor(df, dtype=torch.float64), torch.tensor([0.0, -3.0]).double(), torch.tensor([1.0, 5.0]).double()
    )
    found = quantile(law, LEVELS)
    exact = stats.t.ppf(LEVELS, df)
    np.testing.assert_allclose(found[:, 0], exact, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found[:, 1], 5 * exact - 3, rtol=1e-8, atol=1e-12)


def test_degrees_of_freedom_of_every_kind_at_once():
    df = torch.tensor([[1.0, 3.0], [50.0, 3.0]], dtype=torch.float64)
    found = quantile(dist.StudentT(df, 0.0, 1.0), [0.1, 0.99])
    np.testing.assert_allclose(found, stats.t.ppf(np.array([0.1, 0.99])[:, None, None], df), rtol=1e-8)


def random_mixture(kind: str) -> tuple[dist.MixtureSameFamily, object]:
    """Seven rows of four components, some far from each other; and its distribution function, by scipy."""
    generator = torch.Generator().manual_seed(0)
    loc = 30 * torch.randn(7, 4, generator=generator, dtype=torch.float64)
    scale = (2 * torch.randn(7, 4, generator=generator, dtype=torch.float64)).exp()
    weights = torch.rand(7, 4, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    df = torch.tensor([2.5, 5.0, 40.0, 5.0], dtype=torch.float64)
    components = dist.Normal(loc, scale) if kind == "normal" else dist.StudentT(df.expand(7, 4), loc, scale)
    base = stats.norm(loc, scale) if kind == "normal" else stats.t(df, loc, scale)
    function = lambda x: (weights.numpy() * base.cdf(x[..., None])).sum(-1)  # noqa: E731
    return dist.MixtureSameFamily(dist.Categorical(probs=weights), components), function


@pytest.mark.parametrize("kind", ["normal", "student_t"])
def test_mixtures_reach_their_levels(kind):
    """By scipy's distribution functions. The control: the centres of the first components are no medians."""
    law, function = random_mixture(kind)
    found = quantile(law, LEVELS)
    levels = np.broadcast_to(np.array(LEVELS)[:, None], found.shape)
    np.testing.assert_allclose(function(found.numpy()), levels, rtol=0, atol=1e-10)
    np.testing.assert_allclose(function(found[:1].numpy()), levels[:1], rtol=1e-5)  # one in a million, relatively
    first = law.component_distribution.loc[:, 0]
    assert np.abs(function(first.expand(1, 7).numpy()) - 0.5).max() > 0.1


def test_blocks_change_nothing(monkeypatch):
    law, _ = random_mixture("student_t")
    whole = quantile(law, LEVELS)
    monkeypatch.setattr("probmix.quantiles._AT_ONCE", 1)
    torch.testing.assert_close(quantile(law, LEVELS), whole, rtol=1e-11, atol=1e-11)


def test_a_single_component_is_that_component():
    normal = dist.Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double())
    law = dist.MixtureSameFamily(
        dist.Categorical(probs=torch.ones(2, 1).double()), dist.Normal(normal.loc[:, None], normal.scale[:, None])
    )
    torch.testing.assert_close(quantile(law, LEVELS), quantile(normal, LEVELS), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(quantile(normal, 0.3), stats.norm(normal.loc, normal.scale).ppf(0.3), rtol=1e-12)


def process(prior: dist.TorchDistribution | None, noise: Tensor) -> Process:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    start = Process(RBFKernel().double().requires_grad_(False), noise, prior, torch.tensor(0.0).double())
    return start.condition(x, (3 * x[:, 0]).sin())


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "student_t", "half_cauchy"])
def test_bands_of_a_process_cover_their_share_of_draws(kind, average):
    """10,000 draws, each share 0.9: 5 standard errors, false alarms 6e-7 for each of ten rows. The control is 0.8."""
    two = torch.tensor(2.0).double()
    prior = {"gaussian": None, "student_t": dist.InverseGamma(two, two), "half_cauchy": dist.HalfCauchy(two)}[kind]
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64) if average else torch.tensor(0.1).double()
    rows = torch.linspace(-3, 3, 10, dtype=torch.float64)[:, None]
    law = process(prior, noise).predictive(rows, average=average)
    low, high = quantile(law, [0.05, 0.95])
    torch.manual_seed(0)
    draws = law.sample((10_000,))
    share = ((draws > low) & (draws < high)).double().mean(0)
    error = (0.9 * 0.1 / 10_000) ** 0.5
    assert ((share - 0.9).abs() < 5 * error).all()
    assert ((share - 0.8).abs() > 5 * error).all()


def test_dtype_and_shape():
    law = dist.StudentT(3.0, torch.zeros(5), 1.0)
    assert quantile(law, 0.5).shape == (5,)
    assert quantile(law, [0.5]).shape == (1, 5)
    assert quantile(law, torch.full((2, 3), 0.5)).shape == (2, 3, 5)
    assert quantile(law, 0.9).dtype == torch.float32
    np.testing.assert_allclose(quantile(law, 0.9), stats.t.ppf(0.9, 3), rtol=1e-5)


@pytest.mark.parametrize(
    ("law", "q", "message"),
    [
        (dist.StudentT(3.0), 95, r"q: expected numbers strictly between 0 and 1, got 95. The median is 0.5"),
        (dist.Normal(0.0, 1.0), [0.0, 0.5], r"strictly between 0 and 1, got \[0.0, 0.5\]"),
        (dist.Normal(0.0, 1.0).expand([3]).to_event(1), 0.5, r"one number, got events of shape \(3,\)"),
        (dist.Gamma(2.0, 2.0), 0.5, r"a distribution with an icdf, got Gamma. Draw from it"),
        (
            dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0)),
            0.5,
            "a mixture of these .* got Gamma",
        ),
    ],
)
def test_what_has_no_quantiles_here(law, q, message):
    with pytest.raises(DataError, match=message):
        quantile(law, q)

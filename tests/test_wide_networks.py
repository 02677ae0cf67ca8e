"""Random networks against literal ones, weight by weight, and against the closed form of their limit."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from z_scores import critical

from probmix import wide_networks
from probmix.dual_activations import ReLU, activation_of
from probmix.errors import DataError, ProgramError
from probmix.nngp import NNGPKernel
from probmix.wide_networks import LimitLaw, WideNetwork

X = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.8, -1.0]], dtype=torch.float64)
INVERSE_GAMMA = dist.InverseGamma(2.0, 2.0)


def literal(network: WideNetwork, x: Tensor, num: int) -> Tensor:
    """The same prior with every weight drawn, by NumPy, ``(num, n)``."""
    rng, phi = np.random.default_rng(7), activation_of(network.activation)

    def dense(h: Tensor, units: int, weight_var: float, bias_var: float) -> Tensor:
        weights, biases = rng.standard_normal((num, units, h.shape[-2])), rng.standard_normal((num, units, 1))
        return math.sqrt(weight_var / h.shape[-2]) * torch.tensor(weights) @ h + bias_var**0.5 * torch.tensor(biases)

    h = dense(x.mT, network.width, network.weight_var, network.bias_var)
    for _ in range(network.depth - 1):
        new = dense(phi(h), network.width, network.weight_var, network.bias_var)
        h = h + new if network.residual else new
    last = (network.weight_var, network.bias_var) if network.readout else (1.0, 0.0)
    return dense(phi(h), 1, *last)[:, 0]


def limit_cov(network: WideNetwork, x: Tensor) -> Tensor:
    """The kernel of the same settings but the width."""
    settings = {name: value for name, value in vars(network).items() if name != "width"}
    return NNGPKernel(**settings).double()(x).to_dense().detach()


def features(outputs: Tensor) -> Tensor:
    """Numbers whose laws tell apart joint laws: outputs, their products in pairs, the sum of squares."""
    i, j = torch.triu_indices(outputs.shape[1], outputs.shape[1], 1)
    return torch.cat([outputs, outputs[:, i] * outputs[:, j], outputs.square().sum(1, keepdim=True)], 1)


def p_value(first: Tensor, second: Tensor) -> float:
    """Kolmogorov-Smirnov of all features of two samples, by Bonferroni."""
    pairs = list(zip(features(first).mT, features(second).mT, strict=True))
    return min(len(pairs) * stats.ks_2samp(a, b).pvalue for a, b in pairs)


@pytest.mark.parametrize(
    ("network", "rows", "other"),
    [
        (WideNetwork(3), 5, WideNetwork(3, depth=2)),  # more rows than units
        (WideNetwork(7, depth=2, activation="erf", weight_var=4.0), 3, WideNetwork(3, 2, "erf", weight_var=4.0)),
        (WideNetwork(4, residual=True), 3, WideNetwork(4)),
        (WideNetwork(4, depth=1, bias_var=1.0, readout=False), 1, WideNetwork(4, depth=1, bias_var=1.0)),
    ],
)
def test_weights_drawn_only_where_they_are_seen_give_literal_networks(network, rows, other):
    """Null: one law, at small widths, far from the limit. False alarms: 1e-4 in each case.

    The control is a literal network of one setting more or less.
    """
    x = torch.cat([X, -X])[:rows]
    sample = network.sample(x, 4000, seed=0)
    assert p_value(sample, literal(network, x, 4000)) > 1e-4
    assert p_value(sample, literal(other, x, 4000)) < 1e-6


@pytest.mark.parametrize(
    "network",
    [
        WideNetwork(256),
        WideNetwork(256, depth=2, activation="leaky_relu", residual=True),
        WideNetwork(256, depth=3, activation="erf", weight_var=4.0),
        WideNetwork(256, depth=2, activation="gelu", readout=False),
        WideNetwork(256, depth=2, activation="step"),
        WideNetwork(256, depth=3, activation="sign", residual=True),
        WideNetwork(256, depth=1, activation="sin", bias_var=0.0),
        WideNetwork(256, depth=2, activation="cos", readout=False),
    ],
    ids=lambda network: network.activation,
)
def test_the_covariance_of_wide_networks_is_that_of_the_limit(network):
    """Null: equal covariances, by z-scores of six entries. False alarms: 1e-4 for each activation.

    The bias at width 256, below 0.5 per cent, is a fifth of the standard error of 3,000 networks. Controls: the limits
    of another variance and of another activation.
    """
    outputs = network.sample(X, 3000, seed=0)
    products = outputs[:, :, None] * outputs[:, None, :]
    i, j = torch.triu_indices(3, 3)

    def largest(cov: Tensor) -> float:
        z = (products.mean(0) - cov) / (products.std(0) / math.sqrt(len(products)))
        return float(z[i, j].abs().max())

    allowed = critical(len(i), 1e-4)
    assert largest(limit_cov(network, X)) < allowed
    other = {"activation": "sin" if network.activation == "cos" else "cos"}
    for change in ({"weight_var": 1.4 * network.weight_var}, other):
        assert largest(limit_cov(WideNetwork(**{**vars(network), **change}), X)) > allowed


def test_an_inverse_gamma_scale_gives_student_t():
    """Null: t with 4 degrees of freedom, scaled by the kernel. False alarms: 1e-4. Control: normal, as variable."""
    network = WideNetwork(256, readout=False)
    outputs = network.sample(X, 4000, seed=0, scale_prior=INVERSE_GAMMA)
    std = limit_cov(network, X).diagonal().sqrt()
    for i in range(3):
        assert stats.kstest(outputs[:, i], stats.t(4, scale=std[i]).cdf).pvalue > 1e-4 / 3
        assert stats.kstest(outputs[:, i], stats.norm(scale=2**0.5 * std[i]).cdf).pvalue < 1e-6


def test_one_scale_is_common_to_all_inputs():
    """A scale of 9 or 1/9 multiplies all outputs of a network by 3 or 1/3 together."""
    plain = WideNetwork(8).sample(X, 200, seed=0)
    prior = dist.TransformedDistribution(dist.Bernoulli(0.5), [torch.distributions.AffineTransform(1 / 9, 80 / 9)])
    ratio = WideNetwork(8).sample(X, 200, seed=0, scale_prior=prior) / plain
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3))
    assert ratio[:, 0].round(decimals=4).unique().tolist() == [0.3333, 3.0]


# --- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 3])
def test_the_law_of_squares(df):
    """Against SciPy's t and by a draw for every law; a million draws err by 0.0005, four of these are allowed."""
    squares = torch.tensor([0.0, 0.1, 1.0, 5.0, 30.0], dtype=torch.float64)
    cov = torch.eye(3, dtype=torch.float64)
    same = dist.TransformedDistribution(dist.Gamma(2.0, 2.0), [torch.distributions.PowerTransform(torch.tensor(-1.0))])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = LimitLaw(cov, same).chance_beyond(squares, df)
    exact = LimitLaw(cov, INVERSE_GAMMA).chance_beyond(squares, df)
    np.testing.assert_allclose(drawn, exact, atol=0.002)
    gaussian = LimitLaw(cov).chance_beyond(squares, df)
    if df == 1:
        np.testing.assert_allclose(exact, 2 * stats.t.sf(squares.sqrt(), 4), rtol=1e-10)
        np.testing.assert_allclose(gaussian, 2 * stats.norm.sf(squares.sqrt()), rtol=1e-10)
    for law, chance in ((LimitLaw(cov, INVERSE_GAMMA), exact), (LimitLaw(cov), gaussian)):
        found = law.sample(40_000, seed=0)[:, :df].square().sum(1)
        share = (found[:, None] > squares).double().mean(0).numpy()
        assert (np.abs(share - chance) <= 5 * np.sqrt(chance * (1 - chance) / 40_000)).all()  # 5e-7 false alarms each


def test_draws_of_the_limit_follow_a_singular_kernel():
    cov = torch.tensor([[2.0, 2.0, -1.0], [2.0, 2.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    law = LimitLaw(cov)
    draws = law.sample(50_000, seed=0)
    assert law.root.shape == (3, 2)
    torch.testing.assert_close(law.root @ law.root.mT, cov)
    torch.testing.assert_close(draws[:, 0], draws[:, 1])
    standard_error = ((cov.diagonal()[:, None] * cov.diagonal() + cov**2) / 50_000).sqrt()
    assert ((draws.mT @ draws / 50_000 - cov).abs() < critical(6, 1e-4) * standard_error).all()


# --- seeds, dtypes, blocks --------------------------------------------------------------------------------------------


def test_the_seed_decides_and_the_callers_state_is_left_alone():
    network, law = WideNetwork(8), LimitLaw(torch.eye(2), INVERSE_GAMMA)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the global one)
    for draw in (partial(network.sample, X, 5, scale_prior=INVERSE_GAMMA), partial(law.sample, 5)):
        assert torch.equal(draw(seed=1), draw(seed=1))
        assert not torch.equal(draw(seed=1), draw(seed=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_networks_and_limit_of_one_seed_are_independent(monkeypatch):
    """Null: no rank correlation. False alarms: 1e-4. Control: one stream, whose first normals both would use."""
    x, law = X[:1, :1], LimitLaw(torch.eye(1).double())
    networks = WideNetwork(1, depth=1).sample(x, 2000, seed=3).abs()
    assert stats.spearmanr(networks, law.sample(2000, seed=3)).pvalue > 1e-4
    monkeypatch.setattr(wide_networks, "_LIMIT", wide_networks._NETWORKS)
    assert stats.spearmanr(networks, law.sample(2000, seed=3)).pvalue < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_follow_the_dtype(dtype):
    x = X.to(dtype).requires_grad_()
    outputs = WideNetwork(8).sample(x, 5, seed=0, scale_prior=INVERSE_GAMMA)
    assert (outputs.dtype, outputs.shape, outputs.requires_grad) == (dtype, (5, 3), False)
    assert LimitLaw(torch.eye(3, dtype=dtype)).sample(5, seed=0).dtype == dtype


def test_blocks_of_networks_are_independent(monkeypatch):
    monkeypatch.setattr(wide_networks, "_BLOCK", 3 * 8 * 10)
    outputs = WideNetwork(8, activation=ReLU()).sample(X, 25, seed=0)
    assert outputs.shape == (25, 3)
    assert len(outputs.unique(dim=0)) == 25


def test_one_column_may_come_without_its_axis():
    assert torch.equal(WideNetwork(8).sample(X[:, 0], 5, seed=0), WideNetwork(8).sample(X[:, :1], 5, seed=0))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"width: expected 1 or more, got 0"),
        ({"width": 8, "depth": -1}, r"depth: expected 1 or more, got -1"),
        ({"width": 8, "weight_var": 0.0}, r"weight_var above 0 .* got 0\.0 and 0\.1"),
        ({"width": 8, "bias_var": math.nan}, r"bias_var of 0 or more, got 2\.0 and nan"),
        ({"width": 8, "activation": "tanh"}, r"activation: expected one of relu, .* got 'tanh'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        WideNetwork(**settings)


@pytest.mark.parametrize(
    ("x", "num", "message"),
    [
        (X, 0, r"num: expected 1 or more, got 0"),
        (torch.arange(4), 5, r"got torch\.int64: convert with x\.double\(\)"),
        (torch.tensor([[0.0], [math.nan]]), 5, r"1 of 2 rows with NaN or infinity, the first at index 1"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(x, num, message):
    with pytest.raises(DataError, match=message):
        WideNetwork(8).sample(x, num, seed=0)


def test_scale_priors_that_are_not_of_one_positive_number_are_refused():
    with pytest.raises(ProgramError, match=r"one number, got batch shape \(2,\) and event shape \(\)"):
        LimitLaw(torch.eye(2), dist.InverseGamma(torch.ones(2), 1.0))
    with pytest.raises(ProgramError, match=r"expected a distribution, got 2\.0\. Pass e\.g\. InverseGamma"):
        WideNetwork(8).sample(X, 5, seed=0, scale_prior=2.0)
    with pytest.raises(ProgramError, match=r"distribution of variances, got a draw of -\d.*InverseGamma"):
        WideNetwork(8).sample(X, 50, seed=0, scale_prior=dist.Normal(0.0, 1.0))
    with pytest.raises(DataError, match=r"num: expected 1 or more, got 0"):
        LimitLaw(torch.eye(2)).sample(0, seed=0)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (torch.ones(2, 3), r"symmetric matrix, got torch\.float32 of shape \(2, 3\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), r"symmetric matrix, got torch\.float32 of shape \(2, 2\)"),
        (torch.full((2, 2), torch.inf), r"finite symmetric matrix"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), r"positive variances, got 0 at input 1\. Leave .* a bias"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), r"no negative eigenvalue, got -1\. Pass the kernel matrix"),
    ],
)
def test_matrices_that_are_no_covariance_are_refused(cov, message):
    with pytest.raises(DataError, match=message):
        LimitLaw(cov)

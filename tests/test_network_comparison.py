"""The comparison of networks with their limit: its false alarms, what it sees, and its numbers computed otherwise."""

from __future__ import annotations

import math
import re

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from probmix import network_comparison
from probmix.errors import DataError
from probmix.network_comparison import LimitComparison, Statistic, compare_with_limit
from probmix.nngp import NNGPKernel
from probmix.wide_networks import LimitLaw, WideNetwork

COV = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.2], [-0.3, 0.2, 0.5]], dtype=torch.float64)
GAUSSIAN, STUDENT_T = LimitLaw(COV), LimitLaw(COV, dist.InverseGamma(2.0, 2.0))
X = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.8, -1.0]], dtype=torch.float64)


def line(comparison: LimitComparison, name: str) -> Statistic:
    return next(found for found in comparison.statistics if found.name == name)


def relu_cov(x: Tensor) -> Tensor:
    return NNGPKernel(readout=False).double()(x).to_dense()


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_prior", [None, dist.InverseGamma(2.0, 2.0), dist.HalfCauchy(1.0)], ids=str)
def test_wide_networks_are_at_their_limit_and_not_at_another(scale_prior):
    """Null: the limit of the same settings. False alarms: 0.01. Controls: another variance, another scale prior."""
    outputs = WideNetwork(512, readout=False).sample(X, 600, seed=0, scale_prior=scale_prior)
    cov = relu_cov(X)
    assert compare_with_limit(outputs, LimitLaw(cov, scale_prior), seed=0).ok
    other_prior = dist.InverseGamma(2.0, 1.0) if scale_prior is None else None  # of mean one, and none at all
    for other in (LimitLaw(1.5 * cov, scale_prior), LimitLaw(cov, other_prior)):
        assert "norm" in compare_with_limit(outputs, other, seed=0).differing


def test_narrow_networks_are_told_from_the_limit():
    """Two units in each layer: by their MMD and by their tails, and wherever the scale shows."""
    outputs = WideNetwork(2, readout=False).sample(X, 600, seed=0)
    differing = set(compare_with_limit(outputs, LimitLaw(relu_cov(X)), seed=0).differing)
    assert differing >= {"kurtosis", "marginals", "norm", "tails beyond 0.1%", "MMD"}


# --- what it sees, and what it does not -------------------------------------------------------------------------------


def test_false_alarms_are_as_few_as_they_should_be():
    """Null: draws of the limit. 50 samples; the p-value of a line is below 0.1 in five of them, and rarely in many.

    The count exceeds a quantile of the binomial distribution once in 10,000 seeds, all nine lines together. The
    control, the same draws times 1.5, exceeds it in most lines.
    """

    def alarms(factor: float) -> np.ndarray:
        drawn = STUDENT_T.sample(50 * 60, seed=0).reshape(50, 60, 3) * factor
        found = [compare_with_limit(y, STUDENT_T, seed=i, replicates=89, false_alarm=0.1) for i, y in enumerate(drawn)]
        return np.array([[statistic.p_value <= 0.1 for statistic in one.statistics] for one in found]).sum(0)

    allowed = stats.binom.isf(1e-4 / 9, 50, 0.1)
    assert (alarms(1.0) <= allowed).all()
    assert (alarms(1.5) > allowed).sum() >= 5


def shifted(y: Tensor) -> Tensor:
    return y + 0.3 * COV.diagonal().sqrt()


def decorrelated(y: Tensor) -> Tensor:
    """The same marginals, without the correlation of the first input with the others."""
    return torch.cat([y[:, :1].roll(1, 0), y[:, 1:]], 1)


def two_sided(y: Tensor) -> Tensor:
    """Outputs of the same size that are never near zero: another shape between the tails."""
    return y + 0.3 * y.sign()


def capped(y: Tensor) -> Tensor:
    std = COV.diagonal().sqrt()
    return torch.minimum(torch.maximum(y, -1.9 * std), 1.9 * std)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (shifted, {"mean", "marginals", "MMD"}),
        (decorrelated, {"covariance", "norm"}),
        (two_sided, {"marginals", "covariance"}),
        (capped, {"tails beyond 5%"}),
    ],
)
def test_each_line_sees_what_it_is_for(change, names):
    y = GAUSSIAN.sample(500, seed=0)
    assert set(compare_with_limit(change(y), GAUSSIAN, seed=0).differing) >= names


def test_a_scale_for_each_input_is_told_from_one_for_all():
    """Its marginals are right; the norm shows it."""
    scales = STUDENT_T.scale_prior.expand((3,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = GAUSSIAN.sample(1500, seed=0) * scales.sample((1500,)).sqrt()
    comparison = compare_with_limit(y, STUDENT_T, seed=0)
    assert line(comparison, "marginals").p_value > 0.01
    assert "norm" in comparison.differing


# --- its numbers ------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy_in_known_standard_errors():
    """The standard errors of a normal sample are known; those from 999 samples err by 3 per cent, 15 are allowed."""
    y = GAUSSIAN.sample(500, seed=4)
    comparison, u, k = compare_with_limit(y, GAUSSIAN, seed=1), y.numpy(), COV.numpy()
    known = {
        "mean": (u.mean(0), 0 * k[0], np.sqrt(k.diagonal() / 500)),
        "covariance": (u.T @ u / 500, k, np.sqrt((np.outer(k.diagonal(), k.diagonal()) + k**2) / 500)),
    }
    for name, (value, limit, error) in known.items():
        z = (value - limit) / error
        worst = np.unravel_index(np.abs(z).argmax(), z.shape)
        found = line(comparison, name)
        assert found.networks == pytest.approx(value[worst])
        assert found.limit == pytest.approx(limit[worst], abs=0.15 * error[worst])
        assert float(found.detail.split()[0]) == pytest.approx(z[worst], rel=0.15, abs=0.15)
        assert found.detail.endswith(" and ".join(str(i) for i in np.unique(worst)))
    kurtosis = line(comparison, "kurtosis")
    i, j = (int(word) for word in (kurtosis.detail.replace("and", "").split() * 2)[-2:] if word.isdigit())
    assert kurtosis.networks == pytest.approx((u[:, i] ** 2 * u[:, j] ** 2).mean() / (u**2).mean(0)[[i, j]].prod())


def test_tails_count_networks_beyond_quantiles():
    y = STUDENT_T.sample(800, seed=0)
    found = line(compare_with_limit(y, STUDENT_T, seed=0, tails=(0.2,), replicates=699), "tails beyond 20%")
    i = int(found.detail[-1])
    quantile = stats.t(4, scale=math.sqrt(COV[i, i])).isf(0.1)
    count = int((y[:, i].abs() > quantile).sum())
    low, high = stats.beta.ppf(0.025, count, 801 - count), stats.beta.ppf(0.975, count + 1, 800 - count)
    assert (found.networks, found.limit) == (count / 800, 0.2)
    assert found.detail == f"95%: {low:.2g} to {high:.2g}, input {i}"  # Clopper and Pearson (1934)


def test_the_norm_is_the_mahalanobis_distance():
    y = GAUSSIAN.sample(300, seed=0)
    squares = np.einsum("ni,ij,nj->n", y.numpy(), np.linalg.inv(COV.numpy()), y.numpy())
    expected = stats.kstest(squares, stats.chi2(3).cdf)
    found = line(compare_with_limit(y, GAUSSIAN, seed=0), "norm")
    assert (found.networks, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_mmd_is_that_of_all_pairs(monkeypatch):
    """Against a double loop, with the draws of the limit in the place where the comparison makes them."""
    y, limit = GAUSSIAN.sample(25, seed=0), STUDENT_T.sample(25, seed=1)
    monkeypatch.setattr(LimitLaw, "draw", lambda self, shape: limit)
    std = COV.diagonal().sqrt()
    found = network_comparison._mmd(y / std, GAUSSIAN, 5)
    pooled = torch.cat([y / std, limit / std]).numpy()
    distance = np.array([[np.linalg.norm(a - b) for b in pooled] for a in pooled])
    width = float(np.sort(distance.ravel())[(distance.size - 1) // 2])
    k = np.exp(-(distance**2) / (2 * width**2))
    within = [k[half, half].sum() - np.trace(k[half, half]) for half in (slice(25), slice(25, 50))]
    assert found.networks == pytest.approx(sum(within) / (25 * 24) - 2 * k[:25, 25:].mean())


def test_holm_adjusts_the_p_values_of_the_lines():
    lines = tuple(Statistic(name, 0.0, 0.0, p, "") for name, p in zip("abcd", (0.03, 0.001, 0.02, 0.9), strict=True))
    comparison = LimitComparison(lines, 100, 2, false_alarm=0.05)
    assert comparison.adjusted == pytest.approx((0.06, 0.004, 0.06, 0.9))
    assert comparison.differing == ("b",)
    assert not comparison.ok


def test_the_table_says_the_result_in_words():
    good = compare_with_limit(GAUSSIAN.sample(1200, seed=0), GAUSSIAN, seed=0)
    assert re.match(r"No difference from the limit is visible in 1,200 networks at 3 inputs \(smallest p-", str(good))
    assert len(str(good).splitlines()) == 2 + len(good.statistics) == 2 + 9
    bad = compare_with_limit(GAUSSIAN.sample(100, seed=0)[:, :1] + 2.0, LimitLaw(COV[:1, :1]), seed=0)
    assert str(bad).startswith("NOT at this limit: 100 networks at 1 input differ in mean, ")


def test_the_seed_decides_and_the_callers_state_is_left_alone():
    y, before = STUDENT_T.sample(50, seed=0), torch.get_rng_state()
    first, second, third = (compare_with_limit(y, STUDENT_T, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert first != third


def test_single_precision_gives_the_same_lines():
    """Those without draws of the limit, whose normals depend on the precision."""
    y = GAUSSIAN.sample(200, seed=0)
    single = compare_with_limit(y.float(), LimitLaw(COV.float()), seed=0)
    double = compare_with_limit(y, GAUSSIAN, seed=0)
    for name in ("marginals", "norm", "tails beyond 5%"):
        assert line(single, name).p_value == pytest.approx(line(double, name).p_value, rel=1e-4)


def test_what_is_only_rounding_is_not_compared():
    """In single precision the kernel matrix of two inputs that nearly coincide has an eigenvalue of pure rounding."""
    x = torch.cat([X, X[:1] + 1e-4]).float()
    law = LimitLaw(NNGPKernel()(x).to_dense())
    assert law.root.shape == (4, 3)
    assert compare_with_limit(WideNetwork(512).sample(x, 300, seed=0), law, seed=0).ok


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.zeros(19, 3), {}, r"outputs: expected 20 networks or more at the 3 inputs .* got shape \(19, 3\)"),
        (torch.zeros(50, 2), {}, r"at the 3 inputs of the limit, got shape \(50, 2\)\. Pass WideNetwork"),
        (torch.full((50, 3), math.nan), {}, r"50 of 50 rows with NaN or infinity"),
        (torch.ones(50, 3), {"tails": (0.05, 1.0)}, r"probabilities between 0 and 1, got \[0\.05, 1\.0\]"),
        (torch.ones(50, 3), {"replicates": 99}, r"expected 899 or more for 9 statistics .* 0\.01, got 99\. Raise one"),
    ],
)
def test_what_cannot_be_compared_is_refused(y, options, message):
    with pytest.raises(DataError, match=message):
        compare_with_limit(y, GAUSSIAN, seed=0, **options)

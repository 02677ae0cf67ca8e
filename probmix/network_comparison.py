"""Are networks at their infinite-width limit? Moments, marginals, norm, tails and MMD of a sample against the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from probmix.errors import DataError
from probmix.isolation import isolated
from probmix.rows import as_rows, check_rows
from probmix.table import wide_dtype
from probmix.uniformity import SMALLEST_P_VALUE, FloatArray
from probmix.wide_networks import LimitLaw

__all__ = ["LimitComparison", "Statistic", "compare_with_limit"]

_BLOCK = 2**22  # numbers in the largest table of draws
_FEWEST_NETWORKS = 20
_MMD_NETWORKS = 2000  # its cost grows with their square
_LINES = 6  # besides the tails


class Statistic(NamedTuple):
    """One line of a comparison; of several entries the one that differs most.

    Args:
        name: what was measured.
        networks: its value in the sample of networks.
        limit: its value in the limit; of moments, which may be infinite there, the median over samples of this size.
        p_value: of the whole line, allowing for the number of entries.
        detail: which entry, and how far off it is.

    Example:
        >>> Statistic("mean", 0.02, 0.0, 0.4, "+0.8 standard errors at input 2").p_value
        0.4
    """

    name: str
    networks: float
    limit: float
    p_value: float
    detail: str


@dataclass(frozen=True)
class LimitComparison:
    """What `compare_with_limit` found; `str` of it is a table.

    Args:
        statistics: the lines of the table.
        networks: size of the sample.
        inputs: number of inputs that the networks were seen at.
        false_alarm: probability of reporting a difference where there is none.

    Example:
        >>> lines = Statistic("mean", 0.02, 0.0, 0.4, "at input 0"), Statistic("MMD", 0.1, 0.0, 0.001, "")
        >>> print(LimitComparison(lines, networks=500, inputs=3))
        NOT at this limit: 500 networks at 3 inputs differ in MMD (p-values <= 0.01).
        statistic  networks     limit  p-value
        mean           0.02         0      0.4  at input 0
        MMD             0.1         0    0.002
    """

    statistics: tuple[Statistic, ...]
    networks: int
    inputs: int
    false_alarm: float = 0.01

    @cached_property
    def adjusted(self) -> tuple[float, ...]:
        """P-values that allow for the number of lines (Holm 1979)."""
        p_values = np.array([line.p_value for line in self.statistics])
        order = p_values.argsort(kind="stable")
        in_order = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
        return tuple(in_order.clip(SMALLEST_P_VALUE, 1.0)[order.argsort()].tolist())

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the lines that differ from the limit."""
        lines = zip(self.statistics, self.adjusted, strict=True)
        return tuple(line.name for line, p_value in lines if p_value <= self.false_alarm)

    @property
    def ok(self) -> bool:
        """True where no difference is visible; a larger sample may show one."""
        return not self.differing

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        sample = f"{self.networks:,} networks at {self.inputs} input{'s' * (self.inputs > 1)}"
        if self.ok:
            least = f"smallest p-value {min(self.adjusted):.2g} > {self.false_alarm:g}"
            return f"No difference from the limit is visible in {sample} ({least})."
        return f"NOT at this limit: {sample} differ in {', '.join(self.differing)} (p-values <= {self.false_alarm:g})."

    def __str__(self) -> str:
        width = max(len(name) for name in ("statistic", *(line.name for line in self.statistics)))
        rows = [f"{'statistic':<{width}}  networks     limit  p-value"]
        for line, p_value in zip(self.statistics, self.adjusted, strict=True):
            values = f"{line.networks:>8.3g}  {line.limit:>8.3g}  {p_value:>7.2g}"
            rows.append(f"{line.name:<{width}}  {values}  {line.detail}".rstrip())
        return "\n".join([self.verdict, *rows])


@torch.no_grad()
def compare_with_limit(
    outputs: Tensor,
    limit: LimitLaw,
    *,
    seed: int,
    tails: Sequence[float] = (0.05, 0.01, 0.001),
    replicates: int = 999,
    false_alarm: float = 0.01,
) -> LimitComparison:
    r"""Compare a sample of networks with the law that they should tend to as the width grows.

    - Moments: mean, covariance :math:`E[f_i f_j]` and kurtosis :math:`E[f_i^2 f_j^2] / E[f_i^2] E[f_j^2]`, each with
      the same moments of ``replicates`` samples of this size from the limit. Distances are in standard errors, half
      the width of the central 68% of those samples, so that they exist where moments do not. The p-value is that of
      the largest distance (a Monte-Carlo test, exact for every scale prior).
    - Marginals: Kolmogorov-Smirnov distance at each input.
    - Norm: Kolmogorov-Smirnov distance of :math:`f^\top K^{-1} f`. It tells one scale for all inputs from a scale for
      each, and is the first to see how a finite width varies the scale.
    - Tails: share of networks beyond quantiles of the limit, with its exact binomial interval of 95%.
    - MMD: squared maximum mean discrepancy of the networks, the first 2,000 of them at most, from as many draws of the
      limit, with a Gaussian kernel as wide as the median distance; by permutations, ``replicates`` of them.

    Lines with a p-value for each input are adjusted for the number of inputs by Bonferroni's method, the lines among
    each other by Holm's. Where no difference is visible there may be one still: the moments of networks come nearer to
    their limit as 1 / width, the errors of a sample fall as the square root of its size.

    Args:
        outputs: of independent networks at n inputs, ``(num, n)``, as `probmix.wide_networks.WideNetwork.sample` makes
            them.
        limit: the law at these inputs.
        seed: of samples and permutations; the caller's random state is left alone.
        tails: probabilities beyond the quantiles, both sides together.
        replicates: samples and permutations; the smallest p-value of a line is ``1 / (replicates + 1)``.
        false_alarm: probability of reporting a difference where there is none.

    Raises:
        DataError: outputs are not finite, not those of 20 networks or more, or not at the inputs of the limit; a tail
            outside (0, 1); too few replicates for the false-alarm rate.
        ProgramError: the scale prior has negative draws.

    Source:
        Besag and Clifford (1989), Generalized Monte Carlo significance tests, Biometrika 76, for the moments; Westfall
        and Young (1993), Resampling-based multiple testing, for the largest of many; Gretton, Borgwardt, Rasch,
        Schölkopf and Smola (2012), A kernel two-sample test, JMLR 13, equation 3 and section 8, for the MMD.

    Example:
        >>> import pyro.distributions as dist
        >>> from probmix.nngp import NNGPKernel
        >>> from probmix.wide_networks import WideNetwork
        >>> x, prior = torch.tensor([[1.0, 0.5], [-0.3, 1.2]]), dist.InverseGamma(2.0, 2.0)
        >>> outputs = WideNetwork(512, readout=False).sample(x, 500, seed=0, scale_prior=prior)
        >>> cov = NNGPKernel(readout=False)(x).to_dense()
        >>> compare_with_limit(outputs, LimitLaw(cov, prior), seed=0).ok
        True
        >>> "norm" in compare_with_limit(outputs, LimitLaw(2 * cov), seed=0).differing  # normal, of the same variance
        True
    """
    outputs = as_rows(outputs)
    _require_sample(outputs, len(limit.cov))
    _require_levels(tails, replicates, false_alarm)
    y = outputs.to(wide_dtype(outputs))
    with isolated(seed, dtype=y.dtype, device=y.device):
        u = y / limit.cov.diagonal().sqrt().to(y)
        beyond = limit.chance_beyond(u.square(), 1)
        lines = [*_moments(y, limit, replicates), _marginals(u.cpu().numpy(), beyond), _norm(y, limit)]
        lines += [_tail(beyond, level) for level in tails]
        lines.append(_mmd(u[:_MMD_NETWORKS], limit, replicates))
    return LimitComparison(tuple(lines), len(outputs), len(limit.cov), false_alarm)


# --- the lines --------------------------------------------------------------------------------------------------------


def _moments(y: Tensor, limit: LimitLaw, replicates: int) -> list[Statistic]:
    chunk = max(1, _BLOCK // y.numel())
    found = [_moments_of(y[None])]
    for done in range(0, replicates, chunk):
        found.append(_moments_of(limit.draw((min(chunk, replicates - done), len(y))).to(y)))
    i_and_j = torch.triu_indices(y.shape[1], y.shape[1]).mT.tolist()
    pairs = [f"inputs {i} and {j}" if i != j else f"input {i}" for i, j in i_and_j]
    places = {"mean": [f"input {i}" for i in range(y.shape[1])], "covariance": pairs, "kurtosis": pairs}
    tables = (torch.cat(tables).cpu().numpy() for tables in zip(*found, strict=True))
    return [_largest(name, table, places[name]) for name, table in zip(places, tables, strict=True)]


def _moments_of(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, covariance (of mean zero) and kurtosis of each sample, ``(r, num, n)`` to ``(r, entries)``."""
    i, j = torch.triu_indices(y.shape[-1], y.shape[-1])
    squares = y.square()
    second = squares.mean(-2)
    cov, fourth = (values.mT @ values / y.shape[-2] for values in (y, squares))
    return y.mean(-2), cov[..., i, j], fourth[..., i, j] / (second[..., i] * second[..., j])


def _largest(name: str, table: FloatArray, places: Sequence[str]) -> Statistic:
    """Return the entry that is farthest off. The first row is the networks': one among equals if all is well."""
    low, middle, high = np.quantile(table, stats.norm.cdf([-1, 0, 1]), axis=0)
    z = (table - middle) / ((high - low) / 2)
    distance, worst = np.abs(z).max(1), int(np.abs(z[0]).argmax())
    detail = f"{z[0, worst]:+.1f} standard errors at {places[worst]}"
    p_value = float((distance >= distance[0]).mean())
    return Statistic(name, float(table[0, worst]), float(middle[worst]), p_value, detail)


def _marginals(u: FloatArray, beyond: FloatArray) -> Statistic:
    levels = np.where(u < 0, beyond / 2, 1 - beyond / 2)
    tests = [stats.kstest(column, "uniform") for column in levels.T]
    worst = int(np.argmin([test.pvalue for test in tests]))
    p_value = min(1.0, len(tests) * float(tests[worst].pvalue))
    return Statistic("marginals", float(tests[worst].statistic), 0.0, p_value, f"Kolmogorov-Smirnov, input {worst}")


def _norm(y: Tensor, limit: LimitLaw) -> Statistic:
    whitened = y @ (limit.root / limit.root.square().sum(0)).to(y)  # the columns of the root are orthogonal
    test = stats.kstest(limit.chance_beyond(whitened.square().sum(1), limit.root.shape[1]), "uniform")
    return Statistic("norm", float(test.statistic), 0.0, float(test.pvalue), "Kolmogorov-Smirnov, all inputs")


def _tail(beyond: FloatArray, level: float) -> Statistic:
    num, inputs = beyond.shape
    tests = [stats.binomtest(int(count), num, level) for count in (beyond < level).sum(0)]
    worst = int(np.argmin([test.pvalue for test in tests]))
    low, high = tests[worst].proportion_ci(0.95, "exact")
    p_value = min(1.0, inputs * float(tests[worst].pvalue))
    detail = f"95%: {low:.2g} to {high:.2g}, input {worst}"
    return Statistic(f"tails beyond {100 * level:g}%", float(tests[worst].statistic), level, p_value, detail)


def _mmd(u: Tensor, limit: LimitLaw, replicates: int) -> Statistic:
    """Return the unbiased squared maximum mean discrepancy, in units of the limit's spread at each input."""
    num = len(u)
    pooled = torch.cat([u, (limit.draw((num,)) / limit.cov.diagonal().sqrt()).to(u)])
    distance = torch.cdist(pooled, pooled)
    width = float(distance.median())
    gram = torch.exp(-0.5 * (distance / width).square()).fill_diagonal_(0.0)
    first = u.new_zeros(replicates + 1, 2 * num)  # who is in the first sample; in row 0 the networks are
    first[0, :num] = 1.0
    first[1:].scatter_(1, torch.rand(replicates, 2 * num).argsort(1)[:, :num], 1.0)
    rows = gram.sum(1)
    within = (first @ gram * first).sum(1)
    between = first @ rows - within
    mmd = (rows.sum() - 2 * between) / (num * (num - 1)) - 2 * between / num**2
    detail = f"squared; Gaussian kernel of width {width:.2g}"
    return Statistic("MMD", float(mmd[0]), 0.0, float((mmd >= mmd[0]).double().mean()), detail)


# --- checks -----------------------------------------------------------------------------------------------------------


def _require_sample(outputs: Tensor, inputs: int) -> None:
    check_rows(outputs, 1, spread=False, independent=False)
    if outputs.shape[1] != inputs or len(outputs) < _FEWEST_NETWORKS:
        raise DataError(
            f"outputs: expected {_FEWEST_NETWORKS} networks or more at the {inputs} inputs of the limit, got shape "
            f"{tuple(outputs.shape)}. Pass WideNetwork(...).sample(x, num, seed=...) and the kernel matrix of this x."
        )


def _require_levels(tails: Sequence[float], replicates: int, false_alarm: float) -> None:
    if not all(0 < level < 1 for level in tails):
        raise DataError(f"tails: expected probabilities between 0 and 1, got {list(tails)}. Pass e.g. (0.05, 0.01).")
    lines = _LINES + len(tails)
    needed = math.ceil(lines / false_alarm) - 1  # with fewer, no line could refuse by itself
    if replicates < needed:
        raise DataError(
            f"replicates: expected {needed} or more for {lines} statistics and a false-alarm rate of {false_alarm:g}, "
            f"got {replicates}. Raise one of the two."
        )

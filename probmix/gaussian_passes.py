"""One pass over rows under Gaussian components: in quadratic features wherever rounding allows it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from probmix.centred_pass import centred_expectation
from probmix.conjugate import GaussianPrior
from probmix.covariance import AbstractCovariance
from probmix.family import AbstractConjugateFamily
from probmix.quadratic_pass import QuadraticRows, feature_sums
from probmix.statistics import Statistics, weighted_square
from probmix.table import Expectation, Table, draw_component, wide_dtype

__all__ = ["LOST_LOG", "AbstractQuadraticFamily", "CentredRows", "Natural", "centred_rows", "dtype_of_features"]

_FEW = 2**13  # rows times features times components up to which a pass in features takes longer than one without
_BLOCK = 2**18  # numbers in a block of rows while they are turned

#: Nats that rounding may take from the log density of a row. In float64 it takes more from three million standard
#: deviations on, which is where a variance is negligible.
LOST_LOG = 1e-3

# In float32 sums over a chunk of rows round too: by experiment a scatter loses up to twenty times eps s^2 of itself.
_LOST_LOG_NARROW, _LOST_SCATTER_NARROW = 1e-2, 1e-5
_DIGITS_LOST = 200


class Natural(NamedTuple):
    r"""Natural parameters of Gaussian components, for data shifted by ``centre``.

    Attributes:
        centre: what the data are shifted by, ``(D,)``.
        loc: :math:`\mu`, the means less the centre, ``(*b, K, D)``.
        linear: :math:`\Sigma^{-1} \mu`, coefficients of the features, ``(*b, K, D)``.
        quadratic: coefficients of the features' squares and products, ``(*b, K, Q)``; K is 1 if the spread is shared.
        log_det: log determinant of the blocks, ``(*b, K)``; K is 1 if the spread is shared.
        terms: size of the terms that cancel in a log density, at most, ``(*b, 1)``.

    Example:
        >>> from probmix.gaussian_family import FAMILIES
        >>> sites = {"loc": torch.tensor([[3.0]]), "var": torch.tensor([2.0])}
        >>> FAMILIES["spherical"].natural(sites, centre=torch.ones(1)).linear
        tensor([[1.]])
    """

    centre: Tensor
    loc: Tensor
    linear: Tensor
    quadratic: Tensor
    log_det: Tensor
    terms: Tensor


@dataclass(frozen=True, eq=False)
class CentredRows:
    """Rows by feature, less their mean: a copy as large as the data.

    Attributes:
        centre: the mean, ``(D,)``, in float64 (where the device has it).
        rows: the rows, in their own dtype.
        unpack: where each entry of a matrix is among the products of features, ``(D, D)``; None: no matrix.

    Example:
        >>> centred_rows(torch.tensor([[1.0], [3.0]]), spread_dim=1).rows.columns
        tensor([[-1.,  1.]])
    """

    centre: Tensor
    rows: QuadraticRows
    unpack: Tensor | None = None


def centred_rows(x: Tensor, spread_dim: int) -> CentredRows:
    """Prepare rows ``(N, D)`` for passes over their quadratic features (see `probmix.quadratic_pass`).

    Example:
        >>> centred_rows(torch.tensor([[1.0], [3.0]]), spread_dim=2).centre
        tensor([2.], dtype=torch.float64)
    """
    total, size = x.shape
    wide, block = wide_dtype(x), max(1, _BLOCK // size)
    centre = sum((part.sum(0, dtype=wide) for part in x.split(block)), x.new_zeros(size, dtype=wide)) / total
    columns = x.new_empty(size, total)
    for part, place in zip(x.split(block), columns.split(block, -1), strict=True):
        place.copy_((part - centre).mT)
    unpack = None
    if spread_dim == 2:
        index = torch.arange(size, device=x.device)
        low, high = torch.minimum(index, index[:, None]), torch.maximum(index, index[:, None])
        unpack = low * (2 * size - low - 1) // 2 + high
    return CentredRows(centre, QuadraticRows(columns, spread_dim), unpack)


def dtype_of_features(terms: Tensor, shift: Tensor, narrow: torch.dtype, wide: torch.dtype) -> torch.dtype | None:
    r"""Return the narrowest dtype whose rounding a pass in quadratic features bears; None: there is none.

    The terms of a log density cancel: rounding costs a row up to eps times their size, which is about
    :math:`\epsilon s^2 D / 2` where a component is s standard deviations from the centre in each of D independent
    features. Borne are 0.001 nats in float64, and 0.01 in the dtype of narrower data (whose errors have any sign: what
    is left in the mean over many rows is a hundredth of it). A scatter about the centre loses, relatively, several
    times :math:`\epsilon s^2`, of one sign: in narrower dtypes up to 0.0001 is borne, so s is at most 29 in float32.

    Args:
        terms: size of the terms, of any shape; NaN for a component without a density.
        shift: squared distance of a component from the centre over its variance, in each feature.
        narrow: dtype of the data.
        wide: dtype of long sums.

    Example:
        >>> far = [torch.tensor(s**2 / 2) for s in (5.0, 100.0, 1e7)]
        >>> [dtype_of_features(terms, 2 * terms, torch.float32, torch.float64) for terms in far]
        [torch.float32, torch.float64, None]
    """
    largest = float(terms.max())  # NaN if there is one
    eps = torch.finfo(narrow).eps
    if narrow != wide and largest * eps < _LOST_LOG_NARROW and float(shift.max()) * eps < _LOST_SCATTER_NARROW:
        return narrow
    return wide if largest * torch.finfo(wide).eps < LOST_LOG else None


class AbstractQuadraticFamily(AbstractConjugateFamily[GaussianPrior, Statistics]):
    r"""A family whose log densities, and their conjugate means, are linear in quadratic features.

    Its passes run in those features where rounding allows it (`dtype_of_features`), in the dtype of the data or else in
    float64. Where even that would cost too much, and for data so few that it does not pay, a pass subtracts means
    before it squares (`centred_expectation`). Sites and data decide, at every pass, the worst component of a batch for
    all.
    """

    covariance: AbstractCovariance

    @abstractmethod
    def natural(self, sites: Mapping[str, Tensor], centre: Tensor) -> Natural:
        """Natural parameters, for data that are shifted by ``centre`` ``(D,)``."""

    @abstractmethod
    def coefficients(self, natural: Natural, log_weights: Tensor) -> Tensor:
        """Log weight plus log density as coefficients of the features of centred rows, ``(*b, K, P)``."""

    def prepare(self, x: Tensor) -> CentredRows:
        """Rows by feature, less their mean."""
        return centred_rows(x, self.covariance.spread_dim)

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood and expected statistics."""
        return self._pass(table, log_weights, sites)

    def drawn(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood, and statistics of one draw of all assignments."""
        return self._pass(table, log_weights, sites, draw_component)

    def variational_expectation(self, table: Table, log_weights: Tensor, posterior: GaussianPrior) -> Expectation:
        r"""``expectation`` at the mean precision, and in the log weights what the mean log density has beside that.

        .. math:: E \log N(x \mid \mu, \Sigma) = \log N(x \mid m, S / \nu)
                  + \tfrac12 \Bigl\{ \sum_{i=1}^p \Bigl( \psi\bigl(\tfrac{\nu + 1 - i}2\bigr)
                  - \log \tfrac{\nu}2 \Bigr) - \frac D\kappa \Bigr\}

        for one block of order p; from Bishop (2006), Pattern Recognition and Machine Learning, equations 10.64 and
        10.65.
        """
        shape, size = self.covariance, posterior.loc.shape[-1]
        order, dof = shape.order(size), shape.lift(posterior.dof, 0)[..., None]
        half = (dof - torch.arange(order, dtype=dof.dtype, device=dof.device)) / 2
        gap = size / order * (half.digamma() - (dof / 2).log()).sum(-1) - size / posterior.mean_precision
        spread = posterior.scatter / posterior.dof[(..., *(None,) * shape.spread_dim)]
        return self._pass(table, log_weights + gap / 2, {"loc": posterior.loc, shape.site: spread})

    def _pass(
        self,
        table: Table,
        log_weights: Tensor,
        sites: Mapping[str, Tensor],
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> Expectation:
        """One pass by the quickest way that is accurate."""
        shape, x = self.covariance, table.x
        prepared = self.prepare(x) if table.prepared is None else table.prepared
        centre, columns = prepared.centre, prepared.rows.columns
        if share is None and table.power != 1:
            share = partial(_blurred, power=table.power)
        loc, spread, log_weights = (v.to(centre.dtype) for v in (sites["loc"], sites[shape.site], log_weights))
        found = None
        if loc.numel() * columns.shape[-1] > _FEW:
            found = self._quadratic(table, prepared, log_weights, {"loc": loc, shape.site: spread}, share)
        if found is None:
            found = centred_expectation(
                columns,
                log_weights,
                loc - centre,
                shape.lift(spread),
                spread_dim=shape.spread_dim,
                pooled=shape.pooled,
                row_weights=table.row_weights,
                share=share,
            )
        value, statistics = found
        mean = centre + statistics.mean
        return Expectation(value, Statistics(statistics.count.to(x), mean.to(x), statistics.scatter.to(x)))

    def _quadratic(
        self,
        table: Table,
        prepared: CentredRows,
        log_weights: Tensor,
        sites: Mapping[str, Tensor],
        share: Callable[[Tensor], Tensor] | None,
    ) -> Expectation | None:
        """One pass in the narrowest dtype that rounding allows, means less the centre; or None."""
        shape, centre, narrow = self.covariance, prepared.centre, prepared.rows.columns.dtype
        wide, natural = centre.dtype, self.natural(sites, centre)
        shift = centre
        if narrow != wide:
            shift = natural.loc.square() / shape.variances(shape.lift(sites[shape.site]), len(centre))
        dtype = dtype_of_features(natural.terms, shift, narrow, wide)
        if dtype is None:
            return None
        coefficients = self.coefficients(natural, log_weights)
        value, sums = feature_sums(coefficients.to(dtype), prepared.rows, table.row_weights, share)
        statistics = _statistics(sums, prepared, pooled=shape.pooled)
        if dtype != wide and not _intact(statistics, shape, torch.finfo(dtype).eps):
            value, sums = feature_sums(coefficients, prepared.rows, table.row_weights, share)
            statistics = _statistics(sums, prepared, pooled=shape.pooled)
        return Expectation(value, statistics)


def _intact(statistics: Statistics, shape: AbstractCovariance, eps: float) -> bool:
    """Whether scatters about the centre kept a digit or two: a component may have become much narrower in one step."""
    count, offset = statistics.count[..., None], statistics.mean
    lost = _DIGITS_LOST * eps * count * offset.square()
    lost = lost.sum(-2, keepdim=True) if shape.pooled else lost
    told = shape.variances(statistics.scatter, offset.shape[-1])
    return bool(((told > lost) | (count < 2)).all())  # next to no rows: the prior speaks, or there is no density


def _blurred(scores: Tensor, power: float) -> Tensor:
    return (power * scores).softmax(-2)


def _statistics(sums: Tensor, prepared: CentredRows, *, pooled: bool) -> Statistics:
    """Count, mean (off the centre) and scatter about the mean from sums of quadratic features ``(*b, K, P)``."""
    size, spread_dim = len(prepared.centre), prepared.rows.spread_dim
    count = sums[..., 0]
    offset = sums[..., 1 : size + 1] / count.clamp_min(torch.finfo(sums.dtype).tiny)[..., None]
    packed = sums[..., size + 1 :]
    packed = packed.sum(-2, keepdim=True) if pooled else packed
    squares = packed[..., prepared.unpack] if prepared.unpack is not None else packed
    squares = squares.squeeze(-1) if spread_dim == 0 else squares
    scatter = squares - weighted_square(offset, count, spread_dim, pooled=pooled)
    scatter = scatter if spread_dim == 2 else scatter.clamp_min(0)  # rounding may leave less than nothing
    return Statistics(count, offset, scatter)

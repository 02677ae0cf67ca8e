r"""Covariances that share volume, shape or orientation: the best of them for given scatters, all restarts at once.

A covariance is :math:`\Sigma_k = \lambda_k D_k A_k D_k^T` with a volume :math:`\lambda_k`, a diagonal shape
:math:`A_k` of determinant 1 and an orthogonal orientation :math:`D_k` (Banfield and Raftery 1993). Three letters say
which of the three, in this order, are equal for all components (E), vary (V) or, for shape and orientation, are the
identity (I).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from probmix.positive_definite import safe_cholesky

__all__ = ["CONSTRAINED", "constrained_spread", "num_spread_parameters"]

# An error of this size in a log volume or a direction costs N D / 2 times its square: 1e-9 nats in a thousand rows.
_SETTLED = 1e-6
_MOST_STEPS = 50

# From one step of EM to the next the scatters change little, and more steps than these save none of EM's: measured on
# 145 x 3 measurements of diabetes, 2 to 7 components.
_WARM_STEPS = 3
_WARM_SWEEPS = 1


def num_spread_parameters(letters: str, num_components: int, num_features: int) -> int:
    """Count the free numbers in the covariances of all components.

    Args:
        letters: volume, shape and orientation: E, V or I each.
        num_components: K.
        num_features: D.

    Source:
        Celeux and Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, 781-793, table 1.

    Example:
        >>> [num_spread_parameters(letters, 3, 2) for letters in ("EII", "VEV", "VVV")]
        [1, 7, 9]
    """
    times = {"E": 1, "V": num_components, "I": 0}
    shape, orientation = num_features - 1, num_features * (num_features - 1) // 2
    return times[letters[0]] + times[letters[1]] * shape + times[letters[2]] * orientation


def constrained_spread(letters: str, scatter: Tensor, divisor: Tensor, before: Tensor | None = None) -> Tensor:
    r"""Covariances of one constrained kind that fit the scatters :math:`W_k` best.

    .. math:: \min_{\Sigma} \sum_k \{ n_k \log |\Sigma_k| + \mathrm{tr}(W_k \Sigma_k^{-1}) \}

    EVI, EEV and EVV have a closed form. VEI, VEE and VEV alternate volumes with what is shared. EVE and VVE alternate
    shapes with the common orientation, which is turned in one plane after another, each time by the best angle. From
    ``before`` these five go a few steps, each of which improves the criterion, and on from there at the next call;
    without it they go on until they settle.

    Args:
        letters: one of ``CONSTRAINED``.
        scatter: :math:`W_k`, ``(*b, K, D, D)``, or its diagonal ``(*b, K, D)`` for VEI and EVI.
        divisor: :math:`n_k > 0`, ``(*b, K)``.
        before: covariances of this kind to start from, of the scatter's shape.

    Returns:
        Of the scatter's shape and finite; zero where the scatters have no such covariance (they are singular, or not
        finite).

    Source:
        Celeux and Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, 781-793; for the
        common orientation Flury and Gautschi (1986), An algorithm for simultaneous orthogonal transformation of
        several positive definite symmetric matrices to nearly diagonal form, SIAM Journal on Scientific and
        Statistical Computing 7, 169-184, whose planes are here turned by the exact angle of least trace.

    Example:
        >>> constrained_spread("EVI", torch.tensor([[2.0, 8.0], [9.0, 1.0]]), torch.tensor([3.0, 4.0]))
        tensor([[0.5000, 2.0000],
                [3.0000, 0.3333]])
    """
    tiny = torch.finfo(scatter.dtype).tiny
    spread = _SPREADS[letters](scatter.nan_to_num(0.0, 0.0, 0.0), divisor.clamp_min(tiny), before)
    return spread.nan_to_num(0.0, 0.0, 0.0)


# -- equal volume ----------------------------------------------------------------------------------------------------


def _evi(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Own shape along the axes; a component whose scatter is nothing gets that of a sphere."""
    width = scatter.clamp_min(torch.finfo(scatter.dtype).tiny)
    volume = width.log().mean(-1, keepdim=True).exp()
    return width / volume * _shared_volume(volume[..., 0], divisor)[..., None, None]


def _evv(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Own shape and orientation."""
    size, tiny = scatter.shape[-1], torch.finfo(scatter.dtype).tiny
    volume = (torch.linalg.slogdet(scatter).logabsdet / size).exp().clamp_min(tiny)
    return scatter / volume[..., None, None] * _shared_volume(volume, divisor)[..., None, None, None]


def _shared_volume(volume: Tensor, divisor: Tensor) -> Tensor:
    """Common volume from those of the scatters, ``(*b, K) -> (*b,)``."""
    return volume.sum(-1) / divisor.sum(-1)


def _eev(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Eigenvalues in order are added up; every component keeps its eigenvectors."""
    widths, axes = torch.linalg.eigh(scatter.nan_to_num())  # one failed restart must not end all
    pooled = widths.sum(-2, keepdim=True) / divisor.sum(-1)[..., None, None]
    return _assemble(axes, pooled)


# -- own volume, equal shape -----------------------------------------------------------------------------------------


def _vei(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Common shape along the axes."""
    return _proportional(scatter, divisor, before)


def _vev(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Along its own eigenvectors each component is one of VEI."""
    widths, axes = torch.linalg.eigh(scatter.nan_to_num())  # one failed restart must not end all
    before = None if before is None else before.diagonal(dim1=-2, dim2=-1)
    return _assemble(axes, _proportional(widths, divisor, before))


def _proportional(widths: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Variances ``volume_k * shape_j``, ``(*b, K, D)``; all that counts of those before are their sums, the volumes."""
    start, most = (widths, _MOST_STEPS) if before is None else (before, _WARM_STEPS)
    tiny, total = torch.finfo(widths.dtype).tiny, divisor.sum(-1)[..., None, None]

    def shape(log_volume: Tensor) -> Tensor:
        return ((widths / log_volume.exp()[..., None]).sum(-2, keepdim=True) / total).clamp_min(tiny)

    def refit(log_volume: Tensor) -> Tensor:
        return ((widths / shape(log_volume)).mean(-1) / divisor).clamp_min(tiny).log()

    log_volume = _settled(refit, start.sum(-1).clamp_min(tiny).log(), 1, most)
    return log_volume.exp()[..., None] * shape(log_volume)


def _vee(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Common shape and orientation."""
    size, tiny, total = scatter.shape[-1], torch.finfo(scatter.dtype).tiny, divisor.sum(-1)[..., None, None]
    start = (scatter if before is None else before).diagonal(dim1=-2, dim2=-1).sum(-1)

    def common(log_volume: Tensor) -> Tensor:
        return (scatter / log_volume.exp()[..., None, None]).sum(-3) / total

    def refit(log_volume: Tensor) -> Tensor:
        precision = torch.cholesky_inverse(safe_cholesky(common(log_volume)))
        return ((scatter * precision[..., None, :, :]).sum((-2, -1)) / (size * divisor)).clamp_min(tiny).log()

    log_volume = _settled(refit, start.clamp_min(tiny).log(), 1, _MOST_STEPS if before is None else _WARM_STEPS)
    return log_volume.exp()[..., None, None] * common(log_volume)[..., None, :, :]


# -- own shape, equal orientation ------------------------------------------------------------------------------------


def _eve(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Own shape, common volume and orientation."""
    return _common_axes(scatter, lambda widths: _evi(widths, divisor, None), before)


def _vve(scatter: Tensor, divisor: Tensor, before: Tensor | None) -> Tensor:
    """Own volume and shape, common orientation."""
    return _common_axes(scatter, lambda widths: widths / divisor[..., None], before)


def _common_axes(scatter: Tensor, shapes: Callable[[Tensor], Tensor], before: Tensor | None) -> Tensor:
    """Covariances with the same eigenvectors; ``shapes`` says which variances along them are best."""

    def turn(axes: Tensor) -> Tensor:
        turned = axes.mT[..., None, :, :] @ scatter @ axes[..., None, :, :]
        widths = turned.diagonal(dim1=-2, dim2=-1)
        floor = torch.finfo(widths.dtype).eps * widths.amax(-1, keepdim=True) + torch.finfo(widths.dtype).tiny
        return _sweep(axes, turned, shapes(torch.maximum(widths, floor)).reciprocal())

    first, most = (scatter, _MOST_STEPS) if before is None else (before, _WARM_SWEEPS)
    axes = _settled(turn, _first_axes(first), 2, most)[..., None, :, :]
    widths = ((scatter @ axes) * axes).sum(-2)
    return _assemble(axes, shapes(widths.clamp_min(0)))


def _first_axes(spread: Tensor) -> Tensor:
    """Common eigenvectors of matrices that have some: those of a sum with unlike weights, which keeps them apart."""
    weight = 1 + torch.arange(spread.shape[-3], dtype=spread.dtype, device=spread.device).mul(0.618).frac()
    trace = spread.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.linalg.eigh((spread * (weight / trace)[..., None, None]).sum(-3)).eigenvectors


def _sweep(axes: Tensor, turned: Tensor, precision: Tensor) -> Tensor:
    r"""Turn the axes once in every plane, ``(*b, D, D)``, so that the sum of traces falls to its least.

    In the plane of i and j the trace depends on the angle as :math:`a \cos 2\theta + b \sin 2\theta`, with
    :math:`2a = \sum_k (c_{ki} - c_{kj})(t_{kii} - t_{kjj})` and :math:`b = \sum_k (c_{ki} - c_{kj}) t_{kij}`. Planes
    without a common axis do not disturb one another and are turned at the same time.

    Args:
        axes: orientation.
        turned: scatters in these axes, ``(*b, K, D, D)``.
        precision: one over the variances along them, :math:`c`, ``(*b, K, D)``.
    """
    identity = torch.eye(axes.shape[-1], dtype=axes.dtype, device=axes.device)
    for swap in _planes(axes):
        gap = precision - precision @ swap
        widths = turned.diagonal(dim1=-2, dim2=-1)
        cosine = (gap * (widths - widths @ swap)).sum(-2) / 2
        sine = (gap * (turned * swap).sum(-2)).sum(-2)
        angle = torch.atan2(-sine, -cosine)[..., None, :] / 2
        turn = identity * angle.cos() + swap * angle.sin()
        axes = axes @ turn
        turned = turn.mT[..., None, :, :] @ turned @ turn[..., None, :, :]
    return axes


def _planes(like: Tensor) -> Tensor:
    """Every pair of axes once, as rounds of a tournament: permutations that swap partners, ``(rounds, D, D)``."""
    size = like.shape[-1]
    seats = size + size % 2  # with an odd number of axes one rests in each round
    partners = []
    for turn in range(seats - 1):
        circle = [0, *(1 + (turn + seat) % (seats - 1) for seat in range(seats - 1))]
        pairs = {circle[seat]: circle[-1 - seat] for seat in range(seats)}
        partners.append([pairs[axis] if pairs[axis] < size else axis for axis in range(size)])
    index = torch.tensor(partners, device=like.device).reshape(-1, size)
    return torch.nn.functional.one_hot(index, size).to(like)


# -- shared parts ----------------------------------------------------------------------------------------------------


def _assemble(axes: Tensor, widths: Tensor) -> Tensor:
    """Matrices with these eigenvectors (in columns) and eigenvalues."""
    root = axes * widths.clamp_min(0).sqrt()[..., None, :]
    return root @ root.mT


def _settled(update: Callable[[Tensor], Tensor], value: Tensor, event_dim: int, most: int) -> Tensor:
    """Repeat an update until the value moves no more; each entry of the batch stops by itself."""
    tolerance = max(_SETTLED, 16 * torch.finfo(value.dtype).eps)
    batch = value.ndim - event_dim
    moving = value.new_ones((*value.shape[:batch], *(1,) * event_dim), dtype=torch.bool)
    for _ in range(most - 1):
        new = torch.where(moving, update(value), value)
        moving = (new - value).abs().amax(tuple(range(batch, value.ndim)), keepdim=True) > tolerance
        value = new
        if not moving.any():
            return value
    return torch.where(moving, update(value), value)


_SPREADS: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = MappingProxyType(
    {"VEI": _vei, "EVI": _evi, "VEE": _vee, "EVE": _eve, "VVE": _vve, "EEV": _eev, "VEV": _vev, "EVV": _evv}
)
#: The kinds of ``constrained_spread``.
CONSTRAINED = tuple(_SPREADS)

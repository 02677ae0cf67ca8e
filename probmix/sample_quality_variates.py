"""Control variates on the sphere: functions of a random direction with known means, and the regression on them."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from probmix.sample_quality_inputs import row_blocks
from probmix.table import wide_dtype

__all__ = ["Control", "control_variates", "corrected", "least_projections"]

#: Which control variates: see `probmix.sample_quality_sliced.sliced_wasserstein`.
Control: TypeAlias = Literal["full", "lower", "upper", "none"]

_HARMONICS = 6  # of an even function on the circle: up to twelve modes in a ring
_LEAST_RATIO = 5  # projections to coefficients: with fewer the standard error is much too large
_NOISE = 1e3  # roundings: a variate that varies by less than these is a constant


def least_projections(control: Control, num_features: int) -> int:
    """Return the fewest projections with which a choice of control variates makes sense.

    Example:
        >>> least_projections("full", 10), least_projections("none", 10)
        (50, 5)
    """
    full = 2 * _HARMONICS if num_features == 2 else 9
    return _LEAST_RATIO * (1 + {"full": full, "lower": 1, "upper": 1, "none": 0}[control])


def control_variates(control: Control, x: Tensor, y: Tensor, directions: Tensor, forms: Tensor) -> Tensor:
    r"""Return control variates at each direction, less their means over the sphere, ``(projections, variates)``.

    With the difference :math:`\delta` of the means and the covariances :math:`S_1, S_2` (divisors n and m), the forms
    :math:`q_A(\theta) = \theta^T A \theta` of :math:`A \in \{\delta \delta^T, S_1, S_2\}` have the means

    .. math:: E[q_A] = \frac{\operatorname{tr} A}{d}, \qquad
        E[q_A q_B] = \frac{\operatorname{tr} A \operatorname{tr} B + 2 \operatorname{tr} A B}{d (d + 2)}

    ``"lower"`` is the first of the forms, ``"upper"`` their sum, ``"full"`` the three and their six products; of two
    features the cosines and sines of 2, 4, ..., 12 times the angle, which span these and have mean 0.

    Args:
        control: which.
        x: the first sample, ``(n, d)``.
        y: the second, ``(m, d)``.
        directions: unit vectors, ``(projections, d)``.
        forms: squared difference of the projected means, and variances of the projected samples, ``(projections, 3)``.

    Source:
        Nguyen and Ho (2024), Sliced Wasserstein estimation with control variates, ICLR, for lower and upper; Leluc,
        Dieuleveut, Portier, Segers and Zhuman (2024), Sliced-Wasserstein estimation with spherical harmonics as control
        variates, ICML, for the circle.

    Example:
        >>> x, y, axes = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.eye(2)
        >>> control_variates("lower", x, y, axes, torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).T
        tensor([[ 2., -2.]], dtype=torch.float64)
    """
    wide = wide_dtype(x)
    if control == "none":
        return forms.new_empty(len(forms), 0, dtype=wide)
    if control == "full" and x.shape[1] == 2:
        return _harmonics(directions.to(wide))
    values, means = forms.to(wide), _traces(x, y) / x.shape[1]
    if control == "lower":
        values, means = values[:, :1], means[:1]
    elif control == "upper":
        values, means = values.sum(1, keepdim=True), means.sum(0, keepdim=True)
    else:
        i, j = torch.triu_indices(3, 3, device=x.device)
        values = torch.cat([values, values[:, i] * values[:, j]], 1)
        means = torch.cat([means, _means_of_products(x, y)[i, j]])
    centred = values - means
    constant = centred.square().mean(0).sqrt() <= _NOISE * torch.finfo(x.dtype).eps * means
    return centred.masked_fill(constant, 0.0)


def corrected(values: Tensor, variates: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean of values with control variates, and its standard error.

    .. math:: \frac{1}{L} \sum_{i=1}^L \bigl(w_i - \beta_{-i}^T c_i\bigr)

    where the coefficients :math:`\beta_{-i}` are those of the regression of all values but the i-th. They are
    independent of :math:`c_i`, whose mean is 0, so the estimate is unbiased for any number of projections, which that
    with one regression for all is not. Leaving out needs no second regression: residuals are divided by one less the
    leverage. The standard error is that of the jackknife for the intercept; without variates that of a mean.

    Args:
        values: ``(L,)``.
        variates: of mean 0, ``(L, k)``; k may be 0.

    Source:
        Owen (2013), Monte Carlo theory, methods and examples, chapter 8, for regression; Cook (1977), Detection of
        influential observation in linear regression, Technometrics 19, for leaving out.

    Example:
        >>> c = torch.tensor([[1.0], [-2.0], [0.5], [2.0]], dtype=torch.float64)
        >>> mean, error = corrected(3.0 + 2.0 * c[:, 0], c)
        >>> bool((mean - 3.0).abs() < 1e-9), bool(error < 1e-9)
        (True, True)
    """
    wide = wide_dtype(values)
    w, c = values.to(wide), variates.to(wide)
    size = c.square().mean(0).sqrt()
    design = torch.cat([torch.ones_like(w)[:, None], c / torch.where(size > 0, size, 1.0)], 1)
    inverse = torch.linalg.pinv(design.mT @ design, hermitian=True, rtol=1e-10)  # variates may depend on one another
    gains = design @ inverse
    coefficients = w @ gains
    leverage = (gains * design).sum(1)
    residuals = (w - design @ coefficients) / (1 - leverage).clamp_min(torch.finfo(wide).eps)
    intercepts = coefficients[0] - gains[:, 0] * residuals  # each without its own value
    error = (len(w) - 1) ** 0.5 * intercepts.std(correction=0)
    return (intercepts + residuals).mean(), error


def _harmonics(directions: Tensor) -> Tensor:
    angle = 2 * torch.atan2(directions[:, 1], directions[:, 0])[:, None]
    multiples = angle * torch.arange(1, _HARMONICS + 1, device=angle.device)
    return torch.cat([multiples.cos(), multiples.sin()], 1)


def _traces(x: Tensor, y: Tensor) -> Tensor:
    """Return the traces of the three matrices, ``(3,)``."""
    wide = wide_dtype(x)
    shift = (x.mean(0, dtype=wide) - y.mean(0, dtype=wide)).square().sum()
    return torch.stack([shift, *(_centred(rows).square().mean(0, dtype=wide).sum() for rows in (x, y))])


def _means_of_products(x: Tensor, y: Tensor) -> Tensor:
    """Return the means of products of two of the forms, ``(3, 3)``."""
    wide, d = wide_dtype(x), x.shape[1]
    roots = [(x.mean(0) - y.mean(0))[None], *(_centred(rows) / math.sqrt(len(rows)) for rows in (x, y))]
    traces = _traces(x, y)
    pairs = torch.stack([_trace_of_product(a, b) for a in roots for b in roots]).reshape(3, 3).to(wide)
    return (torch.outer(traces, traces) + 2 * pairs) / (d * (d + 2))


def _trace_of_product(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\operatorname{tr}(a^T a \, b^T b)` by features or by rows, whichever is cheaper."""
    wide = wide_dtype(a)
    if a.shape[1] * (len(a) + len(b)) < len(a) * len(b):
        return ((a.mT @ a) * (b.mT @ b)).sum(dtype=wide)
    blocks = row_blocks(len(a), len(b))
    return torch.stack([(a[block] @ b.mT).square().sum(dtype=wide) for block in blocks]).sum()


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)

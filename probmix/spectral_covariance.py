"""Covariance of a spectral mixture, tile by tile, with its gradient in closed form: memory for the result alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from probmix.opaque_operation import differentiable
from probmix.spectra import AbstractSpectrum, spectrum_of, sums
from probmix.tiles import batch_first, tiles

__all__ = ["spectral_covariance"]


def spectral_covariance(
    x1: Tensor,
    x2: Tensor,
    weights: Tensor,
    frequencies: Tensor,
    bandwidths: Tensor,
    spectrum: AbstractSpectrum,
    *,
    symmetric: bool = False,
) -> Tensor:
    r"""Return the covariance of a mixture of spectral components, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``.

    .. math:: k(\tau) = \sum_q w_q \prod_d g(2 \pi v_{qd} |\tau_d|) \cos(2 \pi \mu_{qd} \tau_d)

    The cosine of a difference is that of its sides, :math:`\cos(a - b) = \cos a \cos b + \sin a \sin b`: a product of
    two matrices, so that only the envelope is a function of every pair. Matrix and gradient are made tile by tile, and
    the gradient makes its tiles once more.

    Args:
        x1: rows.
        x2: rows; the same tensor if ``symmetric``, when only tiles up to the diagonal are made.
        weights: w, ``(*b, q)``.
        frequencies: :math:`\mu`, cycles per unit, ``(*b, q, d)``.
        bandwidths: v, cycles per unit, ``(*b, q, d)``.
        spectrum: the shape of every component, with the envelope g.
        symmetric: whether both sets are one.

    Source:
        Wilson and Adams (2013), Gaussian process kernels for pattern discovery and extrapolation, equation 12.

    Example:
        >>> from probmix.spectra import GaussianSpectrum
        >>> x, ones = torch.tensor([[0.0], [0.5]]), torch.ones(1, 1)
        >>> spectral_covariance(x, x, ones[0], ones, 0.1 * ones, GaussianSpectrum(), symmetric=True)
        tensor([[ 1.0000, -0.9518],
                [-0.9518,  1.0000]])
    """
    origin = (x1 if x1.shape[-2] else x2)[..., :1, :].detach()  # phases are small near it, so rounding is
    x1 = x1 - origin
    x2 = x1 if symmetric else x2 - origin
    return _covariance(x1, x2, weights, frequencies, bandwidths, spectrum.df, symmetric)


# To whoever traces, each direction is one operation: the tiles of a large matrix would be thousands of nodes.


@torch.library.custom_op("probmix::spectral_covariance", mutates_args=())
def _forwards(
    x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor, df: int, symmetric: bool
) -> Tensor:
    with torch.no_grad():
        return _values(x1, x2, weights, frequencies, bandwidths, df, symmetric)


@torch.library.custom_op("probmix::spectral_covariance_gradient", mutates_args=())
def _backwards(
    gradient: Tensor, x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor,
    df: int, symmetric: bool, by_rows: bool,
) -> list[Tensor]:  # fmt: skip
    with torch.no_grad():
        return _gradients(gradient, x1, x2, weights, frequencies, bandwidths, df, symmetric, by_rows)


@_forwards.register_fake
def _empty_output(
    x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor, *settings: Any
) -> Tensor:
    shapes = [x1.shape[:-2], x2.shape[:-2], weights.shape[:-1], frequencies.shape[:-2], bandwidths.shape[:-2]]
    return x1.new_empty((*torch.broadcast_shapes(*shapes), x1.shape[-2], x2.shape[-2]))


def _aligned(info: Any, axes: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return tensors with the axis of a vmap in front; the weights have one axis fewer than the others."""
    at = len(tensors) - 3
    widened = [tensor[..., None] if i == at else tensor for i, tensor in enumerate(tensors)]
    aligned = batch_first(info, axes, widened)
    return [tensor.squeeze(-1) if i == at else tensor for i, tensor in enumerate(aligned)]


def _values(
    x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor, df: int, symmetric: bool
) -> Tensor:
    """Return the covariance, tile by tile."""
    out = _empty_output(x1, x2, weights, frequencies, bandwidths)
    for rows, columns in _tiles(x1, x2, weights, symmetric):
        part = _Tile(x1[..., rows, :], x2[..., columns, :], frequencies, bandwidths, spectrum_of(df))
        k = part.sum_of(weights)
        out[..., rows, columns] = k
        if symmetric and rows != columns:
            out[..., columns, rows] = k.mT
    return out


def _gradients(
    gradient: Tensor, x1: Tensor, x2: Tensor, weights: Tensor, frequencies: Tensor, bandwidths: Tensor,
    df: int, symmetric: bool, by_rows: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients by all tensors, or all but the rows."""
    found: list[dict[int, Tensor]] = [{} for _ in range(5)]  # of each input: start of a block -> its gradient
    for rows, columns in _tiles(x1, x2, weights, symmetric):
        of_tile = gradient[..., rows, columns]
        if symmetric and rows != columns:
            of_tile = of_tile + gradient[..., columns, rows].mT
        part = _Tile(x1[..., rows, :], x2[..., columns, :], frequencies, bandwidths, spectrum_of(df))
        parts = [*(part.by_rows(of_tile, weights) if by_rows else (None, None)), *part.pull(of_tile, weights)]
        for blocks, start, value in zip(found, (rows.start, columns.start, 0, 0, 0), parts, strict=True):
            if value is not None:
                blocks[start] = blocks[start] + value if start in blocks else value
    tensors = (x1, x2, weights, frequencies, bandwidths)
    whole = [
        (torch.cat(list(blocks.values()), -2 if i < 2 else 0), tensors[i]) for i, blocks in enumerate(found) if blocks
    ]
    return [value.sum_to_size(tensor.shape) for value, tensor in whole]


class _Tile:
    """All components at some rows and columns: the factors of their kernels, and what is made of them."""

    def __init__(
        self, x1: Tensor, x2: Tensor, frequencies: Tensor, bandwidths: Tensor, spectrum: AbstractSpectrum
    ) -> None:
        self.spectrum, self.angular, self.slopes = spectrum, 2 * math.pi * frequencies, 2 * math.pi * bandwidths
        self.lags = x1.mT[..., :, :, None] - x2.mT[..., :, None, :]
        self.distances = self.lags.abs()
        first, second = (self.angular[..., None] * x.mT[..., None, :, :] for x in (x1, x2))  # (*b, q, d, n)
        self._first = torch.stack([first.cos(), first.sin()], -1)
        self._second = torch.stack([second.cos(), second.sin()], -2)
        self._cosines = (self._first @ self._second).unbind(-3)
        self.envelope = spectrum.joint(self.distances, self.slopes)
        self.product = self.envelope
        for cosine in self._cosines:
            self.product = self.product * cosine

    def turned(self, d: int) -> Tensor:
        """Return the product with a sine in the place of the cosine of one dimension."""
        sine = torch.stack([self._first[..., d, :, 1], -self._first[..., d, :, 0]], -1) @ self._second[..., d, :, :]
        turned = self.envelope * sine
        for other, cosine in enumerate(self._cosines):
            turned = turned if other == d else turned * cosine
        return turned

    def sum_of(self, weights: Tensor) -> Tensor:
        """Return the covariance, ``(*b, n, m)``."""
        total = weights[..., None, :] @ self.product.flatten(-2)
        return total.unflatten(-1, self.product.shape[-2:]).squeeze(-3)

    def pull(self, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        """Return the gradients by weights, frequencies and bandwidths, given that by the covariance."""
        by_weights = sums(self.product, gradient)
        by_frequencies, by_bandwidths = [], []
        for d, (lags, distances) in enumerate(zip(self.lags.unbind(-3), self.distances.unbind(-3), strict=True)):
            by_frequencies.append(-sums(self.turned(d), gradient * lags))
            by_bandwidths.append(self.spectrum.pull(gradient, self.product, distances, self.slopes[..., d]))
        scale = 2 * math.pi * weights[..., None]
        return [by_weights, scale * torch.stack(by_frequencies, -1), scale * torch.stack(by_bandwidths, -1)]

    def by_rows(self, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        """Return the gradients by rows and columns, ``(*b, n, d)`` and ``(*b, m, d)``."""
        first, second = [], []
        for d, (lags, distances) in enumerate(zip(self.lags.unbind(-3), self.distances.unbind(-3), strict=True)):
            slopes = self.slopes[..., d, None, None]
            rates = self.spectrum.log_slope(slopes * distances[..., None, :, :])
            rates = rates * slopes.square() * lags[..., None, :, :]
            change = self.product * rates - self.angular[..., d, None, None] * self.turned(d)
            by_lag = gradient * torch.einsum("...q,...qnm->...nm", weights, change)
            first.append(by_lag.sum(-1))
            second.append(-by_lag.sum(-2))
        return [torch.stack(first, -1), torch.stack(second, -1)]


def _tiles(x1: Tensor, x2: Tensor, weights: Tensor, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    batch = max(1, weights.shape.numel() // 4)  # larger tiles than others': few operations go over each
    return tiles(x1.shape[-2], x2.shape[-2], batch, symmetric=symmetric)


_covariance = differentiable(_forwards, _backwards, _gradients, tensors=5, aligned=_aligned)

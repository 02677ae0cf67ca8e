"""Kernels that are linear in their weights: a grid of spectral components, and the bank of their matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Self

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor, nn

from probmix.errors import DataError, ProgramError

__all__ = ["GridKind", "GridSpectralMixtureKernel", "KernelBank", "SpectralGrid", "smooth_grid", "spectral_grid"]

GridKind = Literal["diagonal", "random", "full", "axes", "pairs"]

_MOST = 20_000  # components of a grid: a product over columns has num_points ** d of them
_AT_ONCE = 2**22  # numbers in the largest tensor on the way to a product
_TILE = 2**5  # components, and the root of the number of differences, in a tile that a cache holds
_KEPT = 2**30  # numbers of a bank that are computed once and kept (8 GiB in float64); else block by block, every time
_EVEN = 1e-6  # largest distance of a row from an even grid, in steps of it


@dataclass(frozen=True)
class SpectralGrid:
    r"""Where the components are: each a Gaussian at a frequency, mirrored at zero, in every input column.

    .. math:: k_i(x, x') = \prod_p \exp(-2 \pi^2 v_{ip}^2 \tau_p^2) \cos(2 \pi \mu_{ip} \tau_p), \quad \tau = x - x'

    A column in which frequency and bandwidth are zero plays no part in a component. Frequency zero alone is the
    squared exponential kernel of length scale ``1 / (2 pi v)``. Grids add up: ``axes + pairs``.

    Args:
        frequencies: :math:`\mu`, ``(a, d)``, cycles per unit of x.
        bandwidths: v, ``(a, d)``, standard deviations in the same unit.

    Raises:
        ProgramError: other shapes, negative or not finite.

    Source:
        Suwandi, Lin, Yin, Wang and Theodoridis (2023), Sparsity-aware distributed learning for Gaussian processes with
        linear multiple kernel, equation of the GSMP kernel.

    Example:
        >>> grid = SpectralGrid(torch.tensor([[0.0], [0.25]]), torch.tensor([[0.1], [0.0]]))
        >>> grid.values(torch.tensor([[0.0], [2.0]])).round(decimals=3)
        tensor([[ 1.0000,  0.4540],
                [ 1.0000, -1.0000]])
    """

    frequencies: Tensor
    bandwidths: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.frequencies.shape), tuple(self.bandwidths.shape)
        if shapes[0] != shapes[1] or self.frequencies.dim() != 2 or not shapes[0][-1]:
            raise ProgramError(
                f"expected frequencies and bandwidths of one shape (a, d), got {shapes[0]}, {shapes[1]}."
            )
        for name in ("frequencies", "bandwidths"):
            value = getattr(self, name)
            if not bool((value.isfinite() & (value >= 0)).all()):
                raise ProgramError(
                    f"{name}: expected finite numbers of 0 or more, got {float(value.min()):.3g} to "
                    f"{float(value.max()):.3g}. A negative frequency is that of the other sign."
                )

    def __len__(self) -> int:
        return len(self.frequencies)

    def __add__(self, other: SpectralGrid) -> Self:
        if other.num_columns != self.num_columns:
            raise ProgramError(
                f"expected grids over one number of columns, got {self.num_columns} and {other.num_columns}."
            )
        pairs = ((self.frequencies, other.frequencies), (self.bandwidths, other.bandwidths))
        return type(self)(*(torch.cat([mine, theirs.to(mine)]) for mine, theirs in pairs))

    def __getitem__(self, which: Tensor | slice) -> Self:
        return type(self)(self.frequencies[which], self.bandwidths[which])

    @property
    def num_columns(self) -> int:
        """D."""
        return self.frequencies.shape[1]

    def to(self, like: Tensor) -> Self:
        """Return the grid in the dtype and on the device of a tensor."""
        return type(self)(self.frequencies.to(like), self.bandwidths.to(like))

    def per(self, units: Tensor) -> Self:
        """Return the grid for inputs that are ``units`` ``(d,)`` times as large: frequencies per column's own unit."""
        return type(self)(self.frequencies / units, self.bandwidths / units)

    def values(self, differences: Tensor) -> Tensor:
        """Return every component at differences ``(*b, d)`` of inputs, ``(a, *b)``."""
        flat = 2 * math.pi * differences.reshape(-1, self.num_columns).mT.contiguous()
        values = (-0.5 * self.bandwidths.square() @ flat.square()).exp()
        for column in self.frequencies.any(0).nonzero()[:, 0]:
            values = values * (self.frequencies[:, column, None] * flat[column]).cos()
        return values.reshape(len(self), *differences.shape[:-1])


def spectral_grid(
    kind: GridKind,
    num_columns: int,
    num_points: int,
    *,
    frequency_range: tuple[float, float] = (0.0, 0.5),
    bandwidth: float = 1e-3,
    seed: int = 0,
) -> SpectralGrid:
    """Return a grid of spectral components.

    Args:
        kind: ``"diagonal"``: d times ``num_points`` components with one frequency in all columns, the paper's;
            ``"random"``: as many, uniform in the range, each column its own; ``"full"``: the product over columns;
            ``"axes"``: components of one column each, an additive model; ``"pairs"``: products over two columns.
        num_columns: d.
        num_points: Q, of the range in each column.
        frequency_range: lowest and highest frequency, cycles per unit of x; 1/2 is Nyquist's for unit steps.
        bandwidth: of every component, in the columns that it is about.
        seed: of the random grid.

    Raises:
        ProgramError: a setting is out of its range, or the product has too many components.

    Example:
        >>> [len(spectral_grid(kind, 3, 10)) for kind in ("diagonal", "full", "axes", "pairs")]
        [30, 1000, 30, 300]
    """
    low, high = frequency_range
    if not 0 <= low < high < math.inf:
        raise ProgramError(f"frequency_range: expected 0 <= lowest < highest, got {frequency_range!r}.")
    if num_points < 1 or num_columns < 1 or not 0 <= bandwidth < math.inf:
        raise ProgramError(
            f"expected at least 1 point and 1 column and a bandwidth of 0 or more, got {num_points!r}, {num_columns!r} "
            f"and {bandwidth!r}."
        )
    points = torch.linspace(low, high, num_points, dtype=torch.float64)
    if kind in ("diagonal", "random"):
        count = num_columns * num_points
        if kind == "diagonal":
            line = torch.linspace(low, high, count, dtype=torch.float64)
            frequencies = line[:, None].expand(count, num_columns)
        else:
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(count, num_columns, generator=generator, dtype=torch.float64)
            frequencies = low + (high - low) * uniform
        return SpectralGrid(frequencies.contiguous(), torch.full_like(frequencies, bandwidth))
    orders = {"full": num_columns, "axes": 1, "pairs": 2}
    if kind not in orders:
        raise ProgramError(f"grid: expected 'diagonal', 'random', 'full', 'axes' or 'pairs', got {kind!r}.")
    return _products(points, num_columns, min(orders[kind], num_columns), bandwidth, kind)


def _products(points: Tensor, num_columns: int, order: int, bandwidth: float, kind: str) -> SpectralGrid:
    """Return all products of points over each choice of ``order`` columns."""
    count = math.comb(num_columns, order) * len(points) ** order
    if count > _MOST:
        raise ProgramError(
            f"grid: expected at most {_MOST} components, got {count}: {len(points)} points in {num_columns} columns, "
            f"grid {kind!r}. Take fewer num_points, or grid='axes', 'pairs' or 'diagonal'."
        )
    product = torch.cartesian_prod(*[points] * order).reshape(-1, order)
    frequencies = points.new_zeros(count, num_columns)
    bandwidths = torch.zeros_like(frequencies)
    for block, columns in enumerate(combinations(range(num_columns), order)):
        rows = slice(block * len(product), (block + 1) * len(product))
        frequencies[rows, list(columns)] = product
        bandwidths[rows, list(columns)] = bandwidth
    return SpectralGrid(frequencies, bandwidths)


def smooth_grid(lengths: Tensor, order: int | None = None) -> SpectralGrid:
    r"""Return squared exponential components, of frequency zero: all length scales in all choices of columns.

    Beside components with a frequency they carry trends; alone they make an additive model (``order=1``), one of
    interactions (2), or an isotropic or ARD kernel of unknown scale (d).

    Args:
        lengths: length scales, a row ``(d,)`` for each component, ``(s, d)``, in units of the columns.
        order: how many columns a component is about; None: all.

    Raises:
        ProgramError: an order or length scale out of its range.

    Example:
        >>> len(smooth_grid(torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]]), order=2))
        6
    """
    columns = lengths.shape[-1]
    order = columns if order is None else order
    if lengths.dim() != 2 or not 1 <= order <= columns or not bool((lengths > 0).all()):
        raise ProgramError(
            f"expected positive length scales (s, d) and an order of 1 to d, got shape {tuple(lengths.shape)}, "
            f"smallest {float(lengths.min()):.3g}, and order {order}."
        )
    masks = lengths.new_zeros(math.comb(columns, order), columns)
    for row, chosen in enumerate(combinations(range(columns), order)):
        masks[row, list(chosen)] = 1
    bandwidths = (masks[:, None] / (2 * math.pi * lengths)).reshape(-1, columns)
    return SpectralGrid(torch.zeros_like(bandwidths), bandwidths)


class KernelBank:
    r"""The matrices :math:`K_i` of all components on the same rows, never held as such.

    A component depends on differences alone, so it is kept as its values at the u *distinct* ones: n lags where a
    single column is evenly spaced (holes and any order allowed; the matrices are Toeplitz), else the n (n + 1) / 2
    pairs. A bank of more than some 2^30 numbers is computed anew, block by block, wherever it is needed.

    Args:
        grid: the components.
        x: rows ``(n, d)``.

    Raises:
        DataError: rows of another number of columns than the grid.

    Example:
        >>> grid = spectral_grid("diagonal", 1, 3, bandwidth=0.0)
        >>> bank = KernelBank(grid, torch.arange(4.0)[:, None])
        >>> bank.num_differences, bank.combined(torch.tensor([0.0, 0.0, 1.0]))[0].round()
        (4, tensor([ 1., -1.,  1., -1.]))
        >>> bank.inner(torch.diag(torch.ones(4))[None]).round()  # the traces
        tensor([[4., 4., 4.]])
    """

    def __init__(self, grid: SpectralGrid, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != grid.num_columns:
            raise DataError(
                f"x: expected rows of shape (n, {grid.num_columns}), as the grid, got {tuple(x.shape)}. One column is "
                "x[:, None]."
            )
        self.grid, self.num_rows = grid.to(x), len(x)
        self._place: Tensor | None = None
        if x.shape[1] == 1 and _is_even(x):
            self._place = _steps(x).round().long()
            self._differences, self._index = _lags(x, self._place)
        else:
            self._differences, self._index = _pairs(x)
        kept = len(grid) * self.num_differences <= _KEPT
        self._values = self._computed(self.grid) if kept else None

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def num_differences(self) -> int:
        """U."""
        return len(self._differences)

    def combined(self, weights: Tensor) -> Tensor:
        r"""Return :math:`\sum_i \theta_i K_i`, ``(n, n)``; the work is that of the non-zero weights ``(a,)``."""
        which = weights.nonzero()[:, 0]
        total = self._differences.new_zeros(self.num_differences)
        for part, values in zip(self._parts(which), self._blocks(which), strict=True):
            total = total + weights[part] @ values
        return total[self._index]

    def inner(self, matrices: Tensor) -> Tensor:
        r"""Return :math:`\mathrm{tr}(K_i W)` of symmetric ``(k, n, n)`` for all components, ``(k, a)``."""
        folded = matrices.new_zeros(len(matrices), self.num_differences)
        folded = folded.index_add_(1, self._index.reshape(-1), matrices.flatten(1))
        if self._values is not None:
            return folded @ self._values.mT
        every = torch.arange(len(self), device=matrices.device)
        return torch.cat([folded @ values.mT for values in self._blocks(every)], -1)

    def multiplier(self, which: Tensor) -> Callable[[Tensor], Tensor]:
        r"""Return the function from z ``(n,)`` to :math:`K_i z` of the components ``which`` ``(k,)``, ``(n, k)``.

        By fast Fourier transforms where the matrices are Toeplitz, else with their k matrices in memory.
        """
        if not len(which):
            return lambda z: z.new_zeros(self.num_rows, 0)
        if self._place is None:
            matrices = torch.cat([values[:, self._index] for values in self._blocks(which)])
            return lambda z: (matrices @ z).mT
        values, place, length = torch.cat(list(self._blocks(which))), self._place, 2 * self.num_differences
        around = torch.cat([values, values[:, :1], values[:, 1:].flip(-1)], -1)  # circulant; the lag u meets no row
        spectra = torch.fft.rfft(around)

        def multiply(z: Tensor) -> Tensor:
            padded = z.new_zeros(length).index_add(0, place, z)
            return torch.fft.irfft(spectra * torch.fft.rfft(padded), length)[:, place].mT

        return multiply

    def _blocks(self, which: Tensor) -> Iterator[Tensor]:
        """Yield values at the distinct differences of consecutive parts of ``which`` (`_parts`)."""
        for part in self._parts(which):
            yield self._computed(self.grid[part]) if self._values is None else self._values[part]

    def _parts(self, which: Tensor) -> tuple[Tensor, ...]:
        return which.split(max(1, _AT_ONCE // self.num_differences))

    def _computed(self, grid: SpectralGrid) -> Tensor:
        """Return the values of a grid, made in tiles that a cache holds."""
        values = self._differences.new_empty(len(grid), self.num_differences)
        for row in range(0, len(grid), _TILE):
            part = grid[row : row + _TILE]
            for column in range(0, self.num_differences, _TILE**2):
                tile = self._differences[column : column + _TILE**2]
                values[row : row + _TILE, column : column + _TILE**2] = part.values(tile)
        return values


def _is_even(x: Tensor) -> bool:
    """Whether a single column lies on an even grid that is not much larger than the rows are many."""
    steps = _steps(x)
    return (
        bool(steps.isfinite().all())
        and bool((steps - steps.round()).abs().max() < _EVEN)
        and (float(steps.max()) < 4 * len(x))
    )


def _steps(x: Tensor) -> Tensor:
    """Return the place of each row on the grid of the smallest step."""
    distinct = torch.unique(x[:, 0])
    return (x[:, 0] - distinct[0]) / (distinct.diff().min() if len(distinct) > 1 else 1)


def _lags(x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    index = (place[:, None] - place).abs()
    step = (x.max() - x.min()) / place.max().clamp(min=1)
    return (torch.arange(int(place.max()) + 1, device=x.device).to(x) * step)[:, None], index


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    row, column = torch.triu_indices(len(x), len(x), device=x.device)
    index = torch.empty(len(x), len(x), dtype=torch.long, device=x.device)
    index[row, column] = index[column, row] = torch.arange(len(row), device=x.device)
    return x[row] - x[column], index


class GridSpectralMixtureKernel(Kernel):
    r"""The grid spectral mixture product kernel: fixed components, unknown weights.

    .. math:: k(x, x') = \sum_i \theta_i k_i(x, x'), \qquad \theta_i \ge 0

    Stationary, smooth in the inputs also where they coincide. Weights may be exactly zero.

    Args:
        grid: the components (`spectral_grid`).
        weights: first value, ``(a,)`` or with the batch shape before it; None: 1 / a each.
        weights_prior: prior of the weights; registered, so that it is there for every method.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: weights that are negative or not as many as components.
        DataError: inputs of another number of columns than the grid.

    Source:
        As `SpectralGrid`.

    Example:
        >>> kernel = GridSpectralMixtureKernel(spectral_grid("diagonal", 1, 3), weights=torch.tensor([2.0, 0.0, 1.0]))
        >>> kernel(torch.tensor([[0.0], [1.0]])).to_dense().detach().round(decimals=3)
        tensor([[3., 1.],
                [1., 3.]])
    """

    has_lengthscale = False
    is_stationary = True

    def __init__(
        self,
        grid: SpectralGrid,
        weights: Tensor | None = None,
        *,
        weights_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.register_buffer("frequencies", grid.frequencies)
        self.register_buffer("bandwidths", grid.bandwidths)
        dtype, device = None if weights is None else weights.dtype, grid.frequencies.device
        first = torch.zeros(*self.batch_shape, len(grid), dtype=dtype, device=device)
        self.register_parameter("raw_weights", nn.Parameter(first))
        self.register_constraint("raw_weights", Positive())
        self.weights = torch.full_like(first, 1 / len(grid)) if weights is None else weights
        if weights_prior is not None:
            self.register_prior("weights_prior", weights_prior, lambda m: m.weights, lambda m, v: m._set_weights(v))

    @property
    def grid(self) -> SpectralGrid:
        """The components."""
        return SpectralGrid(self.frequencies, self.bandwidths)

    @property
    def weights(self) -> Tensor:
        """The weights, ``(*batch_shape, a)``."""
        return self.raw_weights_constraint.transform(self.raw_weights)

    @weights.setter
    def weights(self, value: Tensor) -> None:
        self._set_weights(value)

    def _set_weights(self, value: Tensor) -> None:
        value = torch.as_tensor(value).to(self.raw_weights)
        if value.shape[-1:] != self.raw_weights.shape[-1:] or not bool((value >= 0).all()):
            raise ProgramError(
                f"weights: expected {self.raw_weights.shape[-1]} numbers of 0 or more, got shape {tuple(value.shape)}, "
                f"smallest {float(value.detach().min()):.3g}."
            )
        self.initialize(raw_weights=self.raw_weights_constraint.inverse_transform(value))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        grid, weights = self.grid.to(x1), self.weights
        if x1.shape[-1] != grid.num_columns or x2.shape[-1] != grid.num_columns:
            raise DataError(
                f"expected inputs of {grid.num_columns} columns, as the grid, got {x1.shape[-1]} and {x2.shape[-1]}."
            )
        differences = x1 - x2 if diag else x1[..., :, None, :] - x2[..., None, :, :]
        axes = 1 if diag else 2
        batch = max(weights.dim() - 1, differences.dim() - 1 - axes)
        differences = differences[(None,) * (batch + axes + 1 - differences.dim())]
        weights = weights.movedim(-1, 0)
        weights = weights.reshape(len(grid), *[1] * (batch + 1 - weights.dim()), *weights.shape[1:], *[1] * axes)
        total: Tensor | float = 0.0
        for rows in torch.arange(len(grid), device=x1.device).split(max(1, _AT_ONCE // max(1, differences.numel()))):
            total = total + (weights[rows] * grid[rows].values(differences)).sum(0)
        return torch.as_tensor(total)

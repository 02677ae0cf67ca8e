"""Gaussian process regression with a kernel that is linear in sparse weights: a grid of spectral components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.covariance_sum import CovarianceSum
from probmix.errors import DataError, ProgramError
from probmix.noise_variance import evar, noise_prior
from probmix.pairs import same_kind
from probmix.process import Process
from probmix.scale_mixture_normal import ScaleMixtureNormal
from probmix.spectral_grid import GridKind, GridSpectralMixtureKernel, KernelBank, SpectralGrid, spectral_grid

__all__ = ["Components", "GridSpectralGP"]

_ZERO = 1e-4  # of the largest weight: the paper's bound below which a weight counts as zero
_POINTS_SINGLE, _POINTS_EACH = 500, 100  # the paper's: of a single column, and of each of several


class Components(NamedTuple):
    """The components that a fit has kept, largest first.

    Args:
        places: theirs on the grid, ``(k,)``.
        weights: their variances, ``(k,)``.
        frequencies: cycles per unit of x, ``(k, d)``.
        bandwidths: ``(k, d)``.

    Example:
        >>> model = GridSpectralGP(num_points=3)
        >>> sites = {"weights": torch.tensor([1.0, 0.0, 2.0])}
        >>> model.components(torch.zeros(5, 1), sites).frequencies[:, 0]
        tensor([0.5000, 0.0000])
    """

    places: Tensor
    weights: Tensor
    frequencies: Tensor
    bandwidths: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class GridSpectralGP:
    r"""A Gaussian process whose covariance is a weighted sum of the components of a grid.

    .. math:: y \sim N\Big(\bar y, \, \sum_i \theta_i K_i + \sigma^2 I\Big), \qquad \theta_i \ge 0

    with :math:`K_i` as in `probmix.spectral_grid.SpectralGrid`. Call it with ``(x, y)``: x ``(n, d)``, y ``(n,)``. Its
    sites are ``weights`` ``(a,)`` and, where it is learnt, ``noise_var``. Maximum likelihood by
    `probmix.inference.SCA` puts nearly all weights to exactly zero; `probmix.inference.ConsensusADMM` does so where the
    rows lie with several agents. Neither looks at the priors, which MAP and the samplers do: exponential of mean
    var(y) for each weight, the noise log-normal.

    Time grows with n cubed, and with a n squared for the bank (a n for a single evenly spaced column).

    Args:
        grid: ``"diagonal"`` (the paper's), ``"random"``, ``"full"``, ``"axes"``, ``"pairs"``, or a
            `probmix.spectral_grid.SpectralGrid` of your own, such as a sum of those.
        num_points: of the range in each column; None: 500 of a single column, 100 of each of several.
        frequency_range: cycles per unit of x; up to 1/2 for rows at unit steps.
        bandwidth: of every component, the standard deviation of its spectrum.
        noise_var: None: learnt; ``"evar"``: estimated before the fit (`probmix.noise_variance.evar`, for rows in the
            order of an even spacing); or its value.
        noise_tolerance: of `evar`; 0.1 is that of the paper's program.
        centre: subtract the mean of y. Without it, as in the paper, component zero has to carry the mean.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: from a fit, data of the wrong shape, not finite, or constant.

    Source:
        Suwandi, Lin, Yin, Wang and Theodoridis (2023), Sparsity-aware distributed learning for Gaussian processes with
        linear multiple kernel.

    Example:
        >>> from probmix.inference import SCA, infer
        >>> x = torch.arange(60.0, dtype=torch.float64)[:, None]
        >>> y = (2 * torch.pi * 0.1 * x[:, 0]).sin() + 0.1 * (7.3 * x[:, 0]).sin()
        >>> model = GridSpectralGP(num_points=51)
        >>> fit = infer(model, (x, y), SCA(), seed=0)
        >>> round(float(model.components(x, fit.sites()).frequencies[0, 0]), 2)
        0.1
        >>> new = torch.tensor([[62.5]], dtype=torch.float64)
        >>> model.predictive(new, fit.sites(), x, y).mean.round(decimals=1)
        tensor([1.1000], dtype=torch.float64)
    """

    grid: GridKind | SpectralGrid = "diagonal"
    num_points: int | None = None
    frequency_range: tuple[float, float] = (0.0, 0.5)
    bandwidth: float = 1e-3
    noise_var: Literal["evar"] | float | None = None
    noise_tolerance: float = 1e-6
    centre: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.noise_var, str):
            valid = self.noise_var == "evar"
        else:
            valid = self.noise_var is None or 0 < self.noise_var < math.inf
        if not valid:
            raise ProgramError(f"noise_var: expected None, 'evar' or a positive number, got {self.noise_var!r}.")
        if not isinstance(self.grid, SpectralGrid):
            self._grid_over(1)  # refuses wrong settings now, not at the fit

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the program."""
        var = self._residuals(y).square().mean()
        grid = self._grid_over(x.shape[1]).to(x)
        weights = pyro.sample("weights", dist.Exponential((1 / var).expand(len(grid))).to_event(1))
        noise_var = self._noise(y)
        if noise_var is None:
            noise_var = pyro.sample("noise_var", noise_prior(var))
        components = grid.values(x[:, None] - x)
        covariance = torch.einsum("...a,anm->...nm", weights, components)
        eye = torch.eye(len(y), dtype=y.dtype, device=y.device)
        tril = torch.linalg.cholesky(covariance + noise_var[..., None, None] * eye)
        pyro.sample("y", ScaleMixtureNormal(self._mean(y).expand(len(y)), tril, None), obs=y)

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Check the data once, before a fit; whole numbers become floating-point ones.

        Raises:
            DataError: not finite, of other shapes, constant, or of other columns than the grid.
        """
        if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or len(y) < 3:
            raise DataError(
                f"expected rows x of shape (n, d) and observations y of shape (n,), n at least 3, got "
                f"{tuple(x.shape)} and {tuple(y.shape)}. A single input column is x[:, None], one of outputs y[:, 0]."
            )
        x, y = same_kind(x, y)
        if not bool(y.var() > 0):
            raise DataError(f"y: expected observations that differ, got {len(y)} equal ones. There is nothing to fit.")
        if not bool((x != x[0]).any()):
            raise DataError(f"x: expected rows that differ, got {len(x)} equal ones. A kernel has nothing to go by.")
        if isinstance(self.grid, SpectralGrid) and self.grid.num_columns != x.shape[1]:
            raise DataError(
                f"x: expected {self.grid.num_columns} columns, as the grid, got {x.shape[1]}. Make a grid for x."
            )
        return x, y

    def agreed(self, y: Tensor) -> Tensor:
        """Return what agents add up before a common fit, ``(3,)``: n, the sum of y, and n times its noise by `evar`."""
        noise_var = evar(y, tolerance=self.noise_tolerance) if self.noise_var == "evar" else y.new_zeros(())
        return torch.stack([y.new_full((), len(y)), y.sum(), len(y) * noise_var])

    def covariance_sum(self, x: Tensor, y: Tensor, agreed: Tensor | None = None) -> CovarianceSum:
        """Return the covariance as a function of the weights: what `probmix.inference.SCA` asks for.

        Args:
            x: rows ``(n, d)``.
            y: observations ``(n,)``.
            agreed: sums over the data of all agents (`agreed`); None: over these alone.
        """
        bank = KernelBank(self._grid_over(x.shape[1]), x)
        count, total, noise = self.agreed(y) if agreed is None else agreed
        mean = total / count if self.centre else 0.0
        noise_var = noise / count if self.noise_var == "evar" else self._noise(y)
        return CovarianceSum(bank, y - mean, noise_var)

    def process(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Process:
        """Return the process before it has seen the data, which only say its mean and, by `evar`, its noise.

        Args:
            x: rows ``(n, d)``.
            y: observations ``(n,)``.
            sites: with any leading batch ``*b`` (draws); components whose weight is zero throughout are left out.
        """
        weights, noise_var = sites["weights"], self._noise(y)
        noise_var = sites["noise_var"] if noise_var is None else noise_var
        grid = self._grid_over(x.shape[1]).to(x)
        kept = (weights > 0).reshape(-1, len(grid)).any(0).nonzero()[:, 0]
        kept = kept if len(kept) else kept.new_zeros(1)
        kernel = GridSpectralMixtureKernel(grid[kept], weights[..., kept], batch_shape=weights.shape[:-1])
        return Process(kernel.requires_grad_(False), noise_var.expand(weights.shape[:-1]), None, self._mean(y))

    def condition(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Process:
        """Return the process given the data, at sites with any leading batch ``*b``."""
        x, y = self.observe(x, y)
        with torch.no_grad():
            return self.process(x, y, sites).condition(x, y)

    def predictive(
        self, x_new: Tensor, sites: Mapping[str, Tensor], x: Tensor, y: Tensor, *, noise: bool = True
    ) -> dist.TorchDistribution:
        """Return the marginal distribution at new rows, averaged over all leading batch axes of the sites (draws).

        Args:
            x_new: rows ``(m, d)``.
            sites: with any leading batch.
            x: rows of the fit.
            y: observations of the fit.
            noise: of an observation; else of the function.
        """
        process = self.condition(x, y, sites)
        with torch.no_grad():
            return process.predictive(x_new, noise=noise, average=process.noise_var.dim() > 0)

    def components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Components:
        """Return the components whose weight exceeds 1e-4 of the largest, largest first.

        Args:
            x: rows of the fit, for their columns.
            sites: of one point.
        """
        grid, weights = self._grid_over(x.shape[1]).to(sites["weights"]), sites["weights"]
        order = weights.argsort(descending=True)
        index = order[weights[order] > _ZERO * weights.max()]
        return Components(index, weights[index], grid.frequencies[index], grid.bandwidths[index])

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of the sites."""
        return {"weights": ("component",)}

    def _grid_over(self, columns: int) -> SpectralGrid:
        if isinstance(self.grid, SpectralGrid):
            return self.grid
        points = self.num_points
        if points is None:
            points = _POINTS_SINGLE if columns == 1 else _POINTS_EACH
        return spectral_grid(self.grid, columns, points, frequency_range=self.frequency_range, bandwidth=self.bandwidth)

    def _mean(self, y: Tensor) -> Tensor:
        return y.mean() if self.centre else y.new_zeros(())

    def _residuals(self, y: Tensor) -> Tensor:
        return y - self._mean(y)

    def _noise(self, y: Tensor) -> Tensor | None:
        if self.noise_var == "evar":
            return evar(y, tolerance=self.noise_tolerance)
        return None if self.noise_var is None else y.new_full((), float(self.noise_var))

"""Spectral-mixture Gaussian processes: regression and forecasts whose kernel is a mixture in the frequency domain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from gpytorch.priors import NormalPrior, UniformPrior
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix, with_values
from probmix.grids import Grid, even_positions, find_grid, is_even, missing_rows
from probmix.models.process_model import AbstractProcessModel
from probmix.periodogram import nyquist
from probmix.process import Process
from probmix.process_solvers import AbstractSolver
from probmix.scale_mixture_normal import AbstractScaleMixtureNormal
from probmix.spectra import SpectrumName, spectrum_of
from probmix.spectral import AbstractSpectralKernel, SpectralMixtureKernel, SpectralProductKernel
from probmix.spectral_starts import Guess, periodogram_guesses, spectrum_guesses
from probmix.spectral_table import component_table
from probmix.structured_normal import AbstractCovariance, Kronecker, StructuredNormal, Toeplitz
from probmix.toeplitz_solver import noisy_column
from probmix.typing import Dims, Sites

__all__ = ["SpectralMixtureGP"]

#: How the covariance of the data is dealt with.
_Structure: TypeAlias = Literal["auto", "dense", "grid"]

#: Where guesses of the components come from; the first is the default.
_GUESSES = {"lomb_scargle": periodogram_guesses, "spectrum": spectrum_guesses}

_WEIGHT_LOG_STD = 3.0  # the default prior of a weight: within a factor of 400 of an equal share, either way
_BANDWIDTH_LOG_STD, _BANDWIDTH_CYCLES = 2.5, 0.5  # of a bandwidth: half a cycle over the span, within a factor of 150
_AT_ONCE = 2**24  # numbers in the largest tensor of a decomposition
_LONG = 2000  # rows of an even series, from which on its lags are faster than a dense factor and need less memory
_LEAST_WEIGHT = 1e-4  # of a guess, in units of the variance of y
_JEFFREYS = 1e-8, 1e2  # bounds of a weight, in units of the variance of y, that make Jeffreys' prior proper


@dataclass(frozen=True, eq=False)
class SpectralMixtureGP(AbstractProcessModel):
    r"""Regression on a Gaussian process with a spectral-mixture kernel.

    .. math:: y \sim N\big(\bar y, \, K + \sigma^2 I\big), \qquad
              k(\tau) = \sum_q w_q \prod_d g(2 \pi v_{qd} |\tau_d|) \cos(2 \pi \mu_{qd} \tau_d)

    Call it with ``(x, y)``: x ``(n, d)`` in any unit, even steps or not, y ``(n,)`` or ``(n, p)`` for p outputs that
    share kernel and noise. Sites: ``kernel.log_weights``, ``kernel.frequencies`` (cycles per unit of x),
    ``kernel.log_bandwidths`` and ``noise_var``; `to_arviz` has ``weights`` and ``bandwidths`` themselves, too.

    The likelihood of such a kernel has very many local optima. ``MAP(restarts=...)`` starts from guesses that the model
    makes from the periodogram (`starts`), runs them as one batch, keeps the best and reports all; its answer is a
    start for ``NUTS`` and ``ChEES``. Here ``MAP(restarts=..., tolerance=0.01)`` is precise enough. With
    ``weight_prior="jeffreys"``, flat in the logarithm, superfluous components lose most of their weight.

    Even steps of one input, and full grids with ``product=True``, are dealt with by their structure: an evenly spaced
    series needs its n lags instead of n^2 pairs, a grid one factorisation for each axis. Scattered rows take time that
    grows with n cubed: of some thousands fit a part first, and begin from its sites.

    Args:
        num_components: q.
        spectrum: ``"gaussian"``, ``"student_t"`` (Matern-5/2 envelopes), or `probmix.spectra.StudentTSpectrum`.
        product: a product over the inputs of one mixture each (`probmix.spectral.SpectralProductKernel`).
        max_frequency: bound of the uniform prior of frequencies, one number or one for each input. None: half a cycle
            per step, the median step where they are uneven (`probmix.periodogram.nyquist`).
        weight_prior: ``"log_normal"``: about an equal share of the variance of y, within a factor of 400; or
            ``"jeffreys"``: flat in the logarithm, from 1e-8 to 100 times the variance.
        structure: ``"auto"``; ``"dense"``: no use is made of a grid; ``"grid"``: an error where there is none.
        noise_var: as in `probmix.models.process_model.AbstractProcessModel`.
        inducing: likewise.
        integrate_scale: has no meaning here, where s is 1.
        trend: as in `AbstractProcessModel`; 1 is a good choice for forecasts of what grows.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: from a fit, data of the wrong shape, not finite or constant, or frequencies that even steps
            cannot tell from lower ones.

    Source:
        Wilson and Adams (2013), Gaussian process kernels for pattern discovery and extrapolation; Fang et al. (2024),
        Solving high frequency and multi-scale PDEs with Gaussian processes, for Student-t spectra, products and
        Jeffreys' prior.

    Example:
        >>> from probmix.inference import MAP, infer
        >>> x = torch.linspace(0, 10, 80, dtype=torch.float64)[:, None]
        >>> y = (2 * torch.pi * 0.7 * x[:, 0]).sin()
        >>> model = SpectralMixtureGP(2)
        >>> fit = infer(model, (x, y), MAP(restarts=4), seed=0)
        >>> model.table(fit.sites(), x)["frequency"].round(2).tolist()[0]
        0.7
    """

    num_components: int = 8
    spectrum: SpectrumName = "gaussian"
    product: bool = False
    max_frequency: float | Sequence[float] | None = None
    weight_prior: Literal["log_normal", "jeffreys"] = "log_normal"
    structure: _Structure = "auto"

    def __post_init__(self) -> None:
        self._check_settings(None)
        spectrum_of(self.spectrum)
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ProgramError(
                f"num_components: expected a whole number of at least 1, got {self.num_components!r}. Change it."
            )
        given = self.max_frequency
        values = () if given is None else given if isinstance(given, Sequence) else (given,)
        if not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
            raise ProgramError(
                f"max_frequency: expected a positive number of cycles per unit, or one for each input, got {given!r}. "
                "None takes what the data allow."
            )
        for name, value, allowed in (
            ("weight_prior", self.weight_prior, ("log_normal", "jeffreys")),
            ("structure", self.structure, get_args(_Structure)),
        ):
            if value not in allowed:
                raise ProgramError(
                    f"{name}: expected one of {list(allowed)}, got {value!r}. Change the setting {name}=."
                )

    # What it is made of.

    def kernel_for(self, columns: int) -> AbstractSpectralKernel:
        """Return the kernel for inputs with so many columns; its priors are those of `_kernel_priors`."""
        kind = SpectralProductKernel if self.product else SpectralMixtureKernel
        return kind(
            self.num_components,
            columns,
            self.spectrum,
            log_weights_prior=NormalPrior(0.0, 1.0),
            frequencies_prior=UniformPrior(0.0, 1.0),
            log_bandwidths_prior=NormalPrior(0.0, 1.0),
        )

    def scale_law(self, like: Tensor) -> None:
        """Return None: the variance is that of the weights."""

    @property
    def scale_has_unknowns(self) -> bool:
        """Return False: there is no scale."""
        return False

    @property
    def dims(self) -> Dims:
        """Site name -> axis names."""
        of_inputs = ("input", "component") if self.product else ("component", "input")
        of_weights = of_inputs if self.product else ("component",)
        names = {"log_weights": of_weights, "frequencies": of_inputs, "log_bandwidths": of_inputs}
        return {
            **{f"kernel.{name}": axes for name, axes in names.items()},
            "weights": of_weights,
            "bandwidths": of_inputs,
        }

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Check the data once, before a fit.

        Raises:
            DataError: as in `AbstractProcessModel.observe`; a constant input; ``max_frequency`` above the Nyquist
                frequency of even steps; ``structure="grid"`` without a grid.

        Warns:
            UserWarning: a grid with holes, which is dealt with as scattered rows.
        """
        x, y = super().observe(x, y)
        for d, column in enumerate(x.unbind(-1)):
            if not bool(column.max() > column.min()):
                raise DataError(
                    f"x: expected inputs that vary, got {float(column[0]):g} in all rows of column {d}. Drop it."
                )
        for d, (column, high) in enumerate(zip(x.unbind(-1), self._max_frequencies(x), strict=True)):
            self._check_frequency(d, column, high)
        if self.structure != "dense" and self.inducing is None and self._grid(x) is None:
            self._say_no_grid(x)
        return x, y

    def condition(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Process:
        """Return the Gaussian process given the data, at hyperparameters ``sites`` with any leading batch (draws).

        Of a grid, and of an evenly spaced series from 2,000 rows on, it predicts but takes no more data and leaves none
        out: with ``structure="dense"`` it does.
        """
        short = len(x) < _LONG and x.shape[1:] == (1,)
        if self.inducing is not None or short or self.structure == "dense":
            return super().condition(x, y, sites)
        x, y = self.observe(x, y)
        with torch.no_grad():
            return self.process(x, y, sites).condition(x, y, grid=self._grid(x))

    # Starts.

    @property
    def start_names(self) -> tuple[str, ...]:
        """Names of the ways to guess sites, for ``init``; the first is the default."""
        return tuple(_GUESSES)

    def starts(self, name: str, num: int, x: Tensor, y: Tensor) -> Sites:
        """Return random guesses of all sites, each with a leading axis of ``num``.

        Args:
            name: ``"lomb_scargle"``: some components from the peaks of the periodogram, the others without a cycle;
                ``"spectrum"``: the periodogram seen as a density, and a mixture fitted to it by EM.
            num: how many.
            x: rows.
            y: observations.

        Raises:
            ProgramError: no such name.
        """
        if name not in _GUESSES:
            raise ProgramError(f"name: expected one of {list(_GUESSES)}, got {name!r}. Choose one of them.")
        residuals = y - self._mean(x, y)
        # Of several outputs the combination that varies most: their mean may be nothing, as of y and -y.
        outcome = residuals if y.dim() == 1 else residuals @ torch.linalg.svd(residuals, full_matrices=False).Vh[0]
        guesses = [
            _GUESSES[name](column, outcome, num, self.num_components, high)
            for column, high in zip(x.unbind(-1), self._max_frequencies(x), strict=True)
        ]
        return self._sites_of(guesses, residuals)

    # What a fit says.

    def table(self, sites: Mapping[str, Tensor], x: Tensor) -> pd.DataFrame:
        """Return the components as a table, the heaviest first (`probmix.spectral_table.component_table`).

        Args:
            sites: of a point, without a leading batch.
            x: rows of the fit.
        """
        return component_table(self._kernel_at(sites, x))

    def spectrum_at(self, frequencies: Tensor, sites: Mapping[str, Tensor], x: Tensor, *, column: int = 0) -> Tensor:
        r"""Return the one-sided spectral density of the function along one input, ``(*b, m)``.

        .. math:: S(f) = \sum_q w_q \big(p(f \mid \mu_q, v_q) + p(f \mid -\mu_q, v_q)\big), \quad f \ge 0

        Args:
            frequencies: ``(m,)``, cycles per unit of x.
            sites: hyperparameters with any leading batch ``*b`` (draws).
            x: rows of the fit.
            column: the input.

        Raises:
            ProgramError: no such input.
        """
        if column not in range(x.shape[-1]):
            raise ProgramError(f"column: expected one of the {x.shape[-1]} inputs, from 0 on, got {column!r}.")
        return self._kernel_at(sites, x).spectral_density(frequencies.to(x), column).sum(-2)

    def decompose(
        self,
        x_new: Tensor,
        sites: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        bands: Mapping[str, tuple[float, float]],
    ) -> dict[str, dist.TorchDistribution]:
        r"""Return what each band of frequencies contributes to the function at new rows, given the data.

        The function is a sum of independent parts, one for each component, of which the data see the sum:

        .. math:: f_B(x_*) \mid y \sim N\big(K_B(x_*, X) \, C^{-1} (y - \bar y), \;
                  K_B(x_*, x_*) - K_B(x_*, X) \, C^{-1} K_B(X, x_*)\big), \qquad K_B = \sum_{q \in B} K_q

        Frequencies, unlike labels of components, mean the same in every draw.

        Args:
            x_new: rows ``(m, d)``.
            sites: hyperparameters with any leading batch (draws), which is averaged over.
            x: rows of the fit.
            y: observations ``(n,)``.
            bands: name -> lowest and highest frequency along the first input, in which the centre of a component lies.
                Parts of bands that do not overlap and cover all frequencies add up to the function less the mean of y.
        """
        if self.product:
            raise ProgramError("decompose: expected a sum of components, got a product of sums. Set product=False.")
        if not bands or not all(low < high for low, high in bands.values()):
            raise DataError(
                f"bands: expected at least one name with a lowest frequency below the highest, got {dict(bands)}. "
                'Such as {"trend": (0.0, 0.5), "cycles": (0.5, math.inf)}.'
            )
        if y.dim() != 1:
            raise DataError(f"expected one output, y of shape (n,), got {tuple(y.shape)}. Pass one column at a time.")
        process = self.condition(x, y, sites)
        kernel, solver = process.kernel, process.solver
        assert isinstance(solver, AbstractSolver)
        low, high = (torch.tensor([edges[i] for edges in bands.values()]).to(x) for i in (0, 1))
        centres = kernel.frequencies[..., None, :, 0]
        inside = ((centres >= low[:, None]) & (centres < high[:, None])).to(x)  # (*b, bands, q)
        own = inside @ kernel.weights[..., None]  # prior variance of each part
        parts = []
        for rows in x_new.split(max(1, _AT_ONCE // (solver.numbers_per_row * inside.numel()))):
            cross = torch.einsum("...gq,...qnm->...ngm", inside, kernel.components(solver.rows, rows))
            seen = solver.predict(cross.flatten(-2))  # all bands as one set of rows
            shape = (*own.shape[:-1], len(rows))
            var = seen.variance(own.expand(shape).flatten(-2))
            parts.append((seen.shift.reshape(shape), var.reshape(shape)))
        loc, var = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        return {name: _mixed(loc[..., g, :], var[..., g, :]) for g, name in enumerate(bands)}

    # Inside.

    def _draw_kernel(self, x: Tensor, y: Tensor) -> Kernel:
        kernel = super()._draw_kernel(x, y)
        pyro.deterministic("weights", kernel.weights, event_dim=kernel.weights.dim())
        pyro.deterministic("bandwidths", kernel.bandwidths, event_dim=kernel.bandwidths.dim())
        return kernel

    def _kernel_priors(self, x: Tensor, y: Tensor) -> dict[str, dist.TorchDistribution]:
        columns, variance, high = x.shape[-1], y.var(0).mean(), torch.stack(self._max_frequencies(x))
        of_inputs = (columns, self.num_components) if self.product else (self.num_components, columns)
        span = x.max(0).values - x.min(0).values
        high, span = (value[:, None] if self.product else value for value in (high, span))
        if self.product:  # each input has its share of the factors
            variance = variance ** (1 / columns)
        of_weights = of_inputs if self.product else of_inputs[:1]
        if self.weight_prior == "jeffreys":
            weights = dist.Uniform(*((share * variance).log() for share in _JEFFREYS))
        else:
            weights = dist.Normal((variance / self.num_components).log(), y.new_full((), _WEIGHT_LOG_STD))
        bandwidths = dist.Normal((_BANDWIDTH_CYCLES / span).log(), y.new_full((), _BANDWIDTH_LOG_STD))
        return {
            "kernel.log_weights": weights.expand(of_weights).to_event(len(of_weights)),
            "kernel.frequencies": dist.Uniform(torch.zeros_like(high), high).expand(of_inputs).to_event(2),
            "kernel.log_bandwidths": bandwidths.expand(of_inputs).to_event(2),
        }

    def _in_full(
        self,
        kernel: Kernel,
        noise_var: Tensor,
        factor_var: Tensor,
        law: dist.TorchDistribution | None,
        x: Tensor,
        loc: Tensor,
    ) -> AbstractScaleMixtureNormal:
        grid = self._grid(x)
        if grid is None:
            return super()._in_full(kernel, noise_var, factor_var, law, x, loc)
        if x.shape[-1] > 1:
            factors = [kernel.factor(d, axis) for d, axis in enumerate(grid.axes)]
            covariance: AbstractCovariance = Kronecker(tuple(factors), noise_var)
        else:
            covariance = Toeplitz(noisy_column(kernel, grid.axes[0], noise_var))
        return StructuredNormal(loc, covariance, columns=loc.dim() == 2, order=grid.order)

    def _covariance(self, kernel: Kernel, x: Tensor) -> Tensor:
        found = even_positions(x[:, 0]) if x.shape[-1] == 1 and self.structure == "auto" else None
        if found is None:
            return super()._covariance(kernel, x)
        axis, places = found  # an even series with holes: few distinct lags
        lags = covariance_matrix(kernel, axis[:, None], axis[:1, None])[..., 0]
        return lags[..., (places[:, None] - places).abs()]

    def _grid(self, x: Tensor) -> Grid | None:
        """Return the grid whose structure serves: an even series, or of several inputs whose kernel is a product."""
        if self.structure == "dense" or (x.shape[-1] > 1 and not self.product):
            return None
        grid = find_grid(x)
        return grid if grid is not None and (x.shape[-1] > 1 or is_even(grid.axes[0])) else None

    def _say_no_grid(self, x: Tensor) -> None:
        missing = None if x.shape[-1] > 1 and not self.product else missing_rows(x)
        if missing is None and self.structure == "grid":
            raise DataError(
                "x: expected an evenly spaced series, or with product=True all points of a grid, got scattered rows. "
                'Set structure="auto".'
            )
        if missing is None:
            return
        said = (
            f"the inputs are a grid with {len(missing)} of {len(missing) + len(x)} points missing, the first "
            f"at {', '.join(f'{float(value):g}' for value in missing[0])}"
        )
        if self.structure == "grid":
            raise DataError(f'x: {said}. Fill them, or set structure="auto".')
        warnings.warn(
            f"{said}, so that their covariance is factorised as a whole: the same answer, but slower. A fit to the "
            "longest stretch without holes may do, with all rows to predict from. "
            'structure="dense" says that it is meant.',
            stacklevel=2,
        )

    def _max_frequencies(self, x: Tensor) -> list[Tensor]:
        """Return the bound of the frequencies of each input."""
        given = self.max_frequency
        if given is None:
            return [nyquist(column) for column in x.unbind(-1)]
        values = list(given) if isinstance(given, Sequence) else [given] * x.shape[-1]
        if len(values) != x.shape[-1]:
            raise ProgramError(
                f"max_frequency: expected one number, or one for each of {x.shape[-1]} inputs, got {given!r}."
            )
        return [x.new_full((), value) for value in values]

    def _check_frequency(self, d: int, column: Tensor, high: Tensor) -> None:
        if even_positions(column) is None:  # coordinates of a grid, or of a series, repeated or with holes
            return
        limit = nyquist(column)
        if high > limit * (1 + 1e-6):
            raise DataError(
                f"max_frequency: expected at most {float(limit):g}, the Nyquist frequency of column {d} of x, which is "
                f"evenly spaced, got {float(high):g}. At even steps a higher frequency is the same function as a lower "
                "one; leave max_frequency out."
            )

    def _kernel_at(self, sites: Mapping[str, Tensor], x: Tensor) -> Any:
        return with_values(self._kernel_like(x), sites, "kernel")

    def _sites_of(self, guesses: Sequence[Guess], y: Tensor) -> Sites:
        """Return the sites of guesses for each input, of which each has a share of the variance if it is a product."""
        variance, axis = y.var(0).mean(), -2 if self.product else -1
        frequencies, bandwidths = (
            torch.stack([getattr(guess, name) for guess in guesses], axis) for name in ("frequencies", "bandwidths")
        )
        weights = torch.stack([guess.weights for guess in guesses], axis)
        share = variance ** (1 / len(guesses)) if self.product else variance
        # A peak of no power at all, as along an input with three values, has a logarithm all the same.
        weights = (weights if self.product else weights.mean(axis)).clamp(min=_LEAST_WEIGHT) * share
        noise_var = variance * torch.stack([guess.noise_share for guess in guesses]).mean(0)
        sites = {
            "kernel.log_weights": weights.log(),
            "kernel.frequencies": frequencies,
            "kernel.log_bandwidths": bandwidths.log(),
        }
        return sites if isinstance(self.noise_var, float | int) else {**sites, "noise_var": noise_var}


def _mixed(loc: Tensor, var: Tensor) -> dist.TorchDistribution:
    """Return normals ``(m,)``, mixed with equal weights over all leading axes."""
    normal = dist.Normal(loc, var.clamp(min=torch.finfo(var.dtype).tiny).sqrt())
    if loc.dim() == 1:
        return normal
    loc, std = (value.reshape(-1, value.shape[-1]).mT for value in (normal.loc, normal.scale))
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros_like(loc)), dist.Normal(loc, std))

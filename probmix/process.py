"""A Gaussian process with a common random variance at given hyperparameters: before and after it has seen data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix
from probmix.grids import Grid, is_even
from probmix.jitter import factor, with_jitter
from probmix.kronecker_solver import KroneckerSolver
from probmix.polynomial_trend import PolynomialTrend
from probmix.process_solvers import AbstractSolver, DenseSolver, InducingSolver
from probmix.scale_mixture_normal import ScaleMixtureNormal, flattened, scale_mixture, with_axes
from probmix.scale_posterior import scale_posterior
from probmix.spectral import SpectralProductKernel
from probmix.toeplitz_solver import ToeplitzSolver, noisy_column

__all__ = ["LeaveOneOut", "Process"]

_AT_ONCE = 2**24  # numbers in the largest matrix of a prediction


@dataclass(frozen=True)
class LeaveOneOut:
    """Every observation predicted from all others.

    Args:
        predictive: of the observations, each given the others, ``(*b, n)`` (``(*b, n, p)`` for several outputs).
        log_prob: its log density at what was observed, ``(*b, n)``; the outputs of a row are left out together.

    Example:
        >>> from gpytorch.kernels import RBFKernel
        >>> x, y = torch.tensor([[-1.0], [0.0], [50.0]]), torch.tensor([1.0, 1.2, -1.0])
        >>> process = Process(RBFKernel().requires_grad_(False), torch.tensor(0.1), None, torch.tensor(0.0))
        >>> process.condition(x, y).leave_one_out(y).predictive.loc.round(decimals=2)  # nothing is near the last
        tensor([0.3900, 0.3200, 0.0000])
    """

    predictive: dist.TorchDistribution
    log_prob: Tensor


@dataclass(frozen=True, eq=False)
class Process:
    r"""A process :math:`f \mid s \sim GP(m, s k)`, :math:`s \sim H`, with noise :math:`s \sigma^2` in observations.

    The noise is inside: observations are ``N(m, s (K + noise))`` given s. With ``H = InverseGamma(a, b)`` it is a
    Student-t process, without H a Gaussian process. Conditioning it on data gives a process again, whose scale has the
    posterior for its prior.

    Hyperparameters may carry a leading batch ``*b`` (draws of a posterior), which every result then has.

    Args:
        kernel: covariance at s = 1 (`probmix.gpytorch_priors.with_values` sets its values).
        noise_var: :math:`\sigma^2`, in units of s, ``(*b,)``, expanded to the whole batch.
        scale_prior: H, of batch shape ``()`` or ``*b``; None for ``s = 1``.
        loc: m, a constant, ``()``, or ``(p,)`` for several outputs, which share kernel and scale.
        solver: the data seen so far; None: none.
        count: their number.
        trend: a polynomial in the inputs that is added to the mean; None: none.

    Raises:
        DataError: data that do not fit each other or the process.
        ProgramError: a covariance that is not positive definite; the message names the hyperparameters.

    Source:
        Shah, Wilson and Ghahramani (2014), Student-t processes as alternatives to Gaussian processes; Lee, Yun, Yang
        and Lee (2022), Scale mixtures of neural network Gaussian processes.

    Example:
        >>> from probmix.nngp import NNGPKernel
        >>> x = torch.linspace(-1, 1, 5)[:, None]
        >>> process = Process(NNGPKernel(), torch.tensor(0.1), dist.InverseGamma(2.0, 2.0), torch.tensor(0.0))
        >>> seen = process.condition(x, x[:, 0] ** 2)
        >>> seen.predictive(torch.zeros(1, 1)).df  # 2 a + n
        tensor([9.])
    """

    kernel: Kernel
    noise_var: Tensor
    scale_prior: dist.TorchDistribution | None
    loc: Tensor
    solver: AbstractSolver | None = None
    count: int = 0
    trend: PolynomialTrend | None = None

    def condition(self, x: Tensor, y: Tensor, *, inducing: Tensor | None = None, grid: Grid | None = None) -> Process:
        """Return the process given observations ``y`` ``(n,)`` or ``(n, p)`` at rows ``x`` ``(n, d)``.

        Data seen before stay; the work is that of the new rows.

        Args:
            x: rows.
            y: observations.
            inducing: rows through which the data are seen, for many of them: time linear in n.
            grid: that the rows are (`probmix.grids.find_grid`). One axis of equal steps, for a stationary kernel, is
                dealt with by its lags; several, for a kernel that is a product over the inputs
                (`probmix.spectral.SpectralProductKernel`), by one factorisation for each axis. Such a process takes no
                further data and leaves none out.
        """
        self._check(x, y)
        residuals = (y[:, None] if y.dim() == 1 else y) - self._mean(x)
        count = self.count + y.numel()
        if inducing is not None:
            self._check_rows(inducing, x.shape[-1])
            return replace(self, solver=self._through(inducing, x, residuals), count=count)
        if grid is not None:
            return replace(self, solver=self._on_grid(grid, residuals), count=count)
        covariance = self._noisy(covariance_matrix(self.kernel, x))
        if self.solver is None:
            return replace(self, solver=DenseSolver.of(x, self._factor(covariance), residuals), count=count)
        if not isinstance(self.solver, DenseSolver):
            how = "through inducing points" if isinstance(self.solver, InducingSolver) else "on a grid"
            raise ProgramError(
                f"expected a process whose data were seen in full, got one that saw them {how}. Condition once, on all "
                "data together."
            )
        seen = self.solver.predict(covariance_matrix(self.kernel, self.solver.rows, x))
        tril = self._factor(seen.covariance(covariance))
        return replace(self, solver=self.solver.extended(x, seen, tril, residuals), count=count)

    def predictive(self, x: Tensor, *, noise: bool = True, average: bool = False) -> dist.TorchDistribution:
        """Return the marginal distribution at each of new rows, ``(*b, m)`` or ``(*b, m, p)``.

        A Student-t, a normal, or a mixture of normals at the nodes of a quadrature over s. Large sets of rows are
        dealt with in blocks. Of a Student-t with two degrees of freedom or fewer (2a and one for each observation) the
        variance is infinite, with one or fewer not a number; so is in truth that of a mixture where H has no mean (a
        half-Cauchy) and there is no observation. `probmix.quantiles.quantile` gives its bands.

        Args:
            x: rows ``(m, d)``.
            noise: of an observation; else of the function.
            average: mix over the batch ``*b`` with equal weights: the predictive distribution of a posterior of which
                the hyperparameters are draws, ``(m,)`` or ``(m, p)``.
        """
        self._check_rows(x)
        numbers = 1 if self.solver is None else self.solver.numbers_per_row
        block = max(1, _AT_ONCE // max(1, numbers * self.noise_var.numel()))
        parts = [self._marginals(rows, noise=noise) for rows in x.split(block)]
        loc, var = (torch.cat(part, -2) for part in zip(*parts, strict=True))
        if self._single:
            loc, var = loc.squeeze(-1), var.squeeze(-1)
        axes = 1 if self._single else 2
        quadratic = None if self.solver is None else self.solver.quadratic
        if average:
            return _averaged(loc, var, self.scale_prior, self.count, quadratic, axes)
        quadratic = None if quadratic is None else quadratic[(..., *[None] * axes)]
        prior = None if self.scale_prior is None else with_axes(self.scale_prior, axes)
        return scale_mixture(loc, var, prior, self.count, quadratic)

    def joint(self, x: Tensor, *, noise: bool = True) -> ScaleMixtureNormal:
        """Return the joint distribution at new rows, of events ``(m,)`` or ``(m, p)``: multivariate Student-t and kin.

        Args:
            x: rows ``(m, d)``.
            noise: of observations; else of the function.
        """
        self._check_rows(x)
        covariance = covariance_matrix(self.kernel, x)
        covariance = self._noisy(covariance) if noise else covariance
        loc = self._mean(x).squeeze(-1) if self._single else self._mean(x)
        if self.solver is not None:
            seen = self.solver.predict(covariance_matrix(self.kernel, self.solver.rows, x))
            covariance = seen.covariance(covariance)
            loc = loc + (seen.shift.squeeze(-1) if self._single else seen.shift)
        return ScaleMixtureNormal(loc, self._factor(covariance), self.scale, columns=not self._single)

    @property
    def scale(self) -> dist.TorchDistribution | None:
        """The distribution of s given the data; None where it is 1."""
        if self.solver is None:
            return self.scale_prior
        return scale_posterior(self.scale_prior, self.count, self.solver.quadratic)

    def leave_one_out(self, y: Tensor) -> LeaveOneOut:
        r"""Return every row predicted from all others, in closed form from one factorisation.

        With :math:`C = K + \sigma^2 I` and :math:`\alpha = C^{-1} (y - m)`, row i has location
        :math:`y_i - \alpha_i / C^{-1}_{ii}`, variance :math:`s / C^{-1}_{ii}`, and s given the others sees
        :math:`q - \alpha_i^2 / C^{-1}_{ii}`.

        Args:
            y: the observations of the fit.

        Raises:
            ProgramError: no data yet, or data seen through inducing points or on a grid.

        Source:
            Rasmussen and Williams (2006), Gaussian processes for machine learning, equations 5.10 to 5.12.
        """
        if not isinstance(self.solver, DenseSolver) or y.shape[0] != self.solver.rows.shape[-2]:
            raise ProgramError(
                "expected a process conditioned on these observations, all rows in full, neither on a grid nor through "
                "inducing points. Call process.condition(x, y).leave_one_out(y)."
            )
        eye = torch.eye(y.shape[0], dtype=y.dtype, device=y.device)
        inverse = torch.linalg.solve_triangular(self.solver.tril, eye, upper=False)
        var = 1 / inverse.square().sum(-2)
        shift = inverse.mT @ self.solver.white * var[..., None]
        outputs = shift.shape[-1]
        quadratic = (self.solver.quadratic[..., None] - (shift.square() / var[..., None]).sum(-1)).clamp(min=0)
        count = self.count - outputs
        observed = y[..., None] if self._single else y
        one, two = (None if self.scale_prior is None else with_axes(self.scale_prior, axes) for axes in (1, 2))
        if self._single:
            predictive = scale_mixture((observed - shift).squeeze(-1), var, one, count, quadratic)
            return LeaveOneOut(predictive, predictive.log_prob(y))
        marginals = scale_mixture(observed - shift, var[..., None], two, count, quadratic[..., None])
        tril, loc = var.sqrt()[..., None, None], (observed - shift)[..., None, :]
        rows = ScaleMixtureNormal(loc, tril, scale_posterior(one, count, quadratic), columns=True)
        return LeaveOneOut(marginals, rows.log_prob(observed[:, None, :]))

    @property
    def _single(self) -> bool:
        return self.loc.dim() == 0

    def _mean(self, x: Tensor) -> Tensor:
        """Return the mean before any data, ``(m, p)``."""
        loc = self.loc.reshape(1, -1).expand(x.shape[-2], -1)
        return loc if self.trend is None else loc + self.trend(x)

    def _marginals(self, x: Tensor, *, noise: bool) -> tuple[Tensor, Tensor]:
        """Return location and variance at s = 1, ``(*b, m, p)``."""
        var = covariance_matrix(self.kernel, x, diagonal=True)
        loc = self._mean(x)
        if self.solver is not None:
            shift, var = self.solver.marginals(self.kernel, x, var)
            loc = loc + shift
        var = var + self.noise_var[..., None] if noise else var
        shape = torch.broadcast_shapes(loc.shape, (*self.noise_var.shape, 1, 1))
        return loc.expand(shape), var[..., None].expand(shape)

    def _through(self, inducing: Tensor, x: Tensor, residuals: Tensor) -> InducingSolver:
        if self.solver is not None:
            raise ProgramError("inducing: expected a process without data, got one with. Condition once, on all data.")
        if not bool((self.noise_var > 0).all()):
            raise ProgramError("noise_var: expected some noise where data are seen through inducing points, got 0.")
        tril = self._factor(with_jitter(covariance_matrix(self.kernel, inducing)))
        cross = covariance_matrix(self.kernel, inducing, x)
        prior_var = covariance_matrix(self.kernel, x, diagonal=True)
        return InducingSolver.of(inducing, tril, cross, prior_var, self.noise_var, residuals)

    def _on_grid(self, grid: Grid, residuals: Tensor) -> AbstractSolver:
        if self.solver is not None:
            raise ProgramError("grid: expected a process without data, got one with. Condition once, on all data.")
        axis, kernel = grid.axes[0], self.kernel
        try:
            if len(grid.axes) == 1 and kernel.is_stationary and is_even(axis):
                return ToeplitzSolver.of(grid, noisy_column(kernel, axis, self.noise_var), residuals)
            if isinstance(kernel, SpectralProductKernel):
                return KroneckerSolver.of(grid, kernel.factor, self.noise_var, residuals)
        except torch.linalg.LinAlgError as reason:
            raise ProgramError(
                f"expected a positive definite covariance, got one that is not: {self._stated}. Add observation noise, "
                "use float64, or condition without a grid."
            ) from reason
        raise ProgramError(
            "grid: expected one axis of equal steps and a stationary kernel, or a kernel that is a product over the "
            f"inputs, got {'equal' if is_even(axis) else 'unequal'} steps along the first of {len(grid.axes)} axes and "
            f"{type(kernel).__name__}. Use SpectralProductKernel, or condition without a grid."
        )

    def _noisy(self, covariance: Tensor) -> Tensor:
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return covariance + self.noise_var[..., None, None] * eye

    def _factor(self, covariance: Tensor) -> Tensor:
        return factor(covariance, what=self._stated)

    @property
    def _stated(self) -> str:
        """What the covariance is made of, for a message."""
        values = [f"noise_var {_shown(self.noise_var)}"]
        values += [f"{name} {_shown(value)}" for name, value in _hyperparameters(self.kernel).items()]
        return f"{type(self.kernel).__name__} with {', '.join(values)}"

    def _check(self, x: Tensor, y: Tensor) -> None:
        outputs = "(n,)" if self._single else f"(n, {len(self.loc)})"
        if x.dim() != 2 or y.shape != torch.Size([len(x), *self.loc.shape]):
            raise DataError(
                f"expected rows x of shape (n, d) and observations y of shape {outputs}, got {tuple(x.shape)} and "
                f"{tuple(y.shape)}. One row of x for each of y; a single input column is x[:, None]."
            )
        self._check_rows(x)
        self._check_kind("observations", y)

    def _check_rows(self, x: Tensor, columns: int | None = None) -> None:
        if columns is None and self.solver is not None:
            columns = self.solver.rows.shape[-1]
        if x.dim() != 2 or columns not in (None, x.shape[-1]):
            raise DataError(
                f"expected rows of shape (m, {columns or 'd'}), got {tuple(x.shape)}. One input column is x[:, None]."
            )
        self._check_kind("rows", x)

    def _check_kind(self, what: str, value: Tensor) -> None:
        like = self.noise_var
        if value.dtype != like.dtype or value.device != like.device:
            raise DataError(
                f"expected {what} in {like.dtype} on {like.device}, as the process, got {value.dtype} on "
                f"{value.device}. Convert them: .to(noise_var)."
            )


def _averaged(
    loc: Tensor, var: Tensor, prior: dist.TorchDistribution | None, count: int, quadratic: Tensor | None, axes: int
) -> dist.TorchDistribution:
    """Return the equal mixture over the leading axes of ``loc``, which go last; so do those of prior and quadratic."""
    batch = loc.shape[: loc.dim() - axes]
    loc, var = (value.reshape(-1, *value.shape[len(batch) :]).movedim(0, -1) for value in (loc, var))
    flat = None if prior is None or not prior.batch_shape else flattened(prior)
    quadratic = None if quadratic is None else quadratic.reshape(-1)
    components = scale_mixture(loc, var, flat or prior, count, quadratic)
    return dist.MixtureSameFamily(dist.Categorical(probs=torch.ones_like(loc)), components)


def _hyperparameters(kernel: Kernel) -> dict[str, Tensor]:
    """Return the values in a kernel by name, constrained ones by the name of their property."""
    found = {}
    for path, module in kernel.named_modules():
        for name in getattr(module, "_constraints", {}):
            plain = name.removeprefix("raw_").removesuffix("_constraint")
            found[".".join(part for part in (path, plain) if part)] = getattr(module, plain)
    return found


def _shown(value: Tensor) -> str:
    """Return a number, or the range of many."""
    low, high = float(value.detach().min()), float(value.detach().max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"

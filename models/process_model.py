"""What the processes have in common: a Pyro program of regression with one common random variance."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.distributions import Distribution

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix, sampled, with_values
from probmix.jitter import with_jitter
from probmix.noise_variance import noise_prior
from probmix.pairs import equal_rows, same_kind
from probmix.polynomial_trend import PolynomialTrend
from probmix.process import Process
from probmix.scale_integral import check_scale_prior
from probmix.scale_mixture_normal import AbstractScaleMixtureNormal, LowRankScaleMixtureNormal, like
from probmix.scale_posterior import harmonic_mean
from probmix.structured_normal import Dense, StructuredNormal

__all__ = ["AbstractProcessModel"]


@dataclass(frozen=True, eq=False, kw_only=True)
class AbstractProcessModel(ABC):
    r"""Regression on a process with a common random variance; every concrete one is a Pyro program.

    .. math:: s \sim H, \quad y \mid s \sim N\big(\bar y, \, s (K + \sigma^2 I)\big)

    with the hyperparameters of K and :math:`\sigma^2` unknown, and s integrated out (in closed form or by a quadrature,
    from one factorisation). Call it with ``(x, y)``: x ``(n, d)``, y ``(n,)``, or ``(n, p)`` for p outputs that share
    kernel, noise and scale. Its sites are ``noise_var``, one for each prior that is registered in the kernel
    (``kernel.lengthscale``), those of the scale prior's own hyperparameters, and with ``integrate_scale=False`` also
    ``scale_var``.

    One variance for all points does not make a regression robust to single outliers; and after some hundred
    observations s is known so well that predictions are nearly normal. The tail matters for few data, and where
    several data sets share H.

    Args:
        noise_var: prior of :math:`\sigma^2`, in units of s, or its value. None: log-normal, median a tenth of the
            variance of y, standard deviation of the logarithm 1.5, above a least noise without which a covariance
            cannot be factorised (`probmix.noise_variance.least_noise`).
        inducing: rows ``(r, d)`` through which the data are seen, for more than some 5,000 rows: the collapsed lower
            bound of Titsias (2009), which a common variance leaves as it is. Without it time grows with n cubed.
        integrate_scale: False makes s a site of its own, ``scale_var``.
        trend: degree of the polynomial in the inputs that is fitted by least squares and taken off; 0: the mean. A
            forecast returns to it where it is far from the data.
    """

    noise_var: dist.TorchDistribution | float | None = None
    inducing: Tensor | None = None
    integrate_scale: bool = True
    trend: int = 0

    @abstractmethod
    def kernel_for(self, columns: int) -> Kernel:
        """Return the covariance at s = 1, with its priors, for inputs with so many columns."""

    @abstractmethod
    def scale_law(self, like: Tensor) -> dist.TorchDistribution | None:
        """Return H in the dtype and on the device of a tensor; None for ``s = 1``.

        Hyperparameters of its own are drawn by ``pyro.sample``.
        """

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run the program."""
        loc = self._mean(x, y)
        kernel = self._draw_kernel(x, y - loc)
        noise_var, law = self._draw_noise(y - loc), self.scale_law(y)
        factor_var = y.new_ones(())
        if law is not None and not self.integrate_scale:
            factor_var, law = pyro.sample("scale_var", law), None
        if self.inducing is None:
            law_of_y = self._in_full(kernel, noise_var, factor_var, law, x, loc)
        else:
            law_of_y = self._through_inducing(kernel, noise_var, factor_var, law, x, loc)
        pyro.sample("y", law_of_y, obs=y)

    def observe(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Check the data once, before a fit; whole numbers become floating-point ones.

        Raises:
            DataError: not finite, of other shapes, or equal rows without noise.
        """
        if x.dim() != 2 or y.dim() not in (1, 2) or len(x) != len(y) or len(y) < 2:
            raise DataError(
                f"expected rows x of shape (n, d) and observations y of shape (n,) or (n, p), n at least 2, got "
                f"{tuple(x.shape)} and {tuple(y.shape)}. A single input column is x[:, None]."
            )
        x, y = same_kind(x, y)
        if not bool((y.var(0) > 0).all()):
            raise DataError("y: expected observations that differ, got a constant column. Drop it.")
        if self.trend and not bool((((y - self._mean(x, y)).abs() > 1e-9 * y.std(0)).any(0)).all()):
            raise DataError(
                f"y: expected observations that differ from a polynomial of degree {self.trend} in x, got one. Set "
                "trend=0, or leave the column out."
            )
        if self.inducing is not None and self.inducing.shape[1:] != x.shape[1:]:
            raise DataError(
                f"inducing: expected rows of shape (r, {x.shape[1]}), as x, got {tuple(self.inducing.shape)}. "
                "Pass some rows of x, or a grid."
            )
        if self.noise_var == 0 and (twins := equal_rows(x)):
            raise DataError(
                f"x: expected rows that differ where there is no noise, got equal rows {twins[0]} and {twins[1]}. Drop "
                "one of them, or give noise_var a prior."
            )
        return x, y

    def num_elements(self, x: Tensor, y: Tensor) -> int:
        """Return how many numbers the work of a fit goes through at a time, by which threads are chosen.

        A sixteenth of a matrix: factorisations of fewer than some 1,400 rows are not worth a second thread.
        """
        return len(x) * len(x if self.inducing is None else self.inducing) // 16

    def condition(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Process:
        """Return the process given the data, at hyperparameters ``sites`` with any leading batch ``*b`` (draws).

        It predicts (`Process.predictive`, `Process.joint`), takes more data and leaves out one.
        """
        x, y = self.observe(x, y)
        process = self.process(x, y, sites)
        inducing = None if self.inducing is None else self.inducing.to(x)
        with torch.no_grad():
            return process.condition(x, y, inducing=inducing)

    def process(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Process:
        """Return the process before it has seen the data, which only say its constant mean.

        Args:
            x: rows ``(n, d)``.
            y: observations ``(n,)`` or ``(n, p)``.
            sites: hyperparameters with any leading batch.
        """
        kernel = with_values(self._kernel_like(x), sites, "kernel")
        with pyro.poutine.block(), pyro.poutine.trace() as drawn, pyro.poutine.condition(data=dict(sites)):
            noise_var, law = self._draw_noise(y), self.scale_law(y)  # of given values: the prior does not matter
        missing = drawn.trace.stochastic_nodes
        if missing:
            raise ProgramError(
                f"expected values for the sites {missing}, got {sorted(sites)}. Pass sites of a fit of this model."
            )
        of_kernel = covariance_matrix(kernel, x[:1]).shape[:-2]
        batch = torch.broadcast_shapes(noise_var.shape, of_kernel, () if law is None else law.batch_shape)
        trend = None
        if self.trend:
            centred = y - y.mean(0)
            trend = PolynomialTrend.fit(x, centred[:, None] if y.dim() == 1 else centred, self.trend)
        return Process(kernel, noise_var.expand(batch), law, y.mean(0), trend=trend)

    def predictive(
        self, x_new: Tensor, sites: Mapping[str, Tensor], x: Tensor, y: Tensor, *, noise: bool = True
    ) -> dist.TorchDistribution:
        """Return the marginal distribution at new rows, averaged over all leading batch axes of the sites (draws).

        Args:
            x_new: rows ``(m, d)``.
            sites: hyperparameters with any leading batch.
            x: rows of the fit.
            y: observations of the fit.
            noise: of an observation; else of the function.
        """
        process = self.condition(x, y, sites)
        with torch.no_grad():
            return process.predictive(x_new, noise=noise, average=process.noise_var.dim() > 0)

    # What EM asks for.

    @property
    @abstractmethod
    def scale_has_unknowns(self) -> bool:
        """Whether the prior of the scale has sites of its own."""

    def given_scale(self) -> Self:
        """Return the program in which the scale is a site, ``scale_var``."""
        return replace(self, integrate_scale=False)

    def expected_scale(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``1 / E[1 / s | y]`` at the hyperparameters, ``(*b,)``: what the E-step has to know of s."""
        process = self.condition(x, y, sites)
        if process.scale_prior is None or process.solver is None:
            raise ProgramError(f"{type(self).__name__}: expected a scale prior, got none, so nothing is left for EM.")
        return harmonic_mean(process.scale_prior, process.count, process.solver.quadratic)

    def _in_full(
        self,
        kernel: Kernel,
        noise_var: Tensor,
        factor_var: Tensor,
        law: dist.TorchDistribution | None,
        x: Tensor,
        loc: Tensor,
    ) -> AbstractScaleMixtureNormal:
        """Return the law of y, all rows with each other."""
        covariance = factor_var[..., None, None] * _noisy(self._covariance(kernel, x), noise_var)
        return StructuredNormal(loc, Dense(covariance), law, columns=loc.dim() == 2)

    def _covariance(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Return the covariance of the function at the rows, ``(*b, n, n)``."""
        return covariance_matrix(kernel, x)

    def _through_inducing(
        self,
        kernel: Kernel,
        noise_var: Tensor,
        factor_var: Tensor,
        law: dist.TorchDistribution | None,
        x: Tensor,
        loc: Tensor,
    ) -> LowRankScaleMixtureNormal:
        """Return the law of y through inducing points; what the bound takes off is a factor of the program."""
        inducing = torch.as_tensor(self.inducing).to(x)
        tril = torch.linalg.cholesky(with_jitter(covariance_matrix(kernel, inducing)))
        root = torch.linalg.solve_triangular(tril, covariance_matrix(kernel, inducing, x), upper=False)
        missing = covariance_matrix(kernel, x, diagonal=True).sum(-1) - root.square().sum((-2, -1))
        pyro.factor("unexplained", -0.5 * (loc.numel() // len(loc)) * missing / noise_var)
        root = factor_var.sqrt()[..., None, None] * root.mT
        return LowRankScaleMixtureNormal(loc, root, factor_var * noise_var, law, columns=loc.dim() == 2)

    def _mean(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of the observations, fitted by least squares, in the shape of y."""
        if not self.trend:
            return y.mean(0, keepdim=True).expand_as(y)
        return PolynomialTrend.fit(x, y[:, None] if y.dim() == 1 else y, self.trend)(x).reshape(y.shape)

    def _draw_kernel(self, x: Tensor, y: Tensor) -> Kernel:
        return sampled(self._kernel_like(x), "kernel", self._kernel_priors(x, y))

    def _kernel_priors(self, x: Tensor, y: Tensor) -> dict[str, dist.TorchDistribution]:
        """Return priors that depend on the data, by site, in the place of those registered."""
        return {}

    def _draw_noise(self, y: Tensor) -> Tensor:
        if isinstance(self.noise_var, float | int):
            return y.new_full((), self.noise_var)
        prior = noise_prior(y.var(0).mean()) if self.noise_var is None else self.noise_var
        return pyro.sample("noise_var", like(prior, y))

    def _check_settings(self, scale_prior: object | None) -> None:
        if isinstance(scale_prior, Distribution) or not (scale_prior is None or callable(scale_prior)):
            check_scale_prior(scale_prior)
        if isinstance(self.noise_var, float | int):
            if not 0 <= self.noise_var < math.inf:
                raise ProgramError(f"noise_var: expected a number of 0 or more, or a prior, got {self.noise_var!r}.")
        elif self.noise_var is not None:
            check_scale_prior(self.noise_var, "noise_var")
        if self.inducing is not None and self.noise_var == 0:
            raise ProgramError("noise_var: expected some noise where data are seen through inducing points, got 0.")
        if not isinstance(self.trend, int) or self.trend < 0:
            raise ProgramError(f"trend: expected the degree of a polynomial, 0, 1, 2, ..., got {self.trend!r}.")
        object.__setattr__(self, "_copies", {})

    def _kernel_like(self, x: Tensor) -> Kernel:
        """Return the kernel in the dtype and on the device of the data; a copy, so that the user's stays as it is."""
        key, copies = (x.dtype, x.device, x.shape[-1]), self.__dict__["_copies"]
        if key not in copies:
            copies[key] = copy.deepcopy(self.kernel_for(x.shape[-1])).to(x).requires_grad_(False)
        return copies[key]


def _noisy(covariance: Tensor, noise_var: Tensor) -> Tensor:
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return covariance + noise_var[..., None, None] * eye

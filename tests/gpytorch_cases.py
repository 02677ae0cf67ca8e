"""GPyTorch models with priors, and data for them, that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import Kernel, MultitaskKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood, Likelihood, MultitaskGaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import GammaPrior, NormalPrior
from gpytorch.variational import (
    DeltaVariationalDistribution,
    IndependentMultitaskVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor

from probmix.log_density import LogDensity

ROUNDING = 1e-9  # relative; covariances with a noise of a tenth lose a few digits of 16


def data(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x, x.sum(-1).sin() + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)


X, Y = data()
TWO = torch.stack([Y, (2 * Y).cos()], -1)
NEW = data(4, seed=1)[0]
BATCH = torch.Size([2])


def gamma() -> GammaPrior:
    return GammaPrior(3.0, 3.0)


def level(batch: torch.Size = torch.Size()) -> ConstantMean:  # noqa: B008 - a tuple
    return ConstantMean(constant_prior=NormalPrior(0.0, 1.0), batch_shape=batch)


def rbf(batch: torch.Size = torch.Size()) -> Kernel:  # noqa: B008
    kernel = RBFKernel(lengthscale_prior=gamma(), batch_shape=batch)
    return ScaleKernel(kernel, outputscale_prior=gamma(), batch_shape=batch)


def gaussian(batch: torch.Size = torch.Size()) -> GaussianLikelihood:  # noqa: B008
    return GaussianLikelihood(noise_prior=GammaPrior(2.0, 4.0), batch_shape=batch)


class Exact(gpytorch.models.ExactGP):
    """A process whose prior is made of its parts by ``make``."""

    def __init__(
        self, kernel: Kernel, likelihood: Likelihood, mean: Mean | None = None, make: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(None, None, likelihood)
        self.mean_module, self.covar_module = mean or level(), kernel
        self._make = make or MultivariateNormal

    def forward(self, x: Tensor) -> MultivariateNormal:
        return self._make(self.mean_module(x), self.covar_module(x))


class Approximate(gpytorch.models.ApproximateGP):
    def __init__(self, inducing: Tensor, batch: torch.Size = torch.Size(), tasks: int = 0) -> None:  # noqa: B008
        guide = DeltaVariationalDistribution(inducing.shape[-2], batch_shape=batch)
        strategy = VariationalStrategy(self, inducing, guide)
        super().__init__(IndependentMultitaskVariationalStrategy(strategy, tasks) if tasks else strategy)
        self.mean_module, self.covar_module = level(batch), rbf(batch)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def multitask_kernel() -> Kernel:
    kernel = MultitaskKernel(RBFKernel(lengthscale_prior=gamma()), num_tasks=2)
    kernel.task_covar_module.register_prior("covar_factor_prior", NormalPrior(0.0, 1.0), "covar_factor")
    kernel.task_covar_module.register_prior("var_prior", gamma(), "var")
    return kernel


def multitask_noise(rank: int = 0) -> MultitaskGaussianLikelihood:
    likelihood = MultitaskGaussianLikelihood(2, rank=rank)
    likelihood.register_prior("noise_prior", gamma(), "noise")
    if rank == 0:
        likelihood.register_prior("task_noises_prior", gamma(), "task_noises")
    return likelihood


def separate_tasks(mean: Tensor, covariance: Any) -> MultitaskMultivariateNormal:
    """Two independent tasks, of which GPyTorch keeps the rows of one together."""
    processes = [MultivariateNormal(mean, covariance), MultivariateNormal(mean + 1, 2 * covariance)]
    return MultitaskMultivariateNormal.from_independent_mvns(processes)


def stacked_tasks(mean: Tensor, covariance: Any) -> MultitaskMultivariateNormal:
    return MultitaskMultivariateNormal.from_batch_mvn(MultivariateNormal(mean, covariance))


def draws_of(density: LogDensity, count: int) -> dict[str, Tensor]:
    return density.constrain(0.4 * torch.randn(count, density.dim, dtype=torch.float64))

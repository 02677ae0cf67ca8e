"""Data, priors and processes that several tests share."""

from __future__ import annotations

import gpytorch
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from probmix.burr import BurrXII
from probmix.process import Process


def t(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


N = 14
X, NEW = normal(N, 2), normal(4, 2, seed=1)
Y = {None: normal(N, seed=2) + X[:, 0], 2: normal(N, 2, seed=3) + X}  # one output; two
LOC = {None: t(0.3), 2: t([0.3, -1.0])}
PRIORS = {
    "none": None,
    "inverse gamma": dist.InverseGamma(t(1.5), t(2.5)),
    "half-Cauchy": dist.HalfCauchy(t(1.0)),
    "Burr": BurrXII(t(2.0), t(2.0)),
    "Pareto": dist.Pareto(t(0.5), t(2.0)),
    "log-normal": dist.LogNormal(t(0.0), t(1.0)),
    "uniform": dist.Uniform(t(0.5), t(2.0)),
}
every_prior = pytest.mark.parametrize("name", PRIORS)
outputs_too = pytest.mark.parametrize("outputs", [None, 2])


def rbf(**settings) -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.RBFKernel(**settings).double().requires_grad_(False)
    kernel.lengthscale = t(1.3)  # GPyTorch would round a float to single precision
    return kernel


def prior_process(name: str = "inverse gamma", outputs: int | None = None, noise_var: float = 0.2) -> Process:
    return Process(rbf(), t(noise_var), PRIORS[name], LOC[outputs])


def alike(ours: dist.TorchDistribution, theirs: dist.TorchDistribution, tolerance: float = 1e-9) -> None:
    """One law for every entry: the density at nine points."""
    points = torch.linspace(-4, 4, 9).double().reshape(-1, *[1] * len(ours.batch_shape))
    torch.testing.assert_close(ours.log_prob(points), theirs.log_prob(points), rtol=tolerance, atol=tolerance)

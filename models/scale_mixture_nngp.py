"""Scale mixtures of neural-network Gaussian processes: infinitely wide networks with a random last-layer variance."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro.distributions as dist
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from probmix.dual_activations import ActivationName
from probmix.models.process_model import AbstractProcessModel
from probmix.models.scale_mixture_process import ScalePrior, has_unknowns, scale_law
from probmix.nngp import NNGPKernel

__all__ = ["ScaleMixtureNNGP"]

_LOG_2, _LOG_TENTH = 0.6931471805599453, -2.302585092994046


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleMixtureNNGP(AbstractProcessModel):
    r"""Regression on infinitely wide networks whose last layer's weights have a common random variance.

    .. math:: s \sim H, \quad f \mid s \sim GP(\bar y, \, s \, v \, k_{\mathrm{NNGP}}), \quad
              y \mid f, s \sim N(f, s \, v \, \sigma^2)

    H is the prior of the variance of the last layer's weights; with an inverse gamma the network is a Student-t process
    in the limit, otherwise what the quadrature makes of it. The columns of x should be of comparable size (standardise
    them): the kernel sees their directions and lengths.

    Its sites, and their default priors: ``kernel.base_kernel.weight_var`` (log-normal around 2, the standard deviation
    of the logarithm 0.5), ``kernel.base_kernel.bias_var`` (around 0.1, 1.5), ``kernel.outputscale`` (v: around the
    variance of y, 1.5) and ``noise_var``, here in the units of y. For other priors give
    `probmix.models.ScaleMixtureProcess` a kernel with priors of your own.

    Args:
        depth: number of hidden layers.
        activation: as for `probmix.nngp.NNGPKernel`.
        residual: every hidden layer but the first adds to what came before.
        scale_prior: H, as for `probmix.models.ScaleMixtureProcess`. None: the NNGP itself.
        noise_var: as in `probmix.models.process_model.AbstractProcessModel`.
        inducing: likewise.
        integrate_scale: likewise.
        trend: likewise.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: from a fit, data of the wrong shape, not finite, or equal rows without noise.

    Source:
        Lee, Yun, Yang and Lee (2022), Scale mixtures of neural network Gaussian processes.

    Example:
        >>> import torch
        >>> from probmix.inference import MAP, infer
        >>> x = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
        >>> model = ScaleMixtureNNGP(depth=2, activation="erf")
        >>> fit = infer(model, (x, x[:, 0].sin()), MAP(), seed=0)
        >>> model.condition(x, x[:, 0].sin(), fit.sites()).predictive(x).df[0]
        tensor(34., dtype=torch.float64)
    """

    depth: int = 3
    activation: ActivationName = "relu"
    residual: bool = False
    scale_prior: ScalePrior = field(default_factory=lambda: dist.InverseGamma(2.0, 2.0))

    def __post_init__(self) -> None:
        self._check_settings(self.scale_prior)
        kernel = NNGPKernel(
            self.depth, self.activation, 2.0, 0.1, residual=self.residual, readout=False,
            weight_var_prior=LogNormalPrior(_LOG_2, 0.5), bias_var_prior=LogNormalPrior(_LOG_TENTH, 1.5),
        )  # fmt: skip
        scaled = ScaleKernel(kernel, outputscale_prior=LogNormalPrior(0.0, 1.5))
        object.__setattr__(self, "_kernel", scaled)  # made of the settings: not a field of its own

    def kernel_for(self, columns: int) -> Kernel:
        """Return the kernel, made of the settings."""
        return self.__dict__["_kernel"]

    def scale_law(self, like: Tensor) -> dist.TorchDistribution | None:
        """Return H in the dtype and on the device of a tensor."""
        return scale_law(self.scale_prior, like)

    @property
    def scale_has_unknowns(self) -> bool:
        """Whether the scale prior is a function, which may draw its parameters."""
        return has_unknowns(self.scale_prior)

    def _kernel_priors(self, x: Tensor, y: Tensor) -> dict[str, dist.TorchDistribution]:
        return {"kernel.outputscale": dist.LogNormal(y.var(0).mean().log(), y.new_full((), 1.5))}

"""Regression on scale mixtures of Gaussian processes with any kernel and any prior of the common variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyro.distributions as dist
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.distributions import Distribution

from probmix.models.process_model import AbstractProcessModel
from probmix.scale_mixture_normal import like as in_kind

__all__ = ["ScaleMixtureProcess", "ScalePrior", "has_unknowns", "scale_law"]

#: A distribution of a variance; a function that returns one, with ``pyro.sample`` for its unknowns; None: variance 1.
ScalePrior: TypeAlias = dist.TorchDistribution | Callable[[], dist.TorchDistribution] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleMixtureProcess(AbstractProcessModel):
    r"""Regression on a scale mixture of Gaussian processes.

    .. math:: s \sim H, \quad y \mid s \sim N\big(\bar y, \, s (K + \sigma^2 I)\big)

    Without H it is the Gaussian process itself, the baseline; with an inverse gamma the Student-t process; every other
    H is integrated by a quadrature of 256 nodes, exact to rounding, at the price of the same single factorisation.

    Args:
        kernel: a GPyTorch kernel; what has a registered prior is unknown, the rest stays as it is.
        scale_prior: H, the distribution of the variance s (not of a standard deviation), such as
            ``pyro.distributions.InverseGamma(2.0, 2.0)``, ``HalfCauchy``, ``Pareto``, ``LogNormal``, or
            `probmix.burr.BurrXII`; or a function without arguments that returns one and may draw its parameters by
            ``pyro.sample``. None: a Gaussian process.
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
        >>> import gpytorch, torch
        >>> from probmix.burr import BurrXII
        >>> from probmix.inference import MAP, infer
        >>> x = torch.linspace(0, 6, 30, dtype=torch.float64)[:, None]
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0))
        >>> model = ScaleMixtureProcess(kernel=kernel, scale_prior=BurrXII(2.0, 2.0))
        >>> fit = infer(model, (x, x[:, 0].sin()), MAP(), seed=0)
        >>> sorted(fit.sites())
        ['kernel.lengthscale', 'noise_var']
    """

    kernel: Kernel
    scale_prior: ScalePrior = field(default_factory=lambda: dist.InverseGamma(2.0, 2.0))

    def __post_init__(self) -> None:
        self._check_settings(self.scale_prior)

    def kernel_for(self, columns: int) -> Kernel:
        """Return the kernel."""
        return self.kernel

    def scale_law(self, like: Tensor) -> dist.TorchDistribution | None:
        """Return H in the dtype and on the device of a tensor."""
        return scale_law(self.scale_prior, like)

    @property
    def scale_has_unknowns(self) -> bool:
        """Whether the scale prior is a function, which may draw its parameters."""
        return has_unknowns(self.scale_prior)


def has_unknowns(prior: ScalePrior) -> bool:
    """Return whether a scale prior is a function, which may draw its parameters.

    Example:
        >>> has_unknowns(dist.InverseGamma(2.0, 2.0)), has_unknowns(lambda: dist.InverseGamma(2.0, 2.0))
        (False, True)
    """
    return prior is not None and not isinstance(prior, Distribution)


def scale_law(prior: ScalePrior, like: Tensor) -> dist.TorchDistribution | None:
    """Return the distribution that a scale prior stands for, in the dtype and on the device of a tensor.

    Example:
        >>> import torch
        >>> scale_law(lambda: dist.LogNormal(0.0, 1.0), torch.ones(1, dtype=torch.float64)).loc
        tensor(0., dtype=torch.float64)
    """
    law: Any = prior() if has_unknowns(prior) else prior  # type: ignore[misc]  # a distribution can be called, too
    return None if law is None else in_kind(law, like)

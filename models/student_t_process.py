"""Student-t process regression: a Gaussian process whose overall variance is unknown, integrated out exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from probmix.errors import ProgramError
from probmix.models.process_model import AbstractProcessModel
from probmix.scale_integral import check_scale_prior
from probmix.scale_mixture_normal import like as in_kind

__all__ = ["StudentTProcess"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StudentTProcess(AbstractProcessModel):
    r"""Student-t process regression with any GPyTorch kernel.

    .. math:: y \sim \mathrm{MVT}_\nu\big(\bar y, \, K + \sigma^2 I\big)
              \iff s \sim \mathrm{InverseGamma}(\tfrac\nu2, \tfrac\nu2), \; y \mid s \sim N(\bar y, s (K + \sigma^2 I))

    ``K + noise`` is the shape matrix: where :math:`\nu > 2` the covariance is :math:`\nu / (\nu - 2)` times that. The
    noise is inside. Predictions have the mean of the Gaussian process with the same hyperparameters, degrees of freedom
    :math:`\nu + n`, and its variances times :math:`(\nu + q) / (\nu + n)`, q the squared Mahalanobis length of the
    data: residuals larger than the kernel expects widen all bands, smaller ones narrow them.

    Maximum likelihood and ``MAP()`` under a flat prior drive :math:`\nu` to infinity, where the process is Gaussian: of
    a single data set the evidence, its scale free, grows with :math:`\nu`. So it is fixed, or has a prior.

    Args:
        kernel: a GPyTorch kernel; what has a registered prior is unknown, the rest stays as it is.
        df: :math:`\nu`, fixed, or its prior; then it is a site, ``df``.
        noise_var: as in `probmix.models.process_model.AbstractProcessModel`.
        inducing: likewise.
        integrate_scale: likewise.
        trend: likewise.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: from a fit, data of the wrong shape, not finite, or equal rows without noise.

    Source:
        Shah, Wilson and Ghahramani (2014), Student-t processes as alternatives to Gaussian processes, lemma 3 (with
        their :math:`(\nu - 2) / \nu` left out of the shape matrix).

    Example:
        >>> import gpytorch
        >>> from probmix.inference import MAP, infer
        >>> x = torch.linspace(0, 6, 30, dtype=torch.float64)[:, None]
        >>> y = x[:, 0].sin()
        >>> kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0))
        >>> model = StudentTProcess(kernel=kernel, df=4.0)
        >>> fit = infer(model, (x, y), MAP(), seed=0)
        >>> new = model.condition(x, y, fit.sites()).predictive(torch.tensor([[1.5]], dtype=torch.float64))
        >>> new.df, new.mean.round(decimals=2)
        (tensor([34.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    kernel: Kernel
    df: float | dist.TorchDistribution = 4.0

    def __post_init__(self) -> None:
        self._check_settings(None)
        if not isinstance(self.df, float | int):
            check_scale_prior(self.df, "df")
        elif not 0 < self.df < math.inf:
            raise ProgramError(
                f"df: expected a positive number of degrees of freedom, or its prior, got {self.df!r}. Above 2 the "
                "process has a variance, above 1 a mean; without end it is ScaleMixtureProcess(scale_prior=None)."
            )

    def kernel_for(self, columns: int) -> Kernel:
        """Return the kernel."""
        return self.kernel

    def scale_law(self, like: Tensor) -> dist.TorchDistribution:
        """Return the inverse gamma distribution of the variance; the degrees of freedom are twice its shape."""
        if isinstance(self.df, torch.distributions.Distribution):
            half = 0.5 * pyro.sample("df", in_kind(self.df, like))
        else:
            half = like.new_full((), 0.5 * self.df)
        return dist.InverseGamma(half, half)

    @property
    def scale_has_unknowns(self) -> bool:
        """Whether the degrees of freedom are a site."""
        return isinstance(self.df, torch.distributions.Distribution)

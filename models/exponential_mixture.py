"""Bayesian mixture of exponential waiting times: a Pyro program and its closed form, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import AbstractAdditiveFamily, CountStatistics, require_rows
from probmix.column_priors import GammaPrior
from probmix.errors import DataError
from probmix.family import gather_component
from probmix.models.additive_mixture import AbstractAdditiveMixture

__all__ = ["ExponentialFamily", "ExponentialMixture"]

# Means below this share of the largest one are 0 but for rounding: the likelihood has no maximum there.
_NEGLIGIBLE = 1e-13


@dataclass(frozen=True)
class ExponentialFamily(AbstractAdditiveFamily[GammaPrior]):
    r"""Waiting times, independent given the component, with gamma rates.

    .. math:: \log f(x \mid \lambda) = \log \lambda - \lambda x

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 2.6.

    Example:
        >>> statistics = ExponentialFamily().sufficient_statistics(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        >>> ExponentialFamily().maximum_likelihood(statistics)
        {'rate': tensor([[0.5000]])}
    """

    site = "rate"
    prior_type = GammaPrior

    def default_prior(self, x: Tensor, num_components: int) -> GammaPrior:
        """Concentration 2, scaled to the mean of each column; see `ExponentialMixture`."""
        mean = x.mean(0)
        return GammaPrior(torch.full_like(mean, 2.0), 0.1 * mean)

    def check(self, x: Tensor, num_components: int, prior: GammaPrior | None) -> None:
        """Refuse rows that are not finite, too few or negative; without a prior also columns of zeros."""
        super().check(x, num_components, prior)
        zero = (x == 0).all(0).nonzero().flatten()
        if prior is None and len(zero):
            raise DataError(
                f"expected columns with values above 0, got {len(zero)} of {x.shape[1]} that are 0 throughout, the "
                f"first at index {int(zero[0])}: drop them, or pass component_prior"
            )

    def refuse(self, x: Tensor) -> None:
        """Refuse negative values."""
        require_rows(x < 0, "waiting times of 0 or more", "drop them, or shift the origin of time")

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Exponential."""
        return dist.Exponential(parameters["rate"], validate_args=False).to_event(1)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw times at the rates of each assignment."""
        rate = gather_component(sites["rate"], assignment, 1)
        uniform = torch.rand(rate.shape, generator=generator, dtype=rate.dtype, device=rate.device)
        return -torch.log1p(-uniform) / rate

    def features(self, x: Tensor) -> Tensor:
        """The times."""
        return x

    def natural(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Minus the rate, and the sum of the log rates."""
        return -sites["rate"], sites["rate"].log().sum(-1)

    def expected_natural(self, prior: GammaPrior) -> tuple[Tensor, Tensor]:
        """Means of both under the gamma."""
        return -prior.mean(), prior.expected_log().sum(-1)

    def estimate(self, count: Tensor, total: Tensor) -> Tensor:
        """One over the mean time; the largest number there is if all times are 0."""
        return (count[..., None] / total).clamp_max(torch.finfo(total.dtype).max)

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have a mean time of 0 beside that of another, up to rounding, ``(*b, K)``."""
        mean = 1 / sites["rate"]
        return ~(mean > _NEGLIGIBLE * mean.amax(-2, keepdim=True)).all(-1)

    def posterior(self, prior: GammaPrior, statistics: CountStatistics) -> GammaPrior:
        """Rows add to the concentration, times to the rate."""
        return GammaPrior(prior.concentration + statistics.count[..., None], prior.rate + statistics.total)

    def predictive(self, prior: GammaPrior) -> dist.TorchDistribution:
        """Lomax distribution: a Pareto less its smallest value."""
        concentration, rate = prior.parameters
        pareto = dist.Pareto(rate, concentration, validate_args=False)
        shifted = dist.TransformedDistribution(
            pareto, [dist.transforms.AffineTransform(-rate, 1.0)], validate_args=False
        )
        return shifted.to_event(1)

    def log_predictive(self, x: Tensor, prior: GammaPrior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""
        concentration, rate = prior.of_rows().parameters
        density = (concentration / rate).log() - (concentration + 1) * torch.log1p(x[:, None, :] / rate)
        return density.sum(-1)


@dataclass(frozen=True)
class ExponentialMixture(AbstractAdditiveMixture):
    r"""Bayesian mixture of K exponential distributions, columns independent given the component.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \lambda_{kd} \sim \mathrm{Gamma}(a_d, b_d), \quad
              p(x_n) = \sum_k w_k \prod_d \lambda_{kd} e^{-\lambda_{kd} x_{nd}}

    An instance is a Pyro program: call it with times ``(N, D)``, none negative. Its sites, after any leading batch
    ``*b``, are ``weights`` ``(K,)`` and ``rate`` ``(K, D)``, in one over the unit of the data; ``assignment`` ``(N,)``
    is discrete and summed out.

    The default prior has :math:`a = 2` and :math:`b_d = 0.1 \bar x_d`, so that rescaling a column changes nothing. It
    adds one row and a tenth of the mean time: little enough for components of much shorter times. With concentration 2
    its density falls to 0 at rate 0, which keeps the mode off that edge.

    Args:
        num_components: K.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a prior of the user's own; None: the default above.

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        Chung, Rabe-Hesketh, Dorie, Gelman and Liu (2013), A nondegenerate penalized likelihood estimator for variance
        parameters in multilevel models, Psychometrika 78, 685-709, for a gamma prior with concentration 2.

    Example:
        >>> model = ExponentialMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "rate": torch.tensor([[1.0], [0.1]])}
        >>> model.labels(torch.tensor([0.5, 20.0]), sites)
        tensor([0, 1])
    """

    @property
    def family(self) -> ExponentialFamily:
        """The conjugate family of the components."""
        return ExponentialFamily()

"""Bayesian mixture of Poisson counts: a Pyro program and its closed form, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import AbstractAdditiveFamily, CountStatistics, finite_log, require_rows
from probmix.column_priors import GammaPrior
from probmix.family import gather_component
from probmix.models.additive_mixture import AbstractAdditiveMixture

__all__ = ["PoissonFamily", "PoissonMixture"]


@dataclass(frozen=True)
class PoissonFamily(AbstractAdditiveFamily[GammaPrior]):
    r"""Counts, independent given the component, with gamma rates.

    .. math:: \log f(x \mid \lambda) = x \log \lambda - \lambda - \log x!

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 2.6.

    Example:
        >>> statistics = PoissonFamily().sufficient_statistics(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        >>> PoissonFamily().maximum_likelihood(statistics)
        {'rate': tensor([[2.]])}
    """

    site = "rate"
    prior_type = GammaPrior

    def default_prior(self, x: Tensor, num_components: int) -> GammaPrior:
        """Concentration 2, scaled to the mean of each column; see `PoissonMixture`."""
        mean = x.mean(0).clamp_min(0.5 / x.shape[0])  # a column of zeros: half a count in all
        return GammaPrior(torch.full_like(mean, 2.0), 0.1 / mean)

    def refuse(self, x: Tensor) -> None:
        """Refuse what is no count."""
        require_rows((x < 0) | (x != x.round()), "counts 0, 1, 2, ...", "round them, or use a model of continuous data")

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Poisson."""
        return dist.Poisson(parameters["rate"], validate_args=False).to_event(1)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts at the rates of each assignment."""
        return torch.poisson(gather_component(sites["rate"], assignment, 1), generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """The counts."""
        return x

    def log_base(self, x: Tensor) -> Tensor:
        """Minus the log factorials."""
        return -torch.lgamma(x + 1).sum(-1)

    def natural(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log rate, and minus the rates."""
        return finite_log(sites["rate"]), -sites["rate"].sum(-1)

    def expected_natural(self, prior: GammaPrior) -> tuple[Tensor, Tensor]:
        """Means of both under the gamma."""
        return prior.expected_log(), -prior.mean().sum(-1)

    def estimate(self, count: Tensor, total: Tensor) -> Tensor:
        """Mean count."""
        return total / count[..., None]

    def posterior(self, prior: GammaPrior, statistics: CountStatistics) -> GammaPrior:
        """Counts add to the concentration, rows to the rate."""
        return GammaPrior(prior.concentration + statistics.total, prior.rate + statistics.count[..., None])

    def predictive(self, prior: GammaPrior) -> dist.TorchDistribution:
        """Negative binomial."""
        concentration, rate = prior.parameters
        return dist.GammaPoisson(concentration, rate, validate_args=False).to_event(1)


@dataclass(frozen=True)
class PoissonMixture(AbstractAdditiveMixture):
    r"""Bayesian mixture of K Poisson distributions, columns independent given the component.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \lambda_{kd} \sim \mathrm{Gamma}(a_d, b_d), \quad
              p(x_n) = \sum_k w_k \prod_d \mathrm{Poisson}(x_{nd} \mid \lambda_{kd})

    An instance is a Pyro program: call it with counts ``(N, D)``. Its sites, after any leading batch ``*b``, are
    ``weights`` ``(K,)`` and ``rate`` ``(K, D)``, in counts; ``assignment`` ``(N,)`` is discrete and summed out.

    The default prior has :math:`a = 2` and :math:`b_d = 0.1 / \bar x_d`. It adds one count and a tenth of the rows that
    hold one count in the mean, so that components many times above the mean of the column are not pulled down; and with
    concentration 2 its density falls to 0 at rate 0, which keeps the mode off that edge.

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
        >>> model = PoissonMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "rate": torch.tensor([[1.0], [2.0]])}
        >>> model.responsibilities(torch.tensor([0.0, 3.0]), sites)
        tensor([[0.7311, 0.2689],
                [0.2536, 0.7464]])
    """

    @property
    def family(self) -> PoissonFamily:
        """The conjugate family of the components."""
        return PoissonFamily()

"""Bayesian mixture of yes-or-no answers: a Pyro program and its closed form, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import AbstractAdditiveFamily, CountStatistics, finite_log, require_rows
from probmix.column_priors import BetaPrior
from probmix.family import gather_component
from probmix.models.additive_mixture import AbstractAdditiveMixture

__all__ = ["BernoulliFamily", "BernoulliMixture"]


@dataclass(frozen=True)
class BernoulliFamily(AbstractAdditiveFamily[BetaPrior]):
    r"""Zeros and ones, independent given the component, with beta probabilities.

    .. math:: \log f(x \mid \theta) = x \log \theta + (1 - x) \log(1 - \theta)

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 2.4.

    Example:
        >>> statistics = BernoulliFamily().sufficient_statistics(torch.tensor([[1.0], [0.0]]), torch.ones(2, 1))
        >>> BernoulliFamily().maximum_likelihood(statistics)
        {'probs': tensor([[0.5000]])}
    """

    site = "probs"
    prior_type = BetaPrior

    def default_prior(self, x: Tensor, num_components: int) -> BetaPrior:
        """Uniform, plus one observation with the frequencies of the column; see `BernoulliMixture`."""
        share = (x.sum(0) + 0.5) / (x.shape[0] + 1)
        return BetaPrior(1 + share, 2 - share)

    def refuse(self, x: Tensor) -> None:
        """Refuse what is neither 0 nor 1."""
        require_rows((x != 0) & (x != 1), "zeros and ones", "compare with a threshold, as in (x > 0.5).double()")

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Bernoulli."""
        return dist.Bernoulli(parameters["probs"], validate_args=False).to_event(1)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw zeros and ones with the probabilities of each assignment."""
        return torch.bernoulli(gather_component(sites["probs"], assignment, 1), generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """Ones, and zeros: counted apart, so that no small number is the difference of two large ones."""
        return torch.cat([x, 1 - x], -1)

    def natural(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log probabilities of ones and of zeros."""
        probs = sites["probs"]
        eta = torch.cat([finite_log(probs), finite_log(1 - probs)], -1)
        return eta, eta.new_zeros(eta.shape[:-1])

    def expected_natural(self, prior: BetaPrior) -> tuple[Tensor, Tensor]:
        """Their means under the beta."""
        eta = torch.cat(prior.expected_log(), -1)
        return eta, eta.new_zeros(eta.shape[:-1])

    def estimate(self, count: Tensor, total: Tensor) -> Tensor:
        """Share of ones."""
        ones, zeros = total.chunk(2, -1)
        return ones / torch.where(ones + zeros > 0, ones + zeros, 1.0)

    def posterior(self, prior: BetaPrior, statistics: CountStatistics) -> BetaPrior:
        """Ones add to the first concentration, zeros to the second."""
        ones, zeros = statistics.total.chunk(2, -1)
        return BetaPrior(prior.concentration1 + ones, prior.concentration0 + zeros)

    def predictive(self, prior: BetaPrior) -> dist.TorchDistribution:
        """Bernoulli at the mean of the site; batch shape ``(*b, K)``."""
        return self.row(self.mean(prior))

    def log_predictive(self, x: Tensor, prior: BetaPrior) -> Tensor:
        """Log probability of each row, alone, ``(*b, N, K)``: that at the mean of the site."""
        return self.log_prob(x, self.mean(prior))


@dataclass(frozen=True)
class BernoulliMixture(AbstractAdditiveMixture):
    r"""Bayesian mixture of K products of Bernoulli distributions: latent class analysis of yes-or-no answers.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \theta_{kd} \sim \mathrm{Beta}(a_d, b_d), \quad
              p(x_n) = \sum_k w_k \prod_d \theta_{kd}^{x_{nd}} (1 - \theta_{kd})^{1 - x_{nd}}

    An instance is a Pyro program: call it with zeros and ones ``(N, D)``, or with truth values. Its sites, after any
    leading batch ``*b``, are ``weights`` ``(K,)`` and ``probs`` ``(K, D)``, the probability of a one; ``assignment``
    ``(N,)`` is discrete and summed out.

    The default prior is uniform, plus one observation with the frequencies of the column :math:`f_d` (a half of each
    answer added, so that none is 0): :math:`a_d = 1 + f_d`, :math:`b_d = 2 - f_d`. Its mode is never 0 or 1.

    Args:
        num_components: K.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a prior of the user's own; None: the default above.

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        Galindo-Garre and Vermunt (2006), Avoiding boundary estimates in latent class analysis by Bayesian posterior
        mode estimation, Behaviormetrika 33, 43-59, for such priors.

    Example:
        >>> model = BernoulliMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "probs": torch.tensor([[0.9, 0.5], [0.1, 0.5]])}
        >>> model.responsibilities(torch.tensor([[True, False]]), sites)
        tensor([[0.9000, 0.1000]])
    """

    @property
    def family(self) -> BernoulliFamily:
        """The conjugate family of the components."""
        return BernoulliFamily()

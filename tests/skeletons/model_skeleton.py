"""Mixture of half-normal distances: the smallest complete family. Copy to models/, rename, replace the half-normal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.column_priors import GammaPrior
from probmix.errors import DataError
from probmix.family import AbstractConjugateFamily, gather_component
from probmix.models.mixture import AbstractMixture
from probmix.rows import check_rows

__all__ = ["HalfNormalFamily", "HalfNormalMixture"]


class SquareStatistics(NamedTuple):
    """Sufficient statistics; those of two blocks of rows add up.

    Attributes:
        count: sum of the responsibilities, ``(*b, K)``.
        square: responsibilities times squares of the rows, ``(*b, K, D)``.
    """

    count: Tensor  # type: ignore[assignment]
    square: Tensor

    def __add__(self, other: SquareStatistics) -> SquareStatistics:  # type: ignore[override]
        return SquareStatistics(self.count + other.count, self.square + other.square)


@dataclass(frozen=True)
class HalfNormalFamily(AbstractConjugateFamily[GammaPrior, SquareStatistics]):
    r"""Distances, independent given the component, with gamma precisions.

    .. math:: \log f(x \mid \lambda) = \tfrac12 \log \frac{2 \lambda}{\pi} - \tfrac{\lambda}2 x^2

    Example:
        >>> statistics = HalfNormalFamily().sufficient_statistics(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        >>> HalfNormalFamily().maximum_likelihood(statistics)
        {'precision': tensor([[0.2000]])}
    """

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of the site."""
        return {"precision": ("component", "feature")}

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """One number for each component and feature."""
        return num_components * num_features

    # The prior, and the data that it is for.

    def default_prior(self, x: Tensor, num_components: int) -> GammaPrior:
        """Concentration 2, and a tenth of the mean square, so that much shorter distances are not outweighed."""
        return GammaPrior(x.new_full(x.shape[-1:], 2.0), 0.1 * x.square().mean(0))

    def check(self, x: Tensor, num_components: int, prior: GammaPrior | None) -> None:
        """Refuse rows that are not finite, too few or negative."""
        check_rows(x, num_components, spread=prior is None, independent=False)
        wrong = (x < 0).any(-1).nonzero().flatten()
        if len(wrong):
            raise DataError(
                f"expected distances of 0 or more, got {len(wrong)} of {len(x)} rows with others, the first at index "
                f"{int(wrong[0])}: take their absolute values"
            )

    # The program.

    def draw_parameters(self, prior: GammaPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the precisions."""
        with pyro.plate("component", num_components):
            return {"precision": (pyro.sample("precision", prior.distribution()), 1)}

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Half-normal."""
        return dist.HalfNormal(parameters["precision"].rsqrt(), validate_args=False).to_event(1)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw absolute values of normal numbers."""
        precision = gather_component(sites["precision"], assignment, 1)
        noise = torch.randn(precision.shape, generator=generator, dtype=precision.dtype, device=precision.device)
        return noise.abs() * precision.rsqrt()

    # The closed form.

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density of each row in each component, ``(N, D) -> (*b, N, K)``."""
        return self._linear(x, sites["precision"], sites["precision"].log())

    def _linear(self, x: Tensor, precision: Tensor, log_precision: Tensor) -> Tensor:
        constant = (log_precision + math.log(2 / math.pi)).sum(-1)
        return (constant[..., None, :] - x.square() @ precision.mT) / 2

    def log_prior(self, sites: Mapping[str, Tensor], prior: GammaPrior) -> Tensor:
        """Log density of the site under the prior, ``(*b,)``."""
        return prior.distribution().log_prob(sites["precision"]).sum(-1)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> SquareStatistics:
        """Additive statistics of the rows, ``(N, D), (*b, N, K) -> SquareStatistics``."""
        return SquareStatistics(responsibilities.sum(-2), responsibilities.mT @ x.square())

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have no rows, or only rows of zeros, ``(*b, K)``."""
        return ~sites["precision"].isfinite().all(-1)

    # The conjugate prior.

    def posterior(self, prior: GammaPrior, statistics: SquareStatistics) -> GammaPrior:
        """Half the rows add to the concentration, half their squares to the rate."""
        return GammaPrior(prior.concentration + statistics.count[..., None] / 2, prior.rate + statistics.square / 2)

    def mode(self, prior: GammaPrior) -> dict[str, Tensor]:
        """Mode of the site."""
        return {"precision": prior.mode()}

    def mean(self, prior: GammaPrior) -> dict[str, Tensor]:
        """Mean of the site."""
        return {"precision": prior.mean()}

    def maximum_likelihood(self, statistics: SquareStatistics) -> dict[str, Tensor]:
        """One over the mean square; infinite where there is nothing to take it of, which ``singular`` sees."""
        some = statistics.square > 0
        return {"precision": torch.where(some, statistics.count[..., None] / statistics.square, torch.inf)}

    def sample(self, prior: GammaPrior) -> dict[str, Tensor]:
        """Draw the site, by torch's global random state."""
        return {"precision": prior.distribution().sample()}

    def expected_log_prob(self, x: Tensor, prior: GammaPrior) -> Tensor:
        """Mean of ``log_prob`` when the site follows ``prior``, ``(*b, N, K)``."""
        return self._linear(x, prior.mean(), prior.expected_log())

    def divergence(self, posterior: GammaPrior, prior: GammaPrior) -> Tensor:
        """Sum over components and columns, ``(*b,)``."""
        return posterior.divergence(prior).sum((-2, -1))

    def predictive(self, prior: GammaPrior) -> dist.TorchDistribution:
        """Absolute value of a Student-t, batch shape ``(*b, K)``."""
        concentration, rate = prior.parameters
        student = dist.StudentT(2 * concentration, 0.0, (rate / concentration).sqrt(), validate_args=False)
        return dist.FoldedDistribution(student, validate_args=False).to_event(1)

    def log_predictive(self, x: Tensor, prior: GammaPrior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""
        return self.predictive(prior.of_rows()).log_prob(x[:, None, :])

    def log_marginal(self, prior: GammaPrior, statistics: SquareStatistics) -> Tensor:
        """Log evidence of all data with these statistics, ``(*b,)``: what the normalisers gain, and the constants."""
        gained = self.posterior(prior, statistics).log_normaliser() - prior.log_normaliser()
        numbers = statistics.count.sum(-1) * statistics.square.shape[-1]
        return gained.sum((-2, -1)) + numbers / 2 * math.log(2 / math.pi)


@dataclass(frozen=True)
class HalfNormalMixture(AbstractMixture):
    r"""Bayesian mixture of K half-normal distributions, columns independent given the component.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \lambda_{kd} \sim \mathrm{Gamma}(a_d, b_d), \quad
              p(x_n) = \sum_k w_k \prod_d \mathrm{HalfNormal}(x_{nd} \mid \lambda_{kd}^{-1/2})

    An instance is a Pyro program: call it with distances ``(N, D)``. Its sites, after any leading batch ``*b``, are
    ``weights`` ``(K,)`` and ``precision`` ``(K, D)``; ``assignment`` ``(N,)`` is discrete and summed out.

    The default prior has :math:`a = 2` and a tenth of the mean square of the column for :math:`b_d`.

    Args:
        num_components: K.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a prior of the user's own; None: the default above.

    Raises:
        ProgramError: a setting is out of range.

    Example:
        >>> model = HalfNormalMixture(num_components=2)
        >>> sites = {"weights": torch.tensor([0.5, 0.5]), "precision": torch.tensor([[1.0], [1.0]])}
        >>> model.responsibilities(torch.tensor([3.0]), sites)
        tensor([[0.5000, 0.5000]])
    """

    num_components: int
    weight_concentration: float = 1.0
    component_prior: GammaPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()

    @property
    def family(self) -> HalfNormalFamily:
        """The conjugate family of the components."""
        return HalfNormalFamily()

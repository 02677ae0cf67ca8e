"""Gaussian components whose covariances share volume, shape or orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.conjugate import GaussianPrior
from probmix.covariance import AbstractCovariance
from probmix.errors import ProgramError
from probmix.family import AbstractComponentFamily
from probmix.gaussian_family import FAMILIES, GaussianFamily
from probmix.parsimonious import CONSTRAINED, constrained_spread, num_spread_parameters
from probmix.statistics import Statistics
from probmix.table import Expectation, Table

__all__ = ["CONSTRAINED_FAMILIES", "ConstrainedGaussianFamily"]


@dataclass(frozen=True)
class ConstrainedGaussianFamily(AbstractComponentFamily[GaussianPrior, Statistics]):
    r"""Gaussian components tied to one another by one of the eight constraints that have no conjugate prior.

    All but the maximisation is that of the family without the constraint: sites ``loc`` ``(*b, K, D)`` and ``cov``
    ``(*b, K, D, D)``, or ``var`` ``(*b, K, D)`` for VEI and EVI.

    The prior is the density of the unconstrained family's, K times over, on the constrained set. Its normaliser is
    kept, and the density does not integrate to one there: compare it among sites, not among families. With it the
    best ``loc`` is that of the conjugate posterior, and the rest is maximum likelihood with scatters

    .. math:: W_k + S + \frac{\kappa n_k}{\kappa + n_k} (\bar x_k - m)(\bar x_k - m)^T

    and :math:`n_k + \nu + p + 2` in the place of :math:`n_k`, where :math:`p` is D (for VEI and EVI, 1).

    Attributes:
        letters: volume, shape and orientation, E, V or I each.
        free: the family without the constraint.

    Source:
        Celeux and Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, 781-793; Fraley and
        Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering, Journal of
        Classification 24, 155-181.

    Example:
        >>> family = CONSTRAINED_FAMILIES["EVI"]
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 8.0]])
        >>> family.maximise(family.sufficient_statistics(x, torch.ones(2, 1)), prior=None)
        {'loc': tensor([[1., 4.]]), 'var': tensor([[ 1., 16.]])}
    """

    letters: str
    free: GaussianFamily

    has_program: ClassVar[bool] = False

    @property
    def covariance(self) -> AbstractCovariance:
        """The shape of the site."""
        return self.free.covariance

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of ``loc`` and of ``cov`` or ``var``."""
        return self.free.dims

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Means, and the free numbers of all covariances together."""
        return num_components * num_features + num_spread_parameters(self.letters, num_components, num_features)

    # The prior and the data.

    def default_prior(self, x: Tensor, num_components: int) -> GaussianPrior:
        """Prior of Fraley and Raftery (2007), scaled to the rows."""
        return self.free.default_prior(x, num_components)

    def check(self, x: Tensor, num_components: int, prior: GaussianPrior | None) -> None:
        """Refuse what the unconstrained family refuses.

        Raises:
            DataError: it says which rows or columns.
            ProgramError: a prior of another type, for other data, or improper.
        """
        self.free.check(x, num_components, prior)

    def check_prior_type(self, prior: object) -> None:
        """Refuse a prior that is not of the type for this covariance.

        Raises:
            ProgramError: it names the type.
        """
        self.free.check_prior_type(prior, self.letters)

    # There is no program.

    def draw_parameters(self, prior: GaussianPrior, num_components: int) -> Mapping[str, tuple[Tensor, int]]:
        """Refuse: the constrained set has no prior to draw from.

        Raises:
            ProgramError: it names the covariances that have a program.
        """
        raise ProgramError(
            f"covariance={self.letters!r}: expected a covariance with a Pyro program ({', '.join(FAMILIES)}), got one "
            "with a closed form alone: fit it with EM(), or choose one of those"
        )

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Gaussian."""
        return self.free.row(parameters)

    # The closed form.

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Gaussian log density, ``(N, D) -> (*b, N, K)``."""
        return self.free.log_prob(x, sites)

    def log_prior(self, sites: Mapping[str, Tensor], prior: GaussianPrior) -> Tensor:
        """Log density of the unconstrained family's prior, ``(*b,)``."""
        return self.free.log_prior(sites, prior)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> Statistics:
        """Count, mean and scatter about the mean of each component."""
        return self.free.sufficient_statistics(x, responsibilities)

    def maximise(
        self, statistics: Statistics, prior: GaussianPrior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Sites of greatest penalised likelihood; see ``probmix.parsimonious.constrained_spread``.

        Scatters that no such covariance fits (a component on too few points) give a spread of 0, or one that is
        singular, which ``singular`` reports.
        """
        loc, divisor, scatter = statistics.mean, statistics.count, statistics.scatter
        if prior is not None:
            posterior = self.free.posterior(prior, statistics)
            order = self.covariance.order(loc.shape[-1])
            loc, divisor, scatter = posterior.loc, posterior.dof + order + 2, posterior.scatter
        before = None if sites is None else sites[self.covariance.site]
        return {"loc": loc, self.covariance.site: constrained_spread(self.letters, scatter, divisor, before)}

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have collapsed onto too few points to have a density, ``(*b, K)``."""
        return self.free.singular(sites)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one row of the component of each assignment, ``(*b, n) -> (*b, n, D)``."""
        return self.free.draw_rows(sites, assignment, generator)

    # One pass over the rows, by whatever way the unconstrained family has.

    def prepare(self, x: Tensor) -> Any:
        """Return what every pass over these rows needs."""
        return self.free.prepare(x)

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood and statistics in one pass over the rows."""
        return self.free.expectation(table, log_weights, sites)

    def drawn(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood and statistics of one draw of all assignments."""
        return self.free.drawn(table, log_weights, sites)


def _free(letters: str) -> GaussianFamily:
    return FAMILIES["diagonal" if letters.endswith("I") else "full"]


CONSTRAINED_FAMILIES: Mapping[str, ConstrainedGaussianFamily] = MappingProxyType(
    {letters: ConstrainedGaussianFamily(letters, _free(letters)) for letters in CONSTRAINED}
)

"""What the engines may ask of one family of mixture components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.table import Expectation, Table, accumulate, draw_one

__all__ = [
    "AbstractComponentFamily",
    "AbstractConditionallyConjugateFamily",
    "AbstractConjugateFamily",
    "gather_component",
]

Prior = TypeVar("Prior")
Sums = TypeVar("Sums")


class AbstractComponentFamily(ABC, Generic[Prior, Sums]):
    """One family of mixture components: a program, and the pure functions from which EM follows.

    ``Prior`` holds the parameters of the distribution of the components' parameters; ``Sums`` the sufficient
    statistics, which add up over the data with ``+``. Parameters of the components are *sites*: a dictionary of tensors
    with any leading batch shape ``*b`` (restarts, chains, draws). Data are one tensor of rows ``(N, D)``.
    """

    has_program: ClassVar[bool] = True  # False: the closed form alone, for EM

    # Names and sizes.

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site, batch axes aside; ``"component"`` is the axis of the components."""

    @abstractmethod
    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Count the free numbers in the sites of all components, for information criteria."""

    # The prior, and the data that it is for.

    @abstractmethod
    def default_prior(self, x: Tensor, num_components: int) -> Prior:
        """Return a proper prior scaled to the rows."""

    @abstractmethod
    def check(self, x: Tensor, num_components: int, prior: Prior | None) -> None:
        """Refuse rows (or a prior of the user's own) that would spoil a fit; ``None`` means the default prior.

        Raises:
            DataError: it says which rows or columns, what was expected, and the next step.
            ProgramError: the prior is improper or for other data.
        """

    # The program.

    @abstractmethod
    def draw_parameters(self, prior: Prior, num_components: int) -> Mapping[str, tuple[Tensor, int]]:
        """Run the Pyro statements of the components' sites; return what a row needs.

        Each value is a tensor and its number of axes to the right of the component axis, or -1 for a tensor that all
        components share and that has no component axis.
        """

    @abstractmethod
    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Distribution of one row given the parameters of its component."""

    def emit(self, parameters: Mapping[str, Tensor], x: Tensor) -> None:
        """Run the Pyro statement of the rows."""
        pyro.sample("x", self.row(parameters), obs=x)

    # The closed form.

    @abstractmethod
    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density of each row in each component, ``(N, D) -> (*b, N, K)``."""

    @abstractmethod
    def log_prior(self, sites: Mapping[str, Tensor], prior: Prior) -> Tensor:
        """Log density of the sites under the prior, ``(*b,)``."""

    @abstractmethod
    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> Sums:
        """Expected statistics of the rows, ``(N, D), (*b, N, K) -> Sums``.

        Families with latent variables of each row (a scale, factors) take their expectation under ``sites``; without
        sites, at a plain value from which a fit can start.
        """

    @abstractmethod
    def maximise(
        self, statistics: Sums, prior: Prior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Sites that maximise the expected log joint, or the expected log likelihood if there is no prior.

        Where that takes iterations they start from ``sites``, so that the objective cannot fall. Never NaN: a component
        without data keeps a stated remedy, or is reported by ``singular``.
        """

    @abstractmethod
    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have collapsed onto too few points to have a density, ``(*b, K)``."""

    @abstractmethod
    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one row of the component of each assignment, ``(*b, n) -> (*b, n, D)``."""

    # One pass over the rows. A family with a faster way overrides these.

    def prepare(self, x: Tensor) -> Any:
        """Return what every pass over these rows needs, made once."""
        return None

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood and expected statistics in one pass over the rows, ``log_weights`` ``(*b, K)``."""
        return accumulate(
            table,
            lambda x: log_weights[..., None, :] + self.log_prob(x, sites),
            lambda x, shares: self.sufficient_statistics(x, shares, sites),
            width=log_weights.numel() * table.x.shape[-1],
        )

    def drawn(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Draw the assignment of every row given the sites; log-likelihood and statistics of the draw.

        Families with latent variables of each row draw those too. Uses torch's global generator.
        """
        return accumulate(
            table,
            lambda x: log_weights[..., None, :] + self.log_prob(x, sites),
            lambda x, shares: self.drawn_statistics(x, shares, sites),
            width=log_weights.numel() * table.x.shape[-1],
            share=draw_one,
        )

    def drawn_statistics(self, x: Tensor, assigned: Tensor, sites: Mapping[str, Tensor]) -> Sums:
        """Statistics of rows whose assignment ``(*b, N, K)`` (of zeros and ones) has been drawn."""
        return self.sufficient_statistics(x, assigned, sites)


class AbstractConditionallyConjugateFamily(AbstractComponentFamily[Prior, Sums]):
    """A family whose prior is conjugate once the assignments, and any latent variables of the rows, are known.

    Gibbs and variational Bayes follow as well as EM.
    """

    @abstractmethod
    def posterior(self, prior: Prior, statistics: Sums) -> Prior:
        """Condition the prior on data with these statistics."""

    @abstractmethod
    def mode(self, prior: Prior) -> dict[str, Tensor]:
        """Return the joint mode of all sites, as a density over their free entries."""

    @abstractmethod
    def mean(self, prior: Prior) -> dict[str, Tensor]:
        """Mean of each site, NaN or infinite where it does not exist."""

    @abstractmethod
    def maximum_likelihood(self, statistics: Sums) -> dict[str, Tensor]:
        """Sites of greatest likelihood."""

    def maximise(
        self, statistics: Sums, prior: Prior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mode of the conjugate posterior, or the sites of greatest likelihood."""
        return self.maximum_likelihood(statistics) if prior is None else self.mode(self.posterior(prior, statistics))

    @abstractmethod
    def sample(self, prior: Prior) -> dict[str, Tensor]:
        """Draw all sites once from each distribution of the batch, by torch's global random state."""

    @abstractmethod
    def expected_log_prob(self, x: Tensor, prior: Prior) -> Tensor:
        """Mean of ``log_prob`` when the sites follow ``prior``, ``(*b, N, K)``.

        With latent variables of the rows: the lower bound of it at their best distribution.
        """

    @abstractmethod
    def divergence(self, posterior: Prior, prior: Prior) -> Tensor:
        """Kullback-Leibler divergence of two distributions of all sites, ``KL(posterior || prior)``, ``(*b,)``."""

    def variational_expectation(self, table: Table, log_weights: Tensor, posterior: Prior) -> Expectation:
        """``expectation`` with expected log weights ``(*b, K)`` and expected log densities."""
        return accumulate(
            table,
            lambda x: log_weights[..., None, :] + self.expected_log_prob(x, posterior),
            lambda x, shares: self.sufficient_statistics(x, shares),
            width=log_weights.numel() * table.x.shape[-1],
        )


class AbstractConjugateFamily(AbstractConditionallyConjugateFamily[Prior, Sums]):
    """A family with a conjugate prior and no latent variables but the assignments: evidences follow, too."""

    @abstractmethod
    def predictive(self, prior: Prior) -> dist.TorchDistribution:
        """Distribution of one new row of each component, sites integrated out; batch shape ``(*b, K)``."""

    @abstractmethod
    def log_predictive(self, x: Tensor, prior: Prior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""

    @abstractmethod
    def log_marginal(self, prior: Prior, statistics: Sums) -> Tensor:
        """Log evidence of all data with these statistics, sites integrated out, ``(*b,)``."""


def gather_component(parameter: Tensor, assignment: Tensor, event_dim: int) -> Tensor:
    """Parameters of the component of each row, ``(*b, K, ...), (*b, n) -> (*b, n, ...)``.

    Args:
        parameter: with ``event_dim`` axes to the right of the component axis.
        assignment: component of each row.
        event_dim: axes of one component's parameter.

    Example:
        >>> gather_component(torch.tensor([3.0, 4.0]), torch.tensor([1, 1, 0]), 0)
        tensor([4., 4., 3.])
    """
    event = parameter.shape[parameter.ndim - event_dim :]
    index = assignment[(..., *(None,) * event_dim)].expand(*assignment.shape, *event)
    return parameter.gather(assignment.ndim - 1, index)

"""What every mixture is: a family of components, a prior on the weights, and both as a Pyro program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from probmix.errors import ProgramError
from probmix.family import AbstractComponentFamily, AbstractConditionallyConjugateFamily, AbstractConjugateFamily
from probmix.rows import as_rows
from probmix.table import Expectation, Table, check_row_weights
from probmix.weight_priors import AbstractWeightPrior, DirichletWeights

__all__ = ["AbstractMixture", "MixturePrior", "log_normalised"]


class MixturePrior(NamedTuple):
    """Distribution of a mixture's parameters, before the data or after: of its weights and of its components.

    Attributes:
        weights: prior of the weights.
        component: prior of the components' sites, of the type that the family has.

    Example:
        >>> import torch
        >>> from probmix.models import GaussianMixture
        >>> GaussianMixture(num_components=2).prior(torch.tensor([1.0, 3.0])).component.scatter
        tensor([[0.5000]])
    """

    weights: AbstractWeightPrior
    component: Any


class AbstractMixture(ABC):
    r"""A mixture of K components of one family.

    .. math:: w \sim \mathrm{prior}, \quad \theta_k \sim \mathrm{prior}, \quad p(x_n) = \sum_k w_k f(x_n \mid \theta_k)

    A subclass is a frozen dataclass of settings that says which ``family`` it has. Its sites are ``weights`` and those
    of the family; ``assignment`` ``(N,)`` is discrete and is summed out by every method. All functions of sites take
    them with any leading batch ``*b`` (restarts, chains, draws).
    """

    num_components: int
    weight_concentration: float
    component_prior: Any

    @property
    @abstractmethod
    def family(self) -> AbstractComponentFamily:
        """The family of the components."""

    def _check_settings(self) -> None:
        """Refuse settings that are out of range; for ``__post_init__``."""
        if isinstance(self.num_components, bool) or not self.num_components >= 1:
            raise ProgramError(
                f"num_components: expected 1 or more, got {self.num_components}: pass a positive integer"
            )
        if not self.weight_concentration > 0:
            raise ProgramError(
                f"weight_concentration: expected a number above 0, got {self.weight_concentration}: "
                "pass 1.0 for a uniform prior on the weights"
            )

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of each site, batch axes aside."""
        return {"weights": ("component",), **self.family.dims}

    @property
    def observed_dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes of the data."""
        return {"x": ("data", "feature")}

    def num_parameters(self, num_features: int) -> int:
        """Count the free parameters, for information criteria."""
        return self.num_components - 1 + self.family.num_parameters(self.num_components, num_features)

    # The program.

    def __call__(self, *data: Tensor) -> None:
        """Run the Pyro program; the data are taken as they are, ``observe`` checks them."""
        x = self.rows(*data)
        prior = self.prior(x)
        weights = pyro.sample("weights", prior.weights.distribution())
        parameters = self.family.draw_parameters(prior.component, self.num_components)
        with pyro.plate("data", x.shape[0]):
            batch = pyro.subsample(x, event_dim=1)
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
            picked = {name: _pick(value, assignment, depth) for name, (value, depth) in parameters.items()}
            self.family.emit(picked, batch)

    # The prior and the data it is scaled to.

    def rows(self, *data: Tensor) -> Tensor:
        """Return the data as one table of rows ``(N, D)``."""
        return as_rows(*data)

    def observe(self, x: Tensor) -> Tensor:
        """Return the data as rows ``(N, D)``, checked for what would spoil a fit.

        Raises:
            DataError: wrong type or shape, or rows that this family cannot be fitted to.
            ProgramError: a ``component_prior`` that is for other data, or improper.
        """
        x = self.rows(x).contiguous()
        self.family.check(x, self.num_components, self.component_prior)
        return x

    def prior(self, x: Tensor) -> MixturePrior:
        """Prior of these rows: the user's own, or the default scaled to the data."""
        x, given = as_rows(x), self.component_prior
        component = self.family.default_prior(x, self.num_components) if given is None else given.to(x)
        return MixturePrior(self._weight_prior(x), component)

    def _weight_prior(self, x: Tensor) -> AbstractWeightPrior:
        return DirichletWeights(x.new_full((self.num_components,), self.weight_concentration))

    # The closed form.

    def log_prob_components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log weight plus log density of each row in each component, ``(N, D) -> (*b, N, K)``."""
        return log_normalised(sites["weights"])[..., None, :] + self.family.log_prob(as_rows(x), sites)

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density of each row under the mixture, ``(N, D) -> (*b, N)``."""
        return self.log_prob_components(x, sites).logsumexp(-1)

    def responsibilities(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Probability that each row belongs to each component, ``(N, D) -> (*b, N, K)``."""
        return self.log_prob_components(x, sites).softmax(-1)

    def labels(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Component of greatest probability for each row, ``(N, D) -> (*b, N)``."""
        return self.log_prob_components(x, sites).argmax(-1)

    def log_prior(self, sites: Mapping[str, Tensor], prior: MixturePrior) -> Tensor:
        """Log density of the sites under the prior, ``(*b,)``."""
        return prior.weights.log_prob(sites["weights"]) + self.family.log_prior(sites, prior.component)

    def log_joint(self, x: Tensor, sites: Mapping[str, Tensor], prior: MixturePrior | None = None) -> Tensor:
        """Log density of data and sites together, assignments summed out, ``(*b,)``."""
        prior = self.prior(x) if prior is None else prior
        return self.log_prior(sites, prior) + self.log_prob(x, sites).sum(-1)

    # What the engines ask for.

    def table(self, x: Tensor, row_weights: Tensor | None = None) -> Table:
        """Return checked rows ready for many passes over them."""
        return Table(x, check_row_weights(row_weights, x), self.family.prepare(x))

    def expectation(self, table: Table, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood ``(*b,)`` and expected sufficient statistics, in one pass over the rows."""
        return self.family.expectation(table, log_normalised(sites["weights"]), sites)

    def drawn(self, table: Table, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood, and statistics of one draw of all assignments given the sites."""
        return self.family.drawn(table, log_normalised(sites["weights"]), sites)

    def variational_expectation(self, table: Table, posterior: MixturePrior) -> Expectation:
        """``expectation`` under a distribution of the sites; the log-likelihood is that of the expected logs."""
        log_weights = posterior.weights.expected_log()
        return self._conditional.variational_expectation(table, log_weights, posterior.component)

    def sufficient_statistics(self, x: Tensor, responsibilities: Tensor) -> Any:
        """Additive statistics of the rows, ``(N, D), (*b, N, K) -> Sums``."""
        return self.family.sufficient_statistics(as_rows(x), responsibilities)

    def maximise(
        self, statistics: Any, prior: MixturePrior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Sites that maximise the expected log joint, or the expected log likelihood if there is no prior.

        A weight whose mode would be negative (a concentration below 1 and a component with next to no data) is 0, the
        edge of the simplex, where the density has no mode; the others share the rest.
        """
        count = statistics.count
        if prior is None:
            return {"weights": count / count.sum(-1, keepdim=True), **self.family.maximise(statistics, None, sites)}
        components = self.family.maximise(statistics, prior.component, sites)
        return {"weights": prior.weights.posterior(count).mode(), **components}

    def singular_components(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Tell which components have collapsed onto too few points to have a density, ``(*b, K)``."""
        return self.family.singular(sites)

    def posterior(self, prior: MixturePrior, statistics: Any) -> MixturePrior:
        """Condition on statistics: the conditional distribution of all sites given the assignments."""
        component = self._conditional.posterior(prior.component, statistics)
        return MixturePrior(prior.weights.posterior(statistics.count), component)

    def draw_sites(self, posterior: MixturePrior) -> dict[str, Tensor]:
        """Draw all sites once from each distribution of the batch, by torch's global random state."""
        return {"weights": posterior.weights.sample(), **self._conditional.sample(posterior.component)}

    def mean_sites(self, posterior: MixturePrior) -> dict[str, Tensor]:
        """Mean of every site."""
        return {"weights": posterior.weights.mean(), **self._conditional.mean(posterior.component)}

    def divergence(self, posterior: MixturePrior, prior: MixturePrior) -> Tensor:
        """``KL(posterior || prior)`` of all sites, ``(*b,)``."""
        component = self._conditional.divergence(posterior.component, prior.component)
        return posterior.weights.divergence(prior.weights) + component

    @property
    def has_program(self) -> bool:
        """Whether it can be run as a Pyro program; if not, EM alone fits it."""
        return self.family.has_program

    @property
    def conditionally_conjugate(self) -> bool:
        """Whether Gibbs and variational Bayes have a closed form."""
        return isinstance(self.family, AbstractConditionallyConjugateFamily)

    @property
    def conjugate(self) -> bool:
        """Whether the evidence given the assignments has one, too."""
        return isinstance(self.family, AbstractConjugateFamily)

    @property
    def _conditional(self) -> AbstractConditionallyConjugateFamily:
        if isinstance(self.family, AbstractConditionallyConjugateFamily):
            return self.family
        raise ProgramError(
            f"{type(self).__name__}: expected a family with a conjugate prior, which {type(self.family).__name__} "
            "has not. EM(), MAP(), SVI(), NUTS() and ChEES() do without."
        )

    # New data.

    def sample(
        self, n: int, sites: Mapping[str, Tensor], *, seed: int, return_assignments: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw n rows from the mixture, ``(*b, n, D)``, and on request their components, ``(*b, n)``.

        The draws depend on ``seed`` alone; torch's global random state is neither used nor changed.
        """
        weights = sites["weights"]
        generator = torch.Generator(weights.device).manual_seed(seed)
        flat = weights.reshape(-1, weights.shape[-1])
        assignment = torch.multinomial(flat, n, replacement=True, generator=generator)
        assignment = assignment.reshape(*weights.shape[:-1], n)
        x = self.family.draw_rows(sites, assignment, generator)
        return (x, assignment) if return_assignments else x


def log_normalised(weights: Tensor) -> Tensor:
    """Log weights that sum to one exactly, whatever the rounding of those given.

    Example:
        >>> log_normalised(torch.tensor([1.0, 1.0])).exp()
        tensor([0.5000, 0.5000])
    """
    return (weights / weights.sum(-1, keepdim=True)).log()


def _pick(parameter: Tensor, assignment: Tensor, event_dim: int) -> Tensor:
    """Parameters of the component of each row, in a program; an enumerated or a plate dimension may be to the left."""
    if event_dim < 0:
        return parameter
    event = (slice(None),) * event_dim
    return Vindex(parameter.unsqueeze(-2 - event_dim))[(..., assignment, *event)]

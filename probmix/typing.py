"""The words at the room boundary: what a program is, and what a method may ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeGuard, runtime_checkable

from torch import Tensor

from probmix.table import Expectation, Table

__all__ = [
    "Additive",
    "ClosedFormMixture",
    "ConjugateMixture",
    "Dims",
    "FusedLogJoint",
    "Generative",
    "ImplicitModel",
    "LatentScale",
    "Named",
    "NamedData",
    "Observing",
    "OwnGuide",
    "OwnSettings",
    "Program",
    "RowLatents",
    "Sites",
    "Starting",
    "has_members",
    "is_implicit",
]

#: A callable with Pyro statements; ``program(*data)``.
Program: TypeAlias = Callable[..., Any]

#: Sample-site name -> constrained value: the currency between methods.
Sites: TypeAlias = dict[str, Tensor]

#: Site name -> names of its axes (leading draw, chain or restart axes are not named here).
Dims: TypeAlias = Mapping[str, tuple[str, ...]]


@runtime_checkable
class Named(Protocol):
    """A program that names the axes of its sites; the axis ``"component"`` is the one that relabelling permutes."""

    @property
    def dims(self) -> Dims:
        """Site name -> axis names."""
        ...


@runtime_checkable
class NamedData(Protocol):
    """A program that names the axes of what it observes."""

    @property
    def observed_dims(self) -> Dims:
        """Observed site name -> axis names."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A program that checks its data once, before a fit."""

    @property
    def observe(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        """A function of the data that returns them as the program wants them, or raises `DataError`."""
        ...


@runtime_checkable
class Starting(Protocol):
    """A program that makes guesses of its sites from the data, from which methods start."""

    @property
    def start_names(self) -> tuple[str, ...]:
        """Names of the ways to guess, the best first."""
        ...

    def starts(self, name: str, num: int, *data: Tensor) -> Sites:
        """Return random guesses of all sites with a leading axis of ``num``."""
        ...


@runtime_checkable
class FusedLogJoint(Protocol):
    """A program that has a faster log joint than the one traced from its statements."""

    def fused_log_joint(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Return the log density of data and sites, discrete sites summed out, ``(*b,)``, and not finite off support.

        It is a function of tensors that autograd and ``torch.func`` (``vmap``, ``grad``, ``hessian``) go through.
        """
        ...


class OwnSettings(NamedTuple):
    """What a program with its own variational family wants of SVI where the user does not say.

    Args:
        num_particles: draws for each row in each step.
        last_particles: draws for each row in the estimate of the ELBO after the fit.
        learning_rate: of Adam, at first.

    Example:
        >>> OwnSettings().num_particles
        10
    """

    num_particles: int = 10
    last_particles: int = 1000
    learning_rate: float = 0.01


@runtime_checkable
class OwnGuide(Protocol):
    """A program that brings its own variational family for SVI: parameters, a bound, and what they stand for."""

    def svi_settings(self, num_rows: int) -> OwnSettings:
        """Return the defaults of a fit to so many rows."""
        ...

    def first_parameters(self, *data: Tensor) -> Sites:
        """Return unconstrained parameters to start from; a torch module returns its own, which the fit then changes."""
        ...

    def elbo(self, parameters: Sites, *rows: Tensor, num_rows: int, num_particles: int) -> Tensor:
        """Return independent estimates of the bound ``(j,)``, from some of the ``num_rows`` rows of the data."""
        ...

    def guide(self, parameters: Sites, *data: Tensor) -> Any:
        """Return the guide that parameters stand for, of all the data."""
        ...

    def fitted(self, guide: Any) -> Program:
        """Return the program that a guide is about: what was fitted beside the sites has its fitted value."""
        ...


class Generative(Protocol):
    """A trained generator with a mixture of Gaussians as the prior of its latent vectors."""

    latent: Any

    def generate(self, z: Tensor) -> Tensor:
        """Return data ``(*n, *shape)`` of latent vectors ``(*n, d)``."""
        ...


@runtime_checkable
class RowLatents(Protocol):
    """A program whose rows have independent latent vectors of their own, with a mixture as their prior."""

    @property
    def model(self) -> Generative:
        """The generator."""
        ...

    def log_joint_rows(self, x: Tensor, z: Tensor) -> Tensor:
        """Return ``log p(x, z)`` of latent vectors ``(*b, n, d)`` for rows ``(n, *shape)``, ``(*b, n)``."""
        ...

    def nearest(self, num: int, x: Tensor, *, each_component: bool = False) -> Tensor:
        """Return guesses for each row ``(num, n, d)``, best first; of each component, in turn, ``(num * K, n, d)``."""
        ...


class ImplicitModel(Protocol):
    """A model that is known by its draws, and the discriminator that adversarial training needs beside them.

    It is a `torch.nn.Module`. Outputs of the discriminator are read by the model alone: which of them are scores of
    classes and which recognise components.
    """

    latent: Any
    generator: Any
    discriminator: Any
    recognise: bool

    def built_for(self, *data: Tensor) -> Any:
        """Return a copy with all networks, for data of this shape."""
        ...

    def with_parameters(self, parameters: Sites, *data: Tensor) -> Any:
        """Return a copy with these parameters, for data of this shape."""
        ...

    def frozen(self) -> Any:
        """Return this model as it is to be used: in evaluation mode, all parameters constant."""
        ...

    def rsample(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return data, latent vectors and components, with gradients."""
        ...

    def judge(self, x: Tensor) -> Tensor:
        """Return the outputs of the discriminator ``(n, S)``."""
        ...

    def real_score(self, outputs: Tensor, label: Tensor | None) -> Tensor:
        """Return the scores of real data of a class, ``(n,)``."""
        ...

    def fake_score(self, outputs: Tensor, component: Tensor) -> Tensor:
        """Return the scores of generated data that the discriminator lowers, ``(n,)``."""
        ...

    def wanted_score(self, outputs: Tensor, component: Tensor) -> Tensor:
        """Return the scores of generated data that the generator raises, ``(n,)``."""
        ...

    def component_logits(self, outputs: Tensor) -> Tensor:
        """Return log probabilities of components, but for a constant, ``(n, K)``."""
        ...


def has_members(value: Any, protocol: type) -> bool:
    """Return whether a value has all that a protocol names, the submodules of a `torch.nn.Module` among them.

    From Python 3.12 on ``isinstance`` does not see those.

    Example:
        >>> has_members(lambda: None, Generative)
        False
    """
    names = {*vars(protocol), *protocol.__annotations__}
    return all(hasattr(value, name) for name in names if not name.startswith("_"))


def is_implicit(model: Any) -> TypeGuard[ImplicitModel]:
    """Return whether a model can be trained by `Adversarial`.

    Example:
        >>> is_implicit(lambda: None)
        False
    """
    return has_members(model, ImplicitModel)


class Additive(Protocol):
    """Sufficient statistics: the statistics of two blocks of rows add up to those of both."""

    def __add__(self, other: Self) -> Self:
        """Return the statistics of both blocks."""
        ...


@runtime_checkable
class ClosedFormMixture(Protocol):
    """What EM asks of a mixture. Sites may carry any leading batch ``*b`` (restarts); n rows, k components."""

    num_components: int

    def rows(self, *data: Tensor) -> Tensor:
        """Return the data as one table of rows ``(n, d)``."""
        ...

    def prior(self, x: Tensor) -> Any:
        """Return the prior for these rows; computed once per fit."""
        ...

    def table(self, x: Tensor, row_weights: Tensor | None = None) -> Table:
        """Return the rows ready for many passes over them, each standing for ``row_weights`` observations."""
        ...

    def sufficient_statistics(self, x: Tensor, responsibilities: Tensor) -> Any:
        """Return additive statistics of rows ``(n, d)`` under responsibilities ``(*b, n, k)``, for a start."""
        ...

    def expectation(self, table: Table, sites: Mapping[str, Tensor]) -> Expectation:
        """Return the log-likelihood ``(*b,)`` and the expected statistics given the sites, in one pass."""
        ...

    def maximise(self, statistics: Any, prior: Any | None, sites: Mapping[str, Tensor] | None = None) -> Sites:
        """Return the sites that maximise the expected log joint (``prior=None``: the expected log-likelihood).

        ``sites`` are those before, where an iterative maximisation starts.
        """
        ...

    def singular_components(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``(*b, k)``, true where a component has collapsed onto too few points to have a density."""
        ...

    def log_prior(self, sites: Mapping[str, Tensor], prior: Any) -> Tensor:
        """Return the log prior density of the sites, ``(*b,)``."""
        ...

    def log_prob_components(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Return log weight plus log density of every row under every component, ``(*b, n, k)``."""
        ...


@runtime_checkable
class ConjugateMixture(ClosedFormMixture, Protocol):
    """What variational Bayes and Gibbs ask of a mixture beside that.

    ``posterior`` is a distribution of all sites, of the same type as the prior: it has ``weights`` (a
    `probmix.weight_priors.AbstractWeightPrior`) and ``component``.
    """

    @property
    def conditionally_conjugate(self) -> bool:
        """Whether the family of components has a conjugate prior, so that the members below work."""
        ...

    def posterior(self, prior: Any, statistics: Any) -> Any:
        """Return the distribution of the sites given the prior and statistics."""
        ...

    def drawn(self, table: Table, sites: Mapping[str, Tensor]) -> Expectation:
        """Return the log-likelihood ``(*b,)`` and statistics of one draw of all assignments given the sites."""
        ...

    def draw_sites(self, posterior: Any) -> Sites:
        """Return one draw of all sites from each distribution of the batch."""
        ...

    def variational_expectation(self, table: Table, posterior: Any) -> Expectation:
        """Return ``expectation`` under a distribution of the sites."""
        ...

    def divergence(self, posterior: Any, prior: Any) -> Tensor:
        """Return ``KL(posterior || prior)`` of all sites, ``(*b,)``."""
        ...

    def mean_sites(self, posterior: Any) -> Sites:
        """Return the mean of every site."""
        ...


@runtime_checkable
class LatentScale(Protocol):
    """What EM asks of a process with a common random variance s, called with data ``(x, y)``."""

    @property
    def scale_has_unknowns(self) -> bool:
        """Whether the prior of s has sites of its own."""
        ...

    def given_scale(self) -> Program:
        """Return the program in which s is a site, ``scale_var``."""
        ...

    def expected_scale(self, x: Tensor, y: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Return ``1 / E[1 / s | y]`` at hyperparameters with leading batch ``*b``, ``(*b,)``."""
        ...

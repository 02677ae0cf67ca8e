"""Families side by side: each has some of the columns, and given the component they are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from probmix.errors import DataError
from probmix.family import AbstractConjugateFamily

__all__ = ["Part", "ProductFamily", "ProductPrior", "ProductRow", "ProductStatistics"]


class Part(NamedTuple):
    """A family and its columns.

    Attributes:
        name: what its sites start with.
        family: the family.
        size: how many columns it has, next to those of the part before.

    Example:
        >>> from probmix.gaussian_family import FAMILIES
        >>> Part("gaussian", FAMILIES["diagonal"], 2).size
        2
    """

    name: str
    family: AbstractConjugateFamily
    size: int


@dataclass(frozen=True, eq=False)
class ProductPrior:
    """Distributions of the sites of all parts.

    Attributes:
        parts: the prior of each part, of the type that its family has.

    Example:
        >>> from probmix.column_priors import GammaPrior
        >>> ProductPrior((GammaPrior(2.0, torch.ones(3)),)).to(torch.zeros(1, dtype=torch.float64)).parts[0].rate.dtype
        torch.float64
    """

    parts: tuple[Any, ...]

    def to(self, like: Tensor) -> ProductPrior:
        """Return a copy with the dtype and device of ``like``."""
        return ProductPrior(tuple(part.to(like) for part in self.parts))


@dataclass(frozen=True, eq=False)
class ProductStatistics:
    """Statistics of all parts, which add up.

    Attributes:
        parts: those of each part.

    Example:
        >>> from probmix.additive_family import CountStatistics
        >>> one = ProductStatistics((CountStatistics(torch.ones(2), torch.ones(2, 1), torch.zeros(2)),))
        >>> (one + one).count
        tensor([2., 2.])
    """

    parts: tuple[Any, ...]

    @property
    def count(self) -> Tensor:
        """Sum of the responsibilities, ``(*b, K)``."""
        return self.parts[0].count

    def __add__(self, other: ProductStatistics) -> ProductStatistics:
        return ProductStatistics(tuple(a + b for a, b in zip(self.parts, other.parts, strict=True)))


class ProductRow(dist.TorchDistribution):
    """A row whose parts are independent.

    Args:
        parts: distribution of each part, with events ``(size,)``.
        validate_args: None leaves it to torch's global setting.

    Example:
        >>> row = ProductRow((dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Poisson(torch.ones(1)).to_event(1)))
        >>> row.log_prob(torch.zeros(3))
        tensor(-2.8379)
    """

    arg_constraints = {}  # noqa: RUF012 - torch's API
    support = constraints.real_vector

    def __init__(self, parts: tuple[dist.TorchDistribution, ...], validate_args: bool | None = None) -> None:
        self.parts = parts
        batch = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        event = torch.Size([sum(part.event_shape[0] for part in parts)])
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ProductRow:
        """Return the same distribution with a larger batch shape."""
        return ProductRow(tuple(part.expand(batch_shape) for part in self.parts), validate_args=self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw rows, ``(*sample_shape, *b, D)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return torch.cat(
            [part.expand(self.batch_shape).sample(sample_shape).expand(*shape, -1) for part in self.parts], -1
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the log densities of the parts, ``(*b,)``."""
        slices = value.split([part.event_shape[0] for part in self.parts], -1)
        return _total(part.log_prob(x) for part, x in zip(self.parts, slices, strict=True))


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(add, terms)


class _Prefix(Messenger):
    """Put a name in front of all sites of a program."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = f"{self._name}_{msg['name']}"


@dataclass(frozen=True)
class ProductFamily(AbstractConjugateFamily[ProductPrior, ProductStatistics]):
    r"""Rows in parts, each of a family of its own, independent given the component.

    .. math:: \log f(x \mid \theta) = \sum_p \log f_p(x_p \mid \theta_p)

    The sites are those of the parts, with the part's name in front.

    Attributes:
        parts: the families and how many columns each has, from left to right.

    Example:
        >>> from probmix.gaussian_family import FAMILIES
        >>> list(ProductFamily((Part("size", FAMILIES["diagonal"], 2),)).dims)
        ['size_loc', 'size_var']
    """

    parts: tuple[Part, ...]

    def _split(self, x: Tensor) -> Iterator[tuple[Part, Tensor]]:
        return zip(self.parts, x.split([part.size for part in self.parts], -1), strict=True)

    def _with(self, prior: ProductPrior) -> Iterator[tuple[Part, Any]]:
        return zip(self.parts, prior.parts, strict=True)

    def _own(self, part: Part, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {site: sites[f"{part.name}_{site}"] for site in part.family.dims}

    def _all(self, function: Callable[[Part, int], Mapping[str, Any]]) -> dict[str, Any]:
        """Results of all parts by site, names put in front."""
        results = [(part, function(part, place)) for place, part in enumerate(self.parts)]
        return {f"{part.name}_{site}": value for part, result in results for site, value in result.items()}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Axes of the sites; all but the component's are named after the part."""

        def axes(part: Part, _: int) -> dict[str, tuple[str, ...]]:
            return {
                site: tuple(axis if axis == "component" else f"{part.name}_{axis}" for axis in names)
                for site, names in part.family.dims.items()
            }

        return self._all(axes)

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Those of all parts."""
        return sum(part.family.num_parameters(num_components, part.size) for part in self.parts)

    def default_prior(self, x: Tensor, num_components: int) -> ProductPrior:
        """The default of each part."""
        return ProductPrior(tuple(part.family.default_prior(rows, num_components) for part, rows in self._split(x)))

    def check(self, x: Tensor, num_components: int, prior: ProductPrior | None) -> None:
        """Let each part check its columns.

        Raises:
            DataError: it says which part, and which rows and columns of it.
            ProgramError: a prior for other data, or improper.
        """
        width = sum(part.size for part in self.parts)
        if x.shape[-1] != width:
            raise DataError(
                f"expected {width} columns, as the model was made for, got {x.shape[-1]}: encode the table with the "
                "model's own encode"
            )
        for place, (part, rows) in enumerate(self._split(x)):
            try:
                part.family.check(rows, num_components, None if prior is None else prior.parts[place])
            except DataError as error:
                raise DataError(f"in the {part.name} columns: {error}") from error

    # The program.

    def draw_parameters(self, prior: ProductPrior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the sites of each part."""

        def drawn(part: Part, place: int) -> Mapping[str, tuple[Tensor, int]]:
            with _Prefix(part.name):
                return part.family.draw_parameters(prior.parts[place], num_components)

        return self._all(drawn)

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Product of the parts' distributions."""
        own = [
            {
                name.removeprefix(f"{part.name}_"): v
                for name, v in parameters.items()
                if name.startswith(f"{part.name}_")
            }
            for part in self.parts
        ]
        rows = tuple(part.family.row(values) for part, values in zip(self.parts, own, strict=True))
        return ProductRow(rows, validate_args=False)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw each part."""
        drawn = [part.family.draw_rows(self._own(part, sites), assignment, generator) for part in self.parts]
        return torch.cat(drawn, -1)

    # The closed form.

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Sum of the parts' log densities, ``(N, D) -> (*b, N, K)``."""
        return _total(part.family.log_prob(rows, self._own(part, sites)) for part, rows in self._split(x))

    def log_prior(self, sites: Mapping[str, Tensor], prior: ProductPrior) -> Tensor:
        """Sum of the parts' log densities, ``(*b,)``."""
        return _total(part.family.log_prior(self._own(part, sites), own) for part, own in self._with(prior))

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> ProductStatistics:
        """Those of each part."""
        return ProductStatistics(
            tuple(
                part.family.sufficient_statistics(
                    rows, responsibilities, None if sites is None else self._own(part, sites)
                )
                for part, rows in self._split(x)
            )
        )

    def maximise(
        self, statistics: ProductStatistics, prior: ProductPrior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The best sites of each part."""

        def best(part: Part, place: int) -> dict[str, Tensor]:
            own = None if sites is None else self._own(part, sites)
            return part.family.maximise(statistics.parts[place], None if prior is None else prior.parts[place], own)

        return self._all(best)

    def maximum_likelihood(self, statistics: ProductStatistics) -> dict[str, Tensor]:
        """Sites of greatest likelihood of each part."""
        return self.maximise(statistics, None)

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """Whether any part has collapsed, ``(*b, K)``."""
        return torch.stack([part.family.singular(self._own(part, sites)) for part in self.parts]).any(0)

    # The conjugate priors.

    def posterior(self, prior: ProductPrior, statistics: ProductStatistics) -> ProductPrior:
        """Condition each part."""
        pairs = zip(self._with(prior), statistics.parts, strict=True)
        return ProductPrior(tuple(part.family.posterior(own, sums) for (part, own), sums in pairs))

    def mode(self, prior: ProductPrior) -> dict[str, Tensor]:
        """Modes of the parts."""
        return self._all(lambda part, place: part.family.mode(prior.parts[place]))

    def mean(self, prior: ProductPrior) -> dict[str, Tensor]:
        """Means of the parts."""
        return self._all(lambda part, place: part.family.mean(prior.parts[place]))

    def sample(self, prior: ProductPrior) -> dict[str, Tensor]:
        """Draw the sites of each part, by torch's global random state."""
        return self._all(lambda part, place: part.family.sample(prior.parts[place]))

    def expected_log_prob(self, x: Tensor, prior: ProductPrior) -> Tensor:
        """Sum of the parts' mean log densities, ``(*b, N, K)``."""
        pairs = zip(self._with(prior), self._split(x), strict=True)
        return _total(part.family.expected_log_prob(rows, own) for (part, own), (_, rows) in pairs)

    def divergence(self, posterior: ProductPrior, prior: ProductPrior) -> Tensor:
        """Sum over the parts, ``(*b,)``."""
        pairs = zip(self.parts, posterior.parts, prior.parts, strict=True)
        return _total(part.family.divergence(after, before) for part, after, before in pairs)

    def predictive(self, prior: ProductPrior) -> dist.TorchDistribution:
        """Product of the parts' predictive distributions; batch shape ``(*b, K)``."""
        return ProductRow(tuple(part.family.predictive(own) for part, own in self._with(prior)), validate_args=False)

    def log_predictive(self, x: Tensor, prior: ProductPrior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""
        pairs = zip(self._with(prior), self._split(x), strict=True)
        return _total(part.family.log_predictive(rows, own) for (part, own), (_, rows) in pairs)

    def log_marginal(self, prior: ProductPrior, statistics: ProductStatistics) -> Tensor:
        """Sum of the parts' log evidences, ``(*b,)``."""
        pairs = zip(self._with(prior), statistics.parts, strict=True)
        return _total(part.family.log_marginal(own, sums) for (part, own), sums in pairs)

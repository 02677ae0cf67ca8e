"""Families of independent columns whose log density is linear in features of the row: all is two matrix products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, TypeVar

import pyro
import torch
from torch import Tensor

from probmix.column_priors import AbstractColumnPrior
from probmix.errors import DataError, ProgramError
from probmix.family import AbstractConjugateFamily
from probmix.rows import check_rows
from probmix.table import Expectation, Table, accumulate, draw_one, share_out

__all__ = ["AbstractAdditiveFamily", "CountStatistics", "finite_log", "require_rows"]

Prior = TypeVar("Prior", bound=AbstractColumnPrior)

_LARGEST_DESIGN = 2**25  # numbers of the features kept for all passes; above, they are made anew in each block


class CountStatistics(NamedTuple):
    """Sufficient statistics of rows shared out among components; those of two blocks of rows add up.

    Attributes:
        count: sum of the shares, ``(*b, K)``.
        total: shares times the features of the rows, ``(*b, K, P)``.
        log_base: shares times the part of a row's log density that no component changes, ``(*b, K)``.

    Example:
        >>> one = CountStatistics(torch.ones(1), torch.ones(1, 2), torch.zeros(1))
        >>> (one + one).count
        tensor([2.])
    """

    count: Tensor  # type: ignore[assignment]
    total: Tensor
    log_base: Tensor

    def __add__(self, other: CountStatistics) -> CountStatistics:  # type: ignore[override]
        return CountStatistics(self.count + other.count, self.total + other.total, self.log_base + other.log_base)


class AbstractAdditiveFamily(AbstractConjugateFamily[Prior, CountStatistics]):
    r"""An exponential family of independent columns with one site and its conjugate prior.

    .. math:: \log f(x \mid \theta) = \eta(\theta) \cdot t(x) - A(\theta) + \log h(x)

    A pass over the rows is one product of the rows' design :math:`(t(x), \log h(x), 1)` with the coefficients
    :math:`(\eta, 1, \log w - A)` of all components, and one back. Where a parameter is on the edge of its support
    (a rate or a probability of 0), :math:`\eta` is a huge negative number instead of an infinite one, since a product
    would make NaN of infinity times 0; ``log_prob`` returns -inf there.
    """

    site: ClassVar[str]
    prior_type: ClassVar[type[AbstractColumnPrior]]

    # What a family says about itself.

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        r""":math:`t(x)`, ``(N, D) -> (N, P)``."""

    def log_base(self, x: Tensor) -> Tensor:
        r""":math:`\log h(x)`, ``(N, D) -> (N,)``."""
        return x.new_zeros(x.shape[0])

    @abstractmethod
    def natural(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r""":math:`\eta` ``(*b, K, P)``, finite, and :math:`-A` ``(*b, K)``."""

    @abstractmethod
    def expected_natural(self, prior: Prior) -> tuple[Tensor, Tensor]:
        """Means of both under a distribution of the site."""

    @abstractmethod
    def estimate(self, count: Tensor, total: Tensor) -> Tensor:
        """Site of greatest likelihood where ``count`` ``(*b, K)`` is above 0."""

    @abstractmethod
    def refuse(self, x: Tensor) -> None:
        """Raise `DataError` for finite values that the family has no density for."""

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The site has a number for each component and feature."""
        return {self.site: ("component", "feature")}

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """One number for each component and feature."""
        return num_components * num_features

    def check(self, x: Tensor, num_components: int, prior: Prior | None) -> None:
        """Refuse rows that are not finite, too few or outside the support; of a prior, all that is not positive.

        Raises:
            DataError: it says which rows.
            ProgramError: a prior for other data, or improper.
        """
        check_rows(x, num_components, spread=False, independent=False)
        self.refuse(x)
        if prior is not None:
            self.check_prior(prior.to(x), x)

    def check_prior_type(self, prior: object) -> None:
        """Refuse a prior of another type.

        Raises:
            ProgramError: it names the type.
        """
        if not isinstance(prior, self.prior_type | None):
            raise ProgramError(
                f"component_prior: expected {self.prior_type.__name__}, got {type(prior).__name__}: build it with "
                f"probmix.column_priors.{self.prior_type.__name__}"
            )

    def check_prior(self, prior: Prior, x: Tensor) -> None:
        """Refuse a prior that is improper or for other columns."""
        shape, columns = tuple(prior.parameters[0].shape), x.shape[-1]
        if shape[-1:] != (columns,):
            raise ProgramError(
                f"component_prior: expected fields that end in ({columns},) for {columns} columns, got shape {shape}: "
                "give it one number for each column"
            )
        if not all((value > 0).all() for value in prior.parameters):
            raise ProgramError(
                "component_prior: expected a proper prior, with all numbers above 0, got one of 0 or less: raise it"
            )

    # The program.

    def draw_parameters(self, prior: Prior, num_components: int) -> dict[str, tuple[Tensor, int]]:
        """Draw the site; a row needs nothing else."""
        with pyro.plate("component", num_components):
            value = pyro.sample(self.site, prior.distribution())
        return {self.site: (value, len(self.dims[self.site]) - 1)}

    # The closed form.

    def log_prob(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """Log density, -inf where a parameter on the edge of its support rules a row out, ``(N, D) -> (*b, N, K)``."""
        eta, constant = self.natural(sites)
        scores = self._design(x) @ _coefficients(eta, constant).mT
        return torch.where(scores > _lowest(scores) / 2, scores, -torch.inf)

    def expected_log_prob(self, x: Tensor, prior: Prior) -> Tensor:
        """Mean log density, ``(N, D) -> (*b, N, K)``."""
        return self._design(x) @ _coefficients(*self.expected_natural(prior)).mT

    def log_prior(self, sites: Mapping[str, Tensor], prior: Prior) -> Tensor:
        """Log density of the site, summed over the components, ``(*b,)``."""
        return prior.distribution().log_prob(sites[self.site]).sum(-1)

    def sufficient_statistics(
        self, x: Tensor, responsibilities: Tensor, sites: Mapping[str, Tensor] | None = None
    ) -> CountStatistics:
        """Counts and totals of the features, ``(N, D), (*b, N, K) -> CountStatistics``."""
        return _sums(self._design(x), responsibilities)

    def maximum_likelihood(self, statistics: CountStatistics) -> dict[str, Tensor]:
        """Site of greatest likelihood; a component without data gets that of all data together."""
        count, total, _ = statistics
        pooled = self.estimate(count.sum(-1, keepdim=True), total.sum(-2, keepdim=True))
        return {self.site: self._where_empty(count, total, pooled)}

    def maximise(
        self, statistics: CountStatistics, prior: Prior | None, sites: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mode of the posterior, or the site of greatest likelihood.

        Without a prior a component without data keeps its site; at a start, it gets that of all data together.
        """
        if prior is not None:
            return self.mode(self.posterior(prior, statistics))
        if sites is None:
            return self.maximum_likelihood(statistics)
        return {self.site: self._where_empty(statistics.count, statistics.total, sites[self.site])}

    def singular(self, sites: Mapping[str, Tensor]) -> Tensor:
        """None: the likelihood of such a component is bounded, ``(*b, K)``."""
        value = sites[self.site]
        return torch.zeros_like(value.flatten(1 - len(self.dims[self.site]))[..., 0], dtype=torch.bool)

    # The conjugate prior.

    def mode(self, prior: Prior) -> dict[str, Tensor]:
        """Mode of the site."""
        return {self.site: prior.mode()}

    def mean(self, prior: Prior) -> dict[str, Tensor]:
        """Mean of the site."""
        return {self.site: prior.mean()}

    def sample(self, prior: Prior) -> dict[str, Tensor]:
        """Draw the site, by torch's global random state."""
        return {self.site: prior.distribution().sample()}

    def divergence(self, posterior: Prior, prior: Prior) -> Tensor:
        """Sum over components and columns, ``(*b,)``."""
        return posterior.divergence(prior).sum((-2, -1))

    def log_predictive(self, x: Tensor, prior: Prior) -> Tensor:
        """Log density of each row, alone, under ``predictive``, ``(*b, N, K)``."""
        return self.predictive(prior.of_rows()).log_prob(x[:, None, :])

    def log_marginal(self, prior: Prior, statistics: CountStatistics) -> Tensor:
        """Ratio of the normalisers of posterior and prior, times the base of the rows, ``(*b,)``."""
        gained = self.posterior(prior, statistics).log_normaliser() - prior.log_normaliser()
        return gained.sum((-2, -1)) + statistics.log_base.sum(-1)

    # One pass over the rows.

    def prepare(self, x: Tensor) -> Tensor | None:
        """Return the design of all rows, unless it is large: then each pass makes it block by block."""
        one = self._design(x[:1])
        return self._design(x) if len(x) * one.shape[-1] <= _LARGEST_DESIGN else None

    def expectation(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood and statistics: two matrix products for each block of rows."""
        return self._pass(table, log_weights, *self.natural(sites), share_out)

    def drawn(self, table: Table, log_weights: Tensor, sites: Mapping[str, Tensor]) -> Expectation:
        """Log-likelihood, and statistics of one draw of all assignments; uses torch's global generator."""
        return self._pass(table, log_weights, *self.natural(sites), draw_one)

    def variational_expectation(self, table: Table, log_weights: Tensor, posterior: Prior) -> Expectation:
        """``expectation`` with expected log weights and expected natural parameters."""
        return self._pass(table, log_weights, *self.expected_natural(posterior), share_out)

    def _pass(
        self, table: Table, log_weights: Tensor, eta: Tensor, constant: Tensor, share: Callable[[Tensor], Tensor]
    ) -> Expectation:
        coefficients = _coefficients(eta, log_weights + constant).mT
        made = table.prepared is not None
        return accumulate(
            Table(table.prepared, table.row_weights, power=table.power) if made else table,
            lambda rows: (rows if made else self._design(rows)) @ coefficients,
            lambda rows, shares: _sums(rows if made else self._design(rows), shares),
            width=max(log_weights.numel(), coefficients.shape[-2]),
            share=share,
        )

    def _design(self, x: Tensor) -> Tensor:
        """Features, log base and 1 of each row, ``(N, P + 2)``."""
        return torch.cat([self.features(x), self.log_base(x)[:, None], x.new_ones(x.shape[0], 1)], -1)

    def _where_empty(self, count: Tensor, total: Tensor, otherwise: Tensor) -> Tensor:
        some = count > 0
        estimate = self.estimate(torch.where(some, count, 1.0), total)
        return torch.where(some.reshape(*some.shape, *[1] * (len(self.dims[self.site]) - 1)), estimate, otherwise)


def finite_log(value: Tensor) -> Tensor:
    """Logarithm, and where it is -inf a number so low that no product with a feature (0, or 1 and more) is mistaken.

    Example:
        >>> finite_log(torch.tensor([1.0, 0.0])) * torch.tensor([2.0, 0.0])
        tensor([0., -0.])
    """
    log = value.log()
    return torch.where(log > -torch.inf, log, _lowest(log))


def require_rows(wrong: Tensor, expected: str, remedy: str) -> None:
    """Raise `DataError` if any value is wrong, ``(N, D)``: it names the first row and column.

    Example:
        >>> require_rows(torch.zeros(3, 1, dtype=torch.bool), "counts", "round them")
    """
    rows, columns = wrong.nonzero(as_tuple=True)
    if len(rows):
        raise DataError(
            f"expected {expected}, got {int(wrong.any(-1).sum())} of {len(wrong)} rows with other values, the first at "
            f"index {int(rows[0])} (column {int(columns[0])}): {remedy}"
        )


def _lowest(like: Tensor) -> float:
    return torch.finfo(like.dtype).min / 2**20  # far from overflow in a sum, far below the log of any density


def _coefficients(eta: Tensor, constant: Tensor) -> Tensor:
    """What the design is multiplied by, ``(*b, K, P + 2)``."""
    one = torch.ones_like(constant)
    return torch.cat([eta, one[..., None], constant[..., None]], -1)


def _sums(design: Tensor, shares: Tensor) -> CountStatistics:
    sums = shares.mT @ design
    return CountStatistics(sums[..., -1], sums[..., :-2], sums[..., -2])

"""Latent class analysis: a Bayesian mixture of categorical answers, as a Pyro program and its closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.additive_family import AbstractAdditiveFamily, CountStatistics, finite_log
from probmix.codes import CategoricalCodes, level_cells, level_places
from probmix.column_priors import DirichletPrior
from probmix.errors import DataError, ProgramError
from probmix.family import gather_component
from probmix.models.additive_mixture import AbstractAdditiveMixture

__all__ = ["CategoricalFamily", "CategoricalMixture"]


@dataclass(frozen=True)
class CategoricalFamily(AbstractAdditiveFamily[DirichletPrior]):
    r"""Codes of levels, independent given the component, with Dirichlet probabilities.

    .. math:: \log f(x \mid \theta) = \sum_d \log \theta_{d x_d}

    Columns with fewer levels than the widest one have probability 0 for the rest: those numbers are no parameters.

    Args:
        num_levels: levels of each column, or one number for all.

    Source:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 3.4.

    Example:
        >>> statistics = CategoricalFamily(3).sufficient_statistics(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
        >>> CategoricalFamily(3).maximum_likelihood(statistics)
        {'probs': tensor([[[0.5000, 0.0000, 0.5000]]])}
    """

    num_levels: int | tuple[int, ...]

    site = "probs"
    prior_type = DirichletPrior

    def levels(self, num_features: int) -> tuple[int, ...]:
        """Levels of each column."""
        return (self.num_levels,) * num_features if isinstance(self.num_levels, int) else self.num_levels

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """A probability for each component, feature and level."""
        return {"probs": ("component", "feature", "level")}

    def num_parameters(self, num_components: int, num_features: int) -> int:
        """Levels less one of each column and component."""
        return num_components * (sum(self.levels(num_features)) - num_features)

    def default_prior(self, x: Tensor, num_components: int) -> DirichletPrior:
        """Uniform, plus one observation with the frequencies of the column; see `CategoricalMixture`."""
        levels = self.levels(x.shape[-1])
        size = x.new_tensor([1 / count for count in levels for _ in range(count)])
        share = (self.features(x).sum(0) + size) / (x.shape[0] + 1)
        return DirichletPrior(self._table(1 + share, levels), levels)

    def check(self, x: Tensor, num_components: int, prior: DirichletPrior | None) -> None:
        """Refuse rows that are not finite, too few or hold other codes; also another number of columns.

        Raises:
            DataError: it says which rows and columns.
            ProgramError: a prior for other columns or levels, or improper.
        """
        if x.shape[-1] != len(self.levels(x.shape[-1])):
            raise DataError(
                f"expected {len(self.levels(x.shape[-1]))} columns, one for each entry of num_levels, got "
                f"{x.shape[-1]}: give num_levels one number for each column"
            )
        super().check(x, num_components, prior)

    def refuse(self, x: Tensor) -> None:
        """Refuse what is no code of a level."""
        levels = x.new_tensor(self.levels(x.shape[-1]))
        rows, columns = ((x < 0) | (x >= levels) | (x != x.round())).nonzero(as_tuple=True)
        if len(rows):
            row, column = int(rows[0]), int(columns[0])
            highest = self.levels(x.shape[-1])[column] - 1
            raise DataError(
                f"expected codes 0 to {highest} in column {column}, got {float(x[row, column]):g} in row {row}, the "
                f"first of {len(rows.unique())} rows with codes out of range: raise num_levels, or number the levels "
                "from 0 without gaps"
            )

    def check_prior(self, prior: DirichletPrior, x: Tensor) -> None:
        """Refuse a prior that is improper or for other columns."""
        levels = self.levels(x.shape[-1])
        shape = tuple(prior.concentration.shape[-2:])
        if shape != (len(levels), max(levels)) or prior.num_levels != levels:
            raise ProgramError(
                f"component_prior: expected a concentration that ends in {(len(levels), max(levels))} for levels "
                f"{levels}, got {shape} for levels {prior.num_levels}: give it one number for each level"
            )
        column, level = level_cells(levels, x.device)
        inside = prior.concentration[..., column, level]
        if not (inside > 0).all() or not torch.equal((prior.concentration > 0).sum(), (inside > 0).sum()):
            raise ProgramError(
                "component_prior: expected a concentration above 0 for each level and 0 for levels that a column does "
                "not have, got others: change it"
            )

    def row(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Categorical in each column."""
        return CategoricalCodes(parameters["probs"], validate_args=False)

    def draw_rows(self, sites: Mapping[str, Tensor], assignment: Tensor, generator: torch.Generator) -> Tensor:
        """Draw codes with the probabilities of each assignment."""
        return CategoricalCodes(gather_component(sites["probs"], assignment, 2)).sample(generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """For each level of each column whether the row has it, ``(N, sum of levels)``."""
        column, level = level_cells(self.levels(x.shape[-1]), x.device)
        return (x[:, column] == level).to(x)

    def natural(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log probabilities."""
        eta = finite_log(self._cells(sites["probs"]))
        return eta, eta.new_zeros(eta.shape[:-1])

    def expected_natural(self, prior: DirichletPrior) -> tuple[Tensor, Tensor]:
        """Their means under the Dirichlet."""
        eta = self._cells(prior.expected_log())
        return eta, eta.new_zeros(eta.shape[:-1])

    def estimate(self, count: Tensor, total: Tensor) -> Tensor:
        """Share of each level."""
        num_levels = self.num_levels
        columns = total.shape[-1] // num_levels if isinstance(num_levels, int) else len(num_levels)
        table = self._table(total, self.levels(columns))
        of_column = table.sum(-1, keepdim=True)
        return table / torch.where(of_column > 0, of_column, 1.0)

    def posterior(self, prior: DirichletPrior, statistics: CountStatistics) -> DirichletPrior:
        """Rows with a level add to its concentration."""
        table = self._table(statistics.total, prior.num_levels)
        return DirichletPrior(prior.concentration + table, prior.num_levels)

    def predictive(self, prior: DirichletPrior) -> dist.TorchDistribution:
        """Categorical at the mean of the site; batch shape ``(*b, K)``."""
        return self.row(self.mean(prior))

    def log_predictive(self, x: Tensor, prior: DirichletPrior) -> Tensor:
        """Log probability of each row, alone, ``(*b, N, K)``: that at the mean of the site."""
        return self.log_prob(x, self.mean(prior))

    def _cells(self, table: Tensor) -> Tensor:
        """Entries of a table that are levels, ``(*b, D, C) -> (*b, P)``."""
        column, level = level_cells(self.levels(table.shape[-2]), table.device)
        return table[..., column, level]

    def _table(self, cells: Tensor, levels: tuple[int, ...]) -> Tensor:
        """Numbers of the levels as a table, with 0 where there is no level, ``(*b, P) -> (*b, D, C)``."""
        return torch.cat([cells, torch.zeros_like(cells[..., :1])], -1)[..., level_places(levels, cells.device)]


@dataclass(frozen=True)
class CategoricalMixture(AbstractAdditiveMixture):
    r"""Latent class analysis: columns of categories, independent given one of K classes.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \theta_{kd} \sim \mathrm{Dirichlet}(a_d), \quad
              p(x_n) = \sum_k w_k \prod_d \theta_{k d x_{nd}}

    An instance is a Pyro program: call it with codes of the levels, 0, 1, ..., ``(N, D)``. Its sites, after any leading
    batch ``*b``, are ``weights`` ``(K,)`` and ``probs`` ``(K, D, C)`` with C the most levels of any column; a column
    with fewer has probability exactly 0 for the rest, which are no parameters: neither the prior nor any method sees
    them (and ArviZ gives NaN for the r-hat of a constant). ``assignment`` ``(N,)`` is discrete and summed out.

    The default prior is uniform, plus one observation with the frequencies of the column (of which one row is spread
    evenly over the levels, so that none is 0). Its mode is never on the edge of the support.

    Args:
        num_components: K.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: a prior of the user's own; None: the default above.
        num_levels: levels of each column, at least 2, or one number for all columns.

    Raises:
        ProgramError: a setting is out of range, or the prior is of another type.

    Source:
        Galindo-Garre and Vermunt (2006), Avoiding boundary estimates in latent class analysis by Bayesian posterior
        mode estimation, Behaviormetrika 33, 43-59, for such priors.

    Example:
        >>> model = CategoricalMixture(num_components=2, num_levels=(2, 3))
        >>> probs = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.2, 0.6]], [[0.1, 0.9, 0.0], [0.2, 0.2, 0.6]]])
        >>> model.responsibilities(torch.tensor([[0, 2]]), {"weights": torch.tensor([0.5, 0.5]), "probs": probs})
        tensor([[0.9000, 0.1000]])
    """

    num_levels: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        levels = (self.num_levels,) if isinstance(self.num_levels, int) else tuple(self.num_levels)
        if not levels or not all(isinstance(count, int) and count >= 2 for count in levels):
            raise ProgramError(
                f"num_levels: expected 2 or more, or one such number for each column, got {self.num_levels!r}: count "
                "the levels of each column, and drop columns with a single one"
            )
        if not isinstance(self.num_levels, int):
            object.__setattr__(self, "num_levels", levels)
        super().__post_init__()

    @property
    def family(self) -> CategoricalFamily:
        """The conjugate family of the components."""
        return CategoricalFamily(self.num_levels)

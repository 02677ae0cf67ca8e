"""Bayesian mixture for tables of mixed columns: numbers, counts, answers and categories side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from probmix.errors import ProgramError
from probmix.family import AbstractConjugateFamily
from probmix.gaussian_family import FAMILIES
from probmix.mixed_columns import Column, ColumnFamily, columns_of, decode, encode
from probmix.models.bernoulli_mixture import BernoulliFamily
from probmix.models.categorical_mixture import CategoricalFamily
from probmix.models.exponential_mixture import ExponentialFamily
from probmix.models.mixture import AbstractMixture
from probmix.models.poisson_mixture import PoissonFamily
from probmix.product_family import Part, ProductFamily, ProductPrior

__all__ = ["ProductMixture"]

_ORDER: tuple[ColumnFamily, ...] = ("gaussian", "poisson", "bernoulli", "categorical", "exponential")


@dataclass(frozen=True)
class ProductMixture(AbstractMixture):
    r"""Bayesian mixture of K components whose columns are independent and each of a family of its own.

    .. math:: w \sim \mathrm{Dirichlet}(\alpha), \quad \theta_{kd} \sim \mathrm{prior}_d, \quad
              p(x_n) = \sum_k w_k \prod_d f_d(x_{nd} \mid \theta_{kd})

    Made from a data frame, whose dtypes decide (`from_frame`); ``encode`` turns frames into the rows that all methods
    take, and ``decode`` turns rows back. Rows have the columns in groups: gaussian (diagonal covariance), poisson,
    bernoulli, categorical, exponential; ``feature_names`` says in what order. An instance is a Pyro program: call it
    with such rows. Its sites are ``weights`` and those of each group that there is, with its name in front:
    ``gaussian_loc``, ``gaussian_var``, ``poisson_rate``, ``bernoulli_probs``, ``categorical_probs``,
    ``exponential_rate``; ``assignment`` is discrete and summed out. EM, VB, Gibbs and all other methods run.

    The default priors are those of the mixtures of each family alone.

    Args:
        num_components: K.
        columns: name and family of each column.
        weight_concentration: :math:`\alpha`, the same for every component; 1 is uniform.
        component_prior: priors of the user's own, one for each group; None: the defaults.

    Raises:
        ProgramError: a setting is out of range, or there are no columns.

    Source:
        Everitt (1988), A finite mixture model for the clustering of mixed-mode data, Statistics and Probability
        Letters 6, 305-309, for the idea; there the categories come from thresholds, here they have their own
        probabilities (local independence, as in latent class analysis).

    Example:
        >>> frame = pd.DataFrame({"visits": [0, 9], "colour": ["red", "blue"], "size": [1.0, 2.0]})
        >>> model = ProductMixture.from_frame(frame, 2)
        >>> model.feature_names, model.encode(frame)
        (('size', 'visits', 'colour'), tensor([[1., 0., 1.],
                [2., 9., 0.]], dtype=torch.float64))
        >>> [name for name in model.dims]
        ['weights', 'gaussian_loc', 'gaussian_var', 'poisson_rate', 'categorical_probs']
    """

    num_components: int
    columns: tuple[Column, ...]
    weight_concentration: float = 1.0
    component_prior: ProductPrior | None = None

    def __post_init__(self) -> None:
        self._check_settings()
        if not self.columns:
            raise ProgramError("columns: expected one or more, got none: use ProductMixture.from_frame")
        parts = self.family.parts
        if self.component_prior is not None and len(self.component_prior.parts) != len(parts):
            raise ProgramError(
                f"component_prior: expected a prior for each of {[part.name for part in parts]}, got "
                f"{len(self.component_prior.parts)}: give one for each"
            )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        num_components: int,
        *,
        families: Mapping[Hashable, ColumnFamily] | None = None,
        weight_concentration: float = 1.0,
        component_prior: ProductPrior | None = None,
    ) -> ProductMixture:
        """Make the mixture for all columns of a table.

        Args:
            frame: the table.
            num_components: K.
            families: column name -> family, where the dtype should not decide: ``{"age": "gaussian"}``.
            weight_concentration: as above.
            component_prior: as above.

        Raises:
            DataError: a column has no family; it says which, and what to do.
        """
        return cls(num_components, columns_of(frame, families), weight_concentration, component_prior)

    @property
    def family(self) -> ProductFamily:
        """The families of all groups, side by side."""
        return ProductFamily(tuple(_part(name, group) for name in _ORDER if (group := self._group(name))))

    def _group(self, family: ColumnFamily) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.family == family)

    @property
    def _in_order(self) -> tuple[Column, ...]:
        return tuple(column for name in _ORDER for column in self._group(name))

    @property
    def feature_names(self) -> tuple[Hashable, ...]:
        """Names of the columns of the rows, from left to right."""
        return tuple(column.name for column in self._in_order)

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Return the columns of a table as rows ``(N, D)``, float64; other columns are left out.

        Raises:
            DataError: a column is missing, a cell is empty, or a level is unknown; it names column and row.
        """
        return torch.as_tensor(encode(frame, self._in_order))

    def decode(self, x: Tensor) -> pd.DataFrame:
        """Return rows ``(N, D)``, such as those that ``sample`` draws, as a table with the original columns."""
        table = decode(x.detach().to("cpu").__array__(), self._in_order)
        return table[[column.name for column in self.columns]]

    def fused_log_joint(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """``log_joint`` by matrix products; the traced program has tables of rows by components by columns."""
        return self.log_joint(x, sites)


def _part(name: ColumnFamily, columns: tuple[Column, ...]) -> Part:
    levels = tuple(len(column.levels) for column in columns)
    families: dict[ColumnFamily, AbstractConjugateFamily] = {
        "gaussian": FAMILIES["diagonal"],
        "poisson": PoissonFamily(),
        "bernoulli": BernoulliFamily(),
        "categorical": CategoricalFamily(levels),
        "exponential": ExponentialFamily(),
    }
    return Part(name, families[name], len(columns))

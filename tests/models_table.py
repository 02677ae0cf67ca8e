"""Every mixture in the package, with data for it, for test_model_laws.py. A new model adds a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probmix.models import (
    BernoulliMixture,
    CategoricalMixture,
    ExponentialMixture,
    GaussianMixture,
    MixtureOfFactorAnalysers,
    PoissonMixture,
    ProductMixture,
    RegressionMixture,
    StudentTMixture,
    VonMisesFisherMixture,
)
from probmix.models.mixture import AbstractMixture

__all__ = ["CONDITIONAL", "CONJUGATE", "GENERATIVE", "MODELS", "PROGRAMS", "Row"]


@dataclass(frozen=True)
class Row:
    """One model of three components, and data of 40 rows.

    Args:
        name: for the test's name.
        model: the model.
        data: what its program is called with.
    """

    name: str
    model: AbstractMixture
    data: tuple[Tensor, ...]

    @property
    def x(self) -> Tensor:
        """The rows."""
        return self.model.rows(*self.data)

    def __str__(self) -> str:
        return self.name


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def continuous(size: int = 2) -> Tensor:
    """Three groups of correlated columns."""
    noise = torch.randn(40, size, generator=_generator(), dtype=torch.float64)
    mixing = torch.eye(size, dtype=torch.float64) + 0.3
    return noise @ mixing + 3.0 * (torch.arange(40) % 3)[:, None] + 5.0


GROUP = (torch.arange(40) % 3)[:, None]


def counts() -> Tensor:
    """Three groups of Poisson columns."""
    return torch.poisson((3.0 * GROUP + 1.0).expand(40, 2), generator=_generator()).double()


def yes_or_no() -> Tensor:
    """Three groups of four questions."""
    odds = (0.15 + 0.35 * ((GROUP + torch.arange(4)) % 3)).double()
    return torch.bernoulli(odds, generator=_generator())


def codes() -> Tensor:
    """Two columns of three levels, of which each group likes another one."""
    noise = torch.randint(3, (40, 2), generator=_generator())
    liked = torch.rand(40, 2, generator=_generator()) < 0.7
    return torch.where(liked, GROUP, noise).double()


def waits() -> Tensor:
    """Three groups of exponential columns."""
    uniform = torch.rand(40, 2, generator=_generator(), dtype=torch.float64)
    return -uniform.log() * 4.0**GROUP


def directions() -> Tensor:
    """Three groups on the sphere."""
    towards = 2 * torch.eye(3, dtype=torch.float64)[GROUP.squeeze(-1)]
    x = towards + 0.5 * torch.randn(40, 3, generator=_generator(), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def frame() -> pd.DataFrame:
    """A mixed table: numbers, counts, yes or no, names."""
    names = np.array(["red", "green", "blue"])[codes()[:, 0].long()]
    return pd.DataFrame(
        {
            "size": continuous(1)[:, 0].numpy(),
            "visits": counts()[:, 0].long().numpy(),
            "member": yes_or_no()[:, 0].bool().numpy(),
            "colour": pd.Categorical(names),
        }
    )


def lines() -> tuple[Tensor, Tensor]:
    """Design of two columns, and a response with three slopes."""
    x = torch.randn(40, 2, generator=_generator(), dtype=torch.float64)
    noise = 0.3 * torch.randn(40, generator=_generator(), dtype=torch.float64)
    return x, 2.0 * GROUP[:, 0] + (GROUP[:, 0] - 1.0) * x[:, 0] + noise


_MIXED = ProductMixture.from_frame(frame(), 3)

MODELS = [
    *(
        Row(f"gaussian_{name}", GaussianMixture(3, name, weight_concentration=1.5), (continuous(),))
        for name in ("full", "tied", "diagonal", "spherical", "EEI", "EII")
    ),
    *(
        Row(f"gaussian_{name}", GaussianMixture(3, name), (continuous(),))
        for name in ("VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV")
    ),
    Row("gaussian_one_column", GaussianMixture(3), (continuous(1),)),
    Row("gaussian_sticks", GaussianMixture(3, weight_prior="stick_breaking"), (continuous(),)),
    Row("poisson", PoissonMixture(3), (counts(),)),
    Row("bernoulli", BernoulliMixture(3), (yes_or_no(),)),
    Row("categorical", CategoricalMixture(3, num_levels=3), (codes(),)),
    Row("exponential", ExponentialMixture(3), (waits(),)),
    Row("product", _MIXED, (_MIXED.encode(frame()),)),
    Row("regression", RegressionMixture(3), lines()),
    Row("von_mises_fisher", VonMisesFisherMixture(3), (directions(),)),
    Row("student_t", StudentTMixture(3), (continuous(),)),
    Row("student_t_diagonal", StudentTMixture(3, "diagonal", dof=5.0), (continuous(),)),
    Row("factor_analysers", MixtureOfFactorAnalysers(3, num_factors=1), (continuous(4),)),
    Row("principal_components", MixtureOfFactorAnalysers(3, num_factors=1, noise="isotropic"), (continuous(4),)),
]
PROGRAMS = [row for row in MODELS if row.model.has_program]
GENERATIVE = [row for row in MODELS if row.name != "regression"]  # which has responses for a design, but no rows
CONDITIONAL = [row for row in MODELS if row.model.conditionally_conjugate]
CONJUGATE = [row for row in CONDITIONAL if row.model.conjugate]

"""Draws of small mixtures with and without switched labels, for the tests of relabelling."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from probmix.errors import DataError, MethodError
from probmix.relabel import (
    Stephens,
    relabel,
)

CHAINS, DRAWS, K, N = 3, 40, 3, 60


@dataclass(frozen=True)
class Result:
    """What relabelling reads of a posterior made of draws, and one field more that must survive."""

    draws: dict[str, Tensor]
    program: Any
    args: tuple[Tensor, ...]
    sample_stats: dict[str, Tensor]
    note: str = "kept"


@dataclass(frozen=True)
class Normals:
    """A Gaussian mixture by torch's own distributions."""

    dims: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "weights": ("component",),
            "loc": ("component", "feature"),
            "cov": ("component", "feature", "feature_bis"),
            "pooled_cov": ("feature", "feature_bis"),
        }
    )

    def responsibilities(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        parts = MultivariateNormal(sites["loc"].unsqueeze(-3), sites["cov"].unsqueeze(-4))
        return (parts.log_prob(x.unsqueeze(-2)) + sites["weights"].log().unsqueeze(-2)).softmax(-1)

    def log_joint(self, x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        parts = MultivariateNormal(sites["loc"].unsqueeze(-3), sites["cov"].unsqueeze(-4))
        return MixtureSameFamily(Categorical(sites["weights"].unsqueeze(-2)), parts).log_prob(x).sum(-1)


def mixture(distance: float, seed: int = 0) -> Result:
    """Draws around a mixture whose neighbours are ``distance`` standard deviations apart, labels never switched."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    centre = distance * torch.tensor([[-1.0, 0.3], [0.0, 0.0], [1.0, -0.3]], dtype=torch.float64)
    batch = (CHAINS, DRAWS)
    root = 0.1 * noise(*batch, K, 2, 2) + torch.eye(2, dtype=torch.float64)
    draws = {
        "weights": (0.3 * noise(*batch, K)).softmax(-1),
        "loc": centre + 0.15 * noise(*batch, K, 2),
        "cov": root @ root.mT,
        "pooled_cov": (root @ root.mT).mean(2),
        "concentration": noise(*batch).exp(),
    }
    x = centre.repeat_interleave(N // K, dim=0) + noise(N, 2)
    program = Normals()
    return Result(draws, program, (x,), {"lp": program.log_joint(x, draws)})


def random_permutations(seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand((CHAINS, DRAWS, K), generator=rng).argsort(-1)


def switched(result: Result, permutations: Tensor) -> Result:
    """Permute every draw by indexing one draw at a time, without the function under test."""
    draws = {name: value.clone() for name, value in result.draws.items()}
    for chain, draw in itertools.product(range(permutations.shape[0]), range(permutations.shape[1])):
        for name in ("weights", "loc", "cov"):
            draws[name][chain, draw] = result.draws[name][chain, draw][permutations[chain, draw]]
    return replace(result, draws=draws)


def kullback_leibler(responsibilities: Tensor, permutations: Tensor) -> float:
    """Average over draws of Stephens' loss for labels ``(S, K)``, by SciPy: responsibilities ``(S, N, K)``."""
    p = np.stack([draw[:, perm] for draw, perm in zip(responsibilities.numpy(), permutations.numpy(), strict=True)])
    return float(rel_entr(p, p.mean(0)).sum() / len(p))


def flat_responsibilities(result: Result) -> Tensor:
    return result.program.responsibilities(result.args[0], result.draws).flatten(0, 1)


def overlapped() -> Result:
    return switched(mixture(0.7, seed=3), random_permutations(5))


def refused(method: Any = None, dims: Any = None, reference: Any = None, **changes: Any) -> str:
    """Text of the error that these arguments give on an ordinary result with these fields changed."""
    with pytest.raises((MethodError, DataError)) as caught:
        relabel(replace(mixture(8.0), **changes), method or Stephens(), dims=dims, reference=reference)
    return str(caught.value)

"""Permutations of component labels: find the cheapest, apply them to sites, count how often they change.

One convention everywhere: ``relabelled[..., k] = original[..., permutations[..., k]]``. The original component
``permutations[..., k]`` moves into slot ``k``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probmix.errors import DataError, MethodError
from probmix.typing import Dims

__all__ = ["COMPONENT", "Switches", "assign", "count_switches", "identity", "permute_sites"]

COMPONENT = "component"
"""Name of the axis that relabelling permutes."""


def identity(num_draws: int, num_components: int, device: torch.device | None = None) -> Tensor:
    """Permutations that change nothing, shape ``(num_draws, num_components)``.

    >>> identity(2, 3)
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    return torch.arange(num_components, device=device).repeat(num_draws, 1)


def assign(costs: Tensor) -> Tensor:
    """Solve one assignment problem per draw: ``argmin_perm sum_k costs[s, k, perm[k]]``.

    Args:
        costs: ``(S, K, K)``; entry ``[s, k, j]`` is the cost of moving component ``j`` of draw ``s`` into slot ``k``.

    Returns:
        Permutations ``(S, K)``, whole numbers.

    Raises:
        DataError: a cost is not finite.

    >>> assign(torch.tensor([[[5.0, 1.0], [1.0, 4.0]]]))
    tensor([[1, 0]])
    """
    _check_finite(costs)
    # Slots that each prefer another component reach the lower bound sum_k min_j: nothing is left to solve for them.
    permutations = costs.argmin(-1)
    slots = torch.arange(costs.shape[-1], device=costs.device)
    contested = (permutations.sort(-1).values != slots).any(-1)
    permutations[contested] = _solve(costs[contested])
    return permutations


def _solve(costs: Tensor) -> Tensor:
    """Solve each matrix of a batch on the host, where SciPy's solver lives."""
    matrices = costs.detach().cpu().double().numpy()
    columns = np.array([linear_sum_assignment(matrix)[1] for matrix in matrices], dtype=np.int64)
    return torch.as_tensor(columns.reshape(costs.shape[:-1]), device=costs.device)


def _check_finite(costs: Tensor) -> None:
    broken = ~costs.isfinite().flatten(1).all(1)
    if bool(broken.any()):
        raise DataError(
            f"expected finite relabelling costs; {int(broken.sum())} of {len(costs)} draws have one that is not, the "
            f"first is draw {int(broken.nonzero()[0])}. Drop those draws, then relabel."
        )


def permute_sites(sites: Mapping[str, Tensor], permutations: Tensor, dims: Dims) -> dict[str, Tensor]:
    """Gather every axis named ``"component"`` of every site: ``new[..., k] = old[..., permutations[..., k]]``.

    Args:
        sites: site name -> values ``(*b, ...)``.
        permutations: ``(*b, K)``, or ``(K,)`` for one permutation of all draws.
        dims: site name -> names of the axes after ``*b``. Sites without an entry, or without that axis, stay.

    Raises:
        MethodError: an axis called ``"component"`` does not have ``K`` entries.

    >>> sites = {"loc": torch.tensor([[5.0, 6.0], [5.0, 6.0]]), "noise_std": torch.ones(2)}
    >>> swapped = permute_sites(sites, torch.tensor([[0, 1], [1, 0]]), {"loc": ("component",)})
    >>> swapped["loc"].tolist(), swapped["noise_std"].tolist()
    ([[5.0, 6.0], [6.0, 5.0]], [1.0, 1.0])
    """
    return {name: _permute(name, value, permutations, dims.get(name, ())) for name, value in sites.items()}


def _permute(name: str, value: Tensor, permutations: Tensor, axes: tuple[str, ...]) -> Tensor:
    num_batch = value.ndim - len(axes)
    for axis in (num_batch + i for i, label in enumerate(axes) if label == COMPONENT):
        if num_batch < 0 or value.shape[axis] != permutations.shape[-1]:
            raise MethodError(
                f"expected site {name!r} with axes {axes} to have {permutations.shape[-1]} components, one for each "
                f"entry of a permutation; its shape is {tuple(value.shape)}. Correct dims[{name!r}]."
            )
        batch = permutations.expand(*value.shape[:num_batch], permutations.shape[-1])
        between, after = axis - num_batch, value.ndim - axis - 1
        index = batch.reshape(*batch.shape[:-1], *(1,) * between, batch.shape[-1], *(1,) * after)
        value = value.gather(axis, index.expand(value.shape))
    return value


class Switches(NamedTuple):
    """How much was switched: two shares between 0 and 1.

    Args:
        draws: share of draws whose labels differ from those of the draw before, in the same chain.
        chains: share of chains whose commonest labelling is not the one that most chains have.

    >>> Switches(draws=0.25, chains=0.5).chains
    0.5
    """

    draws: float
    chains: float


def count_switches(permutations: Tensor) -> Switches:
    """Share of draws and of chains whose labels were switched, from permutations of shape ``(chain, draw, K)``.

    Chains that keep their labels and disagree with each other show in ``chains`` alone.

    >>> count_switches(torch.tensor([[[0, 1], [0, 1], [1, 0]], [[1, 0], [1, 0], [1, 0]]]))
    Switches(draws=0.25, chains=0.5)
    """
    num_chains, num_draws, num_components = permutations.shape
    _, labelling = permutations.reshape(-1, num_components).unique(dim=0, return_inverse=True)
    labelling = labelling.reshape(num_chains, num_draws)
    changed = labelling[:, 1:] != labelling[:, :-1]
    common = labelling.mode(dim=1).values
    return Switches(
        draws=float(changed.sum()) / max(changed.numel(), 1),
        chains=float((common != common.mode().values).double().mean()),
    )

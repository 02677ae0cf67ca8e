"""First responsibilities of the scikit-learn estimators, from the starts that scikit-learn names."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor

from probmix.errors import ProgramError
from probmix.hierarchical import hierarchical_labels
from probmix.inference.seeding import first_labels
from probmix.isolation import isolated

__all__ = ["Start", "device_responsibilities", "first_responsibilities"]

Start: TypeAlias = Literal["kmeans", "k-means++", "random", "random_from_data", "hierarchical"]


def first_responsibilities(
    x: Tensor, num_components: int, start: Start, random: np.random.RandomState, row_weights: Tensor | None = None
) -> Tensor:
    """Return responsibilities ``(N, K)`` from which a fit can start.

    Args:
        x: the rows, ``(N, D)``.
        num_components: K.
        start: ``"kmeans"`` runs scikit-learn's k-means once, on the host: the same clusters as scikit-learn's mixtures
            start from, given the same ``random``. ``"k-means++"`` and ``"random_from_data"`` give every row to the
            nearest of K rows picked so that they are far apart, or at random. ``"random"`` draws all numbers uniformly.
            ``"hierarchical"`` are the clusters of model-based agglomeration (of at most 2000 rows drawn at random).
            Rows on an accelerator stay there: see `device_responsibilities`.
        random: where the randomness comes from.
        row_weights: how many observations each row stands for, ``(N,)``.

    Raises:
        ProgramError: an unknown start.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0]])
        >>> first_responsibilities(x, 2, "kmeans", np.random.RandomState(0)).sum(0).sort().values
        tensor([1., 2.])
    """
    if start not in get_args(Start):
        names = ", ".join(repr(name) for name in get_args(Start))
        raise ProgramError(f"init_params: expected one of {names}, got {start!r}. Pass one of these names.")
    if start == "random":
        share = random.uniform(size=(len(x), num_components))
        return torch.as_tensor(share / share.sum(1, keepdims=True)).to(x)
    if start == "random_from_data":
        odds = None if row_weights is None else (row_weights / row_weights.sum()).double().cpu().numpy()
        return _nearest(x, random.choice(len(x), size=num_components, replace=False, p=odds))
    if start == "hierarchical":
        labels = hierarchical_labels(x, int(num_components), seed=int(random.randint(2**31 - 1)))
        return _one_hot(labels, num_components, x)
    if x.device.type != "cpu":
        return device_responsibilities(x, num_components, start, int(random.randint(2**31 - 1)), row_weights)
    rows = x.cpu().numpy()
    weights = None if row_weights is None else row_weights.cpu().numpy()
    if start == "k-means++":
        return _nearest(x, kmeans_plusplus(rows, num_components, sample_weight=weights, random_state=random)[1])
    labels = KMeans(num_components, n_init=1, random_state=random).fit(rows, sample_weight=weights).labels_
    return _one_hot(torch.as_tensor(labels, device=x.device, dtype=torch.long), num_components, x)


def device_responsibilities(
    x: Tensor, num_components: int, start: Literal["kmeans", "k-means++"], seed: int, row_weights: Tensor | None = None
) -> Tensor:
    """Return the starts "kmeans" and "k-means++" as EM makes them, on the device of the rows, ``(N, K)``.

    The columns are scaled to unit variance, which scikit-learn does not do.

    Example:
        >>> device_responsibilities(torch.tensor([[0.0], [1.0], [9.0]]), 2, "kmeans", seed=0).sum(0).sort().values
        tensor([1., 2.])
    """
    with isolated(seed, dtype=x.dtype, device=x.device):
        labels = first_labels(x, num_components, 1, "kmeans" if start == "kmeans" else "kmeans++", row_weights)
    return _one_hot(labels[0], num_components, x)


def _nearest(x: Tensor, picked: np.ndarray) -> Tensor:
    """Give every row to the nearest of the picked ones; each of those to itself, even where two are the same."""
    index = torch.as_tensor(picked, device=x.device)
    rows = x - x.mean(0)  # far from the origin squares would lose their digits
    labels = torch.cdist(rows, rows[index]).argmin(-1)
    labels[index] = torch.arange(len(index), device=x.device)
    return _one_hot(labels, len(index), x)


def _one_hot(labels: Tensor, num_components: int, x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, num_components).to(x)

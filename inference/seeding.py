"""First labels for EM, all restarts as one batch on the data's device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from probmix.errors import MethodError
from probmix.typing import ClosedFormMixture, Named, Sites

__all__ = ["batch_of_sites", "first_labels"]


def first_labels(x: Tensor, num_components: int, restarts: int, start: Literal["kmeans++", "random"]) -> Tensor:
    """Return labels ``(restarts, n)`` in ``0 .. num_components - 1``; uses torch's global generator.

    ``"kmeans++"`` (Arthur and Vassilvitskii 2007) picks each centre with probability proportional to the squared
    distance to the nearest one so far, on columns scaled to unit variance, and labels rows by their nearest centre.

    Example:
        >>> first_labels(torch.eye(4), 2, 5, "kmeans++").shape
        torch.Size([5, 4])
    """
    if start == "random":
        return torch.randint(num_components, (restarts, len(x)), device=x.device)
    spread = x.std(0, correction=0)
    scaled = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    nearest = x.new_full((restarts, len(x)), torch.inf)
    labels = torch.zeros_like(nearest, dtype=torch.long)
    for component in range(num_components):
        odds = torch.ones_like(nearest) if component == 0 else nearest
        distance = _squared_distance(scaled, scaled[_draw(odds)])
        labels = torch.where(distance < nearest, component, labels)
        nearest = torch.minimum(nearest, distance)
    return labels


def batch_of_sites(model: ClosedFormMixture, x: Tensor, sites: Mapping[str, Tensor]) -> Sites:
    """Return given sites with one leading axis of restarts.

    Raises:
        MethodError: a site is missing.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> sites = {"weights": torch.ones(1), "loc": torch.zeros(1, 2), "var": torch.ones(1)}
        >>> batch_of_sites(GaussianMixture(1, "spherical"), torch.randn(9, 2), sites)["loc"].shape
        torch.Size([1, 1, 2])
    """
    dims = model.dims if isinstance(model, Named) else {}
    wanted = set(
        model.maximise(model.sufficient_statistics(x[:1], x.new_ones(1, model.num_components)), model.prior(x))
    )
    missing = sorted(wanted - set(sites))
    if missing:
        raise MethodError(
            f"init: expected values for the sites {sorted(wanted)}, got {sorted(sites)}. Add {missing}, "
            "or pass another fit's posterior.sites()."
        )
    batch = {}
    for name in wanted:
        value = torch.as_tensor(sites[name], dtype=x.dtype, device=x.device)
        batch[name] = value if value.dim() > len(dims[name]) else value[None]
    return batch


def _draw(odds: Tensor) -> Tensor:
    """Draw one column for each row with the given odds (``torch.multinomial`` stops at 2**24 columns)."""
    cumulative = odds.clamp(min=torch.finfo(odds.dtype).tiny).cumsum(-1)
    target = torch.rand_like(odds[:, :1]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(-1).clamp(max=odds.shape[-1] - 1)


def _squared_distance(x: Tensor, centres: Tensor) -> Tensor:
    square = (x * x).sum(-1) - 2 * centres @ x.mT + (centres * centres).sum(-1, keepdim=True)
    return square.clamp(min=0.0)

"""Rows of every structure, hyperparameters and covariances by hand, for tests of spectral-mixture processes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from process_cases import normal
from sklearn.gaussian_process.kernels import RBF, Matern
from torch import Tensor

from probmix.models import SpectralMixtureGP
from probmix.structured_normal import Dense, Kronecker, Toeplitz

N, Q = 24, 3
MONTHS = (1958 + torch.arange(N, dtype=torch.float64) / 12)[:, None]
SCATTERED = normal(N, 1)
SHUFFLED = torch.randperm(N, generator=torch.Generator().manual_seed(0))
HOLED = torch.arange(N)[~torch.isin(torch.arange(N), torch.tensor([5, 6, 17]))]
LATTICE = torch.cartesian_prod(torch.arange(6.0).double() ** 1.3, torch.arange(4.0).double())
BRICK = torch.cartesian_prod(*(torch.arange(float(size)).double() for size in (3, 2, 4)))
holes_are_meant = pytest.mark.filterwarnings("ignore:the inputs are a grid with")


def observations(n: int, outputs: int = 1) -> Tensor:
    waves = (2 * math.pi * 0.11 * torch.arange(n, dtype=torch.float64)).sin()[:, None]
    y = 3 + waves * (1 + torch.arange(outputs)) + 0.3 * normal(n, outputs, seed=5)
    return y[:, 0] if outputs == 1 else y


def half_a_cycle_per_median_step(x: Tensor) -> list[float]:
    steps = [np.diff(np.unique(column.numpy())) for column in x.T]
    return [0.5 / np.sort(each)[(len(each) - 1) // 2] for each in steps]


def sites_of(model: SpectralMixtureGP, x: Tensor, *batch: int, seed: int = 3) -> dict[str, Tensor]:
    """Hyperparameters, with frequencies up to nine tenths of half a cycle per step."""
    generator = torch.Generator().manual_seed(seed)
    columns, span = x.shape[-1], x.max(0).values - x.min(0).values
    shape = (columns, Q) if model.product else (Q, columns)
    high = torch.tensor(half_a_cycle_per_median_step(x), dtype=torch.float64)
    span, high = (value[:, None] if model.product else value for value in (span, high))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((*batch, *shape), dtype=torch.float64, generator=generator)

    sites = {
        "kernel.log_weights": uniform(-1.5, 0.5, *shape[: 1 + model.product]),
        "kernel.frequencies": uniform(0.05, 0.9, *shape) * high,
        "kernel.log_bandwidths": uniform(-2.0, 0.5, *shape) - span.log(),
        "noise_var": uniform(0.1, 0.4),
    }
    return {name: value for name, value in sites.items() if name != "noise_var" or model.noise_var is None}


PLANE = normal(N, 2, seed=1)

#: Name -> settings, rows, and how their covariance is held.
LAYOUTS: dict[str, tuple[dict[str, Any], Tensor, type]] = {
    "even": ({}, MONTHS, Toeplitz),
    "even, any order": ({"spectrum": "student_t"}, MONTHS[SHUFFLED], Toeplitz),
    "with holes": ({"spectrum": "student_t"}, MONTHS[HOLED], Dense),
    "with holes, any order": ({}, MONTHS[HOLED.flip(0)], Dense),
    "even times twice": ({}, torch.cat([MONTHS, MONTHS[[3, 3, 20]]]), Dense),
    "scattered": ({}, SCATTERED, Dense),
    "grid": ({"product": True}, LATTICE, Kronecker),
    "grid, any order": ({"product": True, "spectrum": "student_t"}, LATTICE[SHUFFLED], Kronecker),
    "grid of three inputs": ({"product": True}, BRICK[SHUFFLED], Kronecker),
    "grid with holes": ({"product": True}, LATTICE[SHUFFLED[:-3]], Dense),
    "grid, no product": ({}, LATTICE, Dense),
}


def components(model: SpectralMixtureGP, sites: dict[str, Tensor], a: Tensor, b: Tensor) -> np.ndarray:
    """Covariance of every component of a sum ``(q, n, m)``; of a product, the one product."""
    axis = 0 if model.product else 1
    frequencies, bandwidths = (
        np.moveaxis(value.numpy(), axis, 0)
        for value in (sites["kernel.frequencies"], sites["kernel.log_bandwidths"].exp())
    )
    weights = sites["kernel.log_weights"].exp().numpy()
    terms = np.empty((a.shape[1], Q, len(a), len(b)))
    for d, q in np.ndindex(terms.shape[:2]):
        one, two, length = a[:, d : d + 1].numpy(), b[:, d : d + 1].numpy(), 1 / (2 * np.pi * bandwidths[d, q])
        envelope = RBF(length) if model.spectrum == "gaussian" else Matern(length, nu=2.5)
        terms[d, q] = envelope(one, two) * np.cos(2 * np.pi * frequencies[d, q] * (one - two.T))
    if model.product:
        return np.einsum("dq,dqnm->dnm", weights, terms).prod(0)[None]
    return weights[:, None, None] * terms.prod(0)


def noise_of(model: SpectralMixtureGP, sites: dict[str, Tensor]) -> float:
    return float(sites.get("noise_var", model.noise_var))


def covariance(model: SpectralMixtureGP, sites: dict[str, Tensor], x: Tensor) -> np.ndarray:
    return components(model, sites, x, x).sum(0) + noise_of(model, sites) * np.eye(len(x))


def beside(x: Tensor) -> Tensor:
    """Rows between, beyond and at those of the data."""
    span = x.max(0).values - x.min(0).values
    return torch.cat([x.mean(0) + span * (normal(4, x.shape[1], seed=9).to(x) - 0.3), x[:1]])

"""Posteriors for the tests of tables and pictures, made without a sampler, so that they take no time."""

from __future__ import annotations

import dataclasses

import torch

from probmix.datasets import load_faithful
from probmix.inference import EM, NUTS, infer
from probmix.models import GaussianMixture
from probmix.posterior import DrawsPosterior, PointPosterior
from probmix.status import Status

NUM_COMPONENTS = 2


def point() -> PointPosterior:
    return infer(GaussianMixture(NUM_COMPONENTS), load_faithful().frame(), EM(), seed=0)


def draws(chains: int = 4, num: int = 100, seed: int = 0) -> DrawsPosterior:
    """Independent draws about EM's answer, as wide as the posterior of these data is, all with EM's labels."""
    best, generator = point(), torch.Generator().manual_seed(seed)
    sites = best.sites()

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(chains, num, *shape, generator=generator, dtype=torch.float64)

    first = sites["weights"][0] + 0.03 * noise()
    values = {
        "weights": torch.stack([first, 1 - first], -1),
        "loc": sites["loc"] + noise(2, 2) * torch.tensor([0.03, 0.5]),
        "cov": sites["cov"] * (1 + 0.1 * noise(2, 1, 1)),
    }
    return DrawsPosterior(
        program=best.program,
        arguments=best.arguments,
        method=NUTS(chains=chains, draws=num),
        seed=0,
        status=Status("complete", f"{chains} chains of {num} draws, 0 divergent."),
        seconds=12.34,
        draws=values,
        sample_stats={"lp": noise(), "diverging": torch.zeros(chains, num, dtype=torch.bool)},
    )


def with_switched_chain(posterior: DrawsPosterior, chain: int = 1) -> DrawsPosterior:
    """The same draws, but one chain numbers its components the other way round."""
    switched = {name: value.clone() for name, value in posterior.draws.items()}
    for value in switched.values():
        value[chain] = value[chain].flip(1)  # (draw, component, ...)
    return dataclasses.replace(posterior, draws=switched)

"""Small programs and models that several tests fit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.conjugate import NormalInverseGamma
from probmix.models import GaussianMixture

COUNTS = torch.tensor([0.0, 0, 0, 3, 5, 0, 4, 2, 0, 6], dtype=torch.float64)


def gamma_poisson(x: Tensor) -> None:
    """Conjugate: the posterior of ``rate`` is Gamma(2 + sum(x), 1 + n)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=pyro.subsample(x, event_dim=0))


def zero_inflated(x: Tensor) -> None:
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("row", len(x)):
        inflated = pyro.sample("inflated", dist.Bernoulli(gate))
        pyro.sample("x", dist.Poisson(rate * (1 - inflated) + 1e-9), obs=x)


def two_groups(num: int = 60, gap: float = 6.0) -> Tensor:
    """Two well separated groups in one dimension, 40 and 60 per cent."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(num) < 0.4 * num, x, x + gap)[:, None]


def one_dimensional(num_components: int = 2) -> GaussianMixture:
    """Spherical in one dimension with a fixed prior, so that the data do not set it."""
    prior = NormalInverseGamma(
        torch.zeros(1, dtype=torch.float64), torch.tensor(0.05), torch.tensor(3.0), torch.tensor(2.0)
    )
    return GaussianMixture(num_components, "spherical", weight_concentration=2.0, component_prior=prior)


def two_discrete(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        shift = pyro.sample("shift", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(loc[z.long()] + shift, 1.0), obs=x)


def ordered(x: Tensor) -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(cuts.sum(-1), 1.0), obs=x)


def with_factor(x: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(-3.0, 3.0))
    pyro.factor("penalty", -(a**2))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def masked(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)), pyro.poutine.mask(mask=x > 0):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

"""The divergence of normals from a mixture: by plain Monte Carlo, by torch where there is one component, by class."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from probmix.mixture_bound import class_log_prob, divergence, divergence_by_axis, within_class
from probmix.models import MixtureLatent

NUM, DIM = 5, 3


def prior_of(covariance: str, num_components: int = 4, **settings: object) -> MixtureLatent:
    """A mixture in general position, its components near enough to overlap."""
    generator = torch.Generator().manual_seed(0)
    loc = 1.5 * torch.randn(num_components, DIM, generator=generator, dtype=torch.float64)
    prior = MixtureLatent(num_components, DIM, loc=loc, covariance=covariance, component_std=0.8, **settings)
    prior.logits.data = torch.randn(num_components, generator=generator, dtype=torch.float64)
    prior.root.data += 0.1 * torch.randn(prior.root.shape, generator=generator, dtype=torch.float64)
    return prior


def guide_rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    loc, std = (torch.randn(NUM, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return loc, 0.5 * (0.5 * std).exp()


def draws(num: int) -> Tensor:
    loc, std = guide_rows()
    return loc + std * torch.randn(num, NUM, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_agrees_with_plain_monte_carlo(covariance):
    """The difference of both estimates from the same 50,000 draws has mean 0: 4.5 standard errors, five rows each.

    False alarms 3e-5 in each case. The control is the bound of VaDE, which approximates p(k | z) by a constant.
    """
    prior, (loc, std), z = prior_of(covariance), guide_rows(), draws(50_000)
    ours = divergence(prior, loc, std, z, None).detach()
    plain = Normal(loc, std).log_prob(z).sum(-1) - prior.log_prob(z).detach()
    difference = ours - plain
    scores = difference.mean(0) / (difference.std(0) / math.sqrt(len(z)))
    assert scores.abs().max() < 4.5
    assert ours.std(0).mean() < 0.8 * plain.std(0).mean()  # what the closed form is for
    vade = -(prior.weights.log() - prior.divergence(loc, std)).logsumexp(-1).detach()
    assert ((vade - plain.mean(0)) / (plain.std(0) / math.sqrt(len(z)))).max() > 6


def test_one_component_is_the_closed_form_of_any_draw():
    prior, (loc, std) = prior_of("diagonal", 1), guide_rows()
    exact = kl_divergence(Normal(loc, std), Normal(prior.loc, prior.std)).sum(-1)
    assert torch.allclose(divergence(prior, loc, std, draws(3), None), exact.expand(3, -1), rtol=1e-12)


def test_classes_restrict_the_sum_over_components():
    """50,000 draws, 4.5 standard errors: false alarms 3e-5. The control forgets the labels."""
    prior, (loc, std), z = prior_of("full", labels=[0, 1, 0, 1]), guide_rows(), draws(50_000)
    y = torch.tensor([0, 1, -1, 1, 0])
    ours = divergence(prior, loc, std, z, y).detach()
    log_joint = prior.log_prob_components(z).detach()
    allowed = (y[:, None] < 0) | (y[:, None] == torch.tensor([0, 1, 0, 1]))
    log_prob = torch.where(allowed, log_joint.exp(), 0.0).sum(-1).log()
    plain = Normal(loc, std).log_prob(z).sum(-1) - log_prob
    error = (ours - plain).std(0) / math.sqrt(len(z))
    assert ((ours - plain).mean(0) / error).abs().max() < 4.5
    without = divergence(prior, loc, std, z, None).detach()
    assert ((without - plain).mean(0) / error).abs()[y >= 0].max() > 6
    assert torch.allclose(class_log_prob(prior, z, y)[:, 2], torch.zeros(len(z)).double())
    assert torch.allclose(class_log_prob(prior, z, y).detach(), log_prob - log_joint.logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_rows_of_a_class_have_finite_gradients(dtype):
    prior = MixtureLatent(3, 2, dynamic=True, labels=[0, 1, 2], component_std=0.011).to(dtype)
    loc = torch.full((3, 2), 1e3, dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 1, -1])
    lost = divergence(prior, loc, torch.ones_like(loc), loc[None], y).sum() - class_log_prob(prior, loc[None], y).sum()
    lost.backward()
    assert lost.isfinite()
    assert all(value.grad.isfinite().all() for value in (loc, prior.loc, prior.root))
    assert within_class(prior, torch.zeros(3, 3, dtype=dtype), y).softmax(-1)[0].tolist() == [1.0, 0.0, 0.0]


def test_by_axis_is_the_mean_of_normal_divergences():
    prior, (loc, std) = prior_of("diagonal"), guide_rows()
    r = torch.rand(NUM, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    r = r / r.sum(-1, keepdim=True)
    each = kl_divergence(Normal(loc[:, None], std[:, None]), Normal(prior.loc, prior.std))
    assert torch.allclose(divergence_by_axis(prior, loc, std, r), (r[..., None] * each).sum(1).mean(0), rtol=1e-10)

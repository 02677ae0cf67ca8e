"""Automatic relevance: variances in closed form, relevance in any unit, and the rank of linear data found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from probmix.errors import DataError, ProgramError
from probmix.inference import SVI, infer
from probmix.models import ARDLatent, MixtureVAE

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")


def codes(num: int = 400) -> Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5, 0.1])


def test_update_is_the_mean_square_or_the_posterior_of_a_gamma_prior():
    latent, z = ARDLatent(3), codes()
    latent.update(z)
    assert torch.allclose(latent.var, z.square().mean(0))
    latent.update(z, concentration=2.0, rate=3.0)
    a, b = 2.0 + 200, 3.0 + 0.5 * z.square().sum(0)
    assert torch.allclose(latent.var, b / a)


def test_the_gradient_of_the_bound_vanishes_at_the_mean_square_of_the_codes():
    """Its expectation over codes N(m, s^2), that is; the control is off by a tenth."""
    latent, loc = ARDLatent(3), codes()
    std = torch.full_like(loc, 0.3)
    gradients = []
    for factor in (1.0, 1.1):
        latent.log_var.data = (factor * (loc.square() + std.square()).mean(0)).log()
        latent.zero_grad()
        latent.divergence(loc, std).mean().backward()
        gradients.append(latent.log_var.grad.abs().max())
    assert gradients[0] < 1e-5
    assert gradients[1] > 0.02


def test_divergence_and_density_are_those_of_torch():
    latent, loc, std = ARDLatent(3, var=torch.tensor([2.0, 0.5, 0.1])), codes(5), codes(5).abs() + 0.1
    law = Normal(0.0, latent.var.sqrt())
    assert torch.allclose(latent.divergence(loc, std)[:, 0], kl_divergence(Normal(loc, std), law).sum(-1), rtol=1e-5)
    assert torch.allclose(latent.log_prob(loc), law.log_prob(loc).sum(-1), rtol=1e-5)
    assert torch.allclose(latent.log_prob(loc), latent.distribution().log_prob(loc), rtol=1e-5)
    assert torch.equal(latent.log_prob_components(loc)[:, 0], latent.log_prob(loc))


def test_relevance_is_the_variance_that_an_axis_gives():
    """A linear decoder: the square of a column's length times the variance, in any unit of the axes."""
    w = torch.tensor([[3.0, 0.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.01]])
    latent = ARDLatent(3, var=torch.tensor([4.0, 0.25, 0.01]))
    found = latent.relevance(lambda z: z @ w.mT, codes())
    assert torch.allclose(found.score, torch.tensor([100.0, 1.25, 1e-6]), rtol=1e-4)
    assert found.active.tolist() == [True, True, False]
    assert latent.active_dims(lambda z: z @ w.mT, codes(), threshold=0.98).tolist() == [True, False, False]
    assert latent.active_dims(lambda z: z @ w.mT, codes(), threshold=1.0).tolist() == [True, True, True]
    assert str(found) == "2 of 3 axes are active: 0 (98.8 %), 1 (1.2 %)"
    unit = torch.tensor([0.1, 10.0, 3.0])
    other = ARDLatent(3, var=latent.var * unit.square())
    stretched = other.relevance(lambda z: (z / unit) @ w.mT, codes() * unit)
    assert torch.allclose(stretched.score, found.score, rtol=1e-3)


def test_draws_of_active_axes():
    latent = ARDLatent(3, var=torch.tensor([4.0, 1.0, 0.01]))
    active = torch.tensor([True, False, True])
    z, component = latent.sample(5, seed=0, active=active)
    everything = latent.sample(5, seed=0).z
    assert torch.equal(z, torch.where(active, everything, 0.0))
    assert component.tolist() == [0] * 5
    assert torch.allclose(latent.sample(5, seed=0, temperature=4.0).z, 2 * everything)


def rank_found(rank: int, dim: int) -> int:
    """Fit rows of a subspace of 20 columns, with noise, and count active axes."""
    generator = torch.Generator().manual_seed(rank)
    basis = torch.linalg.qr(torch.randn(20, rank, generator=generator)).Q
    x = 2 * torch.randn(1000, rank, generator=generator) @ basis.mT + 0.1 * torch.randn(1000, 20, generator=generator)
    torch.manual_seed(0)
    vae = MixtureVAE(ARDLatent(dim), nn.Linear(20, 2 * dim), nn.Linear(dim, 20), likelihood="normal")
    fit = infer(vae, x, SVI(batch_size=100, max_steps=2000, learning_rate=0.01), seed=0, throw=False)
    latent = fit.program.latent
    return int(latent.active_dims(fit.program.generate, fit.sites()["z"]).sum())


@pytest.mark.parametrize(("rank", "dim"), [(4, 10), (4, 20)])
def test_the_rank_of_linear_data_is_found(rank, dim):
    """The paper's claim: as many active axes as the data have, whatever the length of the latent vector."""
    assert rank_found(rank, dim) == rank


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 4, 7])
@pytest.mark.parametrize("dim", [10, 15, 20, 30])
def test_the_rank_of_linear_data_is_found_for_any_length(rank, dim):
    assert rank_found(rank, dim) == rank


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ARDLatent(0), ProgramError, "dim: expected a whole number of at least 1, got 0"),
        (lambda: ARDLatent(2, var=torch.tensor([1.0, 0.0])), ProgramError, "var: expected 2 positive numbers"),
        (lambda: ARDLatent(2).update(torch.zeros(5, 3)), DataError, r"codes: expected .* \(n, 2\), got \(5, 3\)"),
        (
            lambda: ARDLatent(2).relevance(torch.sin, torch.zeros(5, 2), threshold=0.0),
            DataError,
            r"threshold: expected a share in \(0, 1\], got 0.0",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()

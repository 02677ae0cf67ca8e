"""EM for processes with a common random variance: its laws, its closed-form expectation, and what it refuses."""

from __future__ import annotations

import gpytorch
import pyro.distributions as dist
import pytest
import torch

from probmix.burr import BurrXII
from probmix.errors import MethodError
from probmix.inference import EM, MAP, infer
from probmix.models import ScaleMixtureProcess, StudentTProcess

X = torch.linspace(0, 5, 12, dtype=torch.float64)[:, None]
Y = X[:, 0].sin() + 0.1 * torch.cos(40 * X[:, 0])


def kernel() -> gpytorch.kernels.Kernel:
    return gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0))


MODELS = {
    "Student-t": StudentTProcess(kernel=kernel(), df=3.0),
    "Burr": ScaleMixtureProcess(kernel=kernel(), scale_prior=BurrXII(2.0, 2.0)),
    "two outputs": StudentTProcess(kernel=kernel(), df=3.0),
    "inducing points": StudentTProcess(kernel=kernel(), df=3.0, inducing=X[::3]),
}


def data_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return (X, torch.stack([Y, Y.flip(0) ** 2], -1)) if name == "two outputs" else (X, Y)


@pytest.mark.parametrize("name", MODELS)
def test_never_falls_and_ends_at_the_optimum_of_map(name):
    """The optimum is found by gradients of another function, the scale integrated out; tolerances are both methods'."""
    em = infer(MODELS[name], data_of(name), EM(restarts=2), seed=0)
    steps = em.history["objective"].diff(dim=-1)
    assert steps[steps.isfinite()].min() > -1e-9  # rounding of a log density of size 10
    assert len(em.history["objective"][0]) > 5  # it took steps, so that the line above could fail
    gradient = infer(MODELS[name], data_of(name), MAP(restarts=2), seed=0)
    assert em.objective == pytest.approx(gradient.objective, abs=1e-4)
    assert em.status.state == "converged"


def test_expected_scale_is_the_textbook_posterior():
    """InverseGamma(a, b) given n residuals of squared length q: 1 / E[1/s] = (2 b + q) / (2 a + n)."""
    model, sites = MODELS["Student-t"], infer(MODELS["Student-t"], (X, Y), MAP(restarts=1), seed=0).sites()
    with torch.no_grad():
        cov = model.process(X, Y, sites).joint(X).scale_tril
    q = torch.cholesky_solve((Y - Y.mean())[:, None], cov)[:, 0] @ (Y - Y.mean())
    torch.testing.assert_close(model.expected_scale(X, Y, sites), (3 + q) / (3 + 12), rtol=1e-10, atol=0.0)


def test_two_fits_in_a_row_equal_two_fits_apart():
    fits = [infer(MODELS["Student-t"], (X, Y), EM(restarts=2, max_steps=3), seed=s, throw=False) for s in (1, 2, 1)]
    assert torch.equal(fits[0].objectives, fits[2].objectives)
    assert not torch.equal(fits[0].objectives, fits[1].objectives)


def test_starts_from_sites():
    """At the optimum there is nothing to gain; the control: a start elsewhere gains."""
    best = infer(MODELS["Student-t"], (X, Y), MAP(restarts=1), seed=0).sites()
    fits = [
        infer(MODELS["Student-t"], (X, Y), EM(init={**best, "noise_var": factor * best["noise_var"]}), seed=0)
        for factor in (1.0, 3.0)
    ]
    gains = [fit.history["objective"][0, -1] - fit.history["objective"][0, 0] for fit in fits]
    assert gains[0] < 1e-4 < gains[1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (StudentTProcess(kernel=kernel(), df=dist.Gamma(2.0, 0.1)), r"got the sites \['df', .* Fix the parameters"),
        (ScaleMixtureProcess(kernel=kernel(), scale_prior=None), "the scale integrated out; got the sites"),
        (StudentTProcess(kernel=kernel(), integrate_scale=False), "the scale integrated out; got the sites"),
    ],
)
def test_what_has_no_such_step_is_refused(model, message):
    with pytest.raises(MethodError, match=message):
        infer(model, (X, Y), EM(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ml"}, "objective: expected 'map' for a process"),
        ({"annealing": 3}, "annealing: expected 0 for a process"),
        ({"init": torch.zeros(12)}, "expected sites or a name for a process with a random scale, got labels"),
    ],
)
def test_settings_of_mixtures_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        infer(MODELS["Student-t"], (X, Y), EM(**settings), seed=0)

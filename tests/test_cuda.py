"""Data on a CUDA device: every model and method runs there, leaves its results there, and finds the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import gpytorch
import pyro.distributions as dist
import pytest
import torch
from digits import shuffled_digits
from models_table import CONDITIONAL, MODELS, PROGRAMS, Row
from torch import Tensor

from probmix.arguments import Arguments
from probmix.diagnostics import nested_rhat
from probmix.inference import EM, MAP, NUTS, SCA, SVI, VB, Adversarial, ChEES, Gibbs, Inversion, Laplace, infer
from probmix.inference.method import Problem
from probmix.log_density import LogDensity
from probmix.models import (
    ARDLatent,
    GaussianMixture,
    GridSpectralGP,
    MixtureGAN,
    MixtureLatent,
    MixtureVAE,
    ScaleMixtureClassifier,
    ScaleMixtureNNGP,
    ScaleMixtureProcess,
    SpectralMixtureGP,
    StudentTProcess,
    generator_program,
)
from probmix.nested import map_tensors
from probmix.sample_quality import (
    class_scores,
    clustering_accuracy,
    density_coverage,
    frechet_distance,
    intra_class_diversity,
    mode_coverage,
    precision_recall,
    sliced_wasserstein,
    squared_mmd,
)

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::probmix.status.FitWarning"),
]
METHODS = {
    "Laplace": Laplace(),
    "MAP": MAP(restarts=2, max_steps=5),
    "SVI": SVI(max_steps=40),
    "NUTS": NUTS(chains=2, warmup=10, draws=5),
    "ChEES": ChEES(warmup=20, draws=5),
}
X = torch.linspace(0, 6, 20, dtype=torch.float64)[:, None]
Y = X[:, 0].sin() + 0.1 * torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PROCESSES = {
    "Student-t": StudentTProcess(kernel=gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3, 2))),
    "half-Cauchy": ScaleMixtureProcess(kernel=gpytorch.kernels.RBFKernel(), scale_prior=dist.HalfCauchy(1.0)),
    "network": ScaleMixtureNNGP(depth=2, activation="erf"),
    "network through points": ScaleMixtureNNGP(depth=1, inducing=X[::3]),
    "spectral": SpectralMixtureGP(2),
}


def there(data: Any) -> Any:
    """The same on the device."""
    return map_tensors(lambda value: value.to(DEVICE), data)


def all_there(values: dict[str, Tensor]) -> bool:
    return {value.device.type for value in values.values()} == {DEVICE}


def assert_same(there: Tensor, here: Tensor, tolerance: float = 1e-9) -> None:
    assert there.device.type == DEVICE
    torch.testing.assert_close(there.to(here.device), here, rtol=tolerance, atol=tolerance)


# --- mixtures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", MODELS, ids=str)
def test_em_and_what_follows_it(row: Row):
    """From given sites and from its own; the densities at the sites of the processor are those of the processor."""
    here = infer(row.model, row.data, EM(restarts=3), seed=0, throw=False)
    fit = infer(row.model, there(row.data), EM(restarts=3, init=there(here.sites())), seed=0, throw=False)
    assert all_there(fit.sites())
    rows = row.model.rows(*there(row.data))
    assert_same(
        row.model.log_prob_components(rows, there(here.sites())), row.model.log_prob_components(row.x, here.sites())
    )
    assert row.model.log_prob_components(rows, fit.sites()).device.type == DEVICE
    again = infer(row.model, there(row.data), EM(restarts=3), seed=0, throw=False)
    assert all_there(again.sites())


@pytest.mark.parametrize("row", PROGRAMS, ids=str)
def test_the_log_joint_is_that_of_the_processor(row: Row):
    sites = infer(row.model, row.data, EM(restarts=2), seed=0, throw=False).sites()
    here = LogDensity.trace(row.model, row.data).log_joint(sites)
    assert_same(LogDensity.trace(row.model, there(row.data)).log_joint(there(sites)), here)


@pytest.mark.parametrize("row", CONDITIONAL, ids=str)
def test_conjugate_methods(row: Row):
    bound = infer(row.model, there(row.data), VB(restarts=2), seed=0)
    assert all_there(bound.sites())
    chains = infer(row.model, there(row.data), Gibbs(chains=2, warmup=5, draws=5), seed=0)
    assert all_there(chains.draws)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_for_any_program(method):
    fit = infer(GaussianMixture(3, "diagonal"), there(MODELS[0].data), method, seed=0, throw=False)
    assert all_there(fit.sites())
    assert isinstance(method, MAP) or all_there(fit.sample(3, seed=0))
    fit.to_arviz(predictive_draws=2, prior_draws=2)


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(name):
    model = PROCESSES[name]
    here = infer(model, (X, Y), MAP(restarts=2, max_steps=5), seed=0, throw=False).sites()
    fit = infer(model, there((X, Y)), MAP(restarts=2, max_steps=5), seed=0, throw=False)
    assert all_there(fit.sites())
    new = X[:3] + 0.05
    expected = model.predictive(new, here, X, Y)
    found = model.predictive(there(new), there(here), *there((X, Y)))
    assert_same(found.mean, expected.mean, 1e-6)
    assert_same(found.variance, expected.variance, 1e-6)


def test_a_grid_of_kernels():
    model = GridSpectralGP(num_points=11)
    here = infer(model, (X, Y), SCA(), seed=0, throw=False).sites()
    fit = infer(model, there((X, Y)), SCA(), seed=0, throw=False)
    assert all_there(fit.sites())
    expected = model.predictive(X, here, X, Y).mean
    assert_same(model.predictive(there(X), there(here), *there((X, Y))).mean, expected, 1e-6)


def test_a_classifier():
    model, labels = ScaleMixtureClassifier(num_classes=2, depth=1, inducing=X[::4]), (Y > 0).long()
    fit = infer(model, there((X, labels)), SVI(max_steps=30), seed=0, throw=False)
    assert all_there(fit.sites())


# --- deep models ----------------------------------------------------------------------------------------------------

IMAGES, LABELS = (table[:300] for table in shuffled_digits())
IMAGES = IMAGES.unflatten(1, (1, 8, 8))
LABELLED = (IMAGES, torch.where(torch.arange(300) < 50, LABELS, -1))


@pytest.mark.parametrize("latent", [MixtureLatent(10, 3, dynamic=True, labels=range(10)), ARDLatent(4)], ids=type)
def test_an_autoencoder(latent):
    labelled = isinstance(latent, MixtureLatent)
    data = there(LABELLED if labelled else (IMAGES,))
    fit = infer(MixtureVAE(latent, width=16), data, SVI(batch_size=50, max_steps=20), seed=0, throw=False)
    vae, x = fit.program, data[0]
    codes = vae.encode(x)
    assert {value.device.type for value in codes} == {DEVICE}
    assert vae.log_likelihood(x[:5], draws=10, seed=0).device.type == DEVICE
    assert vae.sample(4, seed=0, noise=True).x.device.type == DEVICE
    assert vae.generate(codes.loc[:3]).device.type == DEVICE
    if labelled:
        assert vae.predict(x).device.type == DEVICE
        str(vae.collapse(x))
        em = infer(GaussianMixture(3), codes.loc, EM(restarts=2), seed=0, throw=False)
        started = vae.with_prior(em.sites(), codes, learn_weights=True)
        joint = infer(started, x, SVI(batch_size=50, max_steps=10), seed=0, throw=False)
        assert joint.program.predict(x).device.type == DEVICE


@pytest.mark.parametrize("supervision", [None, "each_class", "classes_and_fake"])
def test_a_game(supervision):
    latent = MixtureLatent(10, 4, labels=range(10) if supervision else None)
    model = MixtureGAN(latent, supervision=supervision, width=16)
    data = there((IMAGES, LABELS)) if supervision else there(IMAGES)
    fit = infer(model, data, Adversarial(steps=20, batch_size=32, gradient_penalty=1.0), seed=0)
    made = fit.program.sample(6, seed=0)
    assert {value.device.type for value in made} == {DEVICE}
    program, x = generator_program(fit.program, 0.3), there(IMAGES[:4].clone())
    x[0, 0, :3] = torch.nan
    found = infer(program, x, Inversion(restarts=2), seed=0)
    assert all_there(found.sample(3, seed=0))
    chains = infer(program, x[1:2], ChEES(warmup=10, draws=4), seed=0, throw=False)
    assert all_there(chains.draws)


SHORT = SVI(batch_size=50, max_steps=100, window=80)
STEPS = {
    "rows": (MixtureVAE(MixtureLatent(3, 2, dynamic=True)), (IMAGES.flatten(1),), SHORT),
    "some labels": (MixtureVAE(MixtureLatent(10, 2, dynamic=True, labels=range(10))), LABELLED, SHORT),
    "full covariances": (MixtureVAE(MixtureLatent(3, 2, covariance="full", dynamic=True)), (IMAGES,), SHORT),
    "relevance": (MixtureVAE(ARDLatent(4)), (IMAGES,), SHORT),
    "game": (MixtureGAN(MixtureLatent(3, 2, dynamic=True)), (IMAGES,), Adversarial(steps=100)),
    "game with labels": (
        MixtureGAN(MixtureLatent(10, 2, labels=range(10)), supervision="classes_and_fake"),
        (IMAGES, LABELS),
        Adversarial(steps=100, gradient_penalty=1.0),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_device(name):
    """A look at the numbers, every so many steps, must; torch raises where a step does."""
    program, data, method = STEPS[name]
    problem = Problem(copy.deepcopy(program), Arguments.of(there(data)).checked_by(program), 0)
    state = method.start(problem)
    for _ in range(3):  # what is set up once may wait
        state = method.step(problem, state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            state = method.step(problem, state)
            assert method.status(problem, state) is None
            method.progress(state)
        with pytest.raises(RuntimeError):  # the control
            float(torch.zeros((), device=DEVICE))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_scores():
    generator = torch.Generator().manual_seed(0)
    real, made = (torch.randn(200, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    labels, log_prob = torch.arange(200) % 4, torch.randn(200, 4, generator=generator).double().log_softmax(-1)
    scores = {
        "classes": lambda d: class_scores(log_prob.to(d)),
        "diversity": lambda d: intra_class_diversity(made.to(d), labels.to(d)),
        "modes": lambda d: mode_coverage(made.to(d), real[:9].to(d), 0.3),
        "precision": lambda d: precision_recall(real.to(d), made.to(d)),
        "density": lambda d: density_coverage(real.to(d), made.to(d)),
        "frechet": lambda d: (frechet_distance(real.to(d), made.to(d)),),
        "mmd": lambda d: (squared_mmd(real.to(d), made.to(d)),),
    }
    for score in scores.values():
        for one, other in zip(score(DEVICE), score("cpu"), strict=True):
            assert_same(one, other)
    draws = real.reshape(8, 25, 3)  # chains, draws, numbers
    assert (nested_rhat(there(draws), 4) == nested_rhat(draws, 4)).all()
    assert sliced_wasserstein(there(real), there(made), seed=0)[0].device.type == DEVICE
    assert clustering_accuracy(there(labels), there(labels)) == 1.0

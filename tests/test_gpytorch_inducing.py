"""GPyTorch models with inducing points as programs, against FITC written out and GPyTorch's own strategy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import BernoulliLikelihood, PoissonLikelihood, StudentTLikelihood
from gpytorch.priors import GammaPrior
from gpytorch_cases import BATCH, NEW, ROUNDING, TWO, Approximate, X, Y, draws_of, gamma, gaussian
from torch import Tensor
from torch.distributions import Bernoulli, Poisson

from probmix.gpytorch_observations import LeadingMixture
from probmix.gpytorch_priors import prior_sites
from probmix.inference import MAP, SVI, infer
from probmix.log_density import LogDensity
from probmix.models.gpytorch_program import gpytorch_program

OUTPUTSCALE, LENGTHSCALE = "covar_module.outputscale", "covar_module.base_kernel.lengthscale"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def fitc(program: Any, sites: dict[str, Tensor], jitter: float) -> Tensor:
    """Snelson and Ghahramani's marginal likelihood of Gaussian observations, u integrated out, written out densely."""
    noise, level, outputscale, lengthscale = (
        sites[name].sum() for name in ("likelihood.noise", "mean_module.constant", OUTPUTSCALE, LENGTHSCALE)
    )
    z = program.model.variational_strategy.inducing_points.double()

    def k(a: Tensor, b: Tensor) -> Tensor:
        return outputscale * (-(a[:, None] - b).square().sum(-1) / (2 * lengthscale**2)).exp()

    q = k(X, z) @ torch.linalg.solve(k(z, z) + jitter * torch.eye(len(z), dtype=z.dtype), k(z, X))
    covariance = q + torch.diag((k(X, X) - q).diagonal() + noise)
    return torch.distributions.MultivariateNormal(level.expand(len(X)), covariance).log_prob(Y)


def test_with_gaussian_noise_it_is_fitc():
    """The average of p(y | v) over the prior of v, by the Laplace identity, which is exact for a normal integrand."""
    program = gpytorch_program(Approximate(X[:4].clone() + 0.1), gaussian())
    density = LogDensity.trace(program, (X, Y))
    assert density.batching == "vmap"
    sites = {name: value[0] for name, value in draws_of(density, 1).items()}

    def log_joint(v: Tensor) -> Tensor:
        return density.log_joint({**sites, "inducing": v})

    start = torch.zeros(4, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(log_joint, start)
    precision = -torch.autograd.functional.hessian(log_joint, start)
    mode = torch.linalg.solve(precision, gradient)
    evidence = log_joint(mode) + 2 * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
    own = prior_sites(program._like(X))
    priors = sum(site.prior.log_prob(sites[name]) for name, site in own.items())
    jitter = gpytorch.settings.variational_cholesky_jitter.value(torch.float64)
    torch.testing.assert_close(evidence - priors, fitc(program, sites, jitter), rtol=1e-8, atol=1e-8)


def test_the_function_given_its_inducing_values_is_gpytorchs():
    """Of GPyTorch's strategy with a point mass for u; it adds its jitter to the variance at the rows as well."""
    model = Approximate(X[:4].clone() + 0.1)
    program = gpytorch_program(model, gaussian())
    sites = {name: 0.5 + torch.rand(shape, dtype=torch.float64) for name, shape in program.shapes.items()}
    mine = program.predictive(NEW, sites, X, Y, noise=False)
    own = model.double().eval()
    own.mean_module.constant = sites["mean_module.constant"]
    own.covar_module.outputscale = sites[OUTPUTSCALE]
    own.covar_module.base_kernel.lengthscale = sites[LENGTHSCALE]
    own.variational_strategy._variational_distribution.variational_mean.data.copy_(sites["inducing"])
    own.variational_strategy.variational_params_initialized.fill_(1)
    with torch.no_grad():
        theirs = own(NEW)
    jitter = own.variational_strategy.jitter_val
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mine.variance, theirs.variance - jitter, rtol=1e-8, atol=1e-8)
    with pytest.raises(RuntimeError, match="deepcopy"):  # a cache holds a graph or not: we copy all the same
        own.train()(NEW).mean, copy.deepcopy(own)
    assert gpytorch_program(own, gaussian()).shapes == program.shapes


def test_tasks_and_batches_with_inducing_points_are_processes_of_their_own():
    """The log likelihood is the sum over both of what a single process has with the values of each."""
    z = X[:3].clone()
    single = gpytorch_program(Approximate(z), gaussian())
    batch = gpytorch_program(Approximate(z, BATCH), gaussian(BATCH))
    tasks = gpytorch_program(Approximate(z, BATCH, tasks=2), gaussian())
    densities = [LogDensity.trace(program, (X, y)) for program, y in ((batch, TWO.mT.contiguous()), (tasks, TWO))]
    sites = draws_of(densities[0], 1)
    shared = {**sites, "likelihood.noise": sites["likelihood.noise"][:, 0]}
    sites["likelihood.noise"] = shared["likelihood.noise"][:, None].expand(1, 2, 1)
    of_batch, of_tasks = (density.pointwise(s)["y"] for density, s in zip(densities, (sites, shared), strict=True))
    alone = []
    for i in range(2):
        one = {name: value[:, i] for name, value in sites.items()}
        one["likelihood.noise"] = shared["likelihood.noise"]
        alone.append(LogDensity.trace(single, (X, TWO[:, i])).pointwise(one)["y"])
    torch.testing.assert_close(of_batch, torch.stack(alone, 1), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(of_tasks, sum(alone), rtol=ROUNDING, atol=ROUNDING)
    assert tasks.predictive(NEW, shared, X, TWO).batch_shape == (4, 2)
    assert batch.predictive(NEW, sites, X, TWO.mT.contiguous()).batch_shape == (2, 4)


@pytest.mark.parametrize("tasks", [0, 2])
def test_predictions_of_counts_and_classes_average_over_draws(tasks):
    batch = BATCH if tasks else torch.Size()
    y = (TWO if tasks else Y) > 0
    for likelihood, kind in ((BernoulliLikelihood(), Bernoulli), (PoissonLikelihood(), LeadingMixture)):
        program = gpytorch_program(Approximate(X[:3].clone(), batch, tasks), likelihood)
        sites = draws_of(LogDensity.trace(program, (X, y)), 3)
        together = program.predictive(NEW, sites, X, y)
        assert isinstance(together, kind)
        each = [program.predictive(NEW, {n: v[i] for n, v in sites.items()}, X, y) for i in range(3)]
        torch.testing.assert_close(together.mean, sum(one.mean for one in each) / 3, rtol=ROUNDING, atol=ROUNDING)
        ones = torch.ones_like(together.mean)
        density = sum(one.log_prob(ones).exp() for one in each) / 3
        torch.testing.assert_close(together.log_prob(ones).exp(), density, rtol=ROUNDING, atol=ROUNDING)


def test_a_likelihoods_parameters_go_with_their_own_draw():
    """As many draws as tasks, so that a mix-up of the two axes would go unnoticed."""
    program = gpytorch_program(
        Approximate(X[:3].clone(), BATCH, tasks=2),
        StudentTLikelihood(noise_prior=gamma(), deg_free_prior=GammaPrior(9.0, 1.0)),
    )
    sites = draws_of(LogDensity.trace(program, (X, TWO)), 2)
    together = program.predictive(NEW, sites, X, TWO)
    each = [program.predictive(NEW, {n: v[i] for n, v in sites.items()}, X, TWO) for i in range(2)]
    at = torch.zeros_like(together.mean)
    mean = sum(one.log_prob(at).exp() for one in each) / 2
    torch.testing.assert_close(together.log_prob(at).exp(), mean, rtol=ROUNDING, atol=ROUNDING)


def test_mini_batches_improve_the_bound():
    generator = torch.Generator().manual_seed(3)
    x = 6 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 3
    y = x[:, 0].sin() + 0.2 * torch.randn(300, generator=generator, dtype=torch.float64)
    program = gpytorch_program(Approximate(torch.linspace(-3, 3, 5)[:, None]), gaussian())
    method = SVI(guide="diagonal", init="prior", batch_size=50, max_steps=150, learning_rate=0.1)
    with pytest.warns(UserWarning, match="max_steps"):
        fit = infer(program, (x, y), method, seed=0)
    bound = fit.history["elbo"][0]
    assert float(bound[-30:].mean()) > float(bound[:30].mean()) + 50  # nats, of which each step's estimate is off by 50
    error = program.predictive(x[:50], fit.sample(20, seed=0), x, y).mean - x[:50, 0].sin()
    assert float(error.square().mean().sqrt()) < 0.2  # the noise


def test_counts_by_quadrature_have_a_posterior():
    y = Poisson(torch.nn.functional.softplus(3 * Y)).sample()
    fit = infer(gpytorch_program(Approximate(X[:3].clone()), PoissonLikelihood()), (X, y), MAP(restarts=2), seed=0)
    assert math.isfinite(fit.objective)

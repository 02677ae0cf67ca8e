"""GPyTorch models as programs, against GPyTorch's own marginal likelihood and predictions."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from gpytorch.kernels import InducingPointKernel, LinearKernel, RBFKernel
from gpytorch.likelihoods import (
    BernoulliLikelihood,
    FixedNoiseGaussianLikelihood,
    GaussianLikelihood,
    SoftmaxLikelihood,
)
from gpytorch.means import ConstantMean, MultitaskMean
from gpytorch.variational import LMCVariationalStrategy
from gpytorch_cases import (
    BATCH,
    NEW,
    ROUNDING,
    TWO,
    Approximate,
    Exact,
    X,
    Y,
    draws_of,
    gamma,
    gaussian,
    level,
    multitask_kernel,
    multitask_noise,
    rbf,
    separate_tasks,
    stacked_tasks,
)
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import prior_sites
from probmix.inference import MAP, NUTS, SVI, ChEES, Laplace, infer
from probmix.log_density import LogDensity
from probmix.models.gpytorch_program import gpytorch_program


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- exact ----------------------------------------------------------------------------------------------------------

EXACT: dict[str, tuple[Callable[[], Exact], Tensor, Tensor]] = {
    "one": (lambda: Exact(rbf(), gaussian()), X, Y),
    "sum with a linear kernel": (lambda: Exact(rbf() + LinearKernel(variance_prior=gamma()), gaussian()), X, Y),
    "batch": (lambda: Exact(rbf(BATCH), gaussian(BATCH), level(BATCH)), X, TWO.mT.contiguous()),
    "tasks": (
        lambda: Exact(multitask_kernel(), multitask_noise(), MultitaskMean(level(), 2), MultitaskMultivariateNormal),
        X,
        TWO,
    ),
    "tasks, correlated noise": (
        lambda: Exact(multitask_kernel(), multitask_noise(1), MultitaskMean(level(), 2), MultitaskMultivariateNormal),
        X,
        TWO,
    ),
    "independent tasks": (lambda: Exact(rbf(BATCH), multitask_noise(), level(BATCH), stacked_tasks), X, TWO),
    "tasks, not interleaved": (lambda: Exact(rbf(), multitask_noise(), make=separate_tasks), X, TWO),
    "fixed noise": (
        lambda: Exact(
            rbf(), FixedNoiseGaussianLikelihood(Y.exp() / 9, learn_additional_noise=True, noise_prior=gamma())
        ),
        X,
        Y,
    ),
    "inducing points in the kernel": (
        lambda: Exact(InducingPointKernel(rbf(), X[:5].clone(), GaussianLikelihood()), gaussian()),
        X,
        Y,
    ),
}
every_exact = pytest.mark.parametrize(("make", "x", "y"), EXACT.values(), ids=EXACT)


def with_sites(model: Exact, sites: dict[str, Tensor], x: Tensor, y: Tensor) -> Exact:
    """GPyTorch's own model, its values set by GPyTorch's own setters, in eval mode."""
    model = copy.deepcopy(model).double()
    for name, value in sites.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if attribute == "covar_factor":
            module.covar_factor.data.copy_(value)
        else:
            setattr(module, attribute, value)
    model.set_train_data(x, y, strict=False)
    return model.eval()


@every_exact
def test_the_log_joint_is_gpytorchs(make, x, y):
    """n times its marginal log-likelihood, which has the priors in it. The control: two draws differ."""
    model = make()
    density = LogDensity.trace(gpytorch_program(model, fixed="all"), (x, y))
    assert density.batching == "vmap"
    sites = draws_of(density, 3)
    values = density.log_joint(sites)
    for i in range(3):
        own = with_sites(model, {name: value[i] for name, value in sites.items()}, x, y)
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            theirs = tasks_by_hand(own, x, y) if own._make is separate_tasks else log_joint(own, x, y)
        torch.testing.assert_close(values[i], theirs, rtol=ROUNDING, atol=ROUNDING)
    assert not torch.allclose(values[:1], values[1:2], rtol=1e-3)


def log_joint(model: Exact, x: Tensor, y: Tensor) -> Tensor:
    prior = model.forward(x)
    return (
        gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(prior, y) * prior.event_shape.numel()
    ).sum()


def tasks_by_hand(model: Exact, x: Tensor, y: Tensor) -> Tensor:
    """Where the rows of a task are together, GPyTorch's ``log_prob`` pairs observations with rows of others."""
    marginal = model.likelihood(model.forward(x))
    likelihood = torch.distributions.MultivariateNormal(marginal.loc, marginal.covariance_matrix)
    priors = sum(prior.log_prob(closure(part)).sum() for _, part, prior, closure, _ in model.named_priors())
    return likelihood.log_prob(y.mT.flatten()) + priors


def test_gradients_are_gpytorchs():
    model = Exact(rbf(), gaussian())
    density = LogDensity.trace(gpytorch_program(model), (X, Y))
    z = 0.4 * torch.randn(2, density.dim, dtype=torch.float64)
    _, gradients = density.value_and_grad(z, jacobian=False)
    for point, gradient in zip(z, gradients, strict=True):
        own = with_sites(model, density.constrain(point), X, Y).train()
        with gpytorch.settings.fast_computations(False, False, False):
            gpytorch.mlls.ExactMarginalLogLikelihood(own.likelihood, own)(own(X), Y).mul(len(Y)).backward()
        raw = [own.likelihood.noise_covar.raw_noise, own.mean_module.raw_constant]
        raw += [own.covar_module.raw_outputscale, own.covar_module.base_kernel.raw_lengthscale]
        theirs = torch.stack([parameter.grad.sum() for parameter in raw])
        values = torch.stack([v.sum() for v in density.constrain(point).values()])
        slopes = theirs / torch.stack([parameter.sigmoid().sum() for parameter in raw])  # their maps are softplus,
        slopes[1] = theirs[1]
        bounds = torch.tensor([own.likelihood.noise_covar.raw_noise_constraint.lower_bound.item(), 0.0, 0.0, 0.0])
        mine = gradient / torch.where(torch.tensor([True, False, True, True]), values - bounds, 1.0)  # ours is exp
        torch.testing.assert_close(mine, slopes, rtol=1e-7, atol=1e-7)  # their distances at 0 are of another kind


@every_exact
def test_predictions_are_gpytorchs_and_a_mixture_over_draws(make, x, y):
    model = make()
    program = gpytorch_program(model, fixed="all")
    density = LogDensity.trace(program, (x, y))
    sites = draws_of(density, 3)
    fixed = isinstance(model.likelihood, FixedNoiseGaussianLikelihood)
    noise: Any = torch.full((4,), 0.2, dtype=torch.float64) if fixed else True
    mixture = program.predictive(NEW, sites, x, y, noise=noise)
    loc, var = [], []
    for i in range(3):
        own = with_sites(model, {name: value[i] for name, value in sites.items()}, x, y)
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            if own._make is separate_tasks:  # on which GPyTorch's own prediction fails
                loc_i, var_i = by_hand(own, x, y)
            else:
                f = own(NEW)
                f_or_y = f if fixed else own.likelihood(f)
                loc_i, var_i = f_or_y.mean, f_or_y.variance + (0.2 + own.likelihood.second_noise if fixed else 0.0)
        loc.append(loc_i)
        var.append(var_i)
    components = mixture.component_distribution
    torch.testing.assert_close(components.mean.movedim(-1, 0), torch.stack(loc), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(components.variance.movedim(-1, 0), torch.stack(var), rtol=1e-7, atol=1e-7)
    assert mixture.batch_shape == loc[0].shape
    mean = sum(loc) / 3
    torch.testing.assert_close(mixture.mean, mean, rtol=1e-7, atol=1e-7)
    second = sum(v + (m - mean).square() for v, m in zip(var, loc, strict=True)) / 3
    torch.testing.assert_close(mixture.variance, second, rtol=1e-7, atol=1e-7)


def by_hand(model: Exact, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook's conditional normal, task by task."""
    kernel, level_ = model.covar_module, model.mean_module.constant
    noise = model.likelihood.task_noises + model.likelihood.noise
    parts = []
    for task, factor in enumerate((1.0, 2.0)):
        seen = factor * kernel(x).to_dense() + noise[task] * torch.eye(len(x), dtype=x.dtype)
        weights = torch.linalg.solve(seen, factor * kernel(x, NEW).to_dense())
        residual = y[:, task] - level_ - task
        prior_var = factor * kernel(NEW, diag=True)
        gained = (weights * factor * kernel(x, NEW).to_dense()).sum(0)
        parts.append((level_ + task + weights.mT @ residual, prior_var - gained + noise[task]))
    loc, var = (torch.stack(part, -1) for part in zip(*parts, strict=True))
    return loc, var


def test_the_functions_own_distribution_has_no_noise():
    program = gpytorch_program(Exact(rbf(), gaussian()))
    sites = {name: torch.ones(2, *shape) for name, shape in program.shapes.items()}
    with_noise, without = (program.predictive(NEW, sites, X, Y, noise=noise) for noise in (True, False))
    torch.testing.assert_close(with_noise.variance, without.variance + 1.0, rtol=1e-6, atol=1e-6)
    one = program.predictive(NEW, {name: value[0] for name, value in sites.items()}, X, Y)
    torch.testing.assert_close(one.mean, with_noise.mean)


def test_a_batch_of_data_sets_shares_the_hyperparameters():
    """One likelihood for each, and the priors once."""
    program = gpytorch_program(Exact(rbf(), gaussian()))
    x, y = torch.stack([X, X + 1]), TWO.mT.contiguous()
    together = LogDensity.trace(program, (x, y))
    sites = draws_of(together, 2)
    alone = [LogDensity.trace(program, pair).log_joint(sites) for pair in zip(x, y, strict=True)]
    prior = sum(site.prior.log_prob(sites[name]) for name, site in prior_sites(program._like(X)).items())
    torch.testing.assert_close(together.log_joint(sites), sum(alone) - prior, rtol=ROUNDING, atol=ROUNDING)
    assert program.predictive(NEW, sites, x, y).batch_shape == (2, 4)


# --- the data, and the caller's model -------------------------------------------------------------------------------


def test_the_callers_model_stays_as_it_is_and_the_dtype_is_that_of_the_data():
    model = Exact(rbf(), gaussian()).train()
    before, priors = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    program = gpytorch_program(model)
    fit = infer(program, (X, Y), MAP(restarts=2), seed=0)
    assert {value.dtype for value in fit.sites().values()} == {torch.float64}
    single = infer(program, (X.float(), Y.float()), MAP(restarts=2), seed=0)
    assert {value.dtype for value in single.sites().values()} == {torch.float32}
    for name, value in fit.sites().items():
        torch.testing.assert_close(single.sites()[name].double(), value, rtol=1e-2, atol=1e-2)  # a flat top, in float32
    assert program.predictive(NEW.float(), single.sites(), X.float(), Y.float()).mean.dtype == torch.float32
    assert model.training
    assert [id(p) for p in model.parameters()] == priors
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    model.covar_module.outputscale = 7.0  # later changes are not seen
    again = infer(program, (X, Y), MAP(restarts=2), seed=0)
    assert all(torch.equal(value, fit.sites()[name]) for name, value in again.sites().items())


def test_observations_are_brought_into_shape():
    program = gpytorch_program(Exact(rbf(), gaussian()))
    x, y = program.observe(torch.arange(3), torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64))
    assert x.shape == (3, 1)
    assert y.shape == (3,)
    assert x.dtype == y.dtype == torch.float64
    assert program.observe(torch.zeros(3, 1), torch.tensor([0, 1, 2]))[1].dtype == torch.float32


def test_bad_data_are_refused():
    program = gpytorch_program(Exact(rbf(), gaussian()))
    tasks = gpytorch_program(EXACT["tasks"][0]())
    broken = Y.clone()
    broken[[3, 7]] = torch.nan
    with pytest.raises(DataError, match=r"y: expected finite numbers, got 2 of 12 rows .* the first at index 3"):
        program.observe(X, broken)
    with pytest.raises(DataError, match=r"expected the shape \(12,\).* shape \(12, 2\); got \(11,\)"):
        program.observe(X, Y[1:])
    with pytest.raises(DataError, match=r"expected the shape \(12, 2\).* got \(12,\).*number of tasks"):
        tasks.observe(X, Y)
    with pytest.raises(DataError, match=r"one dtype on one device, got torch.float32 on cpu and torch.float64"):
        program.observe(X.float(), Y)
    with pytest.raises(DataError, match="takes 2 tables of data"):
        infer(program, X, MAP(), seed=0)
    with pytest.raises(DataError, match="x_new: expected 2 columns, as x has, got 3"):
        program.predictive(torch.zeros(1, 3), {}, X, Y)
    classes = gpytorch_program(Approximate(X[:3].clone()), BernoulliLikelihood())
    with pytest.raises(
        DataError, match=r"got 5 of 12 values that it cannot, the first -1\. Code two classes as 0 and 1"
    ):
        classes.observe(X, torch.tensor([1.0, -1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1]).double())
    fixed = gpytorch_program(EXACT["fixed noise"][0]())
    with pytest.raises(DataError, match="one row for each fixed noise variance of the likelihood, 12, got 11"):
        fixed.observe(X[1:], Y[1:])


def test_equal_rows_need_noise():
    likelihood = GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = 1e-320
    program = gpytorch_program(Exact(rbf(), likelihood), fixed=["likelihood"])
    program.observe(X, Y)
    with pytest.raises(DataError, match="got equal rows 2 and 5 and a noise variance of 0"):
        program.observe(X[[0, 1, 2, 3, 4, 2]], Y[:6])


def test_predictions_say_what_is_missing():
    program = gpytorch_program(Exact(rbf(), gaussian()))
    with pytest.raises(ProgramError, match=r"\['mean_module.constant', .* are missing, got \['likelihood.noise'\]"):
        program.predictive(NEW, {"likelihood.noise": torch.ones(1)}, X, Y)
    fixed = gpytorch_program(EXACT["fixed noise"][0]())
    sites = {name: torch.ones(shape) for name, shape in fixed.shapes.items()}
    with pytest.raises(ProgramError, match="expected the variances at the new rows, as the likelihood's own are fixed"):
        fixed.predictive(NEW, sites, X, Y)
    bad = {name: torch.full(shape, torch.nan) for name, shape in program.shapes.items()}
    with pytest.raises(ProgramError, match=r"with entries that are not finite.* at the given likelihood.noise, mean"):
        program.predictive(NEW, bad, X, Y)


def test_what_is_not_covered_is_refused_with_advice():
    with pytest.raises(ProgramError, match=re.escape("got none for ['covar_module.raw_lengthscale']")):
        gpytorch_program(Exact(RBFKernel(), gaussian()))
    model = Approximate(X[:3].clone())
    with pytest.raises(ProgramError, match=r"got none: pass it, gpytorch_program\(model, likelihood\)"):
        gpytorch_program(model)
    with pytest.raises(ProgramError, match=r"got SoftmaxLikelihood.*ScaleMixtureClassifier, with df=None"):
        gpytorch_program(model, SoftmaxLikelihood(2, 2), fixed="all")
    with pytest.raises(ProgramError, match=r"got FixedNoiseGaussianLikelihood.* use an ExactGP"):
        gpytorch_program(model, FixedNoiseGaussianLikelihood(torch.ones(12)))
    with pytest.raises(ProgramError, match=r"got MultitaskGaussianLikelihood.* set rank=0"):
        gpytorch_program(Approximate(X[:3].clone(), BATCH, 2), multitask_noise(1), fixed="all")
    with pytest.raises(ProgramError, match="expected an ExactGP or an ApproximateGP of GPyTorch, got RBFKernel"):
        gpytorch_program(RBFKernel())
    mixed = Approximate(X[:3].clone(), BATCH)
    mixed.variational_strategy = LMCVariationalStrategy(mixed.variational_strategy, num_tasks=3, num_latents=2)
    with pytest.raises(ProgramError, match="over the last batch axis of one, got LMCVariationalStrategy"):
        gpytorch_program(mixed, gaussian(), fixed="all")
    fixed = gpytorch_program(Exact(RBFKernel(), GaussianLikelihood()), fixed="all")
    assert list(fixed.shapes) == ["mean_module.constant"]


# --- methods --------------------------------------------------------------------------------------------------------


METHODS = [Laplace(restarts=2), SVI(), NUTS(chains=2, warmup=40, draws=40), ChEES(chains=8, warmup=40, draws=20)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_finds_the_posterior(method):
    """One parameter, so that its posterior is a sum over a grid; short runs, with errors of a third of its spread."""
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    y = x.sin() + 0.2 * torch.randn(25, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = Exact(RBFKernel(), gaussian())
    model.covar_module.initialize(lengthscale=1.5)
    model.mean_module = ConstantMean()
    program = gpytorch_program(model, fixed="all")
    fit = infer(program, (x, y), method, seed=0)
    logs = fit.sample(200, seed=1)["likelihood.noise"][:, 0].log()
    z = torch.linspace(-9, 3, 600, dtype=torch.float64)[:, None]  # log of the noise above its bound, 1e-4
    weights = fit.log_density.value(z).softmax(0)
    mean = (weights * z[:, 0]).sum()
    std = (weights * (z[:, 0] - mean).square()).sum().sqrt()
    assert abs(logs.mean() - mean) < 0.5 * std
    assert 0.5 * std < logs.std() < 2 * std
    mixture = program.predictive(torch.tensor([0.0, 1.5]), fit.sample(20, seed=0), x, y)
    torch.testing.assert_close(mixture.mean, torch.tensor([0.0, 1.5]).double().sin(), rtol=0, atol=0.25)  # the noise
    if isinstance(method, NUTS):
        draws = fit.to_arviz(predictive_draws=5, prior_draws=5)
        assert draws.posterior_predictive["y"].shape[-1] == 25

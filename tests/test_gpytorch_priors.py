"""GPyTorch's priors as sites and its covariances as plain matrices, against GPyTorch itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import gpytorch
import linear_operator
import pyro
import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import (
    InducingPointKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    MultitaskKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.priors import (
    GammaPrior,
    HalfNormalPrior,
    LogNormalPrior,
    MultivariateNormalPrior,
    NormalPrior,
    SmoothedBoxPrior,
    UniformPrior,
)
from linear_operator.operators import LinearOperator
from torch import Tensor, nn
from torch.func import grad, vmap

from probmix.errors import ProgramError
from probmix.gpytorch_priors import (
    SitePrior,
    covariance_matrix,
    own_copy,
    plain,
    prior_sites,
    require_priors,
    sampled,
    with_values,
    without_prior,
)

ROUNDING = 1e-12  # a few operations in float64, in another order


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gamma() -> GammaPrior:
    return GammaPrior(3.0, 3.0)


class Process(gpytorch.models.ExactGP):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(None, None, GaussianLikelihood(noise_prior=GammaPrior(2.0, 4.0)))
        self.mean_module = ConstantMean(constant_prior=NormalPrior(0.0, 1.0))
        self.covar_module = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


# --- sites ----------------------------------------------------------------------------------------------------------


def test_a_site_is_called_as_the_attribute_that_it_is_about():
    model = Process(ScaleKernel(RBFKernel(lengthscale_prior=gamma()), outputscale_prior=gamma()))
    sites = prior_sites(model)
    assert list(sites) == [
        "likelihood.noise",
        "mean_module.constant",
        "covar_module.outputscale",
        "covar_module.base_kernel.lengthscale",
    ]
    for name, site in sites.items():
        assert torch.equal(attrgetter(name)(model), site.value)
    assert list(prior_sites(model.likelihood, "likelihood")) == ["likelihood.noise"]
    assert list(prior_sites(model.covar_module)) == ["outputscale", "base_kernel.lengthscale"]


def test_a_prior_of_a_function_of_a_parameter_keeps_its_own_name():
    kernel = RBFKernel()
    kernel.register_prior(
        "log_lengthscale_prior",
        NormalPrior(0.0, 1.0),
        lambda m: m.lengthscale.log(),
        lambda m, value: m._set_lengthscale(value.exp()),
    )
    assert list(prior_sites(kernel)) == ["log_lengthscale"]
    value = torch.tensor([[-0.3]])
    torch.testing.assert_close(with_values(kernel, {"log_lengthscale": value}).lengthscale, value.exp())


def test_one_prior_object_for_two_kernels_is_two_sites():
    """GPyTorch's own sampling gives a value to the first alone: the control."""
    shared = gamma()
    kernel = RBFKernel(lengthscale_prior=shared) + MaternKernel(lengthscale_prior=shared)
    assert list(prior_sites(kernel)) == ["kernels.0.lengthscale", "kernels.1.lengthscale"]
    trace = pyro.poutine.trace(kernel.pyro_sample_from_prior).get_trace()
    assert list(trace.stochastic_nodes) == ["kernels.0.lengthscale_prior"]


def density_by_hand(prior: Any, value: Tensor) -> Tensor:
    return prior.log_prob(value).sum()


PRIORS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "gamma": (gamma, (2, 1, 3)),
    "gamma of each entry": (lambda: GammaPrior(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])), (4, 1, 2)),
    "normal, scalar": (lambda: NormalPrior(0.0, 1.0), ()),
    "half normal, scalar": (lambda: HalfNormalPrior(1.0), ()),
    "log normal": (lambda: LogNormalPrior(0.0, 1.0), (1, 1)),
    "uniform": (lambda: UniformPrior(0.5, 2.0), (3,)),
    "smoothed box": (lambda: SmoothedBoxPrior(0.5, 2.0), (1, 2)),
    "smoothed box, scalar": (lambda: SmoothedBoxPrior(0.5, 2.0), ()),
    "multivariate": (lambda: MultivariateNormalPrior(torch.zeros(2), torch.eye(2)), (3, 2)),
}


@pytest.mark.parametrize(("make", "shape"), PRIORS.values(), ids=PRIORS)
def test_the_density_of_a_site_is_the_sum_of_the_priors(make, shape):
    prior = make()
    site = SitePrior(prior, torch.ones(shape, dtype=torch.float64))
    draws = site.sample((5,))
    assert draws.shape == (5, *shape)
    assert draws.dtype == torch.float64
    assert bool(site.support.check(draws).all())
    assert draws.reshape(5, -1).unique(dim=0).shape[0] == 5
    expected = torch.stack([density_by_hand(prior, draw) for draw in draws])
    torch.testing.assert_close(torch.stack([site.log_prob(draw) for draw in draws]), expected)
    torch.testing.assert_close(vmap(site.log_prob)(draws), expected)
    if shape:
        torch.testing.assert_close(site.log_prob(draws), expected)


BOUNDS = [
    (lambda: GaussianLikelihood(noise_prior=GammaPrior(0.2, 1.0)), "noise", (1e-4, torch.inf)),
    (lambda: RBFKernel(lengthscale_prior=NormalPrior(0.0, 1.0)), "lengthscale", (0.0, torch.inf)),
    (
        lambda: RBFKernel(lengthscale_prior=gamma(), lengthscale_constraint=Interval(0.3, 1.5)),
        "lengthscale",
        (0.3, 1.5),
    ),
    (
        lambda: RBFKernel(lengthscale_prior=UniformPrior(1, 9), lengthscale_constraint=Interval(0, 2)),
        "lengthscale",
        (1, 2),
    ),
]


@pytest.mark.parametrize(("make", "name", "bounds"), BOUNDS)
def test_a_prior_is_cut_off_where_the_constraint_is(make, name, bounds):
    """The control: GPyTorch lets many draws of the same prior leave the bounds, where its parameter is not a number."""
    module = make()
    (site,) = prior_sites(module).values()
    low, high = bounds
    draws = site.prior.sample((300,))
    assert bool(((draws > low) & (draws < high)).all())
    outside = site.prior.prior.sample((300,))
    assert not bool(((outside > low) & (outside < high)).all())
    free = torch.linspace(-8, 8, 9).reshape(9, *[1] * site.value.dim()).expand(9, *site.value.shape)
    values = torch.distributions.biject_to(site.prior.support)(free)
    assert bool(((values >= low) & (values <= high)).all())
    for value in values:  # also at the bounds nothing is lost on the way to the raw parameter
        assert torch.equal(getattr(with_values(module, {name: value}), name), value)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_refusals_say_what_to_do():
    multitask = MultitaskGaussianLikelihood(num_tasks=2, noise_prior=gamma())
    with pytest.raises(ProgramError, match=r"'raw_task_noises_prior' has no setting closure.* Leave it out of the con"):
        prior_sites(multitask)
    with pytest.raises(ProgramError, match="'lengthscale_prior' has a transform, for which GPyTorch has no draws"):
        prior_sites(RBFKernel(lengthscale_prior=NormalPrior(0.0, 1.0, transform=torch.log)))
    twice = RBFKernel(lengthscale_prior=gamma())
    twice.register_prior("second_prior", gamma(), "lengthscale")
    with pytest.raises(ProgramError, match="expected one prior for 'lengthscale', got two"):
        prior_sites(twice)
    wrong = RBFKernel(lengthscale_prior=GammaPrior(torch.ones(3), torch.ones(3)))
    with pytest.raises(ProgramError, match=r"of one number or of shape \(1, 1\).* got a GammaPrior of shape \(3,\)"):
        prior_sites(wrong)
    with pytest.raises(ProgramError, match=r"a value for the site 'lengthscale', got \['other'\]"):
        with_values(RBFKernel(lengthscale_prior=gamma()), {"other": torch.ones(1)})


def test_parameters_without_a_prior_are_named():
    model = Process(ScaleKernel(RBFKernel()))
    left = ["covar_module.raw_outputscale", "covar_module.base_kernel.raw_lengthscale"]
    assert without_prior(model) == left
    with pytest.raises(ProgramError, match=re.escape(f"got none for {left}. Pass one to the constructor")) as error:
        require_priors(model)
    assert f"fixed={left}, or fixed='all'." in str(error.value)
    with pytest.raises(ProgramError, match=re.escape(f"got none for {left[:1]}.")):
        require_priors(model, ["covar_module.base_kernel"])
    with pytest.raises(ProgramError, match=r"got \['covar_module.raw\'\]. There are \['likelihood"):
        require_priors(model, ["covar_module.raw"])
    with pytest.raises(ProgramError, match=re.escape("Write fixed=['covar_module'].")):
        require_priors(model, "covar_module")
    for fixed in ("all", left, ["covar_module"]):
        require_priors(model, fixed)
    model.covar_module.requires_grad_(requires_grad=False)
    require_priors(model)


def test_a_spectral_mixture_drops_its_priors_and_the_message_says_so():
    kernel = SpectralMixtureKernel(num_mixtures=2, mixture_weights_prior=gamma(), mixture_means_prior=gamma())
    assert list(kernel.named_priors()) == []  # GPyTorch's defect: once it is mended, the message can go
    with pytest.raises(ProgramError, match="SpectralMixtureKernel drops the priors that its constructor is given"):
        require_priors(kernel)
    for name in ("mixture_weights", "mixture_means", "mixture_scales"):
        kernel.register_prior(
            f"{name}_prior",
            gamma(),
            lambda m, name=name: getattr(m, name),
            lambda m, value, name=name: getattr(m, f"_set_{name}")(value),
        )
    require_priors(kernel)
    assert list(prior_sites(kernel)) == ["mixture_weights", "mixture_means", "mixture_scales"]


# --- copies ---------------------------------------------------------------------------------------------------------


def test_sampling_and_setting_leave_the_module_as_it_was():
    kernel = ScaleKernel(RBFKernel(lengthscale_prior=gamma()), outputscale_prior=gamma())
    before = copy.deepcopy(kernel.state_dict())
    trace = pyro.poutine.trace(lambda: sampled(kernel, "k")).get_trace()
    copied = trace.nodes["_RETURN"]["value"]
    assert torch.equal(copied.outputscale, trace.nodes["k.outputscale"]["value"])
    with_values(kernel, {"outputscale": torch.ones(7), "base_kernel.lengthscale": torch.ones(7, 1, 1)})
    assert type(kernel) is ScaleKernel
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())
    assert kernel.raw_outputscale_constraint.enforced


def test_an_own_copy_shares_nothing_and_is_complete():
    """The control: a deep copy of an inducing point kernel shares the likelihood with the original."""
    model = Process(RBFKernel(lengthscale_prior=gamma()))
    model.covar_module = InducingPointKernel(model.covar_module, torch.randn(3, 1), model.likelihood)
    assert copy.deepcopy(model).covar_module.likelihood is model.likelihood
    copied = own_copy(model).double()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert copied.covar_module.likelihood is copied.likelihood
    assert not copied.training
    assert not copied.covar_module.training
    copied.likelihood.noise_covar.raw_noise.data.fill_(3.0)
    assert float(model.likelihood.raw_noise.detach()) == 0.0
    noise = prior_sites(copied)["likelihood.noise"]
    exact = torch.distributions.Gamma(torch.tensor(2.0).double(), 4.0).log_prob(torch.tensor(0.3).double())
    torch.testing.assert_close(noise.prior.log_prob(torch.full((1,), 0.3).double()), exact, rtol=ROUNDING, atol=0)


# --- covariances ----------------------------------------------------------------------------------------------------


def multitask() -> Kernel:
    kernel = MultitaskKernel(RBFKernel(lengthscale_prior=gamma()), num_tasks=2)
    kernel.task_covar_module.register_prior("covar_factor_prior", NormalPrior(0.0, 1.0), "covar_factor")
    kernel.task_covar_module.register_prior("var_prior", gamma(), "var")
    return kernel


X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
KERNELS: dict[str, Callable[[], Kernel]] = {
    "RBF": lambda: RBFKernel(ard_num_dims=2, lengthscale_prior=gamma()),
    "Matern 1/2": lambda: MaternKernel(0.5, lengthscale_prior=gamma()),
    "Matern 5/2": lambda: MaternKernel(2.5, lengthscale_prior=gamma()),
    "periodic": lambda: PeriodicKernel(lengthscale_prior=gamma(), period_length_prior=gamma()),
    "rational quadratic": lambda: RQKernel(lengthscale_prior=gamma()),
    "linear": lambda: LinearKernel(variance_prior=gamma()),
    "polynomial": lambda: PolynomialKernel(2, offset_prior=gamma()),
    "sum, scaled": lambda: ScaleKernel(
        RBFKernel(lengthscale_prior=gamma()) + MaternKernel(lengthscale_prior=gamma()), outputscale_prior=gamma()
    ),
    "sum with a linear one": lambda: RBFKernel(lengthscale_prior=gamma()) + LinearKernel(variance_prior=gamma()),
    "product, own columns": lambda: (
        RBFKernel(lengthscale_prior=gamma(), active_dims=[0]) * MaternKernel(lengthscale_prior=gamma(), active_dims=[1])
    ),
    "two tasks": multitask,
    "inducing points, as many as rows": lambda: InducingPointKernel(
        RBFKernel(lengthscale_prior=gamma()), X.flip(0) + 0.1, GaussianLikelihood()
    ).eval(),
}


def theirs(kernel: Kernel, sites: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    """GPyTorch's own matrix, of a copy whose values were set through GPyTorch's own setters."""
    module = copy.deepcopy(kernel).eval()
    for name, site in sites.items():
        path, _, attribute = name.rpartition(".")
        value = nn.Parameter(site) if attribute == "covar_factor" else site
        setattr(module.get_submodule(path), attribute, value)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        return module(*inputs).to_dense()


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_matrices_are_gpytorchs_alone_and_in_a_batch(make):
    kernel, other = make().double(), X + 0.3  # of the same shape as X, but not equal to it
    sites = {name: 0.5 + torch.rand(3, *site.value.shape).double() for name, site in prior_sites(kernel).items()}

    def mine(values: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return covariance_matrix(with_values(kernel, values), *inputs)

    for inputs in ((X,), (X, other)):
        rows = [{name: value[i] for name, value in sites.items()} for i in range(3)]
        expected = torch.stack([theirs(kernel, row, *inputs) for row in rows])
        alone = torch.stack([mine(row, *inputs) for row in rows])
        together = vmap(lambda values, inputs=inputs: mine(values, *inputs))(sites)
        torch.testing.assert_close(alone, expected, rtol=1e-7, atol=1e-10)  # its distances lose half of the digits at 0
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    diagonal = covariance_matrix(with_values(kernel, rows[0]), X, diagonal=True)
    torch.testing.assert_close(diagonal, mine(rows[0], X).diagonal(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["RBF", "Matern 5/2", "sum with a linear one", "two tasks"])
def test_gradients_are_differences(name):
    kernel = KERNELS[name]().double()
    sites = {site: 0.5 + torch.rand_like(s.value) for site, s in prior_sites(kernel).items()}

    def total(values: dict[str, Tensor]) -> Tensor:
        return covariance_matrix(with_values(kernel, values), X).square().sum()

    gradients = grad(total)(sites)
    for site, value in sites.items():
        step = 1e-5 * torch.ones_like(value)
        slope = total({**sites, site: value + step}) - total({**sites, site: value - step})
        torch.testing.assert_close(gradients[site].sum(), slope / 2e-5, rtol=1e-7, atol=1e-7)  # squares of the step


def test_settings_are_as_before_afterwards():
    matmul = LinearOperator.matmul
    with plain():
        assert LinearOperator.matmul is not matmul
    assert LinearOperator.matmul is matmul
    assert gpytorch.settings.trace_mode.off()
    assert linear_operator.settings.trace_mode.off()
    assert gpytorch.settings.debug.on()

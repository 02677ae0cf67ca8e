"""Values and gradients of a table of programs, a batch at a time, against Pyro's own potential one vector at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gpytorch
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import masked, ordered, two_discrete, with_factor, zero_inflated
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from probmix.arguments import Arguments
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture

X = torch.tensor([-2.0, -1.5, 0.3, 1.8, 2.2], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 0, 3, 1, 0, 7], dtype=torch.float64)
ROUNDING = 1e-10  # relative: sums of some dozens of float64 terms, in another order


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


# --- the table ------------------------------------------------------------------------------------------------------


def continuous(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    std = pyro.sample("std", dist.HalfNormal(2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.StudentT(4.0, loc, std), obs=x)


def bounded(x: Tensor) -> None:
    low = pyro.sample("low", dist.Uniform(-9.0, -3.0))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(low * share, 1.0 + share), obs=x)


def correlated(x: Tensor) -> None:
    std = pyro.sample("std", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    chol = pyro.sample("chol", dist.LKJCholesky(2, torch.tensor(2.0)))
    pairs = torch.stack([x[:-1], x[1:]], -1)
    with pyro.plate("row", len(pairs)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=std[:, None] * chol), obs=pairs)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def hidden_markov(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    stay = pyro.sample("stay", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(stay[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])


def several_markov_chains(x: Tensor) -> None:
    """Three series of four steps, each with a state of its own: Markov sites inside a plate."""
    series = torch.stack([x[:4], x[1:], -x[:4]], -1)
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    stay = pyro.sample("stay", dist.Beta(4.0, 2.0))
    rows = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    with pyro.plate("series", 3):
        z = torch.tensor(0)
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=series[t])


def nested_plates(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("group", 2, dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("row", 2, dim=-1):
            pyro.sample("x", dist.Normal(loc + shift + 2 * z, 1.0), obs=x[:4].reshape(2, 2))


def control_flow_on_data(x: Tensor) -> None:
    """Data as inputs of a graph cannot decide a branch: here they must be constants of it."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0 if x.sum() > 0 else 2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(loc, float(x.std())), obs=x)


class Network(PyroModule):
    """A regression by a small Bayesian neural network."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = self.layer(1, 3)
        self.out = self.layer(3, 1)

    @staticmethod
    def layer(size: int, width: int) -> PyroModule:
        layer = PyroModule[nn.Linear](size, width)
        layer.weight = PyroSample(lambda _: dist.Normal(0.0, 1.0).expand([width, size]).to_event(2))
        layer.bias = PyroSample(lambda _: dist.Normal(0.0, 1.0).expand([width]).to_event(1))
        return layer

    def forward(self, x: Tensor) -> None:
        std = pyro.sample("std", dist.HalfNormal(1.0))
        mean = self.out(self.hidden(x[:, None]).tanh()).squeeze(-1)
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(mean, std), obs=x.sin())


class Process(gpytorch.models.ExactGP):
    """GPyTorch's usual regression, with a prior for every hyperparameter."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_prior=gpytorch.priors.GammaPrior(2.0, 4.0))
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean(constant_prior=gpytorch.priors.NormalPrior(0.0, 1.0))
        kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 3.0))
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel, outputscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def gaussian_process() -> Callable[[Tensor], None]:
    model = Process(X, X.sin()).double()

    def program(x: Tensor) -> None:
        with gpytorch.settings.fast_computations(False, False, False):
            sampled = model.pyro_sample_from_prior()
            pyro.sample("y", sampled.likelihood(sampled(x)), obs=x.sin())

    return program


class Case(NamedTuple):
    program: Callable[..., Any]
    data: Tensor = X
    batching: str = "vmap"


CASES = {
    "continuous": Case(continuous),
    "bounded": Case(bounded),
    "ordered": Case(ordered),
    "LKJ": Case(correlated),
    "Dirichlet, one discrete": Case(mixture),
    "two discrete": Case(two_discrete),
    "one discrete, counts": Case(zero_inflated, COUNTS),
    "hidden Markov": Case(hidden_markov),
    "hidden Markov, in a plate": Case(several_markov_chains),
    "nested plates": Case(nested_plates),
    "factor": Case(with_factor),
    "mask": Case(masked),
    "branch on data": Case(control_flow_on_data),
    "PyroModule": Case(Network().double()),
    "GPyTorch": Case(gaussian_process(), batching="broadcast"),
    "ready-made mixture": Case(GaussianMixture(2, "full"), torch.stack([X, X**2], -1)),
}


# --- the tests ------------------------------------------------------------------------------------------------------


def pyros(case: Case, density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient by Pyro alone."""
    program = config_enumerate(case.program, default="parallel") if density.discrete else case.program
    _, potential, _, _ = initialize_model(program, (case.data,), max_plate_nesting=density.max_plate_nesting)
    params = {s.name: z[s.slice].reshape(s.unconstrained_shape).requires_grad_() for s in density.latents}
    value = potential(params)
    return -value.detach(), -torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(params.values()))])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_batch_of_gradients_is_pyros(case):
    """Null: log density and gradient are minus Pyro's potential and its gradient. The control: one vector's differ."""
    density = LogDensity(case.program, Arguments.of(case.data))
    assert density.batching == case.batching
    z = 0.5 * torch.randn(3, density.dim)
    values, gradients = density.value_and_grad(z)
    theirs, their_gradients = (
        torch.stack(parts) for parts in zip(*(pyros(case, density, row) for row in z), strict=True)
    )
    torch.testing.assert_close(values, theirs, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(gradients, their_gradients, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(density.value(z), values, rtol=ROUNDING, atol=ROUNDING)
    assert not torch.allclose(gradients[:1], their_gradients[1:2], rtol=1e-3)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_vector_is_a_batch_of_one_and_maps_invert(case):
    density = LogDensity(case.program, Arguments.of(case.data))
    z = 0.5 * torch.randn(2, 3, density.dim)
    values, gradients = density.value_and_grad(z)
    value, gradient = density.value_and_grad(z[1, 2])
    torch.testing.assert_close(values[1, 2], value, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(gradients[1, 2], gradient, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(density.unconstrain(density.constrain(z)), z, rtol=1e-9, atol=1e-9)  # inverses lose some


@pytest.mark.parametrize("name", ["continuous", "Dirichlet, one discrete", "nested plates", "hidden Markov"])
def test_data_are_inputs_of_the_graph(name):
    """Other data of the same shape share the traced graph, alone and as a batch of data sets."""
    case = CASES[name]
    density = LogDensity(case.program, Arguments.of(X))
    z = 0.5 * torch.randn(3, 2, density.dim)
    data = torch.stack([X, X.flip(0), X + 1])
    others = [density.with_data(x) for x in data]
    expected = [other.value_and_grad(row) for other, row in zip(others, z, strict=True)]
    fresh = LogDensity(case.program, Arguments.of(data[2]))
    torch.testing.assert_close(fresh.value_and_grad(z[2]), expected[2], rtol=ROUNDING, atol=ROUNDING)
    together = density.over(data)
    got = together.value_and_grad(z)
    torch.testing.assert_close(got, tuple(map(torch.stack, zip(*expected, strict=True))), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(together.value(z), got[0], rtol=ROUNDING, atol=ROUNDING)


def test_gpytorchs_failures_stay_in_their_row():
    """GPyTorch raises for the whole batch where one covariance cannot be factorised; the other chains go on."""
    density = LogDensity(CASES["GPyTorch"].program, Arguments.of(X))
    z = 0.5 * torch.randn(3, density.dim)
    expected = density.value_and_grad(z)
    z[1] = torch.nan
    values, gradients = density.value_and_grad(z)
    assert values.isnan().tolist() == density.value(z).isnan().tolist() == [False, True, False]
    torch.testing.assert_close(values[::2], expected[0][::2], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(gradients[::2], expected[1][::2], rtol=ROUNDING, atol=ROUNDING)
    assert gradients[1].isnan().all()

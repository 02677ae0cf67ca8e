"""The log density of programs: against Pyro's own potential, closed forms, and brute-force sums over discrete sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import masked, ordered, two_discrete, with_factor
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from probmix.arguments import Arguments
from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.log_density import LogDensity

X = torch.tensor([-2.0, -1.5, 0.3, 1.8, 2.2], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 0, 3, 1, 0, 7], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def normal(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    std = pyro.sample("std", dist.HalfNormal(2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(loc, std), obs=x)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def group_latent(x: Tensor) -> None:
    """One discrete latent for each group of two observations: the group is what can be left out."""
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("group", 2, dim=-2):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("row", 2, dim=-1):
            pyro.sample("x", dist.Normal(loc + 2 * z, 1.0), obs=x[:4].reshape(2, 2))


def correlated(x: Tensor) -> None:
    chol = pyro.sample("chol", dist.LKJCholesky(2, torch.tensor(2.0)))
    pairs = torch.stack([x[:-1], x[1:]], -1)
    with pyro.plate("row", len(pairs)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=chol), obs=pairs)


def hidden_markov(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.stack([stay, 1 - stay])[torch.stack([z, 1 - z], -1)]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])


PROGRAMS = [normal, mixture, two_discrete, group_latent, ordered, correlated, with_factor, masked]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_value_and_gradient_are_pyros(program):
    """Null: our log density is minus Pyro's own potential; 1e-10 relative is float64 rounding of such sums."""
    density = LogDensity(program, Arguments.of(X))
    nesting = density.max_plate_nesting
    enumerated = pyro.infer.config_enumerate(program, default="parallel") if density.discrete else program
    start, potential, _, _ = initialize_model(enumerated, (X,), max_plate_nesting=nesting)
    for _ in range(3):
        z = 0.5 * torch.randn(density.dim)
        params = {
            site.name: z[site.slice].reshape(site.unconstrained_shape).requires_grad_() for site in density.latents
        }
        assert set(params) == set(start)
        theirs = potential(params)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(theirs, list(params.values()))])
        value, ours = density.value_and_grad(z)
        torch.testing.assert_close(value, -theirs.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours, -gradient, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(density.value(z), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_a_batch_is_its_rows_and_maps_invert(program):
    density = LogDensity(program, Arguments.of(X))
    z = torch.randn(2, 3, density.dim)
    sites = density.constrain(z)
    torch.testing.assert_close(density.unconstrain(sites), z, rtol=1e-9, atol=1e-9)  # inverse maps lose a few digits
    batch = density.value(z)
    rows = torch.stack([torch.stack([density.value(row) for row in rows]) for rows in z])
    torch.testing.assert_close(batch, rows, rtol=1e-12, atol=1e-12)


def test_markov_sites_are_summed_out_by_pyros_contraction():
    """The plates of a hidden Markov chain form no tree; brute force over all 2^5 paths is the reference."""
    density = LogDensity(hidden_markov, Arguments.of(X))
    sites = {"loc": torch.tensor([-1.0, 1.5]), "stay": torch.tensor(0.8)}
    step = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log()
    emission = dist.Normal(sites["loc"], 1.0).log_prob(X[:, None])
    paths = torch.cartesian_prod(*[torch.arange(2)] * 5)
    previous = torch.cat([torch.zeros(32, 1, dtype=torch.long), paths[:, :-1]], 1)
    terms = step[previous, paths].sum(1) + emission[torch.arange(5), paths].sum(1)
    prior = dist.Normal(0.0, 3.0).log_prob(sites["loc"]).sum() + dist.Beta(2.0, 2.0).log_prob(sites["stay"])
    torch.testing.assert_close(density.log_joint(sites), terms.logsumexp(0) + prior, rtol=1e-10, atol=1e-10)


def test_pointwise_sums_over_two_discrete_sites():
    density = LogDensity(two_discrete, Arguments.of(X))
    loc = torch.randn(7, 2)
    pz, ps = torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.5, 0.3])
    means = loc[:, None, :, None] + torch.arange(3.0)
    terms = dist.Normal(means, 1.0).log_prob(X[:, None, None]) + (pz[:, None] * ps).log()
    pointwise = density.pointwise({"loc": loc})
    torch.testing.assert_close(pointwise["x"], terms.logsumexp((-1, -2)), rtol=1e-12, atol=1e-12)
    assert density.pointwise_dims("x") == ("row",)
    chunked = density.pointwise({"loc": loc}, max_elements=1)
    torch.testing.assert_close(chunked["x"], pointwise["x"], rtol=0, atol=0)


def test_pointwise_unit_is_the_plate_that_holds_the_discrete_site():
    density = LogDensity(group_latent, Arguments.of(X))
    loc = torch.tensor([0.5, -1.0])
    data = X[:4].reshape(2, 2)
    terms = [dist.Normal(loc[:, None, None] + 2 * z, 1.0).log_prob(data).sum(-1) for z in (0, 1)]
    expected = torch.stack([terms[0] + torch.tensor(0.6).log(), terms[1] + torch.tensor(0.4).log()]).logsumexp(0)
    torch.testing.assert_close(density.pointwise({"loc": loc})["x"], expected, rtol=1e-12, atol=1e-12)
    assert density.pointwise_dims("x") == ("group",)


@pytest.mark.parametrize("program", [normal, mixture, two_discrete, group_latent, masked], ids=lambda p: p.__name__)
def test_pointwise_adds_up_to_the_log_likelihood(program):
    density = LogDensity(program, Arguments.of(X))
    sites = density.constrain(torch.randn(4, density.dim))
    total = density.pointwise(sites)["x"].flatten(1).sum(1)
    single = [{n: v[i] for n, v in sites.items()} for i in range(4)]
    prior = []
    for values in single:
        trace = pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(X)
        prior.append(sum(trace.nodes[n]["fn"].log_prob(v).sum() for n, v in values.items()))
    torch.testing.assert_close(density.log_joint(sites), total + torch.stack(prior), rtol=1e-10, atol=1e-10)


def test_two_observed_sites_that_share_a_discrete_latent_are_one_observation():
    def program(x, y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    density = LogDensity(program, Arguments.of((X, X)))
    pointwise = density.pointwise({"p": torch.tensor(0.3)})
    on, off = (dist.Normal(z, 1.0).log_prob(X) + dist.Normal(2 * z, 1.0).log_prob(X) for z in (1.0, 0.0))
    expected = torch.logaddexp(on + torch.tensor(0.3).log(), off + torch.tensor(0.7).log())
    assert list(pointwise) == ["x+y"]
    torch.testing.assert_close(pointwise["x+y"], expected, rtol=1e-12, atol=1e-12)


def test_control_flow_on_a_value_falls_back_and_says_so_once():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        std = 1.0 if a > 0 else 2.0
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(a, std), obs=x)

    with pytest.warns(UserWarning, match="'program' cannot be traced as a batch") as caught:
        density = LogDensity(program, Arguments.of(X))
    z = torch.tensor([[-1.0], [1.0]])
    values = density.value(z)
    expected = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + torch.stack(
        [dist.Normal(-1.0, 2.0).log_prob(X).sum(), dist.Normal(1.0, 1.0).log_prob(X).sum()]
    )
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    value, gradient = density.value_and_grad(z[0])
    assert len(caught) == 1
    torch.testing.assert_close(value, expected[0], rtol=1e-12, atol=1e-12)
    assert gradient.isfinite().all()


def test_axis_names_come_from_plates():
    density = LogDensity(mixture, Arguments.of(X))
    assert density.dims["loc"] == ("component",)
    assert density.dims["weights"] == ("weights_dim_0",)
    assert density.dims["x"] == ("row",)
    assert density.row_plates == {"row": 5}
    assert density.discrete == ("z",)


def test_a_factor_is_not_an_observation():
    density = LogDensity(with_factor, Arguments.of(X))
    assert list(density.observed) == density.units == ["x"]


def test_deterministic_sites_follow_the_draws():
    def program(x):
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        gap = pyro.deterministic("gap", a[1] - a[0])
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(gap, 1.0), obs=x)

    density = LogDensity(program, Arguments.of(X))
    a = torch.randn(3, 4, 2)
    torch.testing.assert_close(density.deterministics({"a": a})["gap"], a[..., 1] - a[..., 0])
    assert [site.name for site in density.latents] == ["a"]


def no_data(x):
    pyro.sample("a", dist.Normal(0.0, 1.0))


def no_latent(x):
    pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)


def with_param(x):
    a = pyro.param("a", torch.tensor(0.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a + b, 1.0).expand(x.shape).to_event(1), obs=x)


def minibatch(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(a, 1.0), obs=x[rows])


def infinite_discrete(x):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("row", len(x)):
        count = pyro.sample("count", dist.Poisson(rate))
        pyro.sample("x", dist.Normal(count, 1.0), obs=x)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (no_data, r"observed site, got only \['a'\].*obs=data"),
        (no_latent, "no continuous latent site.*pyro.sample"),
        (with_param, r"'a' is a pyro.param.*use SVI\(\)"),
        (minibatch, r"'row' draws mini-batches \(2 of 5 rows\).*batch_size"),
        (infinite_discrete, "'count' is discrete with infinite support.*Truncate"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_programs_that_have_no_log_density_are_refused_by_name(program, message):
    with pytest.raises(ProgramError, match=message):
        LogDensity(program, Arguments.of(X))


def test_a_shared_discrete_site_has_no_pointwise_likelihood():
    def program(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x)

    density = LogDensity(program, Arguments.of(X))
    assert density.log_joint({"loc": torch.tensor(0.0)}).isfinite()
    with pytest.raises(ProgramError, match=r"'x' stand outside every plate.*inside the data's plate"):
        density.pointwise({"loc": torch.tensor(0.0)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[:4], r"argument 0: expected shape \(5,\) and dtype torch.float64.*got \(4,\).*call infer again"),
        (X.float(), r"argument 0: expected shape \(5,\) and dtype torch.float64.*got \(5,\) and torch.float32"),
        ({"x": X}, r"expected the arguments \['argument 0'\], got \['x'\]"),
    ],
    ids=["shape", "dtype", "name"],
)
def test_data_of_another_kind_are_refused_by_name(data, message):
    density = LogDensity.trace(normal, X)
    with pytest.raises(DataError, match=message):
        density.with_data(data)


def test_data_sets_need_one_leading_axis_and_a_program_that_batches():
    with pytest.raises(DataError, match=r"after a leading axis of data sets and dtype.*got \(5,\)"):
        LogDensity.trace(normal, X).over(X)

    def branches(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0 if a > 0 else 2.0), obs=x)

    with pytest.warns(UserWarning, match="cannot be traced as a batch"):
        density = LogDensity.trace(branches, X)
    with pytest.raises(ProgramError, match=r"'branches' cannot be traced as a batch.*one by one"):
        density.over(X[None])


def test_missing_and_misshapen_sites_are_named():
    density = LogDensity(mixture, Arguments.of(X))
    with pytest.raises(ProgramError, match=r"\['loc'\] are missing, got \['weights'\]"):
        density.unconstrain({"weights": torch.tensor([0.5, 0.5])})
    with pytest.raises(ProgramError, match=r"'loc': expected a value of shape \(2,\).*got \(3,\)"):
        density.unconstrain({"weights": torch.tensor([0.5, 0.5]), "loc": torch.zeros(3)})


def test_the_guilty_site_is_named():
    def program(x):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Poisson(rate, validate_args=False), obs=x)

    density = LogDensity(program, Arguments.of(torch.tensor([1.0, torch.nan])))
    name, value = density.blame(torch.zeros(1))
    assert name == "x"
    assert value != value

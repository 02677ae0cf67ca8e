"""`calibrate`: exact and wrong posteriors, both ways through the data sets, quantities, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import gamma_poisson, one_dimensional
from scipy import stats

from probmix.arguments import Arguments
from probmix.calibration import LOG_JOINT, calibrate, default_quantities
from probmix.errors import DataError, FitError, MethodError, ProbmixError, ProgramError
from probmix.inference import EM, MAP, NUTS, ChEES, Laplace
from probmix.inference.method import AbstractMethod, common
from probmix.inference.over_datasets import Batch, DataSets, OneByOne, sampler
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture
from probmix.posterior import DrawsPosterior
from probmix.status import Status

SMALL = ChEES(chains=8, superchains=4, warmup=20, draws=30, compile=False)

# --- a method of which all is known ---------------------------------------------------------------------------------


def normal(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", x.shape[-1]):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def simulate_normal(num):
    loc = torch.randn(num, dtype=torch.float64)
    return {"loc": loc}, loc[:, None] + torch.randn(num, 5, dtype=torch.float64)


@dataclass(frozen=True)
class Exact(AbstractMethod):
    """Independent draws of the posterior of `normal` (mean ``sum(x) / 6``, variance 1/6), moved or spoilt at will."""

    draws: int = 120
    warmup: int = 0
    chains: int = 2
    shift: float = 0.0
    stretch: float = 1.0
    stuck: bool = False
    fails_above: float = float("inf")

    def start(self, problem):
        return 0

    def step(self, problem, state):
        return state + 1

    def status(self, problem, state):
        if float(problem.arguments.args[0].mean()) > self.fails_above:
            return Status("failed", "too far to the right")
        return Status("complete", "done") if state else None

    def finish(self, problem, state, status):
        x = problem.arguments.args[0]
        noise = torch.randn(self.chains, 1 if self.stuck else self.draws, dtype=x.dtype).expand(-1, self.draws)
        loc = x.sum() / 6 + (self.shift + self.stretch * noise) / 6**0.5
        none = torch.zeros_like(loc, dtype=torch.bool)
        stats = {"lp": -3 * (loc - x.sum() / 6) ** 2, "diverging": none}
        return DrawsPosterior(**common(self, problem, status), draws={"loc": loc}, sample_stats=stats)

    def progress(self, state):
        return state, 1

    def figures(self, state):
        return {}


def run(method=None, simulate=simulate_normal, **options):
    return calibrate(normal, simulate, method or Exact(), **{"seed": 0, "simulations": 60, "draws": 49, **options})


def test_the_exact_posterior_is_calibrated():
    """Null: independent draws of the exact posterior. False-alarm rate 1% for a fresh seed."""
    calibration = run()
    assert calibration.ok
    assert set(calibration.ranks) == {"loc", LOG_JOINT}
    assert not any(where.any() for where in calibration.troubles.values())
    assert calibration.simulations == 60
    assert calibration.seconds > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"shift": 1.0}, "biased upwards"), ({"stretch": 2.0}, "too wide"), ({"stretch": 0.5}, "too narrow")],
)
def test_a_wrong_posterior_is_not_calibrated(wrong, words):
    """Negative controls: mean off by a standard deviation, standard deviation off by a factor of two."""
    calibration = run(Exact(**wrong))
    assert not calibration.ok
    assert calibration.quantities["loc"].words == words


def test_a_prior_that_is_not_the_programs_is_not_calibrated():
    """Negative control: true values three times as far from 0 as the program believes."""

    def wide(num):
        loc = 3 * torch.randn(num, dtype=torch.float64)
        return {"loc": loc}, loc[:, None] + torch.randn(num, 5, dtype=torch.float64)

    assert not run(simulate=wide, simulations=100).ok


def test_chains_that_are_stuck_are_counted_and_do_not_pass():
    """Chains that stand still at draws of the right posterior: each is right, but together they are few draws."""
    calibration = run(Exact(stuck=True), simulations=40)
    assert not calibration.ok
    counted = {kind: where.sum() for kind, where in calibration.troubles.items() if where.any()}
    assert set(counted.values()) == {40}
    assert any("stuck" in kind for kind in counted)
    assert any("fewer independent" in kind for kind in counted)


def test_chains_run_longer_where_their_draws_are_too_few(monkeypatch):
    lengths = []
    original = OneByOne._fit

    def fit(self, arguments, longer, seed):
        lengths.append(longer)
        return original(self, arguments, longer, seed)

    monkeypatch.setattr(OneByOne, "_fit", fit)
    calibration = run(Exact(draws=15), simulations=10, draws=49)  # 30 draws, then 120
    assert lengths == [1, 4] * 10
    assert not any(where.any() for where in calibration.troubles.values())


def test_failed_fits_are_counted_and_all_of_them_an_error():
    calibration = run(Exact(fails_above=1.0), simulations=40)
    assert 0 < calibration.failed < 22  # binomial, 40 times P(N(0, 1.2) > 1) = 0.18: outside once in 1,000 seeds
    assert calibration.message == "too far to the right"
    assert not calibration.ok
    with pytest.raises(FitError, match=r"none of the 40 data sets could be fitted\. The first said: too far"):
        run(Exact(fails_above=-100.0), simulations=40)


def test_same_seed_same_ranks_and_the_callers_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one)
    one, same, other = (run(simulations=20, seed=seed) for seed in (3, 3, 4))
    assert all((one.ranks[name] == same.ranks[name]).all() for name in one.ranks)
    assert any((one.ranks[name] != other.ranks[name]).any() for name in one.ranks)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


# --- ChEES on all data sets at once ---------------------------------------------------------------------------------


def simulate_counts(num):
    rate = torch.distributions.Gamma(2.0, 1.0).sample((num,)).double()
    return {"rate": rate}, torch.poisson(rate[:, None].expand(-1, 10))


def test_both_ways_through_the_data_sets_give_the_exact_posterior():
    """Gamma(2 + sum, 11) for each of six data sets: thinned draws pass Kolmogorov and Smirnov's test, p > 1e-4.

    The control: the same draws against the posterior of data with one count more in each of ten rows.
    """
    torch.manual_seed(0)
    x = simulate_counts(6)[1]
    sets = DataSets.of(gamma_poisson, Arguments.of(x))
    method = ChEES(chains=16, superchains=4, warmup=40, draws=30, compile=False)
    batch, one_by_one = Batch(sets, method, False), OneByOne(sets, method, False)
    together = batch.attempt(range(6), 1, seed=0).sites["rate"]
    apart = torch.cat([one_by_one.attempt([i], 1, seed=i).sites["rate"] for i in range(6)])
    assert together.shape == apart.shape == (6, 16, 30)
    for rate in (together, apart):
        shape = 2 + x.sum(1).numpy()[:, None]
        thinned = rate[:, :, ::5].flatten(1).numpy()
        uniform = stats.gamma(shape, scale=1 / 11).cdf(thinned).ravel()
        assert stats.kstest(uniform, "uniform").pvalue > 1e-4
        assert stats.kstest(stats.gamma(shape + 10, scale=1 / 11).cdf(thinned).ravel(), "uniform").pvalue < 1e-4


def test_a_batch_of_data_sets_is_calibrated_and_a_wrong_simulator_is_not():
    """Null: ChEES draws from the posterior of a conjugate program; 1% for a fresh seed. Control: twice the counts."""
    options = {"simulations": 100, "draws": 49, "seed": 0}
    assert calibrate(gamma_poisson, simulate_counts, SMALL, **options).ok

    def doubled(num):
        sites, x = simulate_counts(num)
        return sites, 2 * x

    calibration = calibrate(gamma_poisson, doubled, SMALL, **options)
    assert calibration.quantities["rate"].words.startswith("biased upwards")


def test_which_way_is_taken():
    def branches(x):
        loc = pyro.sample("loc", dist.Normal(1.0 if float(x.sum()) > 0 else 0.0, 1.0))
        with pyro.plate("row", 5):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = Arguments.of(simulate_normal(10)[1])
    for program, method, way in [
        (normal, SMALL, Batch),
        (normal, NUTS(), OneByOne),
        (branches, SMALL, OneByOne),  # its prior depends on a number in the data
    ]:
        assert isinstance(sampler(DataSets.of(program, x), method, progress=False), way)


@pytest.mark.parametrize("init", ["prior", "pathfinder", "random", {"loc": torch.tensor(30.0, dtype=torch.float64)}])
def test_starts_are_the_methods_own(init):
    method = ChEES(chains=4, superchains=2, warmup=30, draws=20, init=init, compile=False)
    sets = DataSets.of(normal, Arguments.of(simulate_normal(5)[1]))
    loc = Batch(sets, method, False).attempt(range(5), 1, seed=0).sites["loc"]
    exact = sets.arguments.args[0].sum(1) / 6
    assert ((loc.mean((1, 2)) - exact).abs() < 6 / 6**0.5 / 80**0.5 * 2).all()  # six standard errors of 20 in 80 draws


def test_a_fitted_distribution_is_ranked_too():
    """The posterior of `normal` is normal, so Laplace's is exact. 1% for a fresh seed; a dozen data sets see little."""
    calibration = run(Laplace(restarts=1), simulations=12)
    assert calibration.ok
    assert set(calibration.ranks) == {"loc", LOG_JOINT}


# --- quantities -----------------------------------------------------------------------------------------------------


def mixture_sites(*batch, components=3, size=2):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(*batch, components, size, generator=generator)
    root = torch.randn(*batch, components, size, size, generator=generator)
    weights = torch.rand(*batch, components, generator=generator).softmax(-1)
    return {"weights": weights, "loc": loc, "cov": root @ root.mT + torch.eye(size)}


def test_default_quantities_of_a_mixture_do_not_depend_on_labels():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    measure = default_quantities(LogDensity(GaussianMixture(3), Arguments.of(x)))
    sites = mixture_sites(4, 5)
    permuted = {name: value[:, :, [2, 0, 1]] for name, value in sites.items()}
    values, same = measure(sites), measure(permuted)
    assert len(values) == 3 + 6 + 12
    assert all(value.shape == (4, 5) for value in values.values())
    assert all(torch.equal(values[name], same[name]) for name in values)
    assert torch.equal(values["loc sorted[0, 1]"], sites["loc"][..., 1].amin(-1))


def test_entries_that_say_the_same_are_ranked_once():
    """A symmetric matrix, a weight and its complement, and a constant."""

    def program(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        pyro.sample("x", dist.Normal(weights[0], 1.0), obs=x)

    def simulate(num):
        weights = torch.distributions.Dirichlet(torch.ones(2)).sample((num,))
        return {"weights": weights}, torch.normal(weights[:, 0], 1.0)

    def measure(sites):
        w = sites["weights"]
        return {"first": w[..., 0], "second": w[..., 1], "again": 3 * w[..., 0], "one": torch.ones_like(w[..., 0])}

    calibration = calibrate(program, simulate, SMALL, quantities=measure, simulations=20, draws=49, seed=0)
    assert set(calibration.ranks) == {"first", LOG_JOINT}


# --- refusals -------------------------------------------------------------------------------------------------------


def data_with(value):
    def simulate(num):
        sites, x = simulate_normal(num)
        x[3, 2] = value
        return sites, x

    return simulate


def sites_with(**changed):
    return lambda num: ({**simulate_normal(num)[0], **changed}, simulate_normal(num)[1])


def positive(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("x", dist.Normal(rate, 1.0), obs=x)


BAD = {
    "no pair": (
        normal,
        lambda num: simulate_normal(num)[1],
        {},
        r"returned Tensor: expected a pair .* Write `return sites, data`",
    ),
    "no data": (normal, lambda num: (simulate_normal(num)[0], "x"), {}, r"returned no tensor or array among its data"),
    "no leading axis": (
        normal,
        lambda num: (simulate_normal(num)[0], torch.zeros(5)),
        {},
        r"leading axis of 12 data sets, but tensor 0 of the data has shape \(5,\)\. Stack",
    ),
    "sites without one": (normal, sites_with(loc=torch.tensor(1.0)), {}, r"but site 'loc' has shape \(\)\. Stack"),
    "not finite": (
        normal,
        data_with(torch.nan),
        {},
        r"NaN or infinity in 1 data sets, the first is number 3\. A prior",
    ),
    "a site is missing": (
        normal,
        lambda num: ({"mean": torch.zeros(num)}, simulate_normal(num)[1]),
        {},
        r"expected the latent sites \{'loc': \(12,\)\}, got \{'loc': 'nothing'\}\. Return the true value",
    ),
    "a site of another shape": (normal, sites_with(loc=torch.zeros(12, 2)), {}, r"got \{'loc': \(12, 2\)\}"),
    "impossible": (
        positive,
        lambda num: ({"rate": torch.arange(num) - 1.0}, torch.zeros(num)),
        {},
        r"2 of the true values are impossible under the program, the first is that of data set 0: \{'rate': -1\.0\}",
    ),
    "method class": (normal, simulate_normal, {"method": NUTS}, r"expected a method object .* Write the brackets"),
    "program class": (GaussianMixture, simulate_normal, {}, r"expected a program or a model object"),
    "point of EM": (
        one_dimensional(),
        None,
        {"method": EM()},
        r"ranks true values .* but EM gives a single point\. Cal",
    ),
    "point of MAP": (normal, simulate_normal, {"method": MAP(restarts=1)}, r"but MAP gives a single point"),
    "seed": (normal, simulate_normal, {"seed": -1}, r"seed: expected a whole number from 0 to 2\*\*32 - 1, got -1"),
    "too few": (normal, simulate_normal, {"simulations": 3}, r"simulations: expected at least 10 .* got 3"),
    "few draws": (normal, simulate_normal, {"draws": 1}, r"draws: expected at least 5, got 1"),
    "alarm": (normal, simulate_normal, {"false_alarm": 1.0}, r"false_alarm: expected a probability .* got 1\.0"),
    "summed quantity": (
        normal,
        simulate_normal,
        {"quantities": lambda sites: {"total": sites["loc"].sum()}},
        r"'total' of shape \(12,\), like the leading axes of the sites, got \(\)\. Write it for any leading axes",
    ),
    "infinite quantity": (
        normal,
        simulate_normal,
        {"quantities": lambda sites: {"root": sites["loc"].sqrt()}},
        r"'root' is not finite for \d+ of 12 values",
    ),
}


def simulate_rows(num):
    sites = {name: value.double() for name, value in mixture_sites(num, components=2, size=1).items()}
    sites["var"] = sites.pop("cov")[..., 0, 0]
    return sites, torch.randn(num, 30, 1, dtype=torch.float64)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    program, simulate, options, message = BAD[case]
    settings = {"method": SMALL, "seed": 0, "simulations": 12, "draws": 9, **options}
    with pytest.raises(ProbmixError, match=message) as caught:
        calibrate(program, simulate or simulate_rows, **settings)
    assert isinstance(caught.value, DataError | ProgramError | MethodError)


def test_the_programs_own_check_of_the_data_is_kept():
    def constant(num):
        sites, x = simulate_rows(num)
        return sites, torch.zeros_like(x)

    with pytest.raises(DataError, match="constant"):
        calibrate(GaussianMixture(2, "spherical"), constant, SMALL, simulations=12, seed=0)


def test_ctrl_c_stops_all():
    stopped = SimpleNamespace(status=Status("interrupted", "by the user"))
    one_by_one = OneByOne(DataSets.of(normal, Arguments.of(simulate_normal(3)[1])), Exact(), False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneByOne, "_fit", lambda *args: stopped)
        with pytest.raises(KeyboardInterrupt):
            one_by_one.attempt([0], 1, seed=0)

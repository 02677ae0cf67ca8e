"""Starting points by name: what they are, where they fall, and what is said where there is none."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups
from scipy import stats
from torch import Tensor

from probmix.arguments import Arguments
from probmix.errors import MethodError, ProgramError
from probmix.inference.method import Problem
from probmix.inference.starts import starting_points
from probmix.isolation import isolated
from probmix.typing import Starting


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


def points(program, data, init, num, **settings) -> tuple[Tensor, Problem]:
    problem = Problem(program, Arguments.of(data), 0)
    return starting_points(problem, problem.log_density, init, num, **settings), problem


def far_away(x):
    """The prior is ten thousand wide; the data are at 1,000, a tenth wide."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1e4))
    spread_std = pyro.sample("spread_std", dist.Gamma(1.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(loc, spread_std), obs=x)


def test_prior_starts_follow_the_prior():
    """Null: Gamma(2, 1), by Kolmogorov and Smirnov, p > 1e-4. The control is a Gamma(3, 1)."""
    z, problem = points(gamma_poisson, COUNTS, "prior", 400)
    rate = problem.log_density.constrain(z)["rate"].numpy()
    assert stats.kstest(rate, stats.gamma(2).cdf).pvalue > 1e-4
    assert stats.kstest(rate, stats.gamma(3).cdf).pvalue < 1e-4


def test_a_prior_that_misses_the_support_is_replaced_by_random_points():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1e6))
        pyro.factor("support", torch.where(a.abs() < 2, 0.0, -torch.inf))
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    z, problem = points(program, torch.tensor(0.5), "prior", 20)
    assert problem.log_density.value(z).isfinite().all()
    assert (z.abs() < 2).all()


def test_pathfinder_starts_in_the_typical_set_however_far_it_is():
    """The posterior of ``loc`` is normal about the data's mean, 0.1 / sqrt(50) wide; 8 widths leave room for a poor
    normal. Log densities of draws from a posterior of 2 dimensions lie 1 below its top, and 12 below in 1 of 2e5.
    The control: starts from the prior and at random are off by more than 1,000 nats.
    """
    x = 1000 + 0.1 * torch.randn(50)
    z, problem = points(far_away, x, "pathfinder", 16)
    density = problem.log_density
    value = density.value(z)
    assert (density.constrain(z)["loc"] - x.mean()).abs().max() < 8 * 0.1 / 50**0.5
    assert value.max() - value.min() < 12
    for init in ("prior", "random"):
        assert value.min() - density.value(points(far_away, x, init, 16)[0]).max() > 1000


def test_every_pathfinder_start_has_a_path_of_its_own():
    """Independent starts of two exchangeable groups come in both orders; 2^-11 at worst for 12 of the same."""

    def groups(x):
        with pyro.plate("component", 2):
            loc = pyro.sample("loc", dist.Normal(3.0, 5.0))
        with pyro.plate("row", len(x)):
            label = pyro.sample("label", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(loc[label.long()], 1.0), obs=x)

    z, problem = points(groups, two_groups()[:, 0], "pathfinder", 12)
    loc = problem.log_density.constrain(z)["loc"]
    assert {bool(a < b) for a, b in loc} == {True, False}
    assert len({float(a) for a in z[:, 0]}) == 12


def same_bits(program, data, init, other, **settings) -> bool:
    both = []
    for name in (init, other):
        with isolated(1, dtype=torch.float64, device=torch.device("cpu")):
            both.append(points(program, data, name, 3, **settings)[0])
    return torch.equal(*both)


def row_by_row(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.0 if a > 0 else 2.0), obs=x)


def test_auto_is_em_where_there_is_a_closed_form_else_a_path_or_what_the_method_prefers():
    assert same_bits(one_dimensional(), two_groups(), "auto", "em")
    assert same_bits(gamma_poisson, COUNTS, "auto", "pathfinder")
    assert not same_bits(gamma_poisson, COUNTS, "auto", "prior")
    assert same_bits(gamma_poisson, COUNTS, "auto", "prior", otherwise="prior")


@pytest.mark.filterwarnings("ignore:the program 'row_by_row' cannot be traced")
def test_auto_is_the_prior_where_paths_cannot_run_as_a_batch():
    assert same_bits(row_by_row, torch.tensor(1.0), "auto", "prior")


def test_no_jitter_leaves_given_sites_where_they_are():
    sites = {"rate": torch.tensor(1.5)}
    z, problem = points(gamma_poisson, COUNTS, sites, 3)
    torch.testing.assert_close(problem.log_density.constrain(z)["rate"], torch.full((3,), 1.5))
    jittered, _ = points(gamma_poisson, COUNTS, sites, 3, jitter_std=0.1)
    assert len({float(a) for a in jittered[:, 0]}) == 3


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(MethodError, match=r'"auto", "em", "pathfinder", "prior", "random" or sites, got \'Prior\''):
        points(gamma_poisson, COUNTS, "Prior", 2)


# --- programs that make guesses themselves ---------------------------------------------------------------------------


class Guessing:
    """Two optima that look alike, at -50 and 50, each a unit wide; guesses are about one of them."""

    start_names = ("right", "left")

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.guesses = torch.empty(0)

    def __call__(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        pyro.factor("optima", torch.logaddexp(-0.5 * (loc - 50) ** 2, -0.5 * (loc + 50) ** 2))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def starts(self, name: str, num: int, x: Tensor) -> dict[str, Tensor]:
        self.asked.append((name, num))
        self.guesses = {"right": 50.0, "left": -50.0}[name] + 3 * torch.randn(num, dtype=x.dtype)
        return {"loc": self.guesses}


class RowByRow(Guessing):
    """Control flow that depends on a value."""

    def __call__(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        pyro.sample("x", dist.Normal(loc, 1.0 if loc > 0 else 2.0), obs=x)


ONE = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize(("name", "sign"), [("right", 1), ("left", -1)])
def test_of_sixteen_guesses_for_each_start_the_likeliest_is_taken(name, sign):
    """The density falls with the distance to an optimum, which the prior moves by 1 / (1 + 1 / 100^2): 5e-3."""
    program = Guessing()
    assert isinstance(program, Starting)
    z, _ = points(program, ONE, name, 5)
    assert program.asked == [(name, 80)]
    optimum = sign * 50 / (1 + 1e-4)
    groups = program.guesses.reshape(5, 16)
    nearest = groups[torch.arange(5), (groups - optimum).abs().argmin(-1)]
    torch.testing.assert_close(z[:, 0], nearest, rtol=0, atol=0)


def test_guesses_without_a_density_are_passed_over():
    class Risky(Guessing):
        def starts(self, name: str, num: int, x: Tensor) -> dict[str, Tensor]:
            loc = super().starts(name, num, x)["loc"].reshape(-1, 16)
            loc[:, 1:8], loc[:, 8:] = torch.nan, torch.inf
            return {"loc": loc.flatten()}

    program = Risky()
    z, problem = points(program, ONE, "right", 3)
    assert problem.log_density.value(z).isfinite().all()
    torch.testing.assert_close(z[:, 0], program.guesses.reshape(3, 16)[:, 0], rtol=0, atol=0)


def test_auto_is_a_path_from_guesses_or_a_guess():
    assert same_bits(Guessing(), ONE, "auto", "pathfinder")
    assert not same_bits(Guessing(), ONE, "auto", "right")
    assert same_bits(Guessing(), ONE, "auto", "right", otherwise="prior")


@pytest.mark.filterwarnings("ignore:the program .* cannot be traced")
def test_auto_is_a_guess_where_paths_cannot_run_as_a_batch():
    assert same_bits(RowByRow(), ONE, "auto", "right")
    assert not same_bits(RowByRow(), ONE, "auto", "prior")


def test_paths_climb_from_guesses():
    """Every start is at the optimum of the guesses, within 6 of its widths (1e-9); from the prior they are at both.

    Sixteen paths for four starts, each from the likeliest of sixteen guesses by the first name. The control's 12 starts
    are all at one of two like optima with a probability of 2^-11.
    """
    program = Guessing()
    z, _ = points(program, ONE, "pathfinder", 4)
    assert program.asked == [("right", 256)]
    assert ((z - 50).abs() < 6).all()
    without, _ = points(lambda x: Guessing.__call__(program, x), ONE, "pathfinder", 12)
    assert set(without.sign().flatten().tolist()) == {-1, 1}


def test_own_names_are_named_among_those_there_are():
    with pytest.raises(
        MethodError, match=r'"random", "right", "left" or sites, got \'middle\'. Change the setting init='
    ):
        points(Guessing(), ONE, "middle", 2)
    with pytest.raises(MethodError, match='"prior", "random" or sites, got \'right\''):
        points(gamma_poisson, COUNTS, "right", 2)


def test_other_starts_do_not_ask_for_guesses():
    program = Guessing()
    for init in ("prior", "random", {"loc": ONE}):
        points(program, ONE, init, 2)
    assert program.asked == []


@pytest.mark.parametrize("init", ["auto", "prior", "random", "pathfinder"])
def test_no_finite_start_names_the_site_and_the_value(init):
    def program(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.factor("impossible", -torch.inf * torch.ones_like(rate))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    with pytest.raises(ProgramError, match="site 'impossible' has log density -inf there"):
        points(program, COUNTS, init, 2)

"""Integrals over a common variance: closed form, quadrature, scipy's quadrature and mpmath are one number."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import constraints

from probmix.burr import BurrXII
from probmix.errors import ProgramError
from probmix.isolation import unvalidated
from probmix.scale_integral import check_scale_prior, importance_sample, log_integral, nodes


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Maxwell(dist.TorchDistribution):
    """A user's own distribution, with no more than it must have."""

    arg_constraints = {"spread_std": constraints.positive}  # noqa: RUF012
    support = constraints.positive

    def __init__(self, spread_std: Tensor) -> None:
        self.spread_std = spread_std
        super().__init__(spread_std.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Maxwell(self.spread_std.expand(batch_shape))

    def log_prob(self, value):
        ratio = value / self.spread_std
        return 0.5 * math.log(2 / math.pi) + 2 * ratio.log() - 0.5 * ratio.square() - self.spread_std.log()


#: Name -> ours and scipy's.
PRIORS = {
    "inverse gamma": (dist.InverseGamma(t(2.0), t(2.0)), stats.invgamma(2.0, scale=2.0)),
    "half-Cauchy": (dist.HalfCauchy(t(1.0)), stats.halfcauchy()),
    "half-Cauchy, small": (dist.HalfCauchy(t(1e-3)), stats.halfcauchy(scale=1e-3)),
    "Pareto": (dist.Pareto(t(0.5), t(2.0)), stats.pareto(2.0, scale=0.5)),
    "log-normal": (dist.LogNormal(t(0.0), t(1.0)), stats.lognorm(1.0)),
    "log-normal, wide": (dist.LogNormal(t(2.0), t(5.0)), stats.lognorm(5.0, scale=math.exp(2.0))),
    "Burr": (BurrXII(t(2.0), t(2.0)), stats.burr12(2.0, 2.0)),
    "Burr, steep": (BurrXII(t(5.0), t(20.0)), stats.burr12(5.0, 20.0)),
    "uniform": (dist.Uniform(t(0.5), t(2.0)), stats.uniform(0.5, 1.5)),
    "half-normal": (dist.HalfNormal(t(1.0)), stats.halfnorm()),
    "gamma": (dist.Gamma(t(0.3), t(1.0)), stats.gamma(0.3)),
    "user's own": (Maxwell(t(1.5)), stats.maxwell(scale=1.5)),
}
#: Observations, and their squared length for each: what the prior expects, far from it on both sides.
COUNTS = [
    (0.0, 0.0),
    (1.0, 1e-4),
    (1.0, 1.0),
    (1.0, 100.0),
    (10.0, 0.01),
    (10.0, 1e3),
    (200.0, 1.0),
    (200.0, 25.0),
    (1e7, 0.7),
]


def by_scipy(prior, count: float, quadratic: float) -> float:
    """Gauss-Legendre in 32 pieces of 40 points of log s, over what rises within 50 nats of the top, found on a grid."""
    ends = (
        math.log(end) if 0 < end < np.inf else sign * 400 for end, sign in zip(prior.support(), (-1, 1), strict=True)
    )
    low, high = ends

    def integrand(u):
        with np.errstate(all="ignore"):
            return prior.logpdf(np.exp(u)) + u - 0.5 * count * u - 0.5 * quadratic * np.exp(-u)

    for _ in range(3):
        grid, step = np.linspace(low, high, 10_001, retstep=True)
        values = integrand(grid)
        kept = grid[values > values.max() - 50]
        low, high = max(low, kept[0] - step), min(high, kept[-1] + step)
    top, edges = values.max(), np.linspace(low, high, 33)
    pieces = [integrate.fixed_quad(lambda u: np.exp(integrand(u) - top), *ends, n=40)[0] for ends in pairwise(edges)]
    return top + math.log(sum(pieces))


@pytest.mark.parametrize("name", PRIORS)
def test_quadrature_is_scipys(name):
    """1e-9, relative where the logarithm exceeds one: both rules converge to rounding."""
    ours, theirs = PRIORS[name]
    for count, ratio in COUNTS:
        exact = by_scipy(theirs, count, count * ratio)
        found = float(nodes(ours, count, t(count * ratio)).log_integral)
        assert found == pytest.approx(exact, rel=1e-9, abs=1e-9), (count, ratio)


def test_what_lies_beyond_the_reach_is_known():
    """Of a tail s^-0.1, e^-9 lies above e^90, where the quadrature ends; one observation, and it is gone."""
    heavy = dist.Pareto(t(1.0), t(0.1))
    assert float(nodes(heavy, 0.0, t(0.0)).log_integral) == pytest.approx(math.log1p(-math.exp(-9)), rel=0.1)
    exact = by_scipy(stats.pareto(0.1), 1.0, 1.0)
    assert float(nodes(heavy, 1.0, t(1.0)).log_integral) == pytest.approx(exact, abs=1e-9)


def exact_inverse_gamma(a: float, b: float, count: float, quadratic: float) -> float:
    with mpmath.workdps(50):
        a, b, half, quadratic = (mpmath.mpf(value) for value in (a, b, count / 2, quadratic))
        return float(
            a * mpmath.log(b)
            - mpmath.loggamma(a)
            + mpmath.loggamma(a + half)
            - (a + half) * mpmath.log(b + quadratic / 2)
        )


GRID = [
    (a, a * mean, count, count * ratio)
    for a in (1e-3, 0.5, 2.0, 31.9, 32.1, 1e3)
    for mean in (1e-3, 1.0, 1e3)
    for count in (1.0, 2.0, 200.0, 1e7)
    for ratio in (1e-6, 1.0, 1e6)
]


def test_closed_form_is_exact():
    """1e-13 of the largest term: rounding; a = 32 is where Stirling's series takes over."""
    for a, b, count, quadratic in GRID:
        exact = exact_inverse_gamma(a, b, count, quadratic)
        size = max(1.0, abs(exact), count * abs(math.log(b / a)))
        assert float(log_integral(dist.InverseGamma(t(a), t(b)), count, t(quadratic))) == pytest.approx(
            exact, abs=1e-13 * size
        )


def test_closed_form_is_the_quadrature():
    """1e-8 of the logarithm, or absolutely where that is below one: rounding of 1e7 log s among others."""
    for a, b, count, quadratic in GRID:
        prior = dist.InverseGamma(t(a), t(b))
        exact = float(log_integral(prior, count, t(quadratic)))
        assert float(nodes(prior, count, t(quadratic)).log_integral) == pytest.approx(exact, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("shape", [1e4, 1e8, 1e12])
def test_a_certain_scale_leaves_the_normal_density(shape):
    """a = b: minus q / 2, but for (m^2 + 2m - 2mq + q^2) / 8a and 1e-13: two log gammas of size a log a cancel."""
    found = float(log_integral(dist.InverseGamma(t(shape), t(shape)), 50.0, t(70.0)))
    expected = -35 + (50**2 - 2 * 50 - 2 * 50 * 70 + 70**2) / (8 * shape)
    assert found == pytest.approx(expected, abs=1e5 / shape**2 + 1e-13)


@pytest.mark.parametrize("name", PRIORS)
def test_posterior_has_the_moments_of_scipys(name):
    """E[s | data] is a ratio of two integrals, the upper with two observations fewer; Pareto's needs ten of them."""
    ours, theirs = PRIORS[name]
    found = nodes(ours, 10.0, t(8.0))
    expected = math.exp(by_scipy(theirs, 8.0, 8.0) - by_scipy(theirs, 10.0, 8.0))
    assert float((found.var * found.log_weights.exp()).sum()) == pytest.approx(expected, rel=1e-9)
    assert float(found.log_weights.exp().sum()) == pytest.approx(1.0, rel=1e-12)


# --- derivatives, batches, dtypes -----------------------------------------------------------------------------------

FAMILIES = [
    (dist.InverseGamma, (3.0, 2.0)),
    (dist.InverseGamma, (50.0, 40.0)),
    (dist.LogNormal, (0.5, 1.2)),
    (dist.HalfCauchy, (0.7,)),
    (BurrXII, (2.0, 1.5)),
    (dist.Gamma, (2.0, 3.0)),
]


@pytest.mark.parametrize(("family", "values"), FAMILIES)
def test_derivatives_are_finite_differences(family, values):
    """First and second, in q and in the prior's own parameters, by gradcheck's tolerances."""
    inputs = [torch.tensor([3.0, 40.0]).double(), *(torch.full((2,), value).double() for value in values)]
    inputs = [value.requires_grad_() for value in inputs]

    def integral(quadratic, *parameters):
        return log_integral(family(*parameters), 12.0, quadratic)

    assert torch.autograd.gradcheck(integral, inputs)
    assert torch.autograd.gradgradcheck(integral, inputs)


@pytest.mark.parametrize(("family", "values"), FAMILIES)
def test_vmap_and_broadcasting_are_single_computations(family, values):
    """1e-12: the same nodes, summed in another order."""
    quadratic = torch.tensor([[0.5, 3.0, 2000.0], [1.0, 7.0, 12.0]]).double()
    parameters = torch.tensor(values).double() * torch.tensor([[0.8], [1.0], [1.3]]).double()
    with unvalidated(torch.float64, quadratic.device):
        batch = log_integral(family(*parameters.mT), 12.0, quadratic)
        mapped = torch.func.vmap(torch.func.vmap(lambda q, p: log_integral(family(*p), 12.0, q)), in_dims=(0, None))(
            quadratic, parameters
        )
    single = [
        [float(log_integral(family(*p), 12.0, q)) for q, p in zip(row, parameters, strict=True)] for row in quadratic
    ]
    torch.testing.assert_close(batch, torch.tensor(single, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mapped, batch, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["inverse gamma", "half-Cauchy", "Pareto", "log-normal, wide", "Burr", "uniform"])
def test_single_precision(name):
    """1e-5 of the largest term, m log s or q / s: float32 rounds at 1e-7, 256 nodes and four looks lose no more."""
    ours, _ = PRIORS[name]
    single = type(ours)(**{key: getattr(ours, key).float() for key in ours.arg_constraints})
    for count, ratio in COUNTS[1:-1]:
        exact = float(log_integral(ours, count, t(count * ratio)))
        found = nodes(single, count, torch.tensor(count * ratio))
        assert found.log_integral.dtype == torch.float32
        assert float(found.log_integral) == pytest.approx(exact, rel=1e-5, abs=1e-5 * count)


def test_the_users_units_do_not_matter():
    """Data in micrometres or in kilometres: the nodes shift, and m / 2 logarithms of the unit are all that changes."""
    for unit in (1e-12, 1e12):
        prior = dist.LogNormal(t(math.log(unit)), t(1.0))
        shifted = float(log_integral(prior, 30.0, t(40.0 * unit))) + 15 * math.log(unit)
        assert shifted == pytest.approx(float(log_integral(dist.LogNormal(t(0.0), t(1.0)), 30.0, t(40.0))), rel=1e-10)


# --- importance sampling: the check, and when it cannot be one -------------------------------------------------------


@pytest.mark.parametrize("prior", [dist.InverseGamma(t(2.0), t(2.0)), BurrXII(t(2.0), t(2.0))])
def test_importance_sampling_agrees_where_observations_are_few(prior):
    """Null: the mean of 50 estimates is the integral. Four standard errors: false alarm 1e-4 (t with 49 degrees)."""
    exact = log_integral(prior, 3.0, t(4.0))
    found = [importance_sample(prior, 3.0, t(4.0), 2000, seed=seed) for seed in range(50)]
    ratios = np.array([float((one.log_integral - exact).exp()) for one in found])
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / math.sqrt(50)
    assert abs(ratios.mean() * math.exp(0.1) - 1) > 4 * ratios.std(ddof=1) / math.sqrt(
        50
    )  # the control: a tenth of a nat
    assert all(one.pareto_k < 0.7 and one.ess > 1000 for one in found)


def test_importance_sampling_degenerates_where_they_are_many():
    """Burr(2, 2), 200 observations: of 1,000 draws some ten count where s is 3, and one where it is 75.

    The prior of log s has density 4 s^2 / (1 + s^2)^3, the likelihood is normal with standard deviation sqrt(2 / 200):
    1000 * density * 2 sqrt(pi) * 0.1 draws count. Within a factor of two: it is the median of twenty small numbers.
    """
    prior = BurrXII(t(2.0), t(2.0))
    for s in (1.0, 3.0):
        expected = 1000 * 4 * s**2 / (1 + s**2) ** 3 * 2 * math.sqrt(math.pi) * 0.1
        found = [importance_sample(prior, 200.0, t(200 * s), seed=seed) for seed in range(20)]
        assert expected / 2 < np.median([one.ess for one in found]) < 2 * expected
    scaled = [importance_sample(prior, 200.0, t(25 * 200 * 3.0), seed=seed) for seed in range(20)]  # y times 5
    assert np.median([one.ess for one in scaled]) < 1.1
    assert all(one.pareto_k > 0.7 for one in scaled)
    exact = log_integral(prior, 200.0, t(25 * 200 * 3.0))
    assert all(abs(one.log_integral - exact) > 10 for one in scaled)


def test_importance_sampling_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same = (importance_sample(dist.LogNormal(0.0, 1.0), 2.0, torch.tensor(1.0), seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.log_integral, same.log_integral)


# --- what is no prior of a variance -----------------------------------------------------------------------------------


class Silent(dist.TorchDistribution):
    """One that does not say what its support is."""

    arg_constraints = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("prior", "named"),
    [
        (dist.Normal(0.0, 1.0), r"Normal on Real\(\)"),
        (dist.Uniform(-1.0, 2.0), r"Uniform on Interval\(lower_bound=-1.0, upper_bound=2.0\)"),
        (dist.Poisson(2.0), r"Poisson on IntegerGreaterThan\(lower_bound=0\)"),
        (dist.LogNormal(torch.zeros(3), 1.0).to_event(1), "Independent on None"),
        (Silent(validate_args=False), "Silent on None"),
        (2.0, "float on None"),
    ],
)
def test_a_wrong_prior_is_named(prior, named):
    with pytest.raises(
        ProgramError, match=f"scale_prior: expected a distribution of a positive number, got {named}. Pass e.g."
    ):
        check_scale_prior(prior)


def test_a_right_prior_passes():
    for prior, _ in PRIORS.values():
        check_scale_prior(prior)
    check_scale_prior(dist.Uniform(torch.zeros(2), torch.ones(2)))

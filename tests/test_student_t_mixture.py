"""Mixtures of Student-t distributions: SciPy's density, its own maximum of the likelihood, and outliers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from invariance import after_one_step, p_values
from scipy import optimize, stats
from torch import Tensor

from probmix.arguments import Arguments
from probmix.conjugate import NormalInverseGamma
from probmix.datasets import load_faithful
from probmix.degrees_of_freedom import DofPrior
from probmix.errors import DataError, ProgramError
from probmix.inference import EM, VB, Gibbs, infer
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture
from probmix.models.student_t_mixture import StudentTMixture, StudentTPrior

NAMES = ["full", "tied", "diagonal", "spherical"]
every_shape = pytest.mark.parametrize("name", NAMES)
#: degrees of freedom learnt for each component, learnt for all, fixed
every_dof = pytest.mark.parametrize("dof", [{}, {"shared_dof": True}, {"dof": 4.0}], ids=["own", "shared", "fixed"])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def heavy_rows(count: int = 90, df: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    u = torch._standard_gamma(torch.full((count, 1), df / 2, dtype=torch.float64), generator=generator) / (df / 2)
    mixing = torch.tensor([[1.0, 0.3], [0.0, 0.7]]).double()
    return noise / u.sqrt() @ mixing + 8 * (torch.arange(count) % 2)[:, None]


def make_sites(model: StudentTMixture, x: Tensor, *batch: int) -> dict[str, Tensor]:
    shares = torch.randn(*batch, len(x), model.num_components, dtype=x.dtype).mul(2).softmax(-1)
    sites = model.maximise(model.sufficient_statistics(x, shares), model.prior(x))
    return {**sites, "dof": sites["dof"] * (0.5 + torch.rand_like(sites["dof"]))} if "dof" in sites else sites


def scale_matrix(model: StudentTMixture, sites: dict[str, Tensor], k: int, size: int) -> np.ndarray:
    spread = sites[model.family.site].numpy()
    spread = spread if model.covariance == "tied" else spread[k]
    return spread * np.eye(size) if model.covariance in ("diagonal", "spherical") else spread


@pytest.mark.parametrize(
    ("name", "dof"), [*((name, {}) for name in NAMES), ("tied", {"shared_dof": True}), ("diagonal", {"dof": 4.0})]
)
def test_the_program_and_the_closed_form_have_one_log_joint(name: str, dof: dict) -> None:
    x, model = heavy_rows(30), StudentTMixture(3, name, **dof)
    sites = make_sites(model, x, 2)
    assert set(sites) == set(model.dims)
    density = LogDensity(model, Arguments.of(x))
    torch.testing.assert_close(density.log_joint(sites), model.log_joint(x, sites), rtol=1e-10, atol=0)


@every_shape
@every_dof
def test_the_density_is_scipys(name: str, dof: dict) -> None:
    x, model = heavy_rows(20), StudentTMixture(2, name, **dof)
    sites = make_sites(model, x)
    df = np.broadcast_to(sites["dof"].numpy() if "dof" in sites else 4.0, (2,))
    for k in range(2):
        expected = stats.multivariate_t(sites["loc"][k], scale_matrix(model, sites, k, 2), df=df[k]).logpdf(x)
        np.testing.assert_allclose(model.family.log_prob(x, sites)[:, k], expected, rtol=1e-10)


@every_shape
@every_dof
@pytest.mark.parametrize("objective", ["map", "ml"])
def test_em_never_falls(name: str, dof: dict, objective: str) -> None:
    x, model = heavy_rows(), StudentTMixture(2, name, **dof)
    fit = infer(model, x, EM(restarts=4, objective=objective, max_steps=150, tolerance=1e-5), seed=0, throw=False)
    gains = fit.history["objective"].diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-9 * abs(fit.objective)).all()  # rounding of a sum of 90 terms


@pytest.mark.parametrize("name", ["full", "spherical"])
def test_one_component_is_the_maximum_that_scipy_finds(name: str) -> None:
    """Nelder and Mead's simplex from our answer gains nothing; from elsewhere it gets no further. Within 1e-5 nats."""
    x = heavy_rows(60)[::2]
    fit = infer(StudentTMixture(1, name), x, EM(restarts=1, objective="ml", tolerance=1e-8), seed=0)

    def unpack(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        tril = np.exp(z[2]) * np.eye(2) if name == "spherical" else np.array([[np.exp(z[2]), 0], [z[4], np.exp(z[5])]])
        return z[:2], tril @ tril.T, np.exp(z[3])

    def loss(z: np.ndarray) -> float:
        loc, cov, df = unpack(z)
        return -stats.multivariate_t(loc, cov, df=df).logpdf(x.numpy()).sum()

    start = np.array([0.0, 0.0, 0.0, 1.0] + [0.0, 0.0] * (name == "full"))
    settings = {"method": "Nelder-Mead", "options": {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 10_000}}
    best = optimize.minimize(loss, optimize.minimize(loss, start, **settings).x, **settings)
    assert fit.objective == pytest.approx(-best.fun, abs=1e-5)
    loc, cov, df = unpack(best.x)
    np.testing.assert_allclose(fit.sites()["loc"][0], loc, atol=1e-3)
    np.testing.assert_allclose(scale_matrix(StudentTMixture(1, name), fit.sites(), 0, 2), cov, rtol=2e-3, atol=1e-3)
    assert fit.sites()["dof"].item() == pytest.approx(df, rel=5e-3)


@every_shape
def test_many_degrees_of_freedom_are_a_gaussian_mixture(name: str) -> None:
    """Log densities differ by less than distance squared over 4 dof: 2e-5 for a squared distance of 30, 272 times."""
    x = load_faithful().x
    gaussian = infer(GaussianMixture(2, name), x, EM(restarts=2), seed=0)
    student = infer(StudentTMixture(2, name, dof=1e7), x, EM(restarts=2), seed=0)
    assert student.objective == pytest.approx(gaussian.objective, abs=1e-2)
    spread = GaussianMixture(2, name).family.covariance.site
    torch.testing.assert_close(
        student.sites()[f"scale_{spread}"].sort(0).values, gaussian.sites()[spread].sort(0).values, rtol=1e-3, atol=0
    )


def test_outliers_spoil_gaussians_and_not_students() -> None:
    """One row in ten is spread over a hundred times the area. The t finds the centres, within 5 standard errors."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.tensor([[0.0, 0.0], [6.0, 0.0]]).double()
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64) + truth.repeat(150, 1)
    x[::10] = 40 * torch.rand(30, 2, generator=generator, dtype=torch.float64) + torch.tensor([-10.0, 5.0]).double()
    student = infer(StudentTMixture(2), x, EM(), seed=0).sites()
    gaussian = infer(GaussianMixture(2), x, EM(), seed=0).sites()
    order = student["loc"][:, 0].argsort()
    error = 5 / 135**0.5
    torch.testing.assert_close(student["loc"][order], truth, rtol=0, atol=error)
    assert student["dof"].min() < 2
    wrong = gaussian["loc"][gaussian["loc"][:, 0].argsort()] - truth
    assert wrong.abs().max() > 5 * error  # the control: one Gaussian is spent on the outliers


def test_heavy_and_light_tails_are_told_apart() -> None:
    """Truth 3 and 30. Over samples of 500 the first estimate varied by 0.2: 1 is five times that."""
    sites = {
        "weights": torch.tensor([0.5, 0.5]).double(),
        "loc": torch.tensor([[0.0, 0.0], [40.0, 0.0]]).double(),
        "scale_cov": torch.eye(2).double().expand(2, 2, 2),
        "dof": torch.tensor([3.0, 30.0]).double(),
    }
    x = StudentTMixture(2).sample(1000, sites, seed=0)
    found = infer(StudentTMixture(2), x, EM(restarts=2, objective="ml", tolerance=1e-3), seed=0).sites()
    dof = found["dof"][found["loc"][:, 0].argsort()]
    assert 2 < dof[0] < 4
    assert dof[1] > 9


@every_shape
@every_dof
def test_draws_have_the_distances_of_scipys_f(name: str, dof: dict) -> None:
    """Null: distance over D is F(D, dof), one component at a time; fails once in 1e6. Control: another dof."""
    model = StudentTMixture(2, name, **dof)
    sites = make_sites(model, heavy_rows())
    df = np.broadcast_to(sites["dof"].numpy() if "dof" in sites else 4.0, (2,))
    x, assignment = model.sample(20_000, sites, seed=1, return_assignments=True)
    for k in range(2):
        offset = x[assignment == k].numpy() - sites["loc"][k].numpy()
        inverse = np.linalg.inv(scale_matrix(model, sites, k, 2))
        distance = np.einsum("ni,ij,nj->n", offset, inverse, offset) / 2
        assert stats.kstest(distance, stats.f(2, df[k]).cdf).pvalue > 1e-6
        assert stats.kstest(distance, stats.f(2, df[k] / 3).cdf).pvalue < 1e-6


def test_the_program_draws_what_it_scores() -> None:
    row = StudentTMixture(1).family.row(
        {"dof": torch.tensor(3.0), "loc": torch.zeros(2), "factor": torch.eye(2)}
    ).expand([4])  # fmt: skip
    x = row.sample([5000])
    assert x.shape == (5000, 4, 2)
    distance = x.square().sum(-1).flatten() / 2
    assert stats.kstest(distance.numpy(), stats.f(2, 3.0).cdf).pvalue > 1e-6
    assert stats.kstest(distance.numpy(), stats.f(2, 9.0).cdf).pvalue < 1e-6


@pytest.mark.parametrize(("name", "dof"), [("full", {}), ("tied", {"shared_dof": True}), ("diagonal", {"dof": 4.0})])
def test_a_gibbs_step_keeps_the_prior(name: str, dof: dict) -> None:
    """Null: sites after a step are from the prior; each KS test fails once in 1e6. Control: rows ten times as wide.

    The prior of dof is kept from 0, where draws overflow.
    """
    x, replicates = heavy_rows(6), 700
    default = StudentTMixture(2, name, **dof).prior(x).component
    of_dof = None if default.dof is None else DofPrior(torch.tensor(9.0), torch.tensor(1.5))
    model = StudentTMixture(2, name, **dof, component_prior=StudentTPrior(default.gaussian, of_dof))
    prior = model.prior(x)
    nothing = model.sufficient_statistics(x, torch.zeros(replicates, 6, 2).double())
    start = model.draw_sites(model.posterior(prior, nothing))
    rows = model.sample(6, start, seed=3)
    assert min(p_values(start, after_one_step(model, prior, rows, start)).values()) > 1e-6
    wrong = p_values(start, after_one_step(model, prior, 10 * rows, start))
    assert min(wrong.values()) < 1e-6


@pytest.mark.parametrize("name", ["full", "tied"])
def test_variational_bayes_rises_and_stays_below_what_gibbs_finds(name: str) -> None:
    """The bound at the variational means is below the log joint there plus what a point can hold: it only rises."""
    x = load_faithful().x
    fit = infer(StudentTMixture(2, name), x, VB(restarts=3), seed=0)
    gains = fit.history["elbo"].diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-9 * fit.elbos.max().abs()).all()
    draws = infer(StudentTMixture(2, name), x, Gibbs(chains=2, warmup=100, draws=300), seed=0).draws
    means = draws["loc"].mean((0, 1))
    order, swap = fit.sites()["loc"][:, 0].argsort(), means[:, 0].argsort()
    # Means of 600 draws whose standard deviation is 0.03 and 0.6: five standard errors, autocorrelation of 10.
    allowed = torch.tensor([0.02, 0.4]).double()
    assert ((means[swap] - fit.sites()["loc"][order]).abs() < allowed).all()


def test_the_bound_is_below_the_evidence() -> None:
    """One component, one column: the evidence by quadrature over all three sites; the gap of mean field is under 1."""
    x, model = heavy_rows(20)[::2, :1], StudentTMixture(1, "spherical")
    fit = infer(model, x, VB(restarts=1), seed=0)
    draws = infer(model, x, Gibbs(chains=2, warmup=50, draws=500), seed=0).draws
    columns = [draws["loc"].flatten(), draws["scale_var"].flatten().log(), draws["dof"].flatten().log()]
    axes = [torch.linspace(*(c.mean() + s * 6 * c.std() for s in (-1, 1)), 81).double() for c in columns]
    loc, log_var, log_dof = torch.meshgrid(*axes, indexing="ij")
    sites = {
        "weights": torch.ones(*loc.shape, 1).double(),
        "loc": loc[..., None, None],
        "scale_var": log_var.exp()[..., None],
        "dof": log_dof.exp()[..., None],
    }
    cell = sum(float((axis[1] - axis[0]).log()) for axis in axes)
    log_evidence = float((model.log_joint(x, sites) + log_var + log_dof).flatten().logsumexp(0)) + cell
    assert log_evidence - 1 < fit.elbos.max().item() < log_evidence


def test_float32_stays_float32_and_close() -> None:
    x = load_faithful().x
    fit = infer(StudentTMixture(2), x.float(), EM(restarts=2), seed=0)
    wide = infer(StudentTMixture(2), x, EM(restarts=2), seed=0)
    assert {value.dtype for value in fit.sites().values()} == {torch.float32}
    assert fit.objective == pytest.approx(wide.objective, rel=1e-5)  # 272 terms in float32


@every_shape
def test_empty_and_tiny_components_give_no_nan(name: str) -> None:
    x = heavy_rows(30)
    for rows in (0, 1, 2):
        shares = torch.zeros(30, 2).double()
        shares[:rows, 0], shares[rows:, 1] = 1, 1
        model = StudentTMixture(2, name)
        statistics = model.sufficient_statistics(x, shares)
        for prior in (None, model.prior(x)):
            assert all(value.isfinite().all() for value in model.maximise(statistics, prior).values())
        if name == "full":
            assert model.singular_components(model.maximise(statistics, None)).tolist() == [True, False]


def test_numbers_of_parameters() -> None:
    """By hand: one weight, four means, two 2 x 2 matrices (or one), and the degrees of freedom."""
    assert StudentTMixture(2).num_parameters(2) == 1 + 4 + 6 + 2
    assert StudentTMixture(2, "tied", shared_dof=True).num_parameters(2) == 1 + 4 + 3 + 1
    assert StudentTMixture(2, "spherical", dof=3.0).num_parameters(2) == 1 + 4 + 2


WRONG = StudentTPrior(NormalInverseGamma(torch.zeros(2), 0.1, 2.0, torch.ones(2)), None)
IMPROPER = StudentTPrior(
    NormalInverseGamma(torch.zeros(2), 0.1, 2.0, torch.ones(2)), DofPrior(torch.tensor(0.0), torch.tensor(0.1))
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentTMixture(2, "round"), "expected one of full, tied, diagonal, spherical, got 'round'"),
        (lambda: StudentTMixture(2, dof=-1.0), "dof: expected a finite number above 0, got -1.0"),
        (lambda: StudentTMixture(2, dof=float("inf")), "for infinitely many use GaussianMixture"),
        (lambda: StudentTMixture(2, component_prior=WRONG), "expected StudentTPrior with a prior of dof for dof=None"),
        (lambda: StudentTMixture(2, dof=3.0, component_prior=WRONG), "expected NormalInverseWishart"),
        (
            lambda: StudentTMixture(2, "diagonal", component_prior=IMPROPER).observe(heavy_rows()),
            "a concentration and a rate above 0 in the prior of dof",
        ),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(message)):
        make()


def test_bad_rows_are_refused() -> None:
    x = heavy_rows(20)
    with pytest.raises(DataError, match="got 1 of 20 rows with NaN"):
        infer(StudentTMixture(2), x.index_fill(0, torch.tensor([4]), torch.nan), EM(), seed=0)
    with pytest.raises(DataError, match="got 1 of 2 constant"):
        infer(StudentTMixture(2), x * torch.tensor([1.0, 0.0]), EM(), seed=0)

"""Mixtures of regressions: program and closed form, scikit-learn's least squares, and lines that cross."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from invariance import after_one_step, p_values
from scipy import integrate, optimize, stats
from sklearn.linear_model import LinearRegression
from torch import Tensor

from probmix.arguments import Arguments
from probmix.errors import DataError, ProgramError
from probmix.inference import EM, VB, Gibbs, infer
from probmix.linear_regression import RegressionPrior
from probmix.log_density import LogDensity
from probmix.models.regression_mixture import RegressionMixture

intercepts = pytest.mark.parametrize("intercept", [True, False])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def crossing_lines(count: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """Two planes that cross inside the data."""
    generator = torch.Generator().manual_seed(1)
    x = 4 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % 2
    y = torch.where(labels == 0, 1 + 2 * x[:, 0] - x[:, 1], 8 - x[:, 0])
    return x, y + 0.4 * torch.randn(count, generator=generator, dtype=torch.float64), labels


def make_sites(model: RegressionMixture, rows: Tensor, *batch: int) -> dict[str, Tensor]:
    shares = torch.randn(*batch, len(rows), model.num_components, dtype=rows.dtype).mul(2).softmax(-1)
    return model.maximise(model.sufficient_statistics(rows, shares), model.prior(rows))


@intercepts
def test_the_program_and_the_closed_form_have_one_log_joint(intercept: bool) -> None:
    x, y, _ = crossing_lines()
    model = RegressionMixture(3, intercept=intercept, weight_concentration=1.7)
    rows = model.rows(x, y)
    sites = make_sites(model, rows, 2)
    density = LogDensity(model, Arguments.of((x, y)))
    torch.testing.assert_close(density.log_joint(sites), model.log_joint(rows, sites), rtol=1e-10, atol=0)
    assert set(model.dims) == set(sites)
    assert set(density.observed) == {"y"}


@intercepts
@pytest.mark.parametrize("objective", ["map", "ml"])
def test_em_never_falls(intercept: bool, objective: str) -> None:
    x, y, _ = crossing_lines()
    fit = infer(RegressionMixture(2, intercept=intercept), (x, y), EM(restarts=4, objective=objective), seed=0)
    gains = fit.history["objective"].diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-9 * abs(fit.objective)).all()  # rounding of a sum of 150 terms
    assert fit.status.state == "converged"


@intercepts
def test_one_component_is_scikit_learns_least_squares(intercept: bool) -> None:
    x, y, _ = crossing_lines()
    fit = infer(RegressionMixture(1, intercept=intercept), (x, y), EM(restarts=1, objective="ml"), seed=0)
    peer = LinearRegression(fit_intercept=intercept).fit(x.numpy(), y.numpy())
    residual = y.numpy() - peer.predict(x.numpy())
    np.testing.assert_allclose(fit.sites()["coefficients"][0], peer.coef_, rtol=1e-10)
    np.testing.assert_allclose(fit.sites()["noise_var"][0], np.mean(residual**2), rtol=1e-10)
    expected = stats.norm.logpdf(residual, scale=np.sqrt(np.mean(residual**2))).sum()
    assert fit.objective == pytest.approx(expected, rel=1e-12)
    if intercept:
        assert fit.sites()["intercept"].item() == pytest.approx(peer.intercept_, rel=1e-10)


def test_lines_that_cross_are_told_apart() -> None:
    """Truth within four standard errors, 0.4 / sqrt(75) over a spread of 1.15: 0.16 for a slope, 0.5 for a level."""
    x, y, labels = crossing_lines()
    fit = infer(RegressionMixture(2), (x, y), EM(), seed=0)
    order = fit.sites()["intercept"].argsort()
    sites = {name: value[order] for name, value in fit.sites().items()}
    truth = torch.tensor([[2.0, -1.0], [-1.0, 0.0]]).double()
    torch.testing.assert_close(sites["coefficients"], truth, rtol=0, atol=0.16)
    torch.testing.assert_close(sites["intercept"], torch.tensor([1.0, 8.0]).double(), rtol=0, atol=0.5)
    model = RegressionMixture(2)
    found = model.labels(model.rows(x, y), sites)
    assert (found == labels).double().mean() > 0.9  # rows near the crossing may go either way
    design_alone = model.predict(x, sites)
    expected = (sites["intercept"] + x @ sites["coefficients"].mT) @ sites["weights"]
    torch.testing.assert_close(design_alone, expected)


def test_the_optimum_is_the_one_that_scipy_finds() -> None:
    """BFGS on the likelihood in NumPy, from sites a tenth off ours: it comes back to within 1e-6 nats."""
    x, y, _ = crossing_lines()
    fit = infer(RegressionMixture(2), (x, y), EM(objective="ml"), seed=0)
    columns, response = np.column_stack([np.ones(len(x)), x]), y.numpy()

    def loss(z: np.ndarray) -> float:
        log_weights = -np.logaddexp(0, [-z[8], z[8]])
        log_prob = stats.norm.logpdf(response[:, None], columns @ z[:6].reshape(2, 3).T, np.exp(z[6:8] / 2))
        return -np.logaddexp.reduce(log_prob + log_weights, axis=1).sum()

    sites = {name: value.numpy() for name, value in fit.sites().items()}
    lines = np.column_stack([sites["intercept"], sites["coefficients"]])
    point = np.concatenate([lines.ravel(), np.log(sites["noise_var"]), [-np.log(1 / sites["weights"][0] - 1)]])
    assert -loss(point) == pytest.approx(fit.objective, rel=1e-12)
    best = optimize.minimize(loss, point + 0.1, method="BFGS", options={"gtol": 1e-7})
    assert -best.fun == pytest.approx(fit.objective, abs=1e-6)


def test_units_and_origin_do_not_matter() -> None:
    """With an intercept, fits of shifted and rescaled data are the shifted and rescaled fits, prior included."""
    x, y, _ = crossing_lines()
    scales, shift = torch.tensor([1e-3, 50.0]).double(), torch.tensor([2000.0, -7.0]).double()
    shares = torch.randn(len(x), 2).double().softmax(-1)

    def step(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        model = RegressionMixture(2)
        rows = model.rows(x, y)
        return model.maximise(model.sufficient_statistics(rows, shares), model.prior(rows))

    plain, moved = step(x, y), step(x * scales + shift, 3 * y - 1000)
    # The first column is 1e-3 wide beside 2000: nine digits are left of it, and of what multiplies it.
    torch.testing.assert_close(moved["coefficients"], 3 * plain["coefficients"] / scales, rtol=1e-7, atol=0)
    torch.testing.assert_close(moved["noise_var"], 9 * plain["noise_var"], rtol=1e-7, atol=0)
    expected = 3 * plain["intercept"] - 1000 - moved["coefficients"] @ shift
    torch.testing.assert_close(moved["intercept"], expected, rtol=1e-7, atol=0)


def test_the_default_prior_is_the_one_stated() -> None:
    x, y, _ = crossing_lines()
    prior = RegressionMixture(3).prior(RegressionMixture(3).rows(x, y)).component
    np.testing.assert_allclose(prior.precision, 0.01 * np.cov(x.numpy().T), rtol=1e-12)
    np.testing.assert_allclose(prior.rate, y.numpy().var(ddof=1) / 18, rtol=1e-12)
    assert (prior.mean_precision, prior.concentration) == (pytest.approx(0.01), 1.5)
    np.testing.assert_allclose(prior.centre, x.numpy().mean(0), rtol=1e-12)
    without = RegressionMixture(3, intercept=False).prior(RegressionMixture(3).rows(x, y)).component
    np.testing.assert_allclose(without.precision, 0.01 * x.numpy().T @ x.numpy() / 149, rtol=1e-12)
    assert without.mean_precision == math.inf


def test_the_density_integrates_to_one_and_draws_follow_it() -> None:
    """Null: the distribution function found by quadrature; KS test, fails once in 1e6. Control: shifted by 0.2."""
    model = RegressionMixture(2)
    sites = {
        "weights": torch.tensor([0.3, 0.7]).double(),
        "intercept": torch.tensor([0.0, 1.0]).double(),
        "coefficients": torch.tensor([[1.0], [-2.0]]).double(),
        "noise_var": torch.tensor([1.0, 0.25]).double(),
    }
    design = torch.full((20_000, 1), 0.5).double()
    grid = torch.linspace(-9, 9, 20_000).double()
    density = model.log_prob(model.rows(design, grid), sites).exp().numpy()
    cumulative = integrate.cumulative_trapezoid(density, grid.numpy(), initial=0)
    assert cumulative[-1] == pytest.approx(1, abs=1e-8)  # error of the trapezoidal rule
    y, assignment = model.draw_responses(design, sites, seed=0, return_assignments=True)
    assert stats.kstest(y.numpy(), lambda v: np.interp(v, grid, cumulative)).pvalue > 1e-6
    assert stats.kstest(y.numpy() + 0.2, lambda v: np.interp(v, grid, cumulative)).pvalue < 1e-6
    assert stats.binomtest(int(assignment.sum()), 20_000, 0.7).pvalue > 1e-6
    assert torch.equal(y, model.draw_responses(design, sites, seed=0))


@intercepts
def test_a_gibbs_step_keeps_the_prior(intercept: bool) -> None:
    """Null: sites after a step are from the prior; each KS test fails once in 1e6. Control: other data."""
    x, y, _ = crossing_lines(8)
    model = RegressionMixture(2, intercept=intercept)
    prior = model.prior(model.rows(x, y))
    replicates = 700
    start = model.draw_sites(model.posterior(prior, model.sufficient_statistics(
        model.rows(x, y), torch.zeros(replicates, 8, 2).double())))  # fmt: skip
    drawn = model.draw_responses(x, start, seed=3)
    rows = torch.cat([x.expand(replicates, -1, -1), drawn[..., None]], -1)
    values = p_values(start, after_one_step(model, prior, rows, start))
    assert min(values.values()) > 1e-6
    wrong = p_values(start, after_one_step(model, prior, rows * torch.tensor([1, 1, 10]), start))
    assert wrong["noise_var"] < 1e-6


def test_one_component_has_no_gap_to_its_evidence() -> None:
    """With K = 1 the variational posterior is exact; the ELBO is converged to 1e-6 nats."""
    x, y, _ = crossing_lines()
    model = RegressionMixture(1)
    fit = infer(model, (x, y), VB(restarts=1), seed=0)
    rows = model.rows(x, y)
    statistics = model.sufficient_statistics(rows, torch.ones(len(x), 1).double())
    evidence = model.family.log_marginal(model.prior(rows).component, statistics)
    assert fit.elbos.max().item() == pytest.approx(evidence.item(), abs=1e-6)


def test_gibbs_and_variational_bayes_agree_on_lines_far_apart() -> None:
    """Means within four standard errors of 400 draws and the posterior's own width, 0.15 for a slope of these data."""
    x, y, labels = crossing_lines()
    y = y + 30 * labels
    bayes, gibbs = (infer(RegressionMixture(2), (x, y), m, seed=0) for m in (VB(), Gibbs(2, warmup=50, draws=200)))
    order = bayes.sites()["intercept"].argsort()
    draws = gibbs.draws["coefficients"].flatten(0, 1)
    swap = gibbs.draws["intercept"].flatten(0, 1).argsort(-1)[..., None].expand_as(draws)
    assert (draws.gather(1, swap).mean(0) - bayes.sites()["coefficients"][order]).abs().max() < 0.15 / 2


def test_rows_take_two_tables_or_the_merged_one() -> None:
    x, y, _ = crossing_lines(10)
    model = RegressionMixture(2)
    rows = model.rows(x, y)
    assert rows.shape == (10, 3)
    assert torch.equal(model.rows(rows), rows)
    assert torch.equal(model.rows(x, y[:, None]), rows)
    checked = model.observe(x, y)
    assert [tuple(table.shape) for table in checked] == [(10, 2), (10,)]


def test_float32_stays_float32() -> None:
    x, y, _ = crossing_lines()
    fit = infer(RegressionMixture(2), (x.float(), y.float()), EM(restarts=2), seed=0)
    assert {value.dtype for value in fit.sites().values()} == {torch.float32}
    wide = infer(RegressionMixture(2), (x, y), EM(restarts=2), seed=0)
    assert fit.objective == pytest.approx(wide.objective, rel=1e-4)  # a sum of 150 float32 terms, at another rounding


X, Y, _LABELS = crossing_lines(20)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:5], "expected one response for each of 20 rows of x, got y of shape (5, 1)"),
        (X, torch.stack([Y, Y], -1), "got y of shape (20, 2): pass y as a vector"),
        (X, Y.float(), "expected x and y of one dtype, got torch.float64 and torch.float32"),
        (
            X,
            Y.index_fill(0, torch.tensor([3]), torch.nan),
            "got 1 of 20 rows with NaN or infinity, the first at index 3",
        ),
        (X[:1], Y[:1], "expected at least as many rows as components, got 1 rows for 2 components"),
        (torch.cat([X, torch.ones(20, 1)], -1), Y, "got 1 constant, the first of them column 2 of the design"),
        (X, torch.ones(20).double(), "got 1 constant, the first of them the response"),
        (torch.cat([X, X.sum(-1, keepdim=True)], -1), Y, "whose 3 columns are independent, got rank 2"),
    ],
)
def test_bad_data_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        infer(RegressionMixture(2), (x, y), EM(), seed=0)


def test_one_table_is_not_enough() -> None:
    with pytest.raises(DataError, match="takes 2 tables of data"):
        infer(RegressionMixture(2), X, EM(), seed=0)
    with pytest.raises(DataError, match=re.escape("got a single column: pass (x, y)")):
        RegressionMixture(2).rows(Y)
    with pytest.raises(DataError, match="got 3 tables"):
        RegressionMixture(2).rows(X, Y, Y)


def prior_with(**changes: Tensor) -> RegressionPrior:
    prior = RegressionMixture(2).prior(torch.cat([X, Y[:, None]], -1)).component
    fields = {name: changes.get(name, getattr(prior, name)) for name in prior.__dataclass_fields__}
    return RegressionPrior(**fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegressionMixture(0), "num_components: expected 1 or more, got 0"),
        (lambda: RegressionMixture(2, component_prior=3.0), "expected RegressionPrior, got float"),
        (
            lambda: RegressionMixture(2, component_prior=prior_with(centre=torch.zeros(3))).observe(X, Y),
            "expected centre to end in (2,)",
        ),
        (
            lambda: RegressionMixture(2, component_prior=prior_with(rate=-torch.ones(1))).observe(X, Y),
            "got an improper rate",
        ),
        (
            lambda: RegressionMixture(2, intercept=False, component_prior=prior_with()).observe(X, Y),
            "got an improper mean_precision",
        ),
        (lambda: RegressionMixture(2).sample(3, {"weights": torch.ones(2)}, seed=0), "model.draw_responses(x, sites"),
        (lambda: RegressionMixture(2).family.row({}), "use emit"),
        (lambda: RegressionMixture(2).family.predictive(prior_with()), "use log_predictive(x, prior)"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(message)):
        make()


def test_a_prior_of_ones_own_takes_constant_columns_and_a_perfect_fit_is_reported() -> None:
    flat = torch.cat([X, torch.ones(20, 1)], -1).double()
    wide = RegressionMixture(2).prior(torch.cat([X, X[:, :1] ** 2, Y[:, None]], -1)).component
    fit = infer(RegressionMixture(2, component_prior=wide), (flat, Y), EM(restarts=2), seed=0)
    assert all(value.isfinite().all() for value in fit.sites().values())
    exact = {"coefficients": torch.zeros(2, 1), "noise_var": torch.tensor([1.0, 0.0])}
    assert RegressionMixture(2, intercept=False).singular_components(exact).tolist() == [False, True]

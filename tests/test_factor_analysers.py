"""Mixtures of factor analysers: SciPy's density, scikit-learn's factor analysis and principal components."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from invariance import after_one_step, p_values
from scipy import stats
from sklearn.decomposition import FactorAnalysis
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from probmix.arguments import Arguments
from probmix.datasets import load_wine
from probmix.errors import DataError, ProgramError
from probmix.inference import EM, VB, Gibbs, infer
from probmix.linear_regression import RegressionPrior
from probmix.log_density import LogDensity
from probmix.models.factor_analysers import MixtureOfFactorAnalysers

every_noise = pytest.mark.parametrize("noise", ["diagonal", "isotropic"])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def groups(count: int = 80, size: int = 6, factors: int = 2) -> Tensor:
    """Two groups, with other loadings in each."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    loadings = torch.randn(2, size, factors, generator=generator, dtype=torch.float64)
    common = loadings[labels] @ torch.randn(count, factors, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return common.squeeze(-1) + 0.5 * noise + 4 * labels[:, None] + 2


def make_sites(model: MixtureOfFactorAnalysers, x: Tensor, *batch: int) -> dict[str, Tensor]:
    shares = torch.randn(*batch, len(x), model.num_components, dtype=x.dtype).mul(2).softmax(-1)
    return model.maximise(model.sufficient_statistics(x, shares), model.prior(x))


def covariance(sites: dict[str, Tensor]) -> Tensor:
    """``(K, D, D)``."""
    loadings, noise_var = sites["loadings"], sites["noise_var"]
    noise_var = noise_var if noise_var.dim() == loadings.dim() - 1 else noise_var[..., None]
    return loadings @ loadings.mT + torch.diag_embed(noise_var.expand(loadings.shape[:-1]))


@every_noise
def test_the_program_and_the_closed_form_have_one_log_joint(noise: str) -> None:
    x, model = groups(), MixtureOfFactorAnalysers(3, 2, noise)
    sites = make_sites(model, x, 2)
    assert set(sites) == set(model.dims)
    density = LogDensity(model, Arguments.of(x))
    torch.testing.assert_close(density.log_joint(sites), model.log_joint(x, sites), rtol=1e-10, atol=0)


@every_noise
def test_the_density_is_scipys(noise: str) -> None:
    x, model = groups(), MixtureOfFactorAnalysers(2, 2, noise)
    sites = make_sites(model, x)
    for k in range(2):
        expected = stats.multivariate_normal(sites["loc"][k], covariance(sites)[k]).logpdf(x)
        np.testing.assert_allclose(model.family.log_prob(x, sites)[:, k], expected, rtol=1e-10)


@every_noise
def test_expected_factors_are_the_gaussian_conditional(noise: str) -> None:
    """From the joint covariance of factors and row, by dense algebra."""
    x, model = groups(), MixtureOfFactorAnalysers(2, 2, noise)
    sites = make_sites(model, x)
    shares = model.responsibilities(x, sites)
    statistics = model.family.sufficient_statistics(x, shares, sites)
    for k in range(2):
        gain = sites["loadings"][k].mT @ torch.linalg.inv(covariance(sites)[k])
        factors = (x - sites["loc"][k]) @ gain.mT
        cov = torch.eye(2).double() - gain @ sites["loadings"][k]
        both = torch.cov(torch.cat([factors, x], -1).mT, aweights=shares[:, k], correction=0) * shares[:, k].sum()
        torch.testing.assert_close(statistics.gram[k], both[:2, :2] + shares[:, k].sum() * cov, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(statistics.cross[k], both[2:, :2], rtol=1e-9, atol=1e-9)


@every_noise
@pytest.mark.parametrize("objective", ["map", "ml"])
def test_em_never_falls(noise: str, objective: str) -> None:
    model = MixtureOfFactorAnalysers(2, 2, noise)
    fit = infer(model, groups(), EM(restarts=4, objective=objective, max_steps=200, tolerance=1e-3), seed=0)
    gains = fit.history["objective"].diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-9 * abs(fit.objective)).all()  # rounding of a sum of 80 terms


def test_one_component_is_scikit_learns_factor_analysis() -> None:
    """Both at their optimum; scikit-learn stops when a step gains less than 1e-9 nats."""
    x = groups(200)
    peer = FactorAnalysis(2, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    fit = infer(MixtureOfFactorAnalysers(1, 2), x, EM(restarts=1, objective="ml", tolerance=1e-8), seed=0)
    assert fit.objective == pytest.approx(peer.score(x.numpy()) * len(x), abs=1e-4)
    np.testing.assert_allclose(covariance(fit.sites())[0], peer.get_covariance(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factors", [1, 3])
def test_one_isotropic_component_is_the_closed_form_of_principal_components(factors: int) -> None:
    """Tipping and Bishop (1999): the noise is the mean of the eigenvalues left over."""
    x = groups(200)
    fit = infer(MixtureOfFactorAnalysers(1, factors, "isotropic"), x, EM(restarts=3, objective="ml"), seed=0)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T, ddof=0))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise_var = values[factors:].mean()
    expected = vectors[:, :factors] * (values[:factors] - noise_var) @ vectors[:, :factors].T + noise_var * np.eye(6)
    logs = np.log(values[:factors]).sum() + (6 - factors) * np.log(noise_var) + 6 * (1 + np.log(2 * np.pi))
    assert fit.objective == pytest.approx(-100 * logs, abs=1e-5)
    np.testing.assert_allclose(covariance(fit.sites())[0], expected, rtol=1e-2, atol=1e-2)


@every_noise
def test_units_and_origin_do_not_matter(noise: str) -> None:
    """One EM step from labels; the isotropic noise stands only a change of all units together."""
    x, model = groups(), MixtureOfFactorAnalysers(2, 2, noise)
    scales = torch.tensor([1e-3, 2.0, 50.0, 1.0, 1.0, 7.0]).double() if noise == "diagonal" else torch.tensor(3.0)
    shares = torch.randn(len(x), 2).double().softmax(-1)
    sites, moved = (model.maximise(model.sufficient_statistics(r, shares), model.prior(r)) for r in (x, x * scales - 7))
    # Seven beside 1e-3 leaves eleven digits of the first column.
    root = scales * torch.ones(6).double()
    torch.testing.assert_close(covariance(moved), covariance(sites) * root * root[:, None], rtol=1e-8, atol=0)
    torch.testing.assert_close(moved["loc"], sites["loc"] * scales - 7, rtol=1e-9, atol=0)


@every_noise
def test_fewer_rows_than_columns(noise: str) -> None:
    """Fifteen rows of forty columns in each group: no NaN, noise above the floor, groups found."""
    x = groups(30, 40)
    for objective in ("map", "ml"):
        settings = {"restarts": 3, "objective": objective, "tolerance": 1e-2}
        fit = infer(MixtureOfFactorAnalysers(2, 2, noise), x, EM(**settings), seed=0)
        sites = fit.sites()
        assert all(value.isfinite().all() for value in sites.values())
        assert (sites["noise_var"] > 0).all()
        labels = MixtureOfFactorAnalysers(2, 2, noise).labels(x, sites)
        assert (labels == labels[0]).tolist() == [True, False] * 15


@every_noise
def test_empty_and_tiny_components_give_no_nan(noise: str) -> None:
    x, model = groups(30), MixtureOfFactorAnalysers(2, 2, noise)
    for rows in (0, 1, 3):
        shares = torch.zeros(30, 2).double()
        shares[:rows, 0], shares[rows:, 1] = 1, 1
        statistics = model.sufficient_statistics(x, shares)
        for prior in (None, model.prior(x)):
            sites = model.maximise(statistics, prior)
            assert all(value.isfinite().all() for value in sites.values())
            assert (sites["noise_var"] > 0).all()
        assert model.singular_components(model.family.maximum_likelihood(statistics)).tolist() == [True, False]


def test_three_rows_cannot_tell_two_factors_from_noise() -> None:
    shares = torch.zeros(30, 2).double()
    shares[:3, 0], shares[3:, 1] = 1, 1
    x, model = groups(30), MixtureOfFactorAnalysers(2, 2)
    sites = model.family.maximum_likelihood(model.sufficient_statistics(x, shares))
    within = (x[:3].var(0, correction=0) * 3 + x[3:].var(0, correction=0) * 27) / 30
    torch.testing.assert_close(sites["noise_var"][0], 1e-9 * within, rtol=1e-4, atol=0)  # the floor that is stated


class Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in (out if isinstance(out, tuple | list) else [out]) if isinstance(value, Tensor)]
        self.size = max([self.size, *(tensor.numel() for tensor in tensors)])
        return out


def test_no_matrix_of_the_columns_is_ever_made() -> None:
    """Start, pass, maximisation and density of 30 rows of 400 columns: below a quarter of 400 x 400."""
    x, model = groups(30, 400), MixtureOfFactorAnalysers(2, 2)
    with Largest() as largest:
        sites = make_sites(model, x)
        statistics = model.expectation(model.table(x), sites).statistics
        model.maximise(statistics, None, sites)
        model.log_prior(model.maximise(statistics, model.prior(x), sites), model.prior(x))
        model.drawn(model.table(x), sites)
        model.sample(30, sites, seed=0)
    assert 30 * 400 <= largest.size < 400 * 400 / 4


@every_noise
def test_draws_have_the_moments_of_the_sites(noise: str) -> None:
    """Null: squared distances are chi-square with D degrees; fails once in 1e6. Control: other loadings."""
    model = MixtureOfFactorAnalysers(2, 2, noise)
    sites = make_sites(model, groups())
    x, assignment = model.sample(20_000, sites, seed=1, return_assignments=True)
    for k in range(2):
        offset = x[assignment == k] - sites["loc"][k]
        for cov, right in ((covariance(sites)[k], True), (covariance({**sites, "loadings": -sites["loadings"].flip(-2)})[k], False)):  # fmt: skip  # noqa: E501
            distance = (offset * torch.linalg.solve(cov, offset.mT).mT).sum(-1)
            assert (stats.kstest(distance.numpy(), stats.chi2(6).cdf).pvalue > 1e-6) == right


@every_noise
def test_a_gibbs_step_keeps_the_prior(noise: str) -> None:
    """Null: sites after a step are from the prior; each KS test fails once in 1e6. Control: rows ten times as wide."""
    x, replicates = groups(7, 3, 1), 700
    default = MixtureOfFactorAnalysers(2, 1, noise).prior(x).component
    # Tighter than the default, whose draws of the loadings are far out.
    own = RegressionPrior(default.centre, default.loc, 0.5, default.coefficients, default.precision * 100, 3.0, 40 * default.rate)  # fmt: skip  # noqa: E501
    model = MixtureOfFactorAnalysers(2, 1, noise, component_prior=own)
    prior = model.prior(x)
    nothing = model.sufficient_statistics(x, torch.zeros(replicates, 7, 2).double())
    start = model.draw_sites(model.posterior(prior, nothing))
    rows = model.sample(7, start, seed=3)
    assert min(p_values(start, after_one_step(model, prior, rows, start)).values()) > 1e-6
    wrong = p_values(start, after_one_step(model, prior, 10 * rows, start))
    assert min(wrong.values()) < 1e-6


@every_noise
def test_variational_bayes_rises_and_agrees_with_gibbs(noise: str) -> None:
    """Means of location within five posterior standard deviations of 40 rows each, 0.3: label by label."""
    x = groups()
    fit = infer(MixtureOfFactorAnalysers(2, 2, noise), x, VB(restarts=3), seed=0)
    gains = fit.history["elbo"].diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-9 * fit.elbos.max().abs()).all()
    draws = infer(MixtureOfFactorAnalysers(2, 2, noise), x, Gibbs(chains=2, warmup=50, draws=100), seed=0).draws
    loc = draws["loc"].flatten(0, 1).sort(-2).values.mean(0)
    torch.testing.assert_close(loc, fit.sites()["loc"].sort(-2).values, rtol=0, atol=1.5)


def test_the_bound_is_the_exact_integral_at_a_point() -> None:
    """A posterior as narrow as a point: the bound of a row is its log density at that point."""
    x, model = groups(), MixtureOfFactorAnalysers(2, 2)
    sites = make_sites(model, x)
    narrow = 1e12
    posterior = RegressionPrior(
        torch.full((2, 2), 0.3).double(),
        sites["loc"] + 0.3 * sites["loadings"].sum(-1),
        torch.full((2,), narrow).double(),
        sites["loadings"],
        narrow * torch.eye(2).double().expand(2, 2, 2),
        torch.full((2,), narrow).double(),
        narrow * sites["noise_var"],
    )
    bound = model.family.expected_log_prob(x, posterior)
    torch.testing.assert_close(bound, model.family.log_prob(x, sites), rtol=1e-7, atol=0)


def test_float32_stays_float32_and_close() -> None:
    x = groups(300)
    narrow, wide = (infer(MixtureOfFactorAnalysers(2, 2), r, EM(restarts=2, tolerance=1e-2), seed=0)
                    for r in (x.float(), x))  # fmt: skip
    assert {value.dtype for value in narrow.sites().values()} == {torch.float32}
    assert narrow.objective == pytest.approx(wide.objective, rel=1e-4)


def test_numbers_of_parameters() -> None:
    """By hand, D = 13, Q = 2: 26 loadings less one rotation."""
    assert MixtureOfFactorAnalysers(3, 2).num_parameters(13) == 2 + 3 * (13 + 25 + 13)
    assert MixtureOfFactorAnalysers(3, 2, "isotropic").num_parameters(13) == 2 + 3 * (13 + 25 + 1)


def prior_with(**changes: Any) -> RegressionPrior:
    prior = MixtureOfFactorAnalysers(2, 2).prior(groups()).component
    return RegressionPrior(**{name: changes.get(name, getattr(prior, name)) for name in prior.__dataclass_fields__})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureOfFactorAnalysers(2, 0), "num_factors: expected 1 or more, got 0"),
        (lambda: MixtureOfFactorAnalysers(2, 1, "round"), 'expected "diagonal" or "isotropic", got \'round\''),
        (lambda: MixtureOfFactorAnalysers(2, component_prior=1), "expected RegressionPrior, got int"),
        (
            lambda: MixtureOfFactorAnalysers(2, 3, component_prior=prior_with()).observe(groups()),
            "expected centre to end in (3,) for 6 columns and 3 factors, got (2,)",
        ),
        (
            lambda: MixtureOfFactorAnalysers(2, 2, component_prior=prior_with(concentration=0.0)).observe(groups()),
            "got an improper concentration",
        ),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(message)):
        make()


def test_bad_rows_are_refused() -> None:
    x = load_wine().x
    with pytest.raises(DataError, match="got 13 columns for 13 factors: lower num_factors"):
        infer(MixtureOfFactorAnalysers(2, 13), x, EM(), seed=0)
    with pytest.raises(DataError, match="got 1 of 13 constant, the first at index 3"):
        infer(MixtureOfFactorAnalysers(2, 2), x.index_fill(1, torch.tensor([3]), 1.0), EM(), seed=0)

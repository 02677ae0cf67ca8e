"""The classifier by processes with random variances: its family, its bound, its program, and digits."""

from __future__ import annotations

import math
from dataclasses import replace

import gpytorch
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from digits import shuffled_digits
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.likelihoods import SoftmaxLikelihood
from gpytorch.mlls import VariationalELBO
from gpytorch.models import ApproximateGP
from gpytorch.priors import GammaPrior
from gpytorch.variational import (
    CholeskyVariationalDistribution,
    IndependentMultitaskVariationalStrategy,
    VariationalStrategy,
)
from scipy import stats
from sklearn.svm import SVC
from torch import Tensor

from probmix.errors import DataError, MethodError, ProgramError
from probmix.inference import MAP, NUTS, SVI, ChEES, infer
from probmix.models.scale_mixture_classifier import ScaleMixtureClassifier
from probmix.posterior import load_posterior
from probmix.scale_mixture_guide import ScaleMixtureGuide
from probmix.status import FitWarning

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning", "ignore:There is a performance drop")


def fixed_kernel(outputscale: float = 4.0) -> ScaleKernel:
    """A kernel without priors, so that nothing about it is unknown."""
    kernel = ScaleKernel(RBFKernel()).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = outputscale, 1.0
    return kernel


def rows(num: int, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return x, torch.arange(num) % num_classes


def prior_of_scale(df: float | None) -> dist.InverseGamma | None:
    return None if df is None else dist.InverseGamma(*2 * [torch.tensor([0.5 * df], dtype=torch.float64)])


def random_guide(df: float | None, *, shared: bool = True, covariance: str = "full") -> ScaleMixtureGuide:
    """A guide in general position: three classes, four inducing rows."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tril = torch.diag_embed(noise(3, 4).exp()) + 0.5 * noise(3, 4, 4).tril(-1)
    law = (None, None) if df is None else tuple(noise(1 if shared else 3).exp() + least for least in (3.0, 1.0))
    spread = tril if covariance == "full" else tril.diagonal(dim1=-2, dim2=-1)
    return ScaleMixtureGuide(noise(3, 4), spread, *law, noise(4, 2), {})


# --- the family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize(("df", "shared"), [(4.0, True), (4.0, False), (None, True)])
def test_divergence_is_the_mean_log_ratio_of_guide_and_prior(df, shared, covariance):
    """By 20,000 draws; 4.5 standard errors: false alarms 1e-5 in each case. The control has another prior of s."""
    guide = random_guide(df, shared=shared, covariance=covariance)
    torch.manual_seed(0)
    draws = guide.sample(20_000, None, None)
    v = draws["whitened"]
    tril = guide.tril if covariance == "full" else torch.diag_embed(guide.tril)
    s = draws.get("scale_var", v.new_ones(len(v), 1))
    u = v * s.sqrt()[..., None]  # divided by L
    of_guide = dist.MultivariateNormal(guide.loc, scale_tril=s.sqrt()[..., None, None] * tril).log_prob(u).sum(-1)
    of_prior = dist.Normal(0.0, s.sqrt()[..., None]).log_prob(u).sum((-2, -1))

    def z_score(df_of_prior: float | None) -> float:
        ratios = of_guide - of_prior
        if df is not None:
            mine = stats.invgamma(guide.concentration.numpy(), scale=guide.rate.numpy()).logpdf(s.numpy())
            prior = stats.invgamma(df_of_prior / 2, scale=df_of_prior / 2).logpdf(s.numpy())
            ratios = ratios + torch.tensor((mine - prior).sum(-1))
        return float((ratios.mean() - guide.divergence(prior_of_scale(df))) / (ratios.std() / math.sqrt(len(ratios))))

    assert abs(z_score(df)) < 4.5
    assert df is None or abs(z_score(10 * df)) > 6


@pytest.mark.parametrize("shared", [True, False])
def test_values_at_a_row_are_student_t(shared):
    """Kolmogorov-Smirnov of 20,000 draws of u and f given u; false alarms 1e-5. The control is normal."""
    guide = random_guide(4.0, shared=shared)
    guide = replace(guide, concentration=guide.concentration.new_full(guide.concentration.shape, 1.5))
    root, missing_var = torch.tensor([[0.5, -0.3, 0.2, 0.1]], dtype=torch.float64), torch.tensor([0.4]).double()
    torch.manual_seed(0)
    draws = guide.sample(20_000, None, None)
    std = draws["scale_var"].sqrt()
    mean = std * (draws["whitened"] @ root[0])
    f = mean + std * missing_var.sqrt() * torch.randn(20_000, 3, dtype=torch.float64)
    loc, var = guide.marginals(root, missing_var)
    for c in range(3):
        rate = guide.rate[0 if shared else c]
        law = stats.t(3.0, float(loc[0, c]), float((rate / 1.5 * var[0, c]).sqrt()))
        assert stats.kstest(f[:, c].numpy(), law.cdf).pvalue > 1e-5
        normal = stats.norm(float(loc[0, c]), law.std())
        assert stats.kstest(f[:, c].numpy(), normal.cdf).pvalue < 1e-9
    units = guide.draw_units(20_000)  # what the bound draws, and the points of a prediction
    points = guide.units(4096)
    for sample, alarm in ((units, 1e-5), (points, 1e-5)):
        law = stats.t(3.0, 0.0, float((guide.rate[0] / 1.5).sqrt()))
        assert stats.kstest(sample[:, 0].numpy(), law.cdf).pvalue > alarm


def test_a_common_variance_couples_the_spreads_of_the_classes():
    """Squares of two classes are dependent where s is common: rank correlation of 20,000 draws, 5 standard errors."""
    torch.manual_seed(0)
    found = {}
    for shared in (True, False):
        units = random_guide(4.0, shared=shared).draw_units(20_000).square().numpy()
        found[shared] = stats.spearmanr(units[:, 0], units[:, 1]).statistic
    assert found[True] > 5 / math.sqrt(20_000) > abs(found[False])


# --- the bound ------------------------------------------------------------------------------------------------------


def evidence(model: ScaleMixtureClassifier, x: Tensor, y: Tensor, num: int = 400_000) -> tuple[float, float]:
    """The log evidence and its standard error, by draws from the prior alone: NumPy and the kernel."""
    rng = np.random.default_rng(0)
    tril = np.linalg.cholesky(model.kernel(x).to_dense().detach().numpy() + 1e-9 * np.eye(len(x)))
    s = stats.invgamma(model.df / 2, scale=model.df / 2).rvs((num, 1, 1), random_state=rng) if model.df else 1.0
    f = np.sqrt(s) * (rng.standard_normal((num, model.num_classes, len(x))) @ tril.T)
    of_rows = np.take_along_axis(f, y.numpy()[None, None], 1)[:, 0] - np.logaddexp.reduce(f, 1)
    likelihood = np.exp(of_rows.sum(-1))
    return float(np.log(likelihood.mean())), float(likelihood.std() / likelihood.mean() / math.sqrt(num))


@pytest.mark.parametrize("df", [8.0, None])
def test_bound_is_below_the_evidence_and_ratios_average_to_it(df):
    """The evidence of six rows by 400,000 draws from the prior; errors of 4 standard errors: false alarms 6e-5.

    The guide knows nothing of the posterior's dependence between classes, which costs some 0.3 nats; a bound without
    its divergence is above the evidence. The importance ratios of the guide, through the program, have the evidence as
    their mean, however good the guide is.
    """
    x, y = rows(6)
    model = ScaleMixtureClassifier(num_classes=3, kernel=fixed_kernel(1.0), df=df, inducing=x, learn_inducing=False)
    truth, error = evidence(model, x, y)
    fit = infer(model, (x, y), SVI(learning_rate=0.1, window=50, max_steps=300), seed=0, throw=False)
    bound, noise = fit.elbo
    assert truth - 0.6 < bound < truth + 4 * math.hypot(error, noise)
    assert bound + float(fit.guide.divergence(prior_of_scale(df))) > truth + 0.3
    torch.manual_seed(0)
    weights = fit.guide.log_ratios(10_000, fit.log_density, fit.arguments).exp()
    relative = float(weights.std() / weights.mean()) / math.sqrt(len(weights))
    assert relative < 0.05
    assert abs(float(weights.mean().log()) - truth) < 4 * math.hypot(error, relative)


def test_gaussian_bound_is_that_of_gpytorch():
    """GPyTorch's whitened variational processes with the same parameters, their jitter set to ours."""
    x, y = rows(12)
    model = ScaleMixtureClassifier(num_classes=3, kernel=fixed_kernel(), df=None, inducing=x[:4])
    guide = replace(random_guide(None), inducing=x[:4])

    class Process(ApproximateGP):
        def __init__(self) -> None:
            batch = torch.Size([3])
            q = CholeskyVariationalDistribution(4, batch)
            base = VariationalStrategy(self, x[:4], q, learn_inducing_locations=True, jitter_val=4e-8)
            super().__init__(IndependentMultitaskVariationalStrategy(base, num_tasks=3))
            self.kernel = fixed_kernel()

        def forward(self, rows: Tensor):
            mean = torch.zeros(rows.shape[:-1], dtype=rows.dtype)
            return gpytorch.distributions.MultivariateNormal(mean, self.kernel(rows))

    theirs = Process().double()
    base = theirs.variational_strategy.base_variational_strategy
    base._variational_distribution.variational_mean.data = guide.loc.clone()
    base._variational_distribution.chol_variational_covar.data = guide.tril.clone()
    base.variational_params_initialized.fill_(1)
    with torch.no_grad():
        q = theirs(x)
        loc, var = guide.marginals(*model._given_by(guide, x))
        assert torch.allclose(loc, q.mean, atol=1e-6)  # they add their jitter to the rows, too
        assert torch.allclose(var, q.variance, atol=1e-6)
        kl = theirs.variational_strategy.kl_divergence().sum()
        assert torch.allclose(guide.divergence(None), kl, atol=1e-8)
        parameters = model.first_parameters(x, y) | {"loc": guide.loc, "tril": _free(guide.tril)}
        torch.manual_seed(0)
        ours = model.elbo(parameters, x, y, num_rows=12, num_particles=20_000)
        likelihood = SoftmaxLikelihood(num_classes=3, mixing_weights=False).double()
        with gpytorch.settings.num_likelihood_samples(20_000):
            reference = 12 * VariationalELBO(likelihood, theirs, num_data=12)(q, y)
    # their draws are not paired, so their error is at most some twice ours
    assert abs(float(ours.mean() - reference)) < 4 * 3 * float(ours.std()) / math.sqrt(len(ours)) + 1e-5


def _free(tril: Tensor) -> Tensor:
    return tril.tril(-1) + torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1).log())


def test_many_degrees_of_freedom_are_none():
    """At 1e8 degrees of freedom s is 1 to 1e-4, so bound and predictions are those of the Gaussian processes."""
    x, y = rows(12)
    gaussian = ScaleMixtureClassifier(num_classes=3, kernel=fixed_kernel(), df=None, inducing=x[:4])
    limit = replace(gaussian, df=1e8)
    parameters = limit.first_parameters(x, y) | {"loc": random_guide(None).loc}
    bounds = []
    for model in (gaussian, limit):
        torch.manual_seed(0)
        bounds.append(model.elbo(parameters, x, y, num_rows=12, num_particles=4000))
    error = math.hypot(*(float(b.std()) / math.sqrt(len(b)) for b in bounds))
    assert abs(float(bounds[0].mean() - bounds[1].mean())) < 4 * error + 1e-3  # false alarm 6e-5
    assert (
        abs(
            float(
                replace(gaussian, df=4.0)
                .elbo(limit.first_parameters(x, y), x, y, num_rows=12, num_particles=4000)
                .mean()
                - bounds[0].mean()
            )
        )
        > 1
    )
    fits = [model.guide(parameters) for model in (gaussian, limit)]
    one, other = (gaussian._log_prob_of_guide(guide, x).exp() for guide in fits)
    assert (one - other).abs().max() < 5e-3  # two sets of 512 points


def test_mini_batches_are_unbiased():
    """All rows inducing and q(u) a point: the bound has next to no noise, and the mean over equal batches is it."""
    x, y = rows(12)
    model = ScaleMixtureClassifier(num_classes=3, kernel=fixed_kernel(), df=None, inducing=x)
    parameters = model.first_parameters(x, y)
    parameters["loc"] = torch.randn(3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters["tril"] = torch.diag_embed(torch.full((3, 12), -12.0).double())
    whole = model.elbo(parameters, x, y, num_rows=12, num_particles=100).mean()
    parts = [
        model.elbo(parameters, x[i : i + 3], y[i : i + 3], num_rows=12, num_particles=100).mean() for i in (0, 3, 6, 9)
    ]
    assert abs(float(torch.stack(parts).mean() - whole)) < 1e-6
    assert max(abs(float(part - whole)) for part in parts) > 0.1  # a batch alone is not the whole


# --- fits -----------------------------------------------------------------------------------------------------------


def small() -> tuple[ScaleMixtureClassifier, Tensor, Tensor]:
    """Two classes on a line, the kernel known, all rows inducing."""
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)[:, None]
    y = (x[:, 0] > 0.3).long()
    return ScaleMixtureClassifier(num_classes=2, kernel=fixed_kernel(), inducing=x, learn_inducing=False), x, y


@pytest.mark.parametrize(
    "method", [ChEES(chains=64, warmup=150, draws=30), pytest.param(NUTS(chains=4), marks=pytest.mark.slow)]
)
def test_agrees_with_draws_from_the_posterior_of_the_program(method):
    """Probabilities at eight rows, near and far: within 0.06.

    A guide without correlation between the classes is off by 0.03, by long runs; some thousand dependent draws by 0.01.
    The control: before the data all probabilities are 1/2.
    """
    model, x, y = small()
    x_new = torch.linspace(-4, 4, 8, dtype=torch.float64)[:, None]
    fits = [infer(model, (x, y), m, seed=0) for m in (method, SVI(learning_rate=0.1, window=50))]
    by_draws, by_guide = (model.predictive(x_new, fit).probs for fit in fits)
    assert (by_draws - by_guide).abs().max() < 0.06
    assert (by_draws - 0.5).abs().max() > 0.3


def test_program_runs_by_map_with_hyperparameters_and_fewer_rows():
    x, y = rows(30, 2)
    kernel = ScaleKernel(RBFKernel(lengthscale_prior=GammaPrior(3.0, 3.0)), outputscale_prior=GammaPrior(2.0, 0.5))
    model = ScaleMixtureClassifier(num_classes=2, kernel=kernel, inducing=6, shared_scale=False)
    fit = infer(model, (x, y), MAP(restarts=2, max_steps=200), seed=0, throw=False)
    assert {name: tuple(value.shape) for name, value in fit.sites().items()} == {
        "kernel.outputscale": (), "kernel.base_kernel.lengthscale": (1, 1), "scale_var": (2,), "whitened": (2, 6),
    }  # fmt: skip
    assert fit.log_density.batching == "vmap"
    assert torch.allclose(model.predictive(x, fit).probs.sum(-1), torch.ones(30).double())


def test_what_is_fitted_beside_the_sites():
    x, y = rows(40)
    kernel = ScaleKernel(RBFKernel(), outputscale_prior=GammaPrior(2.0, 0.5))
    model = ScaleMixtureClassifier(num_classes=3, kernel=kernel, inducing=5)
    for learn in (True, False):
        fit = infer(replace(model, learn_inducing=learn), (x, y), SVI(max_steps=20), seed=0, throw=False)
        assert fit.guide.hyperparameters["kernel.outputscale"] != kernel.outputscale
        assert torch.equal(fit.guide.inducing, model.inducing_rows(x, y)) != learn
        assert torch.equal(fit.program.inducing, fit.guide.inducing)
    assert model.inducing == 5


def test_averaging_leaves_alone_what_is_fixed():
    """A run that ends by its own rule averages its parameters: inducing rows that stay come out bit for bit."""
    model, x, y = small()
    fit = infer(replace(model, inducing=5), (x, y), SVI(window=2, tolerance=1e9, max_steps=100), seed=0)
    assert fit.status.state == "converged"
    assert fit.history["elbo"].shape == (1, 10)  # a look after 4, 6, 8 and 10 steps, none with such a gain
    assert torch.equal(fit.guide.inducing, replace(model, inducing=5).inducing_rows(x, y))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = shuffled_digits()
    return x[:500], y[:500], x[500:1000], y[500:1000]


@pytest.fixture(scope="module")
def fitted(digits):
    x, y, *_ = digits
    model = ScaleMixtureClassifier(num_classes=10, depth=2, inducing=60)
    return infer(model, (x, y), SVI(batch_size=125, learning_rate=0.05, max_steps=400), seed=0, throw=False)


def test_reads_digits(digits, fitted):
    """Above 0.93, and within 0.04 of a support vector machine, after 400 steps (500 test rows: standard error 0.01)."""
    x, y, x_test, y_test = digits
    probabilities = fitted.program.predictive(x_test, fitted)
    accuracy = float((probabilities.probs.argmax(-1) == y_test).double().mean())
    baseline = SVC(C=10.0).fit(x.numpy(), y.numpy()).score(x_test.numpy(), y_test.numpy())
    assert accuracy > 0.93
    assert accuracy > baseline - 0.04
    assert -float(probabilities.log_prob(y_test).mean()) < 0.3  # nats; 2.3 know nothing
    assert fitted.guide.loc.dtype == torch.float32


def test_reproducible_by_its_seed():
    model, x, y = small()
    fits = [infer(model, (x, y), SVI(batch_size=4, max_steps=20), seed=seed, throw=False) for seed in (0, 0, 1)]
    bits = [torch.cat([fit.history["elbo"][0], fit.guide.loc.flatten()]) for fit in fits]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


def test_saved_and_loaded(tmp_path, fitted, digits):
    fitted.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit")
    one, other = (fit.program.predictive(digits[2][:5], fit).probs for fit in (fitted, again))
    assert torch.allclose(one, other, atol=1e-5)  # rounding in float32 depends on where tensors lie in memory
    assert torch.equal(again.program.inducing, fitted.guide.inducing)


def test_a_kernel_of_ones_own_is_passed_when_loading(tmp_path):
    model, x, y = small()
    model = replace(model, inducing=4, learn_inducing=True)
    fit = infer(model, (x, y), SVI(max_steps=20), seed=0, throw=False)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=model)
    assert torch.equal(again.program.inducing, fit.guide.inducing)
    assert torch.equal(model.predictive(x, again).probs, model.predictive(x, fit).probs)
    sites = fit.sample(3, seed=0)
    assert torch.equal(again.log_density.log_joint(sites), fit.log_density.log_joint(sites))


def test_goes_to_arviz():
    model, x, y = small()
    fit = infer(model, (x, y), SVI(max_steps=20, num_draws=50), seed=0, throw=False)
    result = fit.to_arviz(predictive_draws=10, prior_draws=10)
    assert result["posterior"]["whitened"].shape == (1, 50, 2, 10)
    assert result["posterior"]["whitened"].dims[2:] == ("class", "inducing")
    assert result["log_likelihood"]["y"].shape == (1, 50, 10)
    assert set(np.unique(result["posterior_predictive"]["y"])) <= {0, 1}
    assert math.isnan(fit.pareto_k)


def test_an_interrupted_fit_is_kept(monkeypatch):
    model, x, y = small()
    calls = []

    def elbo(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    original = ScaleMixtureClassifier.elbo
    monkeypatch.setattr(ScaleMixtureClassifier, "elbo", elbo)
    with pytest.warns(FitWarning, match="stopped by the user after 5"):
        fit = infer(model, (x, y), SVI(), seed=0)
    assert fit.status.state == "interrupted"
    assert fit.history["elbo"].shape == (1, 5)
    assert model.predictive(x, fit).probs.isfinite().all()


def test_a_guide_by_name_is_a_guide_of_the_program():
    model, x, y = small()
    fit = infer(model, (x, y), SVI(guide="diagonal", max_steps=50), seed=0, throw=False)
    assert not isinstance(fit.guide, ScaleMixtureGuide)
    assert model.predictive(x, fit).probs.shape == (10, 2)


# --- settings and refusals ------------------------------------------------------------------------------------------


def test_first_rows_of_each_class_in_turn():
    x, y = torch.arange(7.0)[:, None], torch.tensor([0, 0, 0, 2, 1, 1, 0])
    model = ScaleMixtureClassifier(num_classes=3, inducing=5)
    assert model.inducing_rows(x, y).flatten().tolist() == [0, 3, 4, 1, 5]
    assert len(replace(model, inducing=100).inducing_rows(x, y)) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes: expected at least 2, got 1"),
        (
            {"df": 0.0},
            "df: expected a positive number of degrees of freedom, got 0.0. For Gaussian processes pass None",
        ),
        ({"covariance": "tied"}, 'covariance: expected "full" or "diagonal", got \'tied\''),
        ({"inducing": 0}, "inducing: expected rows, or their number, at least 1, got 0"),
        ({"inducing": torch.zeros(3)}, r"inducing: expected rows of shape \(M, d\), got \(3,\)"),
        ({"kernel": "rbf"}, "kernel: expected a GPyTorch kernel, got 'rbf'"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        ScaleMixtureClassifier(**{"num_classes": 3, **settings})


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([1, 2, 3]), "labels 0 to 2, got 3 in row 2. Number the classes from 0"),
        (torch.zeros(3, 2), torch.tensor([0.0, 0.5, 1.0]), "labels 0 to 2, got 0.5 in row 1"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), "labels 0 to 2, got -1 in row 1"),
        (torch.zeros(3, 2), torch.zeros(3, 3), r"labels y of shape \(n,\), got \(3, 2\) and \(3, 3\).*argmax"),
        (torch.zeros(3, 2, 2), torch.zeros(3), r"rows x of shape \(n, d\).*got \(3, 2, 2\).*flatten"),
        (torch.tensor([[0.0, 1.0], [2.0, math.nan]]), torch.zeros(2), "x: expected finite numbers, got nan in row 1"),
        (torch.zeros(3, 4), torch.zeros(3), "inducing: expected rows of 4 columns, as x has, got 2"),
    ],
)
def test_data_are_refused(x, y, message):
    model = ScaleMixtureClassifier(num_classes=3, inducing=torch.zeros(5, 2))
    with pytest.raises(DataError, match=message):
        infer(model, (x, y), SVI(), seed=0)


def test_new_rows_are_refused(fitted, digits):
    with pytest.raises(DataError, match=r"x_new: expected rows of shape \(m, 64\), as in the fit, got \(2, 3\)"):
        fitted.program.predictive(torch.zeros(2, 3), fitted)
    with pytest.raises(DataError, match="x_new: expected finite numbers, got inf in row 1"):
        fitted.program.predictive(torch.stack([torch.zeros(64), torch.full((64,), torch.inf)]), fitted)


@pytest.mark.parametrize("settings", [{"restarts": 2}, {"init": "prior"}])
def test_starts_that_the_family_has_not_are_refused(settings):
    model, x, y = small()
    with pytest.raises(MethodError, match="the model says where its family starts"):
        infer(model, (x, y), SVI(**settings), seed=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.uint8])
def test_labels_of_any_dtype(dtype):
    model, x, y = small()
    assert torch.equal(model.observe(x, y.to(dtype))[1], y)

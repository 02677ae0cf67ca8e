"""Mixtures of counts, answers, categories and waiting times, against scipy, scikit-learn, integrals and papers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import sklearn.naive_bayes
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceTreeEvaluator
from scipy import integrate, stats
from torch import Tensor
from z_scores import critical

from probmix import additive_family, table
from probmix.arviz import ess
from probmix.column_priors import BetaPrior, DirichletPrior, GammaPrior
from probmix.errors import DataError, ProgramError
from probmix.inference import EM, MAP, infer
from probmix.inference.gibbs import Gibbs
from probmix.inference.mcmc import NUTS
from probmix.inference.vb import VB
from probmix.log_density import LogDensity
from probmix.models.additive_mixture import AbstractAdditiveMixture
from probmix.models.bernoulli_mixture import BernoulliMixture
from probmix.models.categorical_mixture import CategoricalMixture
from probmix.models.exponential_mixture import ExponentialMixture
from probmix.models.poisson_mixture import PoissonMixture


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A model of two components, sites for it, and what scipy calls the log density of one number."""

    model: AbstractAdditiveMixture
    site: Tensor
    scipy: object

    @property
    def sites(self) -> dict[str, Tensor]:
        return {"weights": tensor([0.3, 0.7]), self.model.family.site: self.site}

    @property
    def x(self) -> Tensor:
        return self.model.sample(150, self.sites, seed=0)


CASES = {
    "poisson": Case(PoissonMixture(2), tensor([[2.0, 1.0], [9.0, 4.0]]), stats.poisson.logpmf),
    "exponential": Case(
        ExponentialMixture(2), tensor([[2.0, 1.0], [0.1, 0.05]]), lambda x, rate: stats.expon.logpdf(x, scale=1 / rate)
    ),
    "bernoulli": Case(
        BernoulliMixture(2), tensor([[0.9, 0.8, 0.7, 0.9], [0.2, 0.1, 0.1, 0.3]]), stats.bernoulli.logpmf
    ),
    "categorical": Case(
        CategoricalMixture(2, num_levels=(2, 3, 3)),
        tensor([[[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], [[0.2, 0.8, 0], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1]]]),
        lambda x, probs: np.log(np.take_along_axis(probs, x.astype(int)[..., None], -1)[..., 0]),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def with_trace(case: Case, x: Tensor) -> Tensor:
    """Log joint of the Pyro program, assignments summed out by Pyro."""
    program = poutine.condition(poutine.enum(case.model, first_available_dim=-2), case.sites)
    trace = poutine.trace(program).get_trace(x)
    return TraceTreeEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)


# --- density, program, draws ----------------------------------------------------------------------------------------


@every_case
def test_log_prob_equals_scipy(case):
    x, weights = case.x.numpy(), case.sites["weights"].numpy()
    site = np.broadcast_to(case.site.numpy(), (len(x), *case.site.shape))
    log_prob = case.scipy(np.broadcast_to(x[:, None, :], site.shape[:3]), site).sum(-1)
    ours = case.model.log_prob(case.x, case.sites)
    np.testing.assert_allclose(ours, np.logaddexp.reduce(log_prob + np.log(weights), -1), rtol=1e-11)


@every_case
def test_the_pyro_program_has_the_log_joint_of_the_closed_form(case):
    # Sums of 150 terms in double precision: agreement to 1e-10 leaves a factor of 1e3 over rounding.
    torch.testing.assert_close(case.model.log_joint(case.x, case.sites), with_trace(case, case.x), rtol=1e-10, atol=0)


@every_case
def test_the_gradient_of_the_one_matrix_product_is_that_of_the_program(case):
    x = case.x

    def gradient(function) -> Tensor:
        density = LogDensity(function, density_arguments)
        return density.value_and_grad(z)[1]

    density_arguments = LogDensity.trace(case.model, x).arguments
    z = LogDensity.trace(case.model, x).unconstrain(case.sites) + 0.1
    plain = gradient(lambda rows: case.model(rows))  # a bare function has no log joint but that of its statements
    # Both add up 150 terms; the scores are of order 100.
    torch.testing.assert_close(gradient(case.model), plain, rtol=1e-9, atol=1e-9)
    assert plain.isfinite().all()


@every_case
def test_draws_have_the_moments_of_the_mixture_and_leave_the_global_generator_alone(case):
    torch.manual_seed(5)
    x, assignment = case.model.sample(40_000, case.sites, seed=1, return_assignments=True)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    row = case.model.family.row({case.model.family.site: case.site})
    torch.manual_seed(0)
    expected = row.sample(torch.Size([40_000])).mean(0)
    error_std = x.std(0) / 12_000**0.5 * 2**0.5  # the smaller component has 12,000 of either
    for k in (0, 1):
        # Null: equal means. Ten standard errors of a difference, since few numbers are normal: never by chance.
        assert ((x[assignment == k].mean(0) - expected[k]).abs() < 10 * error_std).all()
    assert ((x.mean(0) - expected[0]).abs() > 10 * error_std).any()  # control: all from the first component


# --- the conjugate algebra ------------------------------------------------------------------------------------------


def one_dimensional() -> dict[str, tuple]:
    """Model of one component, prior of its site as scipy has it, likelihood, range and data."""
    gamma = stats.gamma(1.7, scale=1 / 0.6)
    prior = GammaPrior(tensor([1.7]), tensor([0.6]))
    beta = BetaPrior(tensor([1.3]), tensor([2.2]))
    answers = tensor([[1.0], [1.0], [0.0]])
    return {
        "poisson": (PoissonMixture(1, 1.0, prior), gamma.pdf, stats.poisson.pmf, 60, tensor([[3.0], [0.0], [2.0]])),
        "exponential": (
            ExponentialMixture(1, 1.0, prior),
            gamma.pdf,
            lambda x, rate: stats.expon.pdf(x, scale=1 / rate),
            60,
            tensor([[0.4], [1.7], [0.2]]),
        ),
        "bernoulli": (BernoulliMixture(1, 1.0, beta), stats.beta(1.3, 2.2).pdf, stats.bernoulli.pmf, 1, answers),
        "categorical": (
            CategoricalMixture(1, 1.0, DirichletPrior(tensor([[2.2, 1.3]]))),
            stats.beta(1.3, 2.2).pdf,
            stats.bernoulli.pmf,
            1,
            answers,
        ),
    }


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_prediction_are_integrals_over_the_site(name):
    model, prior_pdf, likelihood, highest, x = one_dimensional()[name]
    prior, ones = model.component_prior, x.new_ones(len(x), 1)

    def integral(rows: Tensor) -> float:
        return integrate.quad(lambda v: prior_pdf(v) * likelihood(rows.numpy(), v).prod(), 0, highest)[0]

    evidence = model.family.log_marginal(prior, model.sufficient_statistics(x, ones)).exp()
    # quad stops at 1.5e-8; one density is 0 or infinite at an end of the range.
    assert float(evidence) == pytest.approx(integral(x), rel=1e-7)
    predicted = model.family.log_predictive(x, model.family.posterior(prior, model.sufficient_statistics(x, ones)))
    expected = [integral(torch.cat([x, x[i : i + 1]])) / integral(x) for i in range(3)]
    np.testing.assert_allclose(predicted.exp().flatten(), expected, rtol=1e-7)
    after = model.family.predictive(model.family.posterior(prior, model.sufficient_statistics(x, ones)))
    np.testing.assert_allclose(after.log_prob(x).exp(), expected, rtol=1e-7)


@every_case
def test_the_posterior_mode_has_no_neighbour_of_greater_density(case):
    model, x = case.model, case.x
    responsibilities = model.responsibilities(x, case.sites)
    prior = model.prior(x)
    statistics = model.sufficient_statistics(x, responsibilities)
    best = model.maximise(statistics, prior)

    def objective(sites: dict[str, Tensor]) -> Tensor:
        return (responsibilities * model.log_prob_components(x, sites)).sum((-2, -1)) + model.log_prior(sites, prior)

    density = LogDensity.trace(model, x)
    z = density.unconstrain(best)
    steps = 1e-3 * torch.cat([torch.eye(density.dim), -torch.eye(density.dim)]).to(z)
    assert (objective(density.constrain(z + steps)) < objective(density.constrain(z))).all()


# --- agreement with others ------------------------------------------------------------------------------------------


@every_case
def test_one_component_is_the_textbook_estimate(case):
    x = case.x
    model = type(case.model)(1, **({"num_levels": (2, 3, 3)} if isinstance(case.model, CategoricalMixture) else {}))
    fit = infer(model, x, EM(objective="ml", restarts=1), seed=0).sites()[model.family.site][0]
    if isinstance(model, CategoricalMixture):
        frequencies = [np.bincount(x[:, d].long(), minlength=3) / len(x) for d in range(3)]
        np.testing.assert_allclose(fit, frequencies, rtol=1e-12)
    else:
        mean = x.mean(0)
        torch.testing.assert_close(fit, 1 / mean if isinstance(model, ExponentialMixture) else mean, rtol=1e-12, atol=0)


def test_with_known_labels_it_is_naive_bayes():
    """scikit-learn adds alpha to each count; so does the mode with a concentration of 1 + alpha."""
    labels = np.arange(150) % 2
    shares = torch.nn.functional.one_hot(torch.as_tensor(labels)).double()
    x = CASES["bernoulli"].x
    model = BernoulliMixture(2, 1.0, BetaPrior(tensor([1.5] * 4), tensor([1.5] * 4)))
    sites = model.maximise(model.sufficient_statistics(x, shares), model.prior(x))
    peer = sklearn.naive_bayes.BernoulliNB(alpha=0.5).fit(x.numpy(), labels)
    np.testing.assert_allclose(model.responsibilities(x, sites), peer.predict_proba(x.numpy()), rtol=1e-10)
    x = CASES["categorical"].x
    prior = DirichletPrior(tensor([[1.5, 1.5, 0.0], [1.5] * 3, [1.5] * 3]), (2, 3, 3))
    latent = CategoricalMixture(2, 1.0, prior, num_levels=(2, 3, 3))
    sites = latent.maximise(latent.sufficient_statistics(x, shares), latent.prior(x))
    peer = sklearn.naive_bayes.CategoricalNB(alpha=0.5).fit(x.numpy().astype(int), labels)
    np.testing.assert_allclose(latent.responsibilities(x, sites), peer.predict_proba(x.numpy().astype(int)), rtol=1e-10)


def test_two_levels_are_a_bernoulli():
    """The same data as codes: equal fits by EM and equal bounds by variational Bayes, from the same starts."""
    x, sizes = CASES["bernoulli"].x, {"restarts": 3}
    codes, answers = CategoricalMixture(2, num_levels=2), BernoulliMixture(2)
    for method in (EM(**sizes), EM(objective="ml", **sizes)):
        one, two = infer(codes, x, method, seed=0), infer(answers, x, method, seed=0)
        torch.testing.assert_close(one.sites()["probs"][..., 1], two.sites()["probs"], rtol=1e-6, atol=1e-9)
    bounds = [infer(model, x, VB(**sizes), seed=0).elbo[0] for model in (codes, answers)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)


def test_the_published_optimum_of_the_death_notices_is_reached():
    """Notices of deaths of women over 80 in The Times, by day, 1910-1912; two Poissons by maximum likelihood.

    Hasselblad (1969), Journal of the American Statistical Association 64, 1459-1471, and many after; to all digits
    that are printed.
    """
    days = tensor([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])
    fit = infer(PoissonMixture(2), torch.arange(10), EM(objective="ml", row_weights=days), seed=0)
    order = fit.sites()["rate"][:, 0].argsort()
    assert fit.objective == pytest.approx(-1989.946, abs=5e-4)
    # The surface is flat: 1e-6 nats, EM's tolerance, are about 1e-3 of a standard error (0.15 and more) of a rate.
    np.testing.assert_allclose(fit.sites()["rate"][order, 0], [1.2561, 2.6634], atol=5e-4)
    np.testing.assert_allclose(fit.sites()["weights"][order], [0.3599, 0.6401], atol=5e-4)


def test_the_published_latent_classes_of_chest_films_are_found():
    """Pleural thickening, three readers; Dayton (1998), Latent Class Scaling Analysis, table 3.2."""
    films = tensor([1513, 23, 59, 12, 21, 19, 11, 34])
    x = torch.cartesian_prod(*[torch.arange(2)] * 3)
    fit = infer(CategoricalMixture(2), x, EM(objective="ml", row_weights=films, max_steps=5000), seed=0)
    assert fit.objective == pytest.approx(-891.14280, abs=1e-5)
    order = fit.sites()["weights"].argsort(descending=True)
    # The source stops at 1e-6 in the parameters, and prints four digits.
    np.testing.assert_allclose(fit.sites()["weights"][order], [0.9455, 0.0545], atol=2e-4)
    expected = [[0.0100, 0.0354, 0.0109], [0.7490, 0.6434, 0.7650]]
    np.testing.assert_allclose(fit.sites()["probs"][order, :, 1], expected, atol=1e-3)


# --- edges ----------------------------------------------------------------------------------------------------------


def test_what_a_component_rules_out_has_density_zero_not_nan():
    poisson = PoissonMixture(2).log_prob_components(
        tensor([[0.0], [2.0]]), {"weights": tensor([0.5, 0.5]), "rate": tensor([[0.0], [1.0]])}
    )
    expected = np.log(0.5) + stats.poisson.logpmf([[0, 0], [2, 2]], [0.0, 1.0])
    np.testing.assert_allclose(poisson, expected, rtol=1e-12)
    assert poisson[1, 0] == -torch.inf
    sites = {"weights": tensor([0.5, 0.5]), "probs": tensor([[0.0, 1.0], [0.5, 0.5]])}
    bernoulli = BernoulliMixture(2).log_prob_components(tensor([[0.0, 1.0], [1.0, 1.0]]), sites).exp()
    torch.testing.assert_close(bernoulli, tensor([[0.5, 0.125], [0.0, 0.125]]), rtol=1e-12, atol=0)


@every_case
@pytest.mark.parametrize("objective", ["ml", "map"])
def test_more_components_than_distinct_rows_give_finite_sites(case, objective):
    """Rows of two kinds in five components, among them a column without any event."""
    levels = {"num_levels": (2, 3, 3)} if isinstance(case.model, CategoricalMixture) else {}
    x = torch.ones(20, case.x.shape[-1], dtype=torch.float64)
    x[:10, 0] = 0.0
    x[:, 1] = 1.0 if isinstance(case.model, ExponentialMixture) else 0.0
    fit = infer(type(case.model)(5, **levels), x, EM(objective=objective, restarts=4), seed=0, throw=False)
    if isinstance(case.model, ExponentialMixture) and objective == "ml":
        assert "collapsed" in fit.status.message  # times of 0: the likelihood has no bound
    else:
        assert fit.status.state == "converged"
    assert all(value.isfinite().all() for value in fit.sites().values())


def test_an_empty_component_keeps_its_site():
    family, x = PoissonMixture(2).family, tensor([[1.0], [3.0]])
    statistics = family.sufficient_statistics(x, tensor([[1.0, 0.0], [1.0, 0.0]]))
    kept = family.maximise(statistics, None, {"rate": tensor([[5.0], [7.0]])})["rate"]
    assert kept.tolist() == [[2.0], [7.0]]
    assert family.maximise(statistics, None)["rate"].tolist() == [[2.0], [2.0]]  # at a start: that of all rows


@every_case
def test_the_default_prior_survives_columns_without_events(case):
    x = torch.zeros(5, case.x.shape[-1], dtype=torch.float64)
    if isinstance(case.model, ExponentialMixture):
        with pytest.raises(DataError, match="2 of 2 that are 0 throughout, the first at index 0: drop them"):
            case.model.observe(x)
        return
    checked = case.model.observe(x)
    sites = case.model.maximise(case.model.sufficient_statistics(x, x.new_full((5, 2), 0.5)), case.model.prior(checked))
    assert LogDensity.trace(case.model, x).unconstrain(sites).isfinite().all()  # inside the support


@every_case
def test_blocks_of_rows_make_no_difference(case, monkeypatch):
    x, weights = case.x, torch.rand(150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = case.model.expectation(case.model.table(x, weights), case.sites)
    monkeypatch.setattr(table, "_BLOCK", 64)
    monkeypatch.setattr(additive_family, "_LARGEST_DESIGN", 1)
    rows = case.model.table(x, weights)
    assert rows.prepared is None
    blocks = case.model.expectation(rows, case.sites)
    torch.testing.assert_close(blocks.log_likelihood, whole.log_likelihood, rtol=1e-12, atol=0)
    for one, two in zip(blocks.statistics, whole.statistics, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@every_case
def test_single_precision_agrees(case):
    x, sites = case.x.float(), {name: value.float() for name, value in case.sites.items()}
    single = case.model.log_prob(x, sites)
    assert single.dtype == torch.float32
    # Terms of up to 1e2, a dozen of them, each with 6e-8 relative.
    torch.testing.assert_close(single.double(), case.model.log_prob(case.x, case.sites), rtol=0, atol=1e-4)


def test_whole_numbers_and_truth_values_are_data():
    counts = torch.tensor([[0, 3], [2, 5], [1, 4]])
    assert infer(PoissonMixture(1), counts, EM(restarts=1), seed=0).sites()["rate"].dtype == torch.float64
    answers = np.array([[True, False], [False, False], [True, True]])
    fit = infer(BernoulliMixture(1), answers, EM(restarts=1, objective="ml"), seed=0)
    np.testing.assert_allclose(fit.sites()["probs"][0], [2 / 3, 1 / 3], rtol=1e-12)


def test_the_mixture_distribution_of_several_draws_is_their_mean():
    case = CASES["categorical"]
    both = {name: torch.stack([value, value.flip(0)]) for name, value in case.sites.items()}
    expected = case.model.log_prob(case.x, both).exp().mean(0).log()
    torch.testing.assert_close(case.model.predictive(both).log_prob(case.x), expected, rtol=1e-10, atol=0)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_data_outside_the_support_are_refused_by_row():
    with pytest.raises(DataError, match=r"counts 0, 1, 2, ..., got 2 of 4 rows .* at index 1 \(column 0\): round them"):
        PoissonMixture(1).observe(tensor([1.0, -1.0, 2.0, 0.5]))
    with pytest.raises(DataError, match=r"zeros and ones, got 1 of 2 rows .* at index 1 \(column 1\): compare"):
        BernoulliMixture(1).observe(tensor([[0.0, 1.0], [1.0, 2.0]]))
    with pytest.raises(DataError, match=r"of 0 or more, got 1 of 3 rows .* at index 2 \(column 0\): drop them"):
        ExponentialMixture(1).observe(tensor([1.0, 2.0, -3.0]))
    model = CategoricalMixture(1, num_levels=(2, 3))
    with pytest.raises(DataError, match=r"codes 0 to 2 in column 1, got 3 in row 1, the first of 2 rows"):
        model.observe(tensor([[0.0, 2.0], [1.0, 3.0], [2.0, 0.0]]))
    with pytest.raises(DataError, match=r"expected 2 columns, one for each entry of num_levels, got 3"):
        model.observe(torch.zeros(4, 3))
    with pytest.raises(DataError, match="1 of 3 rows with NaN or infinity, the first at index 1"):
        PoissonMixture(1).observe(tensor([1.0, torch.nan, 2.0]))


def test_priors_of_another_kind_are_refused():
    with pytest.raises(ProgramError, match=r"expected GammaPrior, got BetaPrior: build it with probmix.column_priors"):
        PoissonMixture(2, 1.0, BetaPrior(tensor([1.0]), 1.0))
    with pytest.raises(ProgramError, match=r"end in \(2,\) for 2 columns, got shape \(3,\)"):
        PoissonMixture(2, 1.0, GammaPrior(tensor([1.0, 1.0, 1.0]), 1.0)).observe(torch.ones(4, 2))
    with pytest.raises(ProgramError, match="all numbers above 0, got one of 0 or less"):
        ExponentialMixture(2, 1.0, GammaPrior(tensor([1.0, 0.0]), 1.0)).observe(torch.ones(4, 2))
    with pytest.raises(ProgramError, match="0 for levels that a column does not have"):
        CategoricalMixture(2, 1.0, DirichletPrior(torch.ones(2, 3), (2, 3)), (2, 3)).observe(torch.zeros(4, 2))
    with pytest.raises(ProgramError, match=r"ends in \(2, 3\) for levels \(2, 3\), got \(2, 2\)"):
        CategoricalMixture(2, 1.0, DirichletPrior(torch.ones(2, 2)), (2, 3)).observe(torch.zeros(4, 2))
    with pytest.raises(ProgramError, match=r"expected 2 or more, or one such number for each column, got \(2, 1\)"):
        CategoricalMixture(2, num_levels=(2, 1))


# --- other engines --------------------------------------------------------------------------------------------------


@every_case
def test_map_stays_at_the_answer_of_em(case):
    em = infer(case.model, case.x, EM(restarts=3, tolerance=1e-9), seed=0)
    found = infer(case.model, case.x, MAP(init=em.sites(), restarts=1), seed=0)
    # EM stops within 1e-9 nats of the top, where the density is flat to second order.
    assert found.objective == pytest.approx(em.objective, abs=1e-6)


@pytest.mark.slow
@every_case
def test_nuts_and_gibbs_have_one_posterior(case):
    """Means of log densities, which no relabelling changes. z-scores of 4 quantities: false alarm 1e-4 a test.

    Negative control: the maximum-a-posteriori sites in the place of one posterior.
    """
    fits = [
        infer(case.model, case.x, NUTS(chains=2, warmup=200, draws=300), seed=0, throw=False),
        infer(case.model, case.x, Gibbs(chains=4, warmup=200, draws=3000), seed=0, throw=False),
    ]
    values = [case.model.log_prob(case.x[:4], fit.draws) for fit in fits]
    for i in range(4):
        means = [float(v[..., i].mean()) for v in values]
        errors = [float(v[..., i].std()) / float(ess(v[..., i].numpy())) ** 0.5 for v in values]
        assert abs(means[0] - means[1]) / np.hypot(*errors) < critical(4, 1e-4)
    point = case.model.log_prob(case.x[:4], infer(case.model, case.x, EM(restarts=3), seed=0).sites())
    errors = [float(v.std()) / float(ess(v.numpy())) ** 0.5 for v in values[1].unbind(-1)]
    assert ((values[1].mean((0, 1)) - point).abs() / tensor(errors) > critical(4, 1e-4)).any()

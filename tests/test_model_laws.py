"""One table of models, one test per law: program and closed form agree, EM never falls, the conjugate algebra holds."""

from __future__ import annotations

import pytest
import torch
from models_table import CONDITIONAL, CONJUGATE, GENERATIVE, MODELS, PROGRAMS, Row
from torch import Tensor

from probmix.arguments import Arguments
from probmix.inference import EM, infer
from probmix.log_density import LogDensity
from probmix.posterior import load_posterior
from probmix.table import Table
from probmix.typing import ClosedFormMixture, ConjugateMixture, Named, NamedData, Observing

every_model = pytest.mark.parametrize("row", MODELS, ids=str)
every_program = pytest.mark.parametrize("row", PROGRAMS, ids=str)
every_generative_model = pytest.mark.parametrize("row", GENERATIVE, ids=str)
every_conditional_model = pytest.mark.parametrize("row", CONDITIONAL, ids=str)
every_conjugate_model = pytest.mark.parametrize("row", CONJUGATE, ids=str)

# Both sides add up the same 40 float64 terms in another order; a factor of 1e4 over rounding is left.
RELATIVE = 1e-10

# Means of draws against closed forms: five standard errors, a false alarm in 2 million for each number.
DRAWS, SIGMAS = 4000, 5.0


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def responsibilities(row: Row, *batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (*batch, len(row.x), row.model.num_components)
    return (2 * torch.randn(shape, generator=generator, dtype=row.x.dtype)).softmax(-1)


def sites_of(row: Row, *batch: int) -> dict[str, Tensor]:
    """Plausible sites, other ones in each entry of the batch."""
    statistics = row.model.sufficient_statistics(row.x, responsibilities(row, *batch))
    return row.model.maximise(statistics, row.model.prior(row.x))


def permuted(row: Row, sites: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    dims = row.model.dims
    return {
        name: value.index_select(value.ndim - len(dims[name]) + dims[name].index("component"), order)
        if "component" in dims[name]
        else value
        for name, value in sites.items()
    }


# --- every model ----------------------------------------------------------------------------------------------------


@every_model
def test_it_keeps_the_protocols(row: Row) -> None:
    for protocol in (Named, NamedData, Observing, ClosedFormMixture, ConjugateMixture):
        assert isinstance(row.model, protocol)
    assert set(sites_of(row)) == set(row.model.dims)
    assert row.model.num_parameters(row.x.shape[-1]) >= row.model.num_components


@every_model
def test_the_data_pass_its_own_checks(row: Row) -> None:
    checked = Arguments.of(row.data if len(row.data) > 1 else row.data[0]).checked_by(row.model)
    torch.testing.assert_close(row.model.rows(*checked.args), row.x, rtol=0, atol=0)


@every_program
def test_the_program_and_the_closed_form_have_one_log_joint(row: Row) -> None:
    density = LogDensity(row.model, Arguments.of(row.data))
    sites = sites_of(row, 2)
    traced = density.log_joint(sites)
    closed = row.model.log_joint(row.x, sites)
    torch.testing.assert_close(traced, closed, rtol=RELATIVE, atol=0)
    z = density.unconstrain(sites)
    torch.testing.assert_close(density.value(z, jacobian=False), closed, rtol=1e-9, atol=0)


@every_model
def test_a_batch_of_sites_is_each_of_them_alone(row: Row) -> None:
    sites = sites_of(row, 2, 2)
    batch = row.model.log_prob_components(row.x, sites)
    assert batch.shape == (2, 2, *row.x.shape[:1], row.model.num_components)
    one = row.model.log_prob_components(row.x, {name: value[1, 0] for name, value in sites.items()})
    torch.testing.assert_close(batch[1, 0], one, rtol=RELATIVE, atol=RELATIVE)


@every_model
def test_labels_do_not_matter(row: Row) -> None:
    order = torch.tensor([2, 0, 1])
    sites = sites_of(row)
    turned = permuted(row, sites, order)
    torch.testing.assert_close(row.model.log_prob(row.x, turned), row.model.log_prob(row.x, sites), rtol=1e-12, atol=0)
    expected = row.model.responsibilities(row.x, sites)[:, order]
    torch.testing.assert_close(row.model.responsibilities(row.x, turned), expected, rtol=1e-9, atol=1e-12)


@every_model
def test_one_pass_is_the_sum_over_the_rows(row: Row) -> None:
    """Whatever shortcut ``expectation`` takes: log-likelihood, and sites made of the statistics, are the plain ones."""
    sites, prior = sites_of(row, 2), row.model.prior(row.x)
    log_likelihood, statistics = row.model.expectation(row.model.table(row.x), sites)
    torch.testing.assert_close(log_likelihood, row.model.log_prob(row.x, sites).sum(-1), rtol=1e-9, atol=0)
    plain = row.model.family.sufficient_statistics(row.x, row.model.responsibilities(row.x, sites), sites)
    expected = row.model.maximise(plain, prior, sites)
    for name, value in row.model.maximise(statistics, prior, sites).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


@every_model
def test_a_weight_of_two_is_a_row_twice(row: Row) -> None:
    sites, weights = sites_of(row, 2), (torch.arange(40) % 3).to(row.x)
    copies = row.x.repeat_interleave(weights.long(), 0)
    weighted, repeated = (
        row.model.expectation(table, sites) for table in (row.model.table(row.x, weights), row.model.table(copies))
    )
    torch.testing.assert_close(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-9, atol=0)
    expected = row.model.maximise(repeated.statistics, None, sites)
    for name, value in row.model.maximise(weighted.statistics, None, sites).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


@every_model
@pytest.mark.parametrize("objective", ["map", "ml"])
def test_em_never_falls(row: Row, objective: str) -> None:
    em = infer(row.model, row.data, EM(restarts=3, objective=objective, max_steps=60), seed=0, throw=False)
    history = em.history["objective"]
    gain = history.diff(dim=-1)
    # 16 epsilons of the objective is what the sum over the rows may lose; a restart that has stopped is NaN.
    assert ((gain >= -1e-8 * history[..., :-1].abs()) | gain.isnan()).all()
    assert gain.nan_to_num().max() > 0
    assert all(value.isfinite().all() for value in em.sites().values())


@every_generative_model
def test_new_rows_are_of_the_same_kind(row: Row) -> None:
    sites = sites_of(row, 2)
    x, assignment = row.model.sample(500, sites, seed=1, return_assignments=True)
    assert x.shape == (2, 500, row.x.shape[-1])
    assert assignment.shape == (2, 500)
    assert torch.equal(x, row.model.sample(500, sites, seed=1))
    assert not torch.equal(x, row.model.sample(500, sites, seed=2))
    assert x.dtype == row.x.dtype


@every_generative_model
def test_the_fit_of_many_samples_is_the_truth(row: Row) -> None:
    """EM from the sites that a sample was drawn from gains little on it.

    Null: twice the gain is about a chi-square with as many degrees of freedom as parameters (Wilks 1938), which passes
    six times that number less than once in 1e6. Control: other sites are further away.
    """
    labels = torch.nn.functional.one_hot(torch.arange(len(row.x)) % 3).to(row.x)
    truth = row.model.maximise(row.model.sufficient_statistics(row.x, labels), row.model.prior(row.x))
    x = row.model.sample(3000, truth, seed=2)
    state, prior = truth, row.model.prior(x)
    table = row.model.table(x)
    for _ in range(20):
        state = row.model.maximise(row.model.expectation(table, state).statistics, prior, state)
    gain = row.model.log_prob(x, state).sum() - row.model.log_prob(x, truth).sum()
    num_parameters = row.model.num_parameters(x.shape[-1])
    assert -num_parameters < gain < 3 * num_parameters
    assert row.model.log_prob(x, state).sum() - row.model.log_prob(x, sites_of(row)).sum() > 3 * num_parameters


@every_model
def test_a_fit_is_saved_and_read_again(row: Row, tmp_path) -> None:
    em = infer(row.model, row.data, EM(restarts=2, max_steps=5), seed=0, throw=False)
    em.save(tmp_path / "em.safetensors")
    again = load_posterior(tmp_path / "em.safetensors")
    assert again.program == row.model
    for name, value in em.sites().items():
        assert torch.equal(again.sites()[name], value)


@every_model
def test_a_fit_goes_to_arviz_with_named_axes(row: Row) -> None:
    em = infer(row.model, row.data, EM(restarts=2, max_steps=5), seed=0, throw=False)
    tree = em.to_arviz(prior_draws=5)
    for name, axes in row.model.dims.items():
        assert tree["point_estimate"][name].dims == axes
    assert len(tree["observed_data"]) >= 1


# --- the conjugate algebra ------------------------------------------------------------------------------------------


def halves(row: Row):
    r = responsibilities(row)
    return (row.model.sufficient_statistics(row.x[part], r[part]) for part in (slice(0, 15), slice(15, 40)))


@every_conjugate_model
def test_evidence_comes_in_instalments(row: Row) -> None:
    """All data at once, or the second half after the first."""
    family, prior = row.model.family, row.model.prior(row.x).component
    first, second = halves(row)
    whole = family.log_marginal(prior, first + second)
    parts = family.log_marginal(prior, first) + family.log_marginal(family.posterior(prior, first), second)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@every_conjugate_model
def test_evidence_is_joint_over_posterior(row: Row) -> None:
    """At any sites: prior times likelihood of rows with known assignments, over the posterior density."""
    family, prior, sites = row.model.family, row.model.prior(row.x).component, sites_of(row)
    labels = torch.nn.functional.one_hot(torch.arange(40) % 3, 3).to(row.x)
    statistics = row.model.sufficient_statistics(row.x, labels)
    likelihood = (family.log_prob(row.x, sites) * labels).sum((-2, -1))
    joint = family.log_prior(sites, prior) + likelihood
    posterior = family.log_prior(sites, family.posterior(prior, statistics))
    torch.testing.assert_close(joint - posterior, family.log_marginal(prior, statistics), rtol=1e-8, atol=1e-8)


@every_conjugate_model
def test_one_row_is_predicted_by_its_evidence(row: Row) -> None:
    family, prior = row.model.family, row.model.prior(row.x).component
    posterior = family.posterior(prior, next(halves(row)))
    predicted = family.log_predictive(row.x[:4], posterior)
    for i, k in ((0, 0), (3, 2)):
        alone = torch.zeros(1, 3, dtype=row.x.dtype)
        alone[0, k] = 1
        expected = family.log_marginal(posterior, row.model.sufficient_statistics(row.x[i : i + 1], alone))
        torch.testing.assert_close(predicted[i, k], expected, rtol=1e-8, atol=1e-8)


@every_conjugate_model
def test_expectations_and_divergence_are_means_over_draws(row: Row) -> None:
    model, prior = row.model, row.model.prior(row.x)
    posterior = model.posterior(
        prior, model.sufficient_statistics(row.x, responsibilities(row, DRAWS)[:1].expand(DRAWS, -1, -1))
    )
    draws = model.draw_sites(posterior)
    one = model.posterior(prior, model.sufficient_statistics(row.x, responsibilities(row, DRAWS)[0]))
    log_prob = model.family.log_prob(row.x[:3], draws)
    expected = model.family.expected_log_prob(row.x[:3], one.component)
    error_std = log_prob.std(0) / DRAWS**0.5
    assert ((log_prob.mean(0) - expected).abs() < SIGMAS * error_std + 1e-9).all()
    ratio = model.log_prior(draws, one) - model.log_prior(draws, prior)
    error_std = ratio.std() / DRAWS**0.5
    divergence = model.divergence(one, prior)
    assert (ratio.mean() - divergence).abs() < SIGMAS * error_std
    assert (ratio.mean() - 1.05 * divergence).abs() > SIGMAS * error_std  # the control
    torch.testing.assert_close(model.divergence(one, one), torch.zeros_like(divergence), rtol=0, atol=1e-9)


@every_conjugate_model
def test_the_variational_pass_is_the_sum_over_the_rows(row: Row) -> None:
    model, prior = row.model, row.model.prior(row.x)
    posterior = model.posterior(prior, model.sufficient_statistics(row.x, responsibilities(row, 2)))
    log_likelihood, statistics = model.variational_expectation(model.table(row.x), posterior)
    log_weights = posterior.weights.expected_log()
    scores = log_weights[..., None, :] + model.family.expected_log_prob(row.x, posterior.component)
    torch.testing.assert_close(log_likelihood, scores.logsumexp(-1).sum(-1), rtol=1e-9, atol=0)
    plain = model.sufficient_statistics(row.x, scores.softmax(-1))
    expected = model.maximise(plain, prior)
    for name, value in model.maximise(statistics, prior).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


@every_conditional_model
def test_drawn_assignments_follow_the_responsibilities(row: Row) -> None:
    """Mean counts of 4,000 draws of all assignments against the summed responsibilities."""
    sites = {name: value[:1].expand(DRAWS, *value.shape[1:]) for name, value in sites_of(row, 1).items()}
    one = {name: value[0] for name, value in sites.items()}
    drawn = row.model.drawn(row.model.table(row.x), sites)
    expected = row.model.responsibilities(row.x, one)
    torch.testing.assert_close(drawn.log_likelihood[0], row.model.log_prob(row.x, one).sum(), rtol=1e-9, atol=0)
    count = drawn.statistics.count
    assert (count == count.round()).all()
    error_std = (expected * (1 - expected)).sum(0).sqrt() / DRAWS**0.5
    assert ((count.mean(0) - expected.sum(0)).abs() < SIGMAS * error_std + 1e-9).all()


@every_model
def test_a_table_keeps_the_rows(row: Row) -> None:
    table = row.model.table(row.x)
    assert isinstance(table, Table)
    assert table.x is row.x or torch.equal(table.x, row.x)

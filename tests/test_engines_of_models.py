"""Variational Bayes and Gibbs on every conjugate model of the table: one test for each law. A new model adds a row.

Statistical tests: false-alarm rate `FALSE_ALARM` in each for a fresh seed, shared out over its quantities.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models_table import CONDITIONAL, CONJUGATE, Row
from torch import Tensor
from z_scores import critical

from probmix.errors import ProgramError
from probmix.evidence import exact_log_evidence
from probmix.inference import VB, Gibbs, infer
from probmix.posterior import load_posterior
from probmix.simulation import trace_sites

FALSE_ALARM = 1e-4
EVERY = pytest.mark.parametrize("row", CONDITIONAL, ids=str)


def fixed(row: Row, num_components: int | None = None) -> Any:
    """The model with the prior that these data give it, which then follows no other data."""
    prior = row.model.prior(row.x).component
    return replace(row.model, component_prior=prior, num_components=num_components or row.model.num_components)


def few(row: Row, num: int) -> tuple[Tensor, ...]:
    return tuple(table[:num] for table in row.data)


@EVERY
def test_the_bound_never_falls(row):
    """1e-10 of the bound's size is the rounding of sums of a few hundred terms."""
    fit = infer(row.model, row.data, VB(restarts=4, init="random"), seed=0)
    history = fit.history["elbo"]
    gains = history.diff(dim=-1)
    assert (gains[gains.isfinite()] > -1e-10 * history[history.isfinite()].abs().max()).all()
    assert all(value.isfinite().all() for value in fit.sites().values())
    assert float(fit.guide.count.sum()) == pytest.approx(len(row.x), rel=1e-9)


@pytest.mark.parametrize("row", CONJUGATE, ids=str)
def test_the_bound_is_below_the_exact_evidence(row):
    """Six rows in two components: 64 assignments. Negative control: the divergence added instead of subtracted."""
    model, data = fixed(row, 2), few(row, 6)
    exact = float(exact_log_evidence(model, *data))
    fit = infer(model, data, VB(), seed=0)
    assert (fit.elbos <= exact).all()
    divergence = float(model.divergence(fit.guide.posterior, fit.guide.prior))
    assert fit.elbo[0] + 2 * divergence > exact


@pytest.mark.parametrize("row", [row for row in CONDITIONAL if row not in CONJUGATE], ids=str)
def test_latent_variables_of_rows_have_no_exact_evidence(row):
    with pytest.raises(ProgramError, match=f"no latent variable of each row, got {type(row.model).__name__}"):
        exact_log_evidence(row.model, *few(row, 6))


@EVERY
def test_the_bound_is_below_the_importance_estimate(row):
    """The mean of log p / q over draws from q is a tighter bound than the ELBO, which fixes q(z) as well.

    Null: it is not below; z-score of 1,000 independent draws.
    """
    fit = infer(row.model, row.data, VB(restarts=4), seed=0)
    torch.manual_seed(0)
    ratios = fit.guide.log_ratios(1000, None, fit.arguments)
    error = float(ratios.std()) / 1000**0.5 + 1e-9
    assert (float(ratios.mean()) - fit.elbo[0]) / error > -critical(1, FALSE_ALARM)


@EVERY
def test_a_guide_is_saved_and_loaded(row, tmp_path):
    fit = infer(row.model, row.data, VB(restarts=2), seed=0)
    fit.save(tmp_path / "vb")
    again = load_posterior(tmp_path / "vb")
    one, two = (posterior.sample(3, seed=1) for posterior in (fit, again))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@EVERY
def test_gibbs_reports_the_log_joint_density_of_its_draws(row):
    fit = infer(row.model, row.data, Gibbs(chains=2, warmup=3, draws=5), seed=0)
    assert set(fit.draws) == set(row.model.dims)
    torch.testing.assert_close(fit.sample_stats["lp"], row.model.log_joint(row.x, fit.draws), rtol=1e-9, atol=1e-9)
    start = infer(row.model, row.data, Gibbs(chains=2, warmup=0, draws=5, init="prior"), seed=0)
    assert all(value.isfinite().all() for value in start.draws.values())


# --- the joint distribution -----------------------------------------------------------------------------------------


def joint(model: Any, data: tuple[Tensor, ...], num: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Independent draws of sites and rows from the Pyro program: nothing of Gibbs or its closed form is in them."""
    torch.manual_seed(7)
    draws = trace_sites(lambda: model(*data), num)
    (observed,) = model.observed_dims
    return {name: draws[name] for name in model.dims}, [model.rows(*data[:-1], one) for one in draws[observed]]


def moved(assumed: Any, sites: dict[str, Tensor], rows: list[Tensor]) -> dict[str, Tensor]:
    """Each set of sites after one iteration of Gibbs for its own rows, under the model assumed."""
    after = []
    for i, x in enumerate(rows):
        here = {name: value[i : i + 1] for name, value in sites.items()}
        statistics = assumed.drawn(assumed.table(x), here).statistics
        after.append(assumed.draw_sites(assumed.posterior(assumed.prior(x), statistics)))
    return {name: torch.cat([one[name] for one in after]) for name in sites}


def quantities(model: Any, sites: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
    """Entries of the sites, the sum of squared weights, both log densities, rows times weights, ``(num, q)``."""
    single = [{name: value[i] for name, value in sites.items()} for i in range(len(rows))]
    likelihood = torch.stack([model.log_prob(x, one).sum() for x, one in zip(rows, single, strict=True)])
    prior = torch.stack([model.log_prior(one, model.prior(rows[0])) for one in single])
    entries = torch.cat([value.reshape(len(rows), -1) for value in sites.values()], 1)
    together = torch.stack([x.mean() for x in rows])[:, None] * sites["weights"]
    numbers = torch.stack([sites["weights"].square().sum(-1), likelihood, prior], 1)
    return torch.cat([entries, together, numbers], 1)


def largest_z(before: Tensor, after: Tensor) -> float:
    """Of paired differences of independent replicates.

    Quantities go through an arctangent about their median first: tails of a prior may have no moments.
    """
    middle = before.median(0).values
    width = (before - middle).abs().median(0).values.clamp_min(1e-12)
    change = ((after - middle) / width).atan() - ((before - middle) / width).atan()
    change = change[:, change.std(0) > 1e-9]
    return float((change.mean(0) / change.std(0) * len(change) ** 0.5).abs().max())


@EVERY
def test_an_iteration_of_gibbs_leaves_the_joint_distribution_alone(row):
    """Geweke (2004), Getting it right, from independent starts: sites and data drawn together stay so.

    Negative control: a prior of the weights ten times as concentrated.
    """
    model, data = fixed(row), few(row, 12)
    wrong = replace(model, weight_concentration=10 * model.weight_concentration)
    sites, rows = joint(model, data, 250)
    before = quantities(model, sites, rows)
    limit = critical(before.shape[1], FALSE_ALARM)
    assert largest_z(before, quantities(model, moved(model, sites, rows), rows)) < limit
    assert largest_z(before, quantities(model, moved(wrong, sites, rows), rows)) > limit

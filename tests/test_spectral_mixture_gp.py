"""Spectral-mixture processes: the program by hand, its structures against a dense matrix, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from process_cases import t
from scipy import stats
from spectral_mixture_cases import (
    HOLED,
    LATTICE,
    LAYOUTS,
    MONTHS,
    PLANE,
    SCATTERED,
    SHUFFLED,
    N,
    Q,
    covariance,
    half_a_cycle_per_median_step,
    holes_are_meant,
    observations,
    sites_of,
)
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.gpytorch_priors import covariance_matrix
from probmix.inference.hessian import hessian
from probmix.log_density import LogDensity
from probmix.models import SpectralMixtureGP, process_model, spectral_mixture_gp
from probmix.structured_normal import Dense

# --- the program ------------------------------------------------------------------------------------------------------


def log_joint(model: SpectralMixtureGP, sites: dict[str, Tensor], x: Tensor, y: Tensor, highest: list[float]) -> float:
    """Documented priors by scipy, and torch's multivariate normal of every output about its mean."""
    columns, variance = x.shape[1], float(y.reshape(len(y), -1).var(0).mean())
    share = variance ** (1 / columns) if model.product else variance
    values = {name: np.asarray(value) for name, value in sites.items()}
    span = (x.max(0).values - x.min(0).values).numpy()
    high = np.array(highest)
    if model.product:
        span, high = span[:, None], high[:, None]
    if model.weight_prior == "log_normal":
        of_weights = stats.norm(np.log(share / Q), 3.0)
    else:
        of_weights = stats.uniform(np.log(1e-8 * share), np.log(1e2 / 1e-8))
    total = of_weights.logpdf(values["kernel.log_weights"]).sum()
    total += stats.uniform(0, high).logpdf(values["kernel.frequencies"]).sum()
    total += stats.norm(np.log(0.5 / span), 2.5).logpdf(values["kernel.log_bandwidths"]).sum()
    if model.noise_var is None:
        total += stats.lognorm(1.5, loc=2.0**-26 * variance, scale=0.1 * variance).logpdf(values["noise_var"])
    matrix = t(covariance(model, sites, x))
    for column in y.reshape(len(y), -1).T:
        total += float(torch.distributions.MultivariateNormal(column.mean().expand(len(y)), matrix).log_prob(column))
    return float(total)


PROGRAMS: dict[str, tuple[dict[str, Any], Tensor, int, list[float] | None]] = {
    "gaussian": ({}, SCATTERED, 1, None),
    "student_t": ({"spectrum": "student_t"}, SCATTERED, 1, None),
    "jeffreys": ({"weight_prior": "jeffreys", "max_frequency": 40.0}, SCATTERED, 2, [40.0]),
    "two inputs": ({"max_frequency": (9.0, 12.0), "spectrum": "student_t"}, PLANE, 2, [9.0, 12.0]),
    "product": ({"product": True}, PLANE, 1, None),
    "product, known noise": (
        {"product": True, "spectrum": "student_t", "weight_prior": "jeffreys", "noise_var": 0.3},
        PLANE,
        2,
        None,
    ),
    "even": ({}, MONTHS, 2, [6.0]),
    "grid": ({"product": True, "spectrum": "student_t"}, LATTICE, 2, None),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_is_the_formula(name):
    """1e-9: rounding, times a condition number of some hundreds."""
    settings, x, outputs, highest = PROGRAMS[name]
    model, y = SpectralMixtureGP(Q, **settings), observations(len(x), outputs)
    density, sites = LogDensity.trace(model, (x, y)), sites_of(model, x, 2)
    assert {site.name for site in density.latents} == set(sites)
    for i, found in enumerate(density.log_joint(sites)):
        one = {site: value[i] for site, value in sites.items()}
        assert found.isfinite()
        highest = highest or half_a_cycle_per_median_step(x)
        assert float(found) == pytest.approx(log_joint(model, one, x, y, highest), rel=1e-9)


def test_outside_their_bounds_frequencies_have_no_density():
    model, y = SpectralMixtureGP(Q, max_frequency=(0.3, 0.8)), observations(N)
    density, sites = LogDensity.trace(model, (PLANE, y)), sites_of(model, PLANE)
    sites["kernel.frequencies"] = t([[0.29, 0.79]] * Q)
    assert density.log_joint(sites).isfinite()
    for bad in ([0.31, 0.79], [0.29, 0.81]):
        sites["kernel.frequencies"] = t([bad] * Q)
        trace = pyro.poutine.trace(pyro.poutine.condition(model, sites)).get_trace(PLANE, y)
        assert not trace.nodes["kernel.frequencies"]["fn"].support.check(sites["kernel.frequencies"]).all()


@pytest.mark.parametrize(("prior", "moves"), [("jeffreys", False), ("log_normal", True)])
def test_jeffreys_prior_is_flat_in_the_logarithm(prior, moves):
    """The same density wherever the weights are within its bounds; a log-normal's falls, by the control."""
    model, y = SpectralMixtureGP(Q, weight_prior=prior), observations(N)
    values = []
    for shift in (-12.0, -3.0, 0.0, 2.0):
        sites = sites_of(model, SCATTERED)
        sites["kernel.log_weights"] = sites["kernel.log_weights"] + shift
        trace = pyro.poutine.trace(pyro.poutine.condition(model, sites)).get_trace(SCATTERED, y)
        trace.compute_log_prob()
        values.append(float(trace.nodes["kernel.log_weights"]["log_prob_sum"]))
    assert (max(values) - min(values) > 1) == moves
    assert moves or max(values) == min(values)


# --- structures -------------------------------------------------------------------------------------------------------


@holes_are_meant
@pytest.mark.parametrize("name", LAYOUTS)
def test_structures_are_the_dense_matrix(name):
    """Values, gradients and Hessians, relative to the largest number of each, to 1e-8.

    Rounding of months from 1958 on is 2e-13, of lags at 6 cycles a year 1e-11 of a turn. The control: half as much
    noise moves all of them by more than 1e-3.
    """
    settings, x, kind = LAYOUTS[name]
    y = observations(len(x), 2)
    ours, dense = (
        LogDensity.trace(SpectralMixtureGP(Q, structure=how, **settings), (x, y)) for how in ("auto", "dense")
    )
    assert ours.batching == dense.batching == "vmap"
    drawn = pyro.poutine.trace(SpectralMixtureGP(Q, **settings)).get_trace(x, y).nodes["y"]["fn"]
    assert isinstance(drawn.covariance, kind)
    z = ours.unconstrain(sites_of(ours.program, x, 3))
    less_noise = z.clone()
    less_noise[:, ours.latents[-1].slice] -= math.log(2)
    assert ours.latents[-1].name == "noise_var"

    def figures(density: LogDensity, z: Tensor) -> list[Tensor]:
        return [*density.value_and_grad(z), hessian(density, z[0])]

    for found, expected, other in zip(figures(ours, z), figures(dense, z), figures(dense, less_noise), strict=True):
        size = expected.abs().max()
        torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-8)
        assert ((other - expected) / size).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["even", "grid"])
def test_whoever_asks_for_a_dense_matrix_gets_one(name):
    settings, x, _ = LAYOUTS[name]
    model = SpectralMixtureGP(Q, structure="dense", **settings)
    drawn = pyro.poutine.trace(model).get_trace(x, observations(len(x)))
    assert isinstance(drawn.nodes["y"]["fn"].covariance, Dense)


@pytest.mark.parametrize(("structure", "pairs"), [("auto", N), ("dense", 21 * 21)])
@holes_are_meant
def test_of_a_series_with_holes_only_the_lags_are_computed(structure, pairs, monkeypatch):
    """24 of them in the place of all pairs of 21 rows."""
    made = []

    def spy(kernel: Any, *rows: Tensor) -> Tensor:
        made.append(len(rows[0]) * len(rows[-1]))
        return covariance_matrix(kernel, *rows)

    for module in (spectral_mixture_gp, process_model):
        monkeypatch.setattr(module, "covariance_matrix", spy)
    pyro.poutine.trace(SpectralMixtureGP(Q, structure=structure)).get_trace(MONTHS[HOLED], observations(21))
    assert made == [pairs]


def test_the_order_of_rows_does_not_matter():
    """1e-10: one and the same sum, in another order."""
    for settings, x in (({}, SCATTERED), ({}, MONTHS), ({"product": True}, LATTICE), ({"product": True}, PLANE)):
        model, y = SpectralMixtureGP(Q, **settings), observations(N)
        sites = sites_of(model, x)
        one, two = (
            LogDensity.trace(model, (x[rows], y[rows])).log_joint(sites) for rows in (torch.arange(N), SHUFFLED)
        )
        torch.testing.assert_close(one, two, rtol=1e-10, atol=0)


# --- bad input --------------------------------------------------------------------------------------------------------

BAD_X, BAD_Y = MONTHS.clone(), observations(N)
BAD_X[4], BAD_Y[7] = torch.inf, torch.nan
Y = observations(N)
CONSTANT = torch.cat([MONTHS, torch.full_like(MONTHS, 2.5)], -1)
DATA = {
    "a constant column": ({}, CONSTANT, Y, r"x: expected inputs that vary, got 2.5 in all rows of column 1. Drop it"),
    "a constant column, bounded": ({"max_frequency": 1.0}, CONSTANT, Y, "got 2.5 in all rows of column 1. Drop it"),
    "constant y": ({}, MONTHS, 0 * Y, "y: expected observations that differ, got a constant column. Drop it"),
    "one constant output": ({}, MONTHS, torch.stack([Y, 0 * Y], -1), "observations that differ, got a constant column"),
    "infinite x": ({}, BAD_X, Y, "x: expected finite numbers, got 1 of 24 rows with NaN or infinity, .* at index 4"),
    "missing y": ({}, MONTHS, BAD_Y, "y: expected finite numbers, got 1 of 24 rows with NaN or infinity, .* index 7"),
    "x without columns": ({}, MONTHS[:, 0], Y, r"got \(24,\) and \(24,\). A single input column is x\[:, None\]"),
    "fewer y": ({}, MONTHS, Y[:5], r"n at least 2, got \(24, 1\) and \(5,\)"),
    "no grid": ({"structure": "grid"}, SCATTERED, Y, r'an evenly spaced series, .* got scattered rows. Set structure='),
    "no product": ({"structure": "grid"}, LATTICE, Y, r"or with product=True all points of a grid, got scattered rows"),
    "a grid with holes": (
        {"structure": "grid"},
        MONTHS[HOLED],
        Y[HOLED],
        r'x: the inputs are a grid with 3 of 24 points missing, the first at 1958.42. Fill them, or set structure="au',
    ),
    "no noise": (
        {"noise_var": 0.0},
        MONTHS[[0, 1, 1, 2]],
        Y[:4],
        "differ where there is no noise, got equal rows 1 and 2. Drop one of them, or give noise_var a prior",
    ),
    "beyond Nyquist": (
        {"max_frequency": 6.1},
        MONTHS,
        Y,
        "max_frequency: expected at most 6, the Nyquist frequency of column 0 of x, which is evenly spaced, got 6.1. "
        "At even steps a higher frequency is the same function as a lower one; leave max_frequency out",
    ),
    "beyond Nyquist, second": (
        {"max_frequency": [9.0, 0.6], "product": True},
        LATTICE,
        Y,
        "at most 0.5, the Nyquist frequency of column 1 of x, which is evenly spaced, got 0.6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used(name):
    """By a fit and by a prediction, with the same words."""
    settings, x, y, message = DATA[name]
    model = SpectralMixtureGP(Q, **settings)
    with pytest.raises(DataError, match=message):
        LogDensity.trace(model, (x, y))
    with pytest.raises(DataError, match=message):
        model.predictive(x, sites_of(model, MONTHS), x, y)


@pytest.mark.parametrize("given", [0.0, -1.0, math.inf, math.nan, "12", (1.0, -2.0), torch.tensor(3.0)])
def test_bounds_of_frequencies_that_are_none(given):
    message = r"max_frequency: expected a positive number of cycles per unit, or one for each input, got"
    with pytest.raises(ProgramError, match=message):
        SpectralMixtureGP(Q, max_frequency=given)


@pytest.mark.parametrize("given", [(1.0, 2.0), ()])
def test_as_many_bounds_of_frequencies_as_inputs(given):
    message = r"max_frequency: expected one number, or one for each of 1 inputs, got"
    with pytest.raises(ProgramError, match=message):
        SpectralMixtureGP(Q, max_frequency=given).observe(MONTHS, Y)


def test_names_and_columns_that_are_not_there():
    model = SpectralMixtureGP(Q)
    with pytest.raises(ProgramError, match=r"expected one of \['lomb_scargle', 'spectrum'\], got 'peaks'"):
        model.starts("peaks", 2, MONTHS, Y)
    with pytest.raises(ProgramError, match="column: expected one of the 1 inputs, from 0 on, got 1"):
        model.spectrum_at(torch.ones(1), sites_of(model, MONTHS), MONTHS, column=1)


SETTINGS = {
    "num_components": (0, "num_components: expected a whole number of at least 1, got 0. Change it"),
    "two and a half": (2.5, "num_components: expected a whole number of at least 1, got 2.5. Change it"),
    "weight_prior": ("flat", r"weight_prior: expected one of \['log_normal', 'jeffreys'\], got 'flat'. Change the s"),
    "structure": ("toeplitz", r"structure: expected one of \['auto', 'dense', 'grid'\], got 'toeplitz'. Change the s"),
    "spectrum": ("normal", "spectrum: expected 'gaussian', 'student_t' or an object such as .*, got 'normal'"),
    "noise_var": (-0.1, "noise_var: expected a number of 0 or more, or a prior, got -0.1"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range(name):
    value, message = SETTINGS[name]
    with pytest.raises(ProgramError, match=message):
        SpectralMixtureGP(**{message.split(":")[0]: value})


@pytest.mark.parametrize(
    ("settings", "x", "first"), [({}, MONTHS[HOLED], "1958.42"), ({"product": True}, LATTICE[:-1], "8.10328, 3")]
)
def test_a_hole_is_told_with_the_remedy(settings, x, first):
    """Once asked for, the dense matrix is no news; nor are scattered rows, or rows that are there twice."""
    missing, full = 24 - len(x), 24
    message = (
        f"the inputs are a grid with {missing} of {full} points missing, the first at {first}, so that their "
        "covariance is factorised as a whole: the same answer, but slower. A fit to the longest stretch without holes "
        'may do, with all rows to predict from. structure="dense" says that it is meant'
    )
    with pytest.warns(UserWarning, match=message):
        SpectralMixtureGP(Q, **settings).observe(x, Y[: len(x)])
    for silent, rows in (
        ({**settings, "structure": "dense"}, x),
        ({}, SCATTERED),
        ({}, MONTHS[[0, 1, 1, 2, 4, 5, 6, 7]]),
    ):
        SpectralMixtureGP(Q, **silent).observe(rows, Y[: len(rows)])


def test_just_up_to_nyquist_is_allowed():
    """As computed by others: 1 / (2 step), and one more rounding."""
    SpectralMixtureGP(Q, max_frequency=6.0).observe(MONTHS, Y)
    SpectralMixtureGP(Q, max_frequency=0.5 / float(MONTHS[1] - MONTHS[0])).observe(MONTHS, Y)
    SpectralMixtureGP(Q, max_frequency=50.0).observe(SCATTERED, Y)

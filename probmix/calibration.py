"""Simulation-based calibration: does a method give the posterior of a program? Checked on simulated data sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from probmix.arguments import Arguments
from probmix.arviz import ess
from probmix.diagnostics import nested_rhat, nested_rhat_limit
from probmix.errors import DataError, FitError, MethodError, ProgramError
from probmix.inference.method import AbstractMethod, require
from probmix.inference.over_datasets import Attempt, DataSets, Sampler, sampler
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.ranks import FAILED, Calibration, Tally
from probmix.typing import Program, Sites
from probmix.uniformity import FloatArray

__all__ = ["LOG_JOINT", "Calibration", "Quantities", "calibrate", "default_quantities"]

#: Sites with any leading axes ``*b`` to named scalars ``(*b,)``.
Quantities: TypeAlias = Callable[[Sites], Mapping[str, Tensor]]

#: Name of the quantity that is always ranked.
LOG_JOINT = "log joint"

_LONGER = (1, 4, 16)  # times the method's own draws, until they are worth as many independent ones as are ranked
_FEWEST_DRAWS = 4  # for which ArviZ gives an effective sample size
_DIVERGENT, _APART = "divergent transitions", "chains disagree on the log joint (some are stuck)"
_SHORT = "draws worth fewer independent ones than are ranked, however long the chains"
_UNFINISHED, _FAILED = "the fit ended early", "the fit failed"


def calibrate(
    program: Program,
    simulate: Callable[[int], tuple[Mapping[str, Any], Any]],
    method: AbstractMethod,
    *,
    seed: int,
    simulations: int = 200,
    draws: int = 99,
    quantities: Quantities | None = None,
    false_alarm: float = 0.01,
    progress: bool = False,
) -> Calibration:
    """Check that a method gives the posterior of a program: ranks of true values among posterior draws are uniform.

    True values come from the prior, data from them, draws from the method. With ``ChEES(...)`` and a program that can
    be batched, all data sets are fitted as one batch, each with its own tuning; else one `infer` for each.

    Ranks need independent draws. The pooled draws of all chains are thinned to ``draws`` evenly spaced ones; where they
    are worth fewer (the effective sample size of any quantity, over all chains, so that chains that disagree count as
    few), the chains of that data set run again, 4 and then 16 times as long. No data set is dropped, and no chain:
    to leave out the awkward ones would bias the ranks. Data sets that remain short are ranked as they are and counted
    in ``troubles``, as are divergences and stuck chains. Starts are the method's own, never the true values.

    The prior must be the same for all data sets: the default prior of `GaussianMixture` follows the data, so give it a
    ``component_prior``. Quantities of a mixture must not depend on how components are numbered, for chains do not
    agree on that.

    Args:
        program: the program under the method.
        simulate: ``simulate(num)`` returns latent sites, each ``(num, ...)``, and data as `infer` takes them, each
            tensor ``(num, ...)``. It is called once, with torch's and NumPy's global generators seeded. Write it apart
            from the program, and an error in the program's prior or likelihood is found too.
        method: the settings to check, e.g. ``ChEES(chains=8, superchains=4, warmup=60, draws=50)``.
        seed: of everything.
        simulations: number of data sets; 200 nearly always show a standard deviation that is wrong by a third, or a
            bias of 0.4 of it.
        draws: independent draws that each true value is ranked among.
        quantities: sites ``(*b, ...)`` to scalars ``(*b,)``; `default_quantities` if left out. The log joint density is
            always added: it sees errors that no single site shows.
        false_alarm: probability of refusing a correct method.
        progress: show a progress bar (on a terminal only).

    Raises:
        MethodError: a setting out of its range, or a method that gives a point.
        DataError: the simulator's data do not fit the program, or are not finite.
        ProgramError: a site is missing, has another shape, or its true value is impossible under the program.
        FitError: no data set could be fitted.

    Source:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018); the log joint as quantity: Modrák, Moon, Kim, Bürkner,
        Huurre, Faltejsková, Gelman and Vehtari (2023).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from probmix.inference import ChEES
        >>> def program(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", 5):
        ...         pyro.sample("x", dist.Normal(loc, 2.0), obs=x)
        >>> def simulate(num):
        ...     loc = torch.randn(num)
        ...     return {"loc": loc}, loc[:, None] + 2.0 * torch.randn(num, 5)
        >>> def wrong(num):
        ...     sites, x = simulate(num)
        ...     return sites, x + 1.0
        >>> method = ChEES(chains=8, superchains=4, warmup=20, draws=30, compile=False)
        >>> calibrate(program, simulate, method, simulations=60, seed=0).ok
        True
        >>> calibrate(program, wrong, method, simulations=60, seed=0).quantities["loc"].words
        'biased upwards'
    """
    _check(program, method, seed, simulations=simulations, draws=draws, false_alarm=false_alarm)
    start = time.perf_counter()
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(simulations + 1)]
    truth, arguments = _simulated(simulate, simulations, seeds[-1])
    with isolated(seed, dtype=arguments.dtype, device=arguments.device, threads=arguments.threads(program)):
        sets = DataSets.of(program, arguments)
        truth = _checked_truth(sets, truth)
        measure = quantities or default_quantities(sets.density)
        true_values = _measured(measure, truth, sets.log_joint(truth), (simulations,))
        source = sampler(sets, method, progress=progress)
        tallies, troubles, message = _rank(source, measure, true_values, seeds[:-1], draws)
    generator = np.random.default_rng(seed)
    return Calibration(
        {name: tally.ranks(generator) for name, tally in _distinct(tallies, draws).items()},
        draws,
        false_alarm,
        troubles,
        seed,
        time.perf_counter() - start,
        message,
    )


def default_quantities(density: LogDensity) -> Quantities:
    """Return every entry of every latent site; along an axis called ``component``, sorted, as components have no names.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> density = LogDensity(GaussianMixture(2, "spherical"), Arguments.of(torch.randn(50, 1)))
        >>> sites = {"weights": torch.tensor([0.7, 0.3]), "loc": torch.tensor([[5.0], [4.0]]), "var": torch.ones(2)}
        >>> {name: round(float(value), 1) for name, value in default_quantities(density)(sites).items()}
        {'weights sorted[0]': 0.3, 'weights sorted[1]': 0.7, 'var sorted[0]': 1.0, 'var sorted[1]': 1.0, \
'loc sorted[0, 0]': 4.0, 'loc sorted[1, 0]': 5.0}
    """
    axes = {site.name: density.dims.get(site.name, ()) for site in density.latents}

    def measure(sites: Sites) -> Sites:
        entries: Sites = {}
        for site in density.latents:
            value, names = sites[site.name], axes[site.name]
            label = site.name
            if "component" in names:
                value, label = value.sort(names.index("component") - len(names)).values, f"{label} sorted"
            for index in np.ndindex(*site.shape):
                name = f"{label}[{', '.join(map(str, index))}]" if index else label
                entries[name] = value[(..., *index)]
        return entries

    return measure


# --- the simulator --------------------------------------------------------------------------------------------------


def _check(
    program: Program, method: AbstractMethod, seed: int, *, simulations: int, draws: int, false_alarm: float
) -> None:
    if not callable(program) or isinstance(program, type):
        raise MethodError(f"expected a program or a model object, got {program!r}. Write GaussianMixture(2, ...).")
    if not isinstance(method, AbstractMethod):
        raise MethodError(f"expected a method object such as ChEES() or NUTS(), got {method!r}. Write the brackets.")
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**32, "seed", "a whole number from 0 to 2**32 - 1", seed)
    require(simulations >= 10, "simulations", "at least 10 (100 or more to see anything)", simulations)
    require(draws >= 5, "draws", "at least 5", draws)
    require(0 < false_alarm < 1, "false_alarm", "a probability between 0 and 1", false_alarm)


def _simulated(simulate: Callable[[int], Any], num: int, seed: int) -> tuple[dict[str, Tensor], Arguments]:
    with isolated(seed, dtype=torch.get_default_dtype(), device=torch.get_default_device()), torch.no_grad():
        pair = simulate(num)
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Mapping):
        raise DataError(
            f"simulate({num}) returned {type(pair).__name__}: expected a pair of a dict of latent sites and the data. "
            "Write `return sites, data`."
        )
    arguments = Arguments.of(pair[1])
    if not arguments.tensors:
        raise DataError(f"simulate({num}) returned no tensor or array among its data. Return the observations.")
    for position, tensor in enumerate(arguments.tensors):
        _require_leading(f"tensor {position} of the data", tensor, num)
        bad = (~tensor.isfinite()).reshape(num, -1).any(1).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"simulate({num}): expected finite data, but tensor {position} has NaN or infinity in {len(bad)} data "
                f"sets, the first is number {int(bad[0])}. A prior with a heavy tail is the usual cause: tighten it."
            )
    sites = {name: torch.as_tensor(value) for name, value in pair[0].items()}
    for name, value in sites.items():
        _require_leading(f"site {name!r}", value, num)
    return sites, arguments


def _require_leading(name: str, value: Tensor, num: int) -> None:
    if value.dim() == 0 or len(value) != num:
        raise DataError(
            f"simulate({num}): expected a leading axis of {num} data sets, but {name} has shape {tuple(value.shape)}. "
            "Stack the data sets along the first axis."
        )


def _checked_truth(sets: DataSets, sites: Mapping[str, Tensor]) -> Sites:
    """Return the true values of all latent sites, in the dtype and on the device of the data."""
    expected = {site.name: (len(sets), *site.shape) for site in sets.density.latents}
    got = {name: tuple(sites[name].shape) for name in expected if name in sites}
    if got != expected:
        wrong = [name for name in expected if got.get(name) != expected[name]]
        raise ProgramError(
            f"simulate({len(sets)}): expected the latent sites {expected}, got "
            f"{ {name: got.get(name, 'nothing') for name in wrong} }. Return the true value of every continuous latent "
            "site of the program, in the program's parameters (a variance is not a standard deviation)."
        )
    dtype, device = sets.arguments.dtype, sets.device
    truth = {name: sites[name].to(device=device, dtype=dtype) for name in expected}
    possible = sets.density.unconstrain(truth).isfinite().all(-1)
    possible = possible & sets.log_joint(truth).isfinite()
    if not possible.all():
        first = int((~possible).nonzero()[0, 0])
        shown = {name: value[first].tolist() for name, value in truth.items()}
        raise ProgramError(
            f"simulate({len(sets)}): {int((~possible).sum())} of the true values are impossible under the program, the "
            f"first is that of data set {first}: {shown}. Prior and simulator differ, or the value is at the edge of "
            "its support."
        )
    return truth


# --- ranks ----------------------------------------------------------------------------------------------------------


def _rank(
    source: Sampler, measure: Quantities, truth: dict[str, FloatArray], seeds: list[int], draws: int
) -> tuple[dict[str, Tally], dict[str, np.ndarray], str]:
    """Return tallies of every quantity, the data sets with each kind of trouble, and what the first failure said."""
    num = len(seeds)
    tallies = {name: Tally(np.full(num, FAILED), np.zeros(num, dtype=np.int64)) for name in truth}
    troubles = {kind: np.zeros(num, dtype=bool) for kind in (_DIVERGENT, _APART, _SHORT, _UNFINISHED, _FAILED)}
    message = ""
    for group in source.groups():
        left = np.array(group)
        for longer in _LONGER:
            attempt = source.attempt(left.tolist(), longer, (seeds[left[0]] + longer) % 2**32)
            if attempt.failed:
                troubles[_FAILED][left], message = True, message or attempt.failed
                break
            values = _measured(measure, attempt.sites, attempt.log_joint, tuple(attempt.log_joint.shape))
            for name, tally in tallies.items():
                new = Tally.of(_thinned(values[name], draws), truth[name][left])
                tally.below[left], tally.equal[left] = new.below, new.equal
            short = _note(attempt, values, left, troubles, draws)
            left = left[short]
            if not len(left):
                break
    if troubles[_FAILED].all():
        raise FitError(f"none of the {num} data sets could be fitted. The first said: {message}")
    return tallies, troubles, message


def _note(
    attempt: Attempt, values: Mapping[str, FloatArray], where: np.ndarray, troubles: dict[str, np.ndarray], draws: int
) -> np.ndarray:
    """Write down the troubles of these data sets; return which of them have too few effective draws."""
    short = np.zeros(len(where), dtype=bool)
    if not attempt.independent:
        short = _effective(values) < draws
        troubles[_APART][where] = _apart(values[LOG_JOINT])
    troubles[_SHORT][where] = short
    for kind, seen in ((_DIVERGENT, attempt.divergent), (_UNFINISHED, attempt.unfinished)):
        troubles[kind][where] = False if seen is None else seen.cpu().numpy()
    return short


def _measured(measure: Quantities, sites: Sites, log_joint: Tensor, shape: tuple[int, ...]) -> dict[str, FloatArray]:
    """Return all quantities as arrays of the given shape.

    Raises:
        ProgramError: a quantity of another shape, or not finite.
    """
    values = {**measure(sites), LOG_JOINT: log_joint}
    for name, value in values.items():
        if tuple(value.shape) != shape:
            raise ProgramError(
                f"quantities: expected {name!r} of shape {shape}, like the leading axes of the sites, got "
                f"{tuple(value.shape)}. Write it for any leading axes: value.sum(-1), not value.sum()."
            )
        if not value.isfinite().all():
            raise ProgramError(
                f"quantities: {name!r} is not finite for {int((~value.isfinite()).sum())} of {value.numel()} values. "
                "Choose one that is finite wherever the posterior is."
            )
    return {name: value.detach().cpu().double().numpy() for name, value in values.items()}


def _thinned(values: FloatArray, draws: int) -> FloatArray:
    """Return evenly spaced draws ``(data sets, draws)`` of the pooled chains ``(data sets, chains, draws)``."""
    pooled = values.reshape(len(values), -1)
    return pooled[:, np.linspace(0, pooled.shape[1] - 1, draws).round().astype(int)]


def _effective(values: Mapping[str, FloatArray]) -> FloatArray:
    """Return the least effective sample size of any quantity that varies, ``(data sets,)``."""
    series = np.stack([np.moveaxis(value, 0, -1) for value in values.values()])  # (quantity, chain, draw, data set)
    if series.shape[2] < _FEWEST_DRAWS:
        return np.zeros(series.shape[-1])
    sizes = ess(np.moveaxis(series, 0, -1))
    return np.where(np.isfinite(sizes), sizes, np.inf).min(-1)


def _apart(log_joint: FloatArray) -> np.ndarray:
    """Say where chains disagree by more than the halves of a chain do, ``(data sets,)``."""
    data_sets, chains, draws = log_joint.shape
    if chains < 2 or draws < _FEWEST_DRAWS:
        return np.zeros(data_sets, dtype=bool)
    halves = np.moveaxis(log_joint[:, :, : draws - draws % 2], 0, -1).reshape(2 * chains, draws // 2, data_sets)
    rhat = nested_rhat(halves, chains)
    return np.isinf(rhat) | (rhat > nested_rhat_limit(halves, chains, quantities=data_sets))  # inf: none ever moves


def _distinct(tallies: dict[str, Tally], draws: int) -> dict[str, Tally]:
    """Leave out entries that never vary, and those whose ranks repeat or mirror another's (a symmetric matrix)."""
    kept: dict[str, Tally] = {}
    for name, tally in tallies.items():
        varies = (tally.equal < draws).any()
        if varies and not any(tally.says_the_same_as(other, draws) for other in kept.values()):
            kept[name] = tally
    return kept

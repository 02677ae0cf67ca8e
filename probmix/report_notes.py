"""How to read a table of results, in a few lines that depend on what is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from probmix.formats import some
from probmix.posterior import DrawsPosterior
from probmix.reading import Reading

__all__ = ["comparison_notes", "notes"]

# Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization, section 4.
_GOOD_RHAT = 1.01
_ENOUGH_ESS = 400
_TRUSTED_PARETO_K = 0.7  # Vehtari, Gelman and Gabry (2017), section 2.1


def notes(readings: Mapping[str, Reading]) -> list[str]:
    """Return the lines to print under the table of these fits.

    Args:
        readings: heading -> a fit, as for `probmix.report_table.build_table`.

    Example:
        >>> import torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> notes({"EM": Reading.of(em)})
        ['EM gives the single most probable point: no spread, so no ± and no leave-one-out score.']
    """
    lines = [*_about_spread(readings)]
    for name, reading in readings.items():
        lines += _about_status(name, reading)
        if isinstance(reading.posterior, DrawsPosterior):
            lines += [*_about_rhat(reading), *_about_ess(reading)]
    return [*lines, *_about_score(readings)]


def comparison_notes(comparison: pd.DataFrame) -> list[str]:
    """Return the lines to print under a comparison.

    Args:
        comparison: from `probmix.comparison.compare`.

    Example:
        >>> len(comparison_notes(pd.DataFrame({"worst_pareto_k": [0.2, 0.9]}, index=["a", "b"])))
        3
    """
    doubtful = [str(name) for name, k in comparison["worst_pareto_k"].items() if not k <= _TRUSTED_PARETO_K]
    lines = [
        "elpd_loo: how well each row is predicted from the others, in nats, summed; higher is better.",
        "A result that is below the best by less than 4 nats, or by less than twice the standard error of the "
        "difference, predicts as well. weight: its share in the best mix of all.",
    ]
    if doubtful:
        lines.append(
            f"Not to be trusted for {some(doubtful)}: Pareto k is above {_TRUSTED_PARETO_K}, so that some rows decide "
            "the fit of a component almost alone. Look at those rows, or use fewer components."
        )
    return lines


def _about_spread(readings: Mapping[str, Reading]) -> Iterator[str]:
    kinds = {name: reading.posterior.kind for name, reading in readings.items()}
    if set(kinds.values()) != {"point"}:
        matched = " Labels of draws are matched before anything is averaged." if "draws" in kinds.values() else ""
        numbers = " Components have the same numbers in all columns." if len(kinds) > 1 else ""
        yield f"± is one posterior standard deviation.{matched}{numbers}"
    for name in (name for name, kind in kinds.items() if kind == "point"):
        yield f"{name} gives the single most probable point: no spread, so no ± and no leave-one-out score."


def _about_status(name: str, reading: Reading) -> Iterator[str]:
    posterior = reading.posterior
    stats = posterior.sample_stats if isinstance(posterior, DrawsPosterior) else {}
    diverged = "diverging" in stats and bool(stats["diverging"].any())  # Gibbs rejects nothing, so nothing diverges
    if diverged or not posterior.status.ok:
        yield f"{name} {posterior.status}"


def _about_rhat(reading: Reading) -> Iterator[str]:
    before, after = (_worst(reading, field) for field in ("rhat_as_drawn", "rhat"))
    if math.isnan(after):
        yield "r-hat compares chains: it takes two or more, of four draws or more."
    elif before > _GOOD_RHAT >= after:
        yield (
            f"r-hat compares the chains; below {_GOOD_RHAT} they agree. As drawn it reaches {before:.2f} only because "
            "each chain numbers the components in its own way, which is no fault of the fit: judge by the matched one."
        )
    elif after <= _GOOD_RHAT:
        yield f"r-hat compares the chains; below {_GOOD_RHAT} they agree, as these do."
    else:
        yield (
            f"r-hat compares the chains; they agree below {_GOOD_RHAT}. Here it reaches {after:.3f} with the labels "
            "matched: run longer, with more warm-up and draws, before you rely on the spread."
        )


def _about_ess(reading: Reading) -> Iterator[str]:
    smallest = min((e.ess for e in reading.estimates.values() if math.isfinite(e.ess)), default=math.nan)
    enough = f"{_ENOUGH_ESS} or more are wanted"
    if smallest < _ENOUGH_ESS:
        yield f"ESS: independent draws that these are worth; {enough}, the fewest here are {smallest:.0f}."
    elif math.isfinite(smallest):
        yield f"ESS: independent draws that these are worth; {enough}."


def _about_score(readings: Mapping[str, Reading]) -> Iterator[str]:
    worst = [reading.score.worst_pareto_k for reading in readings.values() if reading.score is not None]
    if worst:
        trust = "as here" if max(worst) <= _TRUSTED_PARETO_K else "which it is not here"
        yield (
            "elpd_loo: how well each row is predicted from the others, in nats, summed; higher is better. Trust it if "
            f"Pareto k is below {_TRUSTED_PARETO_K}, {trust}."
        )


def _worst(reading: Reading, field: str) -> float:
    values = [getattr(estimate, field) for estimate in reading.estimates.values()]
    return max((value for value in values if math.isfinite(value)), default=math.nan)

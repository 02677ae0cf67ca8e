"""Results as one table: parameters with their uncertainty, and below them what says whether to trust them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from probmix.posterior import AbstractPosterior, DrawsPosterior, GuidePosterior, PointPosterior
from probmix.reading import Estimate, Reading

__all__ = ["build_comparison", "build_table", "number", "plus_minus", "to_text"]

_NOTHING = "-"
_FIGURES = (
    "log joint density",
    "log-likelihood",
    "ELBO ± s.e.",
    "elpd_loo ± s.e.",
    "largest Pareto k",
    "divergences",
    "seconds",
    "status",
)
_WIDTH = 200  # columns; a table takes what it needs, no less


class Column(NamedTuple):
    """A heading, and how to write an estimate under it."""

    heading: str
    text: Callable[[Estimate], str]


_POINT = (Column("best point", lambda e: f"{e.mean:#.4g}".rstrip(".")),)
_SPREAD = (Column("mean ± sd", lambda e: plus_minus(e.mean, e.std)),)
_INTERVAL = (Column("2.5 %", lambda e: number(e.low, e.std)), Column("97.5 %", lambda e: number(e.high, e.std)))
_CHAINS = (
    Column("r-hat\nas drawn", lambda e: _fixed(e.rhat_as_drawn, 2)),
    Column("r-hat\nmatched", lambda e: _fixed(e.rhat, 3)),
    Column("ESS", lambda e: _fixed(e.ess, 0)),
)


def build_table(readings: Mapping[str, Reading]) -> Table:
    """Return one row for each parameter, then one for each figure of the fits; a column or more for each fit.

    A single fit also has the central 95 % interval of each parameter.

    Args:
        readings: heading -> a fit, all of the same model and data.

    Example:
        >>> import torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> print(to_text(build_table({"EM": Reading.of(em)})).splitlines()[3])
        weights[0]               1.000
    """
    columns = {name: _columns(reading, alone=len(readings) == 1) for name, reading in readings.items()}
    headings = []
    for name, (first, *others) in columns.items():
        headings += [f"{name}\n{first.heading}", *(column.heading for column in others)]
    table = _empty_table("parameter", headings)
    for row in _parameter_rows(readings, columns):
        table.add_row(*map(Text, row))
    table.add_section()
    for row in _figure_rows(readings, columns):
        table.add_row(*map(Text, row))
    return table


def build_comparison(comparison: pd.DataFrame) -> Table:
    """Return one row for each result, best first.

    Args:
        comparison: from `probmix.comparison.compare`.

    Example:
        >>> row = {"elpd_loo": -9.0, "se": 1.0, "elpd_diff": 0.0, "dse": 0.0, "weight": 1.0, "p_loo": 2.0}
        >>> build_comparison(pd.DataFrame([{**row, "worst_pareto_k": 0.2}], index=["a"])).row_count
        1
    """
    table = _empty_table("result", ["elpd_loo ± s.e.", "below best ± s.e.", "weight", "p_loo", "largest\nPareto k"])
    for name, row in comparison.iterrows():
        cells = (
            f"{row['elpd_loo']:.1f} ± {row['se']:.1f}",
            f"{row['elpd_diff']:.1f} ± {row['dse']:.1f}" if row["elpd_diff"] else _NOTHING,
            f"{row['weight']:.2f}",
            f"{row['p_loo']:.1f}",
            _fixed(row["worst_pareto_k"], 2),
        )
        table.add_row(*map(Text, (str(name), *cells)))
    return table


def to_text(table: Table) -> str:
    r"""Return the table as plain text, without colours and never cut short.

    Example:
        >>> table = Table("parameter", box=None, pad_edge=False)
        >>> table.add_row("weights[0]")
        >>> to_text(table)
        'parameter\nweights[0]'
    """
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def plus_minus(mean: float, std: float) -> str:
    """Write a mean and its standard deviation, the latter with two digits.

    Example:
        >>> plus_minus(79.9923, 0.4689), plus_minus(2.03621, 0.0291), plus_minus(1.0, 0.0)
        ('79.99 ± 0.47', '2.036 ± 0.029', '1 ± 0')
    """
    return f"{number(mean, std)} ± {number(std, std)}"


def number(value: float, std: float) -> str:
    """Write a value with as many digits as its standard deviation allows.

    Example:
        >>> number(79.9923, 0.4689), number(12345.6, 1200.0), number(2.5e-9, 3e-10)
        ('79.99', '12346', '2.5e-09')
    """
    if not (math.isfinite(value) and math.isfinite(std)):
        return _NOTHING
    decimals = 1 - math.floor(math.log10(std)) if std > 0 else 0
    if std == 0 or decimals > 6:
        return f"{value:.4g}"
    return f"{value:.{max(0, decimals)}f}"


def _empty_table(first: str, others: Sequence[str]) -> Table:
    """Headings of one or two lines, aligned at the bottom."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    headings = [heading if "\n" in heading else f"\n{heading}" for heading in (first, *others)]
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading is headings[0] else "right", overflow="fold")
    return table


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else _NOTHING


def _columns(reading: Reading, *, alone: bool) -> tuple[Column, ...]:
    if isinstance(reading.posterior, PointPosterior):
        return _POINT
    spread = (*_SPREAD, *_INTERVAL) if alone else _SPREAD
    return (*spread, *_CHAINS) if isinstance(reading.posterior, DrawsPosterior) else spread


def _parameter_rows(
    readings: Mapping[str, Reading], columns: Mapping[str, tuple[Column, ...]]
) -> Iterator[tuple[str, ...]]:
    for parameter in dict.fromkeys(name for reading in readings.values() for name in reading.estimates):
        estimates = {name: reading.estimates.get(parameter, Estimate(math.nan)) for name, reading in readings.items()}
        yield parameter, *(column.text(estimates[name]) for name in readings for column in columns[name])


def _figure_rows(
    readings: Mapping[str, Reading], columns: Mapping[str, tuple[Column, ...]]
) -> Iterator[tuple[str, ...]]:
    """One row for each figure that any of the fits has, under the first column of each fit."""
    figures = {name: _figures(reading) for name, reading in readings.items()}
    for label in _FIGURES:
        if not any(label in row for row in figures.values()):
            continue
        cells = [[figures[name].get(label, _NOTHING), *[""] * (len(columns[name]) - 1)] for name in readings]
        yield label, *(cell for group in cells for cell in group)


def _figures(reading: Reading) -> dict[str, str]:
    posterior, score = reading.posterior, reading.score
    figures = _objective(posterior)
    if score is not None:
        figures["elpd_loo ± s.e."] = f"{score.elpd_loo:.1f} ± {score.se:.1f}"
        figures["largest Pareto k"] = _fixed(score.worst_pareto_k, 2)
    if isinstance(posterior, DrawsPosterior) and "diverging" in posterior.sample_stats:
        diverging = posterior.sample_stats["diverging"]
        figures["divergences"] = f"{int(diverging.sum())} of {diverging.numel()}"
    return {**figures, "seconds": _fixed(posterior.seconds, 1), "status": posterior.status.state}


def _objective(posterior: AbstractPosterior) -> dict[str, str]:
    if isinstance(posterior, PointPosterior):
        label = "log-likelihood" if getattr(posterior.method, "objective", "map") == "ml" else "log joint density"
        return {label: f"{posterior.objective:.3f}"}
    if isinstance(posterior, GuidePosterior):
        return {"ELBO ± s.e.": "{:.2f} ± {:.2f}".format(*posterior.elbo)}
    return {}

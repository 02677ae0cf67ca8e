"""Fits put before a reader: the table with how to read it, and the pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from probmix.reading import Reading
from probmix.report_notes import comparison_notes, notes
from probmix.report_pictures import save_pictures
from probmix.report_table import build_comparison, build_table, to_text

__all__ = ["print_comparison", "print_report", "write_report"]


def write_report(readings: Mapping[str, Reading], folder: Path) -> list[Path]:
    """Write ``table.txt`` about all fits, and the pictures of the last one; return the files.

    Args:
        readings: heading -> a fit, all of the same model and data.
        folder: where to write; it exists.

    Example:
        >>> import tempfile, torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report({"EM": Reading.of(em)}, Path(folder))[0].name
        'table.txt'
    """
    path = folder / "table.txt"
    path.write_text(_text(build_table(readings), notes(readings)), encoding="utf-8")
    *_, last = readings.values()
    return [path, *save_pictures(last, folder)]


def print_report(readings: Mapping[str, Reading]) -> None:
    """Print the table and how to read it: folded to the width of a terminal, as plain text anywhere else.

    Args:
        readings: heading -> a fit, all of the same model and data.

    Example:
        >>> import torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> print_report({"EM": Reading.of(em)})  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
                                EM
        parameter           best point
        ──────────────────────────────
        weights[0]               1.000
        ...
    """
    _print(build_table(readings), notes(readings))


def print_comparison(comparison: pd.DataFrame) -> None:
    """Print what `probmix.comparison.compare` returns, and how to read it.

    Example:
        >>> row = {"elpd_loo": -9.0, "se": 1.0, "elpd_diff": 0.0, "dse": 0.0, "weight": 1.0, "p_loo": 2.0}
        >>> print_comparison(pd.DataFrame([{**row, "worst_pareto_k": 0.2}], index=["a"]))  # doctest: +ELLIPSIS
                                                                         largest
        result   elpd_loo ± s.e.   below best ± s.e.   weight   p_loo   Pareto k
        ...
    """
    _print(build_comparison(comparison), comparison_notes(comparison))


def _print(table: Table, lines: Sequence[str]) -> None:
    console = Console()
    if console.is_terminal:
        console.print(table)
        console.print("", *lines, sep="\n", markup=False, highlight=False)
    else:
        print(_text(table, lines), end="")


def _text(table: Table, lines: Sequence[str]) -> str:
    text = to_text(table)
    width = max(80, *map(len, text.splitlines()))
    return "\n".join([text, "", *(textwrap.fill(line, width, subsequent_indent="  ") for line in lines), ""])

"""The picture of a fit under way: its objective, step by step, for every restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from probmix.errors import DataError
from probmix.plots_axes import colour, new_axes
from probmix.plots_inputs import FloatArray, Values, to_numbers

__all__ = ["plot_history"]


def plot_history(history: Mapping[str, Values], *, best: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw the objective against the step, every restart in grey and the best in colour.

    The vertical axis begins where the restarts are after a tenth of their steps, so that a far start does not flatten
    what matters.

    Args:
        history: its entry ``"objective"`` is (steps,) or (restarts, steps), larger is better, NaN after the last step.
        best: the restart to highlight; that with the largest last value if left out.
        ax: where to draw; a new figure if left out.

    Returns:
        The axes. A line's gid is ``restart-0``, ``restart-1``, ...; restarts without a finite value have none.

    Raises:
        DataError: no objective, a wrong shape, no finite value, or a best restart that is not there.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_history({"objective": [[-9.0, -5.0, -4.0], [-8.0, -6.0, np.nan]]})
        >>> ax.get_legend_handles_labels()[1]
        ['1 other restart', 'restart 0, ends at -4']
        >>> plt.close(ax.figure)
    """
    runs = _runs(history)
    if best is None:
        best = max(runs, key=lambda restart: runs[restart][1][-1])
    if best not in runs:
        raise DataError(f"best: expected a restart with finite values, {sorted(runs)}, got {best}. Leave it out.")
    ax = new_axes(ax)
    _draw_runs(ax, runs, best)
    ax.set(xlabel="step", ylabel="objective")
    ax.legend(fontsize="small", loc="lower right")
    return ax


_Run: TypeAlias = tuple[npt.NDArray[np.intp], FloatArray]


def _runs(history: Mapping[str, Values]) -> dict[int, _Run]:
    """Return the steps and finite objectives of every restart that has any."""
    if "objective" not in history:
        raise DataError(f"history: expected an entry 'objective', got {sorted(history)}. Pass the history of a fit.")
    objective = np.atleast_2d(to_numbers(history["objective"], "objective"))
    finite = np.isfinite(objective)
    if objective.ndim != 2 or not finite.any():
        raise DataError(
            f"objective: expected (steps,) or (restarts, steps) with finite values, got the shape {objective.shape} "
            f"with {finite.sum()} of them. Read the status of the fit."
        )
    return {
        r: (np.flatnonzero(ok), row[ok]) for r, (row, ok) in enumerate(zip(objective, finite, strict=True)) if ok.any()
    }


def _draw_runs(ax: Axes, runs: dict[int, _Run], best: int) -> None:
    num_others = len(runs) - 1
    others = f"{num_others} other restart{'s' * (num_others > 1)}"
    for restart in sorted(set(runs) - {best}):
        ax.plot(*runs[restart], color="0.6", alpha=0.7, linewidth=0.8, label=others, gid=f"restart-{restart}")
        others = "_nolegend_"
    steps, values = runs[best]
    label = f"restart {best}, ends at {values[-1]:.6g}" if num_others else f"ends at {values[-1]:.6g}"
    ax.plot(steps, values, color=colour(0), linewidth=2 if len(steps) < 500 else 1, label=label, gid=f"restart-{best}")
    ax.plot(steps[-1:], values[-1:], "o", color=colour(0), markersize=5)
    early = min(values[len(values) // 10 :].min() for _, values in runs.values())
    top = max(values.max() for _, values in runs.values())
    pad = 0.05 * (top - early) or 1.0
    ax.set_ylim(early - pad, top + pad)

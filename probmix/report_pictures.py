"""The pictures of a fitted mixture, drawn and saved without any window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from probmix.plots import plot_components, plot_density, plot_history, plot_predictive_check, plot_responsibilities
from probmix.posterior import AbstractPosterior, DrawsPosterior, GuidePosterior
from probmix.reading import Reading
from probmix.typing import Sites

__all__ = ["PICTURES", "save_pictures"]

PICTURES = ("density", "responsibilities", "history", "components", "predictive")
"""Names of all pictures there are, without ``.png``."""

_DPI = 130
_GUIDE_DRAWS = 200  # what the pictures use at most


def save_pictures(reading: Reading, folder: Path) -> list[Path]:
    """Draw what this kind of answer has, and return the files.

    ``density.png`` and ``responsibilities.png`` for all kinds; ``history.png`` for points and guides;
    ``components.png`` (traces and ranks, labels matched) for draws; ``predictive.png`` for guides and draws.

    Args:
        reading: a fit of a Gaussian mixture.
        folder: where to write; it exists.

    Example:
        >>> import tempfile, torch
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(1), torch.tensor([[1.0], [2.0], [4.0]]), EM(), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in save_pictures(Reading.of(em), Path(folder))]
        ['density.png', 'responsibilities.png', 'history.png']
    """
    return [_save(draw(reading), folder / f"{name}.png") for name, draw in _pictures(reading.posterior).items()]


def _pictures(posterior: AbstractPosterior) -> dict[str, Callable[[Reading], Figure]]:
    pictures: dict[str, Callable[[Reading], Figure]] = {"density": _density, "responsibilities": _responsibilities}
    if isinstance(posterior, DrawsPosterior):
        return {**pictures, "components": _components, "predictive": _predictive}
    if isinstance(posterior, GuidePosterior):
        return {**pictures, "history": _history, "predictive": _predictive}
    return {**pictures, "history": _history}


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return path


def _density(reading: Reading) -> Figure:
    return _figure(plot_density(*_mixture(reading), feature_names=_features(reading)))


def _responsibilities(reading: Reading) -> Figure:
    return _figure(plot_responsibilities(*_mixture(reading), feature_names=_features(reading)))


def _components(reading: Reading) -> Figure:
    model = reading.posterior.program
    return plot_components(_sites(reading), dims=model.dims, feature_names=_features(reading))  # type: ignore[attr-defined]


def _predictive(reading: Reading) -> Figure:
    (observed,) = reading.tree["observed_data"].data_vars
    replicated = reading.tree["posterior_predictive"][observed].values
    return plot_predictive_check(reading.posterior.args[0], replicated, feature_names=_features(reading))


def _history(reading: Reading) -> Figure:
    ((name, values),) = reading.posterior.history.items()
    axes = plot_history({"objective": values})
    axes.set_ylabel("ELBO" if name == "elbo" else name)
    return _figure(axes)


def _mixture(reading: Reading) -> tuple[Any, Any, Sites]:
    return reading.posterior.args[0], reading.posterior.program, _sites(reading)


def _sites(reading: Reading) -> Sites:
    """Draws where there are any, with their labels matched; else the point."""
    matched = reading.matched
    if isinstance(matched, DrawsPosterior):
        return matched.draws
    return matched.sample(_GUIDE_DRAWS, seed=matched.seed) if isinstance(matched, GuidePosterior) else matched.sites()


def _features(reading: Reading) -> tuple[str, ...] | None:
    return reading.posterior.arguments.feature_names


def _figure(axes: Any) -> Figure:
    return axes.figure

"""The picture of an adversarial fit: losses, gradients, and how every component of the mixture fares."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from probmix.errors import DataError
from probmix.plots_axes import colour, legend_beside, new_panels, outline
from probmix.plots_inputs import FloatArray, to_numbers
from probmix.posterior import AbstractPosterior

__all__ = ["plot_training"]

_PLAYERS = ("discriminator", "generator")
_NEEDED = ("step", "discriminator_loss", "generator_loss", "discriminator_gradient_norm", "generator_gradient_norm",
           "component_score", "component_usage")  # fmt: skip
#: Losses of discriminator and generator when every score is 0, by the formulas of `adversarial_losses`.
_UNDECIDED = {"non_saturating": (2 * math.log(2), math.log(2)), "hinge": (2.0, 0.0), "wasserstein": (0.0, None)}
_MAX_NAMED = 7  # components with a colour of their own
_WORST = 3  # of more components, those that are named
_SMOOTHED = 20  # a running mean is over one in so many looks


def plot_training(fit: AbstractPosterior, *, fig: Figure | None = None) -> Figure:
    """Draw the history of an adversarial fit, one panel below the other, against the step.

    - Losses, means since the last look. Dashed: where they are if the discriminator cannot tell real data from
      generated (not drawn where a loss has further terms, for classes or recognition). A discriminator's loss that
      goes to 0 is the end of learning; losses that swing ever further are a game that diverges.
    - Gradient norms, of single steps, on a logarithmic axis.
    - The discriminator's mean score of each component's data, as a running mean over a twentieth of the looks. A
      component far below the others makes data that are told from real ones.
    - Where the discriminator recognises components: the share of real data that it gives to each, likewise.

    Of more than seven components only the three that are lowest at the end have colours. Vertical axes of losses and
    scores show what is there after a tenth of the steps, so that a far start does not flatten what matters.

    Args:
        fit: of a model by `probmix.inference.Adversarial`.
        fig: an empty figure to draw in; a new one if left out.

    Raises:
        DataError: a fit by another method.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> import torch
        >>> from probmix.inference import Adversarial, infer
        >>> from probmix.models import MixtureGAN, MixtureLatent
        >>> model = MixtureGAN(MixtureLatent(3, 4), value_range=None, width=16)
        >>> fit = infer(model, torch.randn(500, 2), Adversarial(steps=20, log_every=5), seed=0)
        >>> fig = plot_training(fit)
        >>> [ax.get_ylabel() for ax in fig.axes]
        ['loss', 'gradient norm', 'component score']
        >>> plt.close(fig)
    """
    missing = [name for name in _NEEDED if name not in fit.history]
    if missing:
        raise DataError(
            f"fit: expected one by Adversarial(), got one by {type(fit.method).__name__}() whose history has no "
            f"{missing[-1]}. For others use plot_history(fit.history)."
        )
    history = {name: to_numbers(value, name) for name, value in fit.history.items()}
    steps, model = history["step"], fit.program
    recognise = bool(getattr(model, "recognise", False))
    fig, panels = new_panels(fig, 3 + recognise, 1, (8.0, 5.6 + 1.7 * recognise))
    plain = not recognise and getattr(model, "supervision", None) is None
    _draw_losses(panels[0, 0], steps, history, _UNDECIDED[fit.method.loss] if plain else (None, None))
    _draw_gradients(panels[1, 0], steps, history)
    _draw_components(panels[2, 0], steps, history["component_score"])
    panels[2, 0].set_ylabel("component score")
    if recognise:
        usage = history["component_usage"]
        _draw_components(panels[3, 0], steps, usage)
        panels[3, 0].axhline(1 / usage.shape[1], color="0.3", linewidth=0.8, linestyle="--", label="even share")
        panels[3, 0].set(ylabel="share of real data", ylim=(0, None))
    for ax in panels[:, 0]:
        ax.sharex(panels[0, 0])
        ax.tick_params(labelbottom=ax is panels[-1, 0])
        legend_beside(ax, outside=True)
    panels[-1, 0].set_xlabel("step")
    fig.align_ylabels()
    return fig


def _draw_losses(
    ax: Axes, steps: FloatArray, history: dict[str, FloatArray], undecided: tuple[float | None, float | None]
) -> None:
    for number, (player, level) in enumerate(zip(_PLAYERS, undecided, strict=True)):
        ax.plot(steps, history[f"{player}_loss"], color=colour(1 - number), linewidth=1.2, label=player)
        if level is not None:
            ax.axhline(level, color=colour(1 - number), linewidth=0.8, linestyle="--", alpha=0.7)
    if undecided[0] is not None:
        ax.plot([], [], color="0.4", linewidth=0.8, linestyle="--", label="cannot tell")
    losses = np.stack([history[f"{player}_loss"] for player in _PLAYERS], -1)
    _set_window(ax, losses, *[level for level in undecided if level is not None])
    ax.set_ylabel("loss")


def _draw_gradients(ax: Axes, steps: FloatArray, history: dict[str, FloatArray]) -> None:
    for number, player in enumerate(_PLAYERS):
        norms = history[f"{player}_gradient_norm"]
        ax.plot(steps, np.where(norms > 0, norms, np.nan), color=colour(1 - number), linewidth=1.0, label=player)
    ax.set(ylabel="gradient norm", yscale="log")
    if ax.get_ylim()[1] < 100 * ax.get_ylim()[0]:  # few powers of ten to go by
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_components(ax: Axes, steps: FloatArray, values: FloatArray) -> None:
    """Draw a line for each component, of values ``(looks, K)``, NaN where a batch had none of it."""
    smooth = _running_mean(values, max(1, len(values) // _SMOOTHED))
    num = values.shape[1]
    named = list(range(num)) if num <= _MAX_NAMED else np.argsort(smooth[-1])[:_WORST].tolist()
    others = [k for k in range(num) if k not in named]
    for k in others:
        label = "the others" if k == others[0] else None
        ax.plot(steps, smooth[:, k], color="0.7", linewidth=0.6, gid=f"component-{k}", label=label)
    for k in named:
        ax.plot(
            steps,
            smooth[:, k],
            color=colour(k),
            linestyle=outline(k),
            gid=f"component-{k}",
            label=f"component {k}",
            zorder=3,
        )
    _set_window(ax, smooth)


def _set_window(ax: Axes, values: FloatArray, *levels: float) -> None:
    """Let the vertical axis hold what is there after a tenth of the looks, and these levels."""
    late = [*values[len(values) // 10 :].ravel(), *levels]
    low, high = np.nanmin(late), np.nanmax(late)
    pad = 0.06 * (high - low) or 0.1
    ax.set_ylim(low - pad, high + pad)


def _running_mean(values: FloatArray, window: int) -> FloatArray:
    """Return means of the last ``window`` rows, of fewer at the start; what is NaN does not count."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0), 0)
    counts = np.cumsum(known, 0).astype(float)
    for total in (sums, counts):
        total[window:] -= total[:-window].copy()
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1.0), np.nan)

"""The picture of an adversarial fit: what is drawn where, of fits with known histories."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from picture_laws import draws_in_given_figure, keeps_all_laws

from probmix.errors import DataError
from probmix.inference import EM, Adversarial, infer
from probmix.models import GaussianMixture, MixtureGAN, MixtureLatent
from probmix.plots import plot_training
from probmix.posterior import AbstractPosterior

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def fitted(num_components: int = 3, *, recognise: bool = False, **settings: Any) -> AbstractPosterior:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    model = MixtureGAN(MixtureLatent(num_components, 2), value_range=None, width=8, recognise=recognise)
    return infer(model, x, Adversarial(**{"steps": 12, "log_every": 3, "batch_size": 16, **settings}), seed=0)


PLAYERS = ("discriminator", "generator")
LOOKED_AT = ("loss", "gradient_norm")
FIT, RECOGNISED = fitted(), fitted(recognise=True)


def with_history(fit: AbstractPosterior, **entries: np.ndarray) -> AbstractPosterior:
    history = {name: torch.as_tensor(value) for name, value in entries.items()}
    looks = len(next(iter(history.values())))
    history = {"step": 3 * torch.arange(1, looks + 1), **history}
    return dataclasses.replace(fit, history={**fit.history, **history})


def lines(ax: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.stack(line.get_data()) for line in ax.lines if len(line.get_xdata())}


def panel(fig: Figure, label: str) -> Axes:
    (found,) = [ax for ax in fig.axes if ax.get_ylabel() == label]
    return found


# --- losses and gradients ---------------------------------------------------------------------------------------------


def test_losses_and_gradients_stand_at_their_steps() -> None:
    fig = plot_training(FIT)
    losses, norms = lines(panel(fig, "loss")), lines(panel(fig, "gradient norm"))
    for player in PLAYERS:
        np.testing.assert_allclose(losses[player], [[3, 6, 9, 12], FIT.history[f"{player}_loss"]], rtol=1e-6)
        np.testing.assert_allclose(norms[player], [[3, 6, 9, 12], FIT.history[f"{player}_gradient_norm"]], rtol=1e-6)
    assert panel(fig, "gradient norm").get_yscale() == "log"
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "step"]
    fig.axes[0].set_xlim(4, 5)
    assert fig.axes[2].get_xlim() == (4, 5)


@pytest.mark.parametrize(("steps", "expected"), [(2, [2]), (9, [3, 6, 9]), (11, [3, 6, 9, 11])])
def test_the_last_look_is_at_the_last_step(steps: int, expected: list[int]) -> None:
    assert lines(panel(plot_training(fitted(steps=steps)), "loss"))["generator"][0].tolist() == expected


def test_steps_in_the_history_are_believed() -> None:
    fit = with_history(FIT, step=np.array([3.0, 6.0, 7.0, 9.0]))
    assert lines(panel(plot_training(fit), "loss"))["generator"][0].tolist() == [3, 6, 7, 9]


@pytest.mark.parametrize(
    ("loss", "levels"), [("non_saturating", [2 * math.log(2), math.log(2)]), ("hinge", [2, 0]), ("wasserstein", [0])]
)
def test_dashed_lines_are_where_nothing_can_be_told(loss: str, levels: list[float]) -> None:
    """The losses of the game at scores of 0, which is where they are drawn."""
    ax = panel(plot_training(fitted(loss=loss)), "loss")
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert dashed == pytest.approx(levels)
    low, high = ax.get_ylim()
    assert all(low < level < high for level in levels)


def test_a_loss_with_further_terms_has_no_such_lines() -> None:
    assert set(lines(panel(plot_training(RECOGNISED), "loss"))) == {"discriminator", "generator"}


def test_a_far_start_does_not_flatten_the_rest() -> None:
    looks = 40
    losses = {f"{player}_loss": np.append([1e3] * 2, np.ones(looks - 2)) for player in PLAYERS}
    norms = {f"{player}_gradient_norm": np.ones(looks) for player in PLAYERS}
    scores = np.append([[-1e3] * 3] * 2, np.zeros((looks - 2, 3)), axis=0)
    of_losses, _, of_scores = plot_training(with_history(FIT, **losses, **norms, component_score=scores)).axes
    assert of_losses.get_ylim()[1] < 2
    assert of_scores.get_ylim()[0] > -1


# --- components -------------------------------------------------------------------------------------------------------


def scored(values: np.ndarray) -> AbstractPosterior:
    """A fit with these component scores ``(looks, K)``."""
    ones = {f"{p}_{what}": np.ones(len(values)) for p in PLAYERS for what in LOOKED_AT}
    return with_history(FIT, **ones, component_score=values)


def test_scores_are_running_means_over_a_twentieth() -> None:
    values = np.random.default_rng(0).normal(size=(60, 2))
    found = lines(panel(plot_training(scored(values)), "component score"))
    for k in (0, 1):
        expected = [values[max(0, i - 2) : i + 1, k].mean() for i in range(60)]
        np.testing.assert_allclose(found[f"component {k}"][1], expected, rtol=1e-9)


def test_a_look_without_a_component_does_not_count() -> None:
    values = np.array([[1.0, 2.0]] * 60)
    values[10, 0] = np.nan  # one look: the mean is of the two others
    values[30:40, 0] = np.nan  # three and more: there is nothing to draw
    found = lines(panel(plot_training(scored(values)), "component score"))["component 0"][1]
    np.testing.assert_allclose(found[10], 1.0)
    assert np.isnan(found[33:40]).all()
    assert np.isfinite(found[:32]).all()


def test_of_many_components_the_lowest_are_named() -> None:
    values = np.tile(np.arange(12.0)[::-1], (10, 1))
    ax = panel(plot_training(scored(values)), "component score")
    assert ax.get_legend_handles_labels()[1] == ["the others", "component 11", "component 10", "component 9"]
    assert len([line for line in ax.lines if str(line.get_gid()).startswith("component-")]) == 12


def test_recognised_components_have_a_panel_with_their_share() -> None:
    ax = panel(plot_training(RECOGNISED), "share of real data")
    found = lines(ax)
    for k in range(3):  # four looks: no mean over several
        np.testing.assert_allclose(found[f"component {k}"][1], RECOGNISED.history["component_usage"][:, k], rtol=1e-6)
    np.testing.assert_allclose(found["even share"][1], 1 / 3)
    assert ax.get_ylim()[0] == 0


# --- what is refused, and manners -------------------------------------------------------------------------------------


def test_a_fit_by_another_method_is_refused() -> None:
    em = infer(GaussianMixture(1), torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), EM(), seed=0)
    with pytest.raises(DataError, match=r"one by Adversarial\(\), got one by EM\(\) .* use plot_history\(fit\.history"):
        plot_training(em)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("fit", [FIT, RECOGNISED, fitted(10)])
def test_manners(fit: AbstractPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(**where: Any) -> Figure:
        return plot_training(fit, **where)

    keeps_all_laws(draw, monkeypatch, on=draws_in_given_figure)
    used = plt.subplots(1, 2)[0]
    with pytest.raises(DataError, match="empty figure, got one with 2 axes"):
        draw(fig=used)

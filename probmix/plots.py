"""Pictures that ArviZ does not draw: of mixtures, fits and the choice of k, of processes, and of generators.

Each function takes its data first, draws on the ``ax`` or ``fig`` it is given or makes a new one with
``matplotlib.pyplot.subplots``, and returns it. Nothing is shown, saved or closed, and no setting is changed.
Components are numbered from 0, as in arrays, and keep their colour in every picture.
"""

from __future__ import annotations

from probmix.plots_calibration import plot_calibration
from probmix.plots_components import plot_components
from probmix.plots_density import plot_density
from probmix.plots_dial import plot_dial
from probmix.plots_history import plot_history
from probmix.plots_images import plot_images
from probmix.plots_latent import plane_colours, plot_latent, plot_latent_map
from probmix.plots_predictive_check import plot_predictive_check
from probmix.plots_process import plot_forecast, plot_parts, plot_spectrum
from probmix.plots_responsibilities import plot_responsibilities
from probmix.plots_selection import plot_merging, plot_selection
from probmix.plots_training import plot_training

__all__ = [
    "plane_colours",
    "plot_calibration",
    "plot_components",
    "plot_density",
    "plot_dial",
    "plot_forecast",
    "plot_history",
    "plot_images",
    "plot_latent",
    "plot_latent_map",
    "plot_merging",
    "plot_parts",
    "plot_predictive_check",
    "plot_responsibilities",
    "plot_selection",
    "plot_spectrum",
    "plot_training",
]

"""A posterior made ready to be read: labels matched, in ArviZ's container, every parameter summarised."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import Tensor

from probmix.arviz import ess, rhat
from probmix.comparison import Score, leave_one_out
from probmix.posterior import AbstractPosterior, DrawsPosterior, PointPosterior
from probmix.relabel import relabel
from probmix.typing import Named

__all__ = ["Estimate", "Reading"]

_LABELS_NOTE = (
    "component labels matched across chains and draws by Stephens' algorithm (probmix.relabel); "
    "the .safetensors file beside this one has the draws as they were made"
)

_FEWEST_DRAWS = 4  # of a chain that is to be split in two halves with a variance each


class Estimate(NamedTuple):
    """What is known of one number; NaN where the kind of answer does not say.

    Args:
        mean: posterior mean, or the point itself.
        std: posterior standard deviation.
        low: 2.5 % quantile.
        high: 97.5 % quantile.
        rhat_as_drawn: r-hat of the draws as they were made.
        rhat: r-hat once the labels are matched.
        ess: bulk effective sample size once the labels are matched.

    Example:
        >>> Estimate(mean=2.0).std
        nan
    """

    mean: float
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rhat_as_drawn: float = math.nan
    rhat: float = math.nan
    ess: float = math.nan


@dataclass(frozen=True, eq=False)
class Reading:
    """A posterior as it was fitted, the same with its labels matched, and that in ArviZ's container.

    Args:
        posterior: as it was fitted.
        matched: draws with component labels matched across chains and draws; any other answer unchanged.
        tree: ArviZ's container of ``matched``.
    """

    posterior: AbstractPosterior
    matched: AbstractPosterior
    tree: Any

    @classmethod
    def of(cls, posterior: AbstractPosterior, *, reference: Mapping[str, Tensor] | None = None) -> Reading:
        """Match the labels of draws and convert the answer for ArviZ.

        Args:
            posterior: of any kind; its program must name the axis ``"component"`` if it holds draws.
            reference: sites that give the components their numbers, e.g. those of another fit; the draw of highest
                density by default.

        Raises:
            MethodError: draws of a program whose components cannot be matched.

        Example:
            >>> from probmix.inference import EM, infer
            >>> from probmix.models import GaussianMixture
            >>> em = infer(GaussianMixture(1), np.array([[1.0], [2.0], [4.0]]), EM(), seed=0)
            >>> list(Reading.of(em).estimates)
            ['weights[0]', 'loc[0, 0]', 'cov[0, 0, 0]']
        """
        matched = posterior
        if isinstance(posterior, DrawsPosterior):
            matched = relabel(posterior, reference=posterior.sites() if reference is None else reference)
        tree = matched.to_arviz()
        if isinstance(posterior, DrawsPosterior):
            tree["posterior"].attrs["labels"] = _LABELS_NOTE
        return cls(posterior, matched, tree)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Every parameter by its name in ArviZ, e.g. ``cov[0, eruptions, waiting]``; mirror images left out."""
        return {name: estimate for site in self._sites() for name, estimate in self._of_site(site)}

    @cached_property
    def score(self) -> Score | None:
        """The leave-one-out score; None for a point and for very few draws, which have none."""
        return leave_one_out(self.tree)

    @property
    def _group(self) -> Any:
        return self.tree["point_estimate" if isinstance(self.posterior, PointPosterior) else "posterior"]

    def _sites(self) -> list[str]:
        """Sites in the model's own order, where it has one."""
        found = [str(name) for name in self._group.data_vars]
        order: list[str] = list(self.posterior.program.dims) if isinstance(self.posterior.program, Named) else []
        return sorted(found, key=lambda name: order.index(name) if name in order else len(order))

    def _of_site(self, site: str) -> Iterator[tuple[str, Estimate]]:
        variable = self._group[site]
        values = np.asarray(variable.values, dtype=float)
        fields = {"mean": values} if isinstance(self.posterior, PointPosterior) else _moments(values)
        if isinstance(self.posterior, DrawsPosterior):
            drawn = self.posterior.draws.get(site)
            fields |= _diagnostics(values, None if drawn is None else drawn.cpu().double().numpy())
        for index, name in _names(variable):
            yield name, Estimate(**{field: float(value[index]) for field, value in fields.items()})


def _moments(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    low, high = np.quantile(values, [0.025, 0.975], axis=(0, 1))
    ddof = 1 if values.shape[0] * values.shape[1] > 1 else 0
    return {"mean": values.mean((0, 1)), "std": values.std((0, 1), ddof=ddof), "low": low, "high": high}


def _diagnostics(matched: npt.NDArray[np.float64], drawn: npt.NDArray[np.float64] | None) -> dict[str, Any]:
    """R-hat before and after matching, and ESS; what ArviZ refuses to say of few chains or draws is left out."""
    num_chains, num_draws = matched.shape[:2]
    if num_draws < _FEWEST_DRAWS:
        return {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a value that never changes: NaN says so
        if num_chains == 1:
            return {"ess": ess(matched)}
        return {"rhat_as_drawn": rhat(matched if drawn is None else drawn), "rhat": rhat(matched), "ess": ess(matched)}


def _names(variable: xr.DataArray) -> Iterator[tuple[tuple[int, ...], str]]:
    """Index and name of every entry but the lower triangle of a symmetric matrix."""
    axes = [str(axis) for axis in variable.dims if axis not in ("chain", "draw")]
    labels = [variable[axis].values for axis in axes]
    for index in np.ndindex(tuple(map(len, labels))):
        at = dict(zip(axes, index, strict=True))
        if at.get("feature", 0) <= at.get("feature_bis", np.inf):
            inside = ", ".join(str(label[i]) for label, i in zip(labels, index, strict=True))
            yield index, f"{variable.name}[{inside}]" if axes else str(variable.name)

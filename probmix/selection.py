"""How many components, and of which covariance: fits of all of them in one table, one picture, one choice."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import pandas as pd
import torch
from matplotlib.axes import Axes
from rich import box
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from probmix.arguments import Arguments
from probmix.comparison import leave_one_out
from probmix.criteria import Criteria
from probmix.errors import DataError, FitError, MethodError, ProgramError
from probmix.inference.em import EM
from probmix.inference.gibbs import Gibbs
from probmix.inference.infer import infer
from probmix.inference.method import AbstractMethod
from probmix.inference.vb import VB
from probmix.models.mixture import AbstractMixture
from probmix.plots_selection import plot_selection
from probmix.posterior import AbstractPosterior, DrawsPosterior, GuidePosterior, PointPosterior
from probmix.relabel import relabel
from probmix.report_table import to_text
from probmix.status import FitWarning, Status

__all__ = ["Candidate", "Criterion", "Selection", "select"]

#: What to choose by; all are written so that lower is better.
Criterion = Literal["bic", "icl", "aic", "aicc", "nec", "evidence", "loo"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One model, its fit and its scores.

    Attributes:
        model: the mixture.
        status: how the fit ended; ``status.state`` is ``"failed"`` for one that could not be made, and says why.
        posterior: the fit; None where it failed.
        scores: criterion or figure -> value.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> Candidate(GaussianMixture(2), Status("failed", "too few rows")).scores
        {}
    """

    model: AbstractMixture
    status: Status
    posterior: AbstractPosterior | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def covariance(self) -> str | None:
        """Name of the covariance, of a model that has one."""
        return getattr(self.model, "covariance", None)

    @property
    def name(self) -> str:
        """Components and covariance, in words."""
        plural = "s" * (self.model.num_components > 1)
        return ", ".join(filter(None, (self.covariance, f"{self.model.num_components} component{plural}")))


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select` returns.

    Attributes:
        criterion: what it chose by.
        fits: every model that was tried, failures included.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.models import GaussianMixture
        >>> x = load_faithful().x
        >>> selection = select(GaussianMixture(1), x, components=[1, 2, 3], covariances=["tied"], seed=0)
        >>> selection.best.name, round(selection.best.scores["bic"], 1)
        ('tied, 3 components', 2314.3)
        >>> selection.table[["num_components", "bic", "icl"]].round(1).values.tolist()
        [[1.0, 2607.6, 2607.6], [2.0, 2325.2, 2326.7], [3.0, 2314.3, 2358.4]]
    """

    criterion: str
    fits: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The fit with the lowest criterion; of equals the one with fewest parameters."""
        return self.ranked[0]

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The fits that have a value, best first."""
        scored = [fit for fit in self.fits if math.isfinite(fit.scores.get(self.criterion, math.nan))]
        size = {id(fit): fit.scores.get("num_parameters", fit.model.num_components) for fit in scored}
        return tuple(sorted(scored, key=lambda fit: (round(fit.scores[self.criterion], 6), size[id(fit)])))

    @property
    def table(self) -> pd.DataFrame:
        """One row for each fit: components, covariance, scores, status; lower is better in every criterion."""
        rows = []
        for fit in self.fits:
            shape = {} if fit.covariance is None else {"covariance": fit.covariance}
            rows.append({"num_components": fit.model.num_components, **shape, **fit.scores, "status": str(fit.status)})
        return pd.DataFrame(rows)

    def plot(self, criterion: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the criterion against the number of components; see `probmix.plots.plot_selection`."""
        return plot_selection(self.table, criterion or self.criterion, ax=ax)

    def __str__(self) -> str:
        """The criterion of every fit as one table, then what was chosen and what failed."""
        lines = [to_text(_grid(self)), "", f"best: {self.best.name}, {self.criterion} {self._value(self.best)}"]
        if len(self.ranked) > 1:
            gap = self.ranked[1].scores[self.criterion] - self.best.scores[self.criterion]
            lines.append(f"next: {self.ranked[1].name}, worse by {gap:.2f}")
        reasons: dict[str, list[str]] = {}
        for fit in self.fits:
            if fit.status.state == "failed":
                reasons.setdefault(fit.status.message, []).append(fit.name)
        lines += [f"failed: {_shortened(names)}: {reason}" for reason, names in reasons.items()]
        return "\n".join(lines)

    def _value(self, fit: Candidate | None) -> str:
        value = math.nan if fit is None else fit.scores.get(self.criterion, math.nan)
        return f"{value:.2f}" if math.isfinite(value) else "-"


def select(
    model: AbstractMixture,
    x: Any,
    *,
    components: Iterable[int] = range(1, 10),
    covariances: Literal["all"] | Sequence[str] | None = "all",
    criterion: Criterion = "bic",
    method: AbstractMethod | None = None,
    seed: int,
    progress: bool = False,
) -> Selection:
    """Fit a mixture with every number of components and every covariance, and choose.

    ========== ================================================ ======================================
    criterion  what it is                                       fitted by, unless ``method`` says otherwise
    ========== ================================================ ======================================
    bic        -2 log L + p log N                               ``EM(objective="ml", init="short")``
    icl        bic with every row in its likeliest component    the same
    aic, aicc  -2 log L + 2 p; with a correction for few rows   the same
    nec        entropy over gain in log L; needs K = 1          the same
    evidence   -2 log p(x), estimated; see `VB`                 ``VB()``
    loo        -2 times the expected log density of a row left  ``Gibbs()``
               out, summed (`probmix.comparison`)
    ========== ================================================ ======================================

    The starts are ``init="short"``: each of the ten is the best of five short runs. They run as one batch, each until
    it is within 1e-6 nats of its optimum by EM's own estimate. That optimum is a local one: with many components ten
    starts often miss the best, and the criterion is then too high; ``method=EM(objective="ml", init="short",
    restarts=50)`` looks harder. A fit of the answer is that of ``infer(fit.model, x, method, seed=seed)``.

    A fit that fails (every start collapsed, more components than distinct rows) is a row of the table that says why.

    Args:
        model: a mixture, whose number of components and covariance are replaced; its other settings are kept.
        x: the data, as `probmix.inference.infer` takes them.
        components: numbers of components.
        covariances: names, or ``"all"`` that the model knows (in one dimension the two that differ); None: the model's
            own. Models without a covariance take ``"all"`` or None.
        criterion: what to choose by; the table has all that the method allows.
        method: how to fit.
        seed: every fit begins from this seed.
        progress: show a progress bar (on a terminal only).

    Raises:
        MethodError: an unknown criterion, or one that the method does not give.
        FitError: every fit failed.

    Example:
        >>> from probmix.datasets import load_galaxies
        >>> from probmix.models import GaussianMixture
        >>> x = load_galaxies().x / 1000
        >>> print(select(GaussianMixture(1), x, components=range(1, 5), seed=0))
        components      EII        VII
        ──────────────────────────────
                 1   489.49     489.49
                 2   478.33     462.15
                 3   451.14   [441.61]
                 4   450.70     446.98
        <BLANKLINE>
        best: VII, 3 components, bic 441.61
        next: VII, 4 components, worse by 5.37
    """
    method, arguments = _method(criterion, method), Arguments.of(x)
    models = _models(model, components, covariances, arguments)
    fits = []
    for one in tqdm(models, desc="select", leave=False, disable=None if progress else True):
        fits.append(_fit(one, arguments, method, seed))
    selection = Selection(criterion, tuple(_with_nec(fits)))
    if not selection.ranked:
        _complain(selection, method)
    return selection


# --- what to fit ------------------------------------------------------------------------------------------------------

_LETTERS = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"]
_ALIASES = {"spherical": "VII", "diagonal": "VVI", "tied": "EEE", "full": "VVV"}


def _method(criterion: str, method: AbstractMethod | None) -> AbstractMethod:
    if criterion not in get_args(Criterion):
        names = ", ".join(f'"{name}"' for name in get_args(Criterion))
        raise MethodError(f"criterion: expected {names}, got {criterion!r}. Pass one of these.")
    if method is not None:
        return method
    engines = {"evidence": VB(), "loo": Gibbs()}
    return engines.get(criterion, EM(objective="ml", init="short"))


def _models(model: Any, components: Iterable[int], covariances: Any, arguments: Arguments) -> list[AbstractMixture]:
    numbers = list(dict.fromkeys(components))
    if not numbers:
        raise MethodError("components: expected one number or more, got none. Pass range(1, 10), say.")
    if not hasattr(model, "covariance"):
        if covariances not in ("all", None):
            raise MethodError(
                f"covariances: {type(model).__name__} has no setting covariance=, got {covariances!r}. Leave it out."
            )
        return [dataclasses.replace(model, num_components=k) for k in numbers]
    names = _covariances(model, covariances, arguments.checked_by(model))
    return [dataclasses.replace(model, num_components=k, covariance=c) for c in names for k in numbers]


def _covariances(model: Any, covariances: Any, arguments: Arguments) -> list[str]:
    if covariances is None:
        return [model.covariance]
    if covariances != "all":
        return [covariances] if isinstance(covariances, str) else list(covariances)
    known: tuple[str, ...] = get_args(get_type_hints(type(model))["covariance"])
    names = sorted((n for n in known if _ALIASES.get(n) not in known), key=lambda n: _LETTERS.index(_letters(n)))
    if model.rows(*arguments.args).shape[-1] > 1:
        return names
    return [name for name in names if _letters(name) in ("EII", "VII")]  # one variance, equal or not


def _letters(name: str) -> str:
    return _ALIASES.get(name, name)


# --- fits and their scores --------------------------------------------------------------------------------------------


def _fit(model: AbstractMixture, arguments: Arguments, method: AbstractMethod, seed: int) -> Candidate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # the table says it
            posterior = infer(model, arguments, method, seed=seed, throw=False)
    except (DataError, FitError, MethodError, ProgramError) as reason:
        return Candidate(model, Status("failed", str(reason)))
    if posterior.status.state == "interrupted":
        raise KeyboardInterrupt
    if posterior.status.state == "failed":
        return Candidate(model, posterior.status)
    return Candidate(model, posterior.status, posterior, _scores(model, posterior))


def _scores(model: AbstractMixture, posterior: AbstractPosterior) -> dict[str, float]:
    if isinstance(posterior, PointPosterior):
        return _point_scores(model, posterior)
    scores: dict[str, float] = {"num_parameters": model.num_parameters(model.rows(*posterior.args).shape[-1])}
    if isinstance(posterior, GuidePosterior) and posterior.log_evidence is not None:
        return {"evidence": -2 * posterior.log_evidence, **scores}
    if isinstance(posterior, DrawsPosterior):
        return {**_loo(model, posterior), **scores}
    return scores


def _point_scores(model: AbstractMixture, posterior: PointPosterior) -> dict[str, float]:
    """Criteria at the point, and what tells a spurious optimum: rows of the smallest component, collapsed starts."""
    x, row_weights = model.rows(*posterior.args), getattr(posterior.method, "row_weights", None)
    with torch.no_grad():
        criteria = Criteria.of(model, x, posterior.sites(), row_weights)
    values = {name: getattr(criteria, name) for name in ("bic", "icl", "aic", "aicc", "log_likelihood", "entropy")}
    return {
        **{name: float(value) for name, value in values.items()},
        "num_parameters": criteria.num_parameters,
        "smallest_component": criteria.num_rows * float(posterior.sites()["weights"].min()),
        "collapsed": int(posterior.objectives.isnan().sum()),
    }


def _loo(model: AbstractMixture, posterior: DrawsPosterior) -> dict[str, float]:
    matched = relabel(posterior) if model.num_components > 1 else posterior
    score = leave_one_out(matched.to_arviz(predictive_draws=0, prior_draws=0))
    if score is None:
        return {}
    return {"loo": -2 * score.elpd_loo, "loo_se": 2 * score.se, "worst_pareto_k": score.worst_pareto_k}


def _with_nec(fits: Sequence[Candidate]) -> list[Candidate]:
    """Add the criterion that needs the fit with one component of the same covariance."""
    ones = {f.covariance: f.scores.get("log_likelihood") for f in fits if f.model.num_components == 1}
    return [_scored(fit, ones.get(fit.covariance)) for fit in fits]


def _scored(fit: Candidate, one: float | None) -> Candidate:
    if one is None or "entropy" not in fit.scores:
        return fit
    gain = fit.scores["log_likelihood"] - one
    value = 1.0 if fit.model.num_components == 1 else fit.scores["entropy"] / gain if gain > 0 else math.inf
    return dataclasses.replace(fit, scores={**fit.scores, "nec": value})


def _complain(selection: Selection, method: AbstractMethod) -> None:
    fits, criterion = selection.fits, selection.criterion
    if all(fit.posterior is None for fit in fits):
        raise FitError(f"none of {len(fits)} models could be fitted. The first: {fits[0].status.message}")
    raise MethodError(
        f"criterion: {type(method).__name__}() gives no {criterion!r} for any of {len(fits)} models. bic, icl, aic and "
        "aicc come with EM(), nec with EM() and one of the numbers of components 1, evidence with VB() or Laplace(), "
        "loo with Gibbs(), NUTS() or ChEES()."
    )


def _shortened(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(names[:3]) + rest


def _grid(selection: Selection) -> Table:
    """Numbers of components down, covariances across; the best in brackets."""
    cells = {(fit.model.num_components, fit.covariance): fit for fit in selection.fits}
    names = list(dict.fromkeys(fit.covariance for fit in selection.fits))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in ("components", *(name or selection.criterion for name in names)):
        table.add_column(Text(heading), justify="right")
    for k in sorted({k for k, _ in cells}):
        row = [cells.get((k, name)) for name in names]
        table.add_row(str(k), *(_marked(selection, fit) for fit in row))
    return table


def _marked(selection: Selection, fit: Candidate | None) -> Text:
    text = selection._value(fit)
    return Text(f"[{text}]" if fit is selection.best else text)

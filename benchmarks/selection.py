"""Choice of k: all fourteen covariances and k = 1, ..., 9 from ten starts, against scikit-learn on its four of them.

Two things are measured. Speed: CPU seconds of one thread for the whole table, each side with its own rule for when to
stop (``sklearn tol`` is scikit-learn with a gain per step of about 1e-6 nats in all, near our tolerance). Quality: by
how many nats each falls short of the best that anybody found. Then the fits that the R package mclust published are
looked up: the program fails if one is not reached.

    python benchmarks/selection.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from probmix.datasets import load_diabetes_145, load_faithful, load_galaxies, load_iris
from probmix.models import GaussianMixture
from probmix.selection import Selection, select

SKLEARN_NAMES = {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical"}
ALIASES = {"full": "VVV", "tied": "EEE", "diagonal": "VVI", "spherical": "VII"}
HEADER = f"{'data':<10}{'rows':>6}{'D':>3} {'who':<13}{'covariances':>12}{'k':>6}{'starts':>8}{'failed':>8}" + "".join(
    f"{title:>12}" for title in ("seconds", "mean short", "max short")
)

Likelihoods = dict[tuple[str, int], float]


class Published(NamedTuple):
    """A choice of mclust's by BIC and its log-likelihood."""

    name: str
    x: Tensor
    covariance: str
    num_components: int
    log_likelihood: float


def published() -> list[Published]:
    """Values that mclust's documentation and papers print."""
    return [
        Published("faithful", load_faithful().x, "EEE", 3, -1126.326),
        Published("galaxies", load_galaxies().x / 1000, "VII", 3, -203.1792),
        Published("iris", load_iris().x, "VEV", 2, -215.726),
        Published("diabetes", load_diabetes_145().x, "VVV", 3, -2295.118),
    ]


# --- the two sides --------------------------------------------------------------------------------------------------


def timed_select(x: Tensor, last: int, covariances: str | list[str]) -> tuple[float, Selection]:
    """CPU seconds and the selection."""
    start = time.process_time()
    selection = select(GaussianMixture(1), x, components=range(1, last + 1), covariances=covariances, seed=0)
    return time.process_time() - start, selection


def likelihoods(selection: Selection) -> Likelihoods:
    """(Covariance in mclust's letters, k) -> log-likelihood, NaN where the fit failed."""
    return {
        (ALIASES.get(str(fit.covariance), str(fit.covariance)), fit.model.num_components): fit.scores.get(
            "log_likelihood", np.nan
        )
        for fit in selection.fits
    }


def timed_sklearn(x: Tensor, last: int, **settings: Any) -> tuple[float, Likelihoods]:
    """The same by scikit-learn with ten starts, no ridge, and otherwise its own settings but for those given."""
    rows, found = x.numpy(), {}
    start = time.process_time()
    for letters, name in SKLEARN_NAMES.items():
        for k in range(1, last + 1):
            peer = SklearnMixture(k, covariance_type=name, n_init=10, reg_covar=0.0, random_state=0, **settings)
            try:
                found[letters, k] = peer.fit(rows).score(rows) * len(rows)
            except ValueError:  # one start collapsed, which ends all ten
                found[letters, k] = np.nan
    return time.process_time() - start, found


# --- the report -----------------------------------------------------------------------------------------------------


def shortfalls(found: Likelihoods, best: Likelihoods) -> list[float]:
    """Nats below the best that anybody found, where there is a value."""
    return [best[model] - value for model, value in found.items() if np.isfinite(value)]


def row(name: str, x: Tensor, who: str, seconds: float, found: Likelihoods, best: Likelihoods) -> str:
    """One line of the table."""
    failed = sum(not np.isfinite(value) for value in found.values())
    families, last, short = len({letters for letters, _ in found}), max(k for _, k in found), shortfalls(found, best)
    size = f"{name:<10}{len(x):>6}{x.shape[1]:>3} {who:<13}{families:>12}{f'1..{last}':>6}{10:>8}{failed:>8}"
    return f"{size}{seconds:>12.2f}{np.mean(short):>12.3f}{max(short):>12.3f}"


def measure(name: str, x: Tensor, last: int) -> tuple[list[str], list[str], Selection]:
    """Lines of the table, lines of results, and the full selection."""
    all_seconds, everything = timed_select(x, last, "all")
    four_seconds, four = timed_select(x, last, list(SKLEARN_NAMES))
    sides = {
        "probmix 14": (all_seconds, likelihoods(everything)),
        "probmix": (four_seconds, likelihoods(four)),
        "sklearn": timed_sklearn(x, last),
        "sklearn tol": timed_sklearn(x, last, tol=1e-8, max_iter=2000),
    }
    best = {m: np.nanmax([found.get(m, np.nan) for _, found in sides.values()]) for m in sides["probmix 14"][1]}
    table = [row(name, x, who, seconds, found, best) for who, (seconds, found) in sides.items()]
    values = [f"seconds_fourteen_{name}={all_seconds:.1f}"]
    for who, label in (("sklearn", "sklearn"), ("sklearn tol", "sklearn_same_tolerance")):
        values.append(f"{label}_over_probmix_four_{name}={sides[who][0] / four_seconds:.2f}")
    for who in ("probmix", "sklearn", "sklearn tol"):
        values.append(f"mean_nats_short_{who.replace(' ', '_')}_{name}={np.mean(shortfalls(sides[who][1], best)):.3f}")
    return table, values, everything


def reached(case: Published, selection: Selection | None) -> tuple[float, bool]:
    """How far above the published log-likelihood we are, and whether BIC chooses the same model."""
    if selection is None:
        last = case.num_components + 1
        selection = select(GaussianMixture(1), case.x, components=range(1, last + 1), seed=0)
    found = likelihoods(selection)[case.covariance, case.num_components]
    best = (ALIASES.get(str(selection.best.covariance), selection.best.covariance), selection.best.model.num_components)
    return found - case.log_likelihood, best == (case.covariance, case.num_components)


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="k up to 4 for 9: under a minute")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/selection.txt too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # its limit of 100 steps is part of its settings
    last = 4 if options.quick else 9
    with threadpool_limits(1):
        table, values, selection = measure("diabetes", load_diabetes_145().x, last)
        gains = {case.name: reached(case, selection if case.name == "diabetes" else None) for case in published()}
    values += [f"nats_above_published_{name}={gain:.4f}" for name, (gain, _) in gains.items()]
    values += [f"same_choice_as_published_{name}={same}" for name, (_, same) in gains.items()]
    versions = f"torch {torch.__version__}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}"
    text = "\n".join([versions, HEADER, *table, "", *values])
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "selection.txt").write_text(text + "\n", encoding="utf-8")
    below = [name for name, (gain, _) in gains.items() if gain < -0.001]  # the last digit printed, and its rounding
    if below:
        sys.exit(f"published log-likelihoods not reached: {', '.join(below)}")


if __name__ == "__main__":
    main()

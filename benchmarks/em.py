"""EM: twenty restarts as one batch, the same twenty one after another, and scikit-learn from the same twenty starts.

Every start is K rows as means, the covariance of all rows for every component, and equal weights. scikit-learn then
makes, from each start, exactly as many steps as probmix did, so that the same iterates are computed and the final
log-likelihoods must be equal; they are compared, and the program fails if they are not.

    python benchmarks/em.py [--quick] [--data faithful iris ...] [--save]

Times are CPU seconds of one thread, medians over repeats in which the three sides take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from probmix.datasets import load_faithful, load_iris, load_wine
from probmix.inference import EM, infer
from probmix.models import GaussianMixture
from probmix.posterior import PointPosterior

STARTS = 20
RELATIVE = 1e-8  # both sides add up the same few hundred or thousand float64 terms, in another order
SKLEARN_NAMES = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
HEADER = f"{'data':<12}{'rows':>7}{'D':>4}{'K':>3} {'covariance':<10}{'steps':>7}{'collapsed':>10}" + "".join(
    f"{title:>12}" for title in ("batch s", "singles s", "sklearn s", "rel. diff.")
)

Sites = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Data and the mixture that is fitted to them."""

    name: str
    x: Tensor
    model: GaussianMixture
    max_steps: int


@dataclass(frozen=True)
class Row:
    """What was measured on one case: CPU seconds, steps of all starts, collapsed starts, worst difference.

    Collapsed starts are counted on probmix's side and on scikit-learn's.
    """

    case: Case
    batch: float
    singles: float
    sklearn: float
    steps: int
    collapsed: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        case, times = self.case, (self.batch, self.singles, self.sklearn)
        rows, size = case.x.shape
        left = f"{case.name:<12}{rows:>7}{size:>4}{case.model.num_components:>3} {case.model.covariance:<10}"
        return (
            f"{left}{self.steps:>7}{'{}, {}'.format(*self.collapsed):>10}"
            + "".join(f"{t:>12.4f}" for t in times)
            + (f"{self.difference:>12.1e}")
        )


def synthetic(rows: int) -> Tensor:
    """Eight overlapping components in eight dimensions, ``(rows, 8)``."""
    generator = np.random.default_rng(0)
    loc, factor = 2.0 * generator.standard_normal((8, 8)), generator.standard_normal((8, 8, 8)) / 3
    labels = generator.integers(8, size=rows)
    noise = generator.standard_normal((rows, 8, 1))
    white = 0.5 * generator.standard_normal((rows, 8))
    return torch.from_numpy(loc[labels] + (factor[labels] @ noise)[..., 0] + white)


def cases(quick: bool) -> list[Case]:
    """What is measured; wine has too many columns for three full covariances, which collapse."""
    small, large, rows = (100, 20, 2_000) if quick else (2_000, 30, 20_000)
    return [
        Case("faithful", load_faithful().x, GaussianMixture(2), small),
        Case("iris", load_iris().x, GaussianMixture(3), small),
        Case("wine", load_wine().x, GaussianMixture(3, "diagonal"), small),
        Case("synthetic", synthetic(rows), GaussianMixture(8), large),
    ]


def starts(case: Case, seed: int) -> Sites:
    """`STARTS` starting points, each site ``(STARTS, ...)``."""
    generator = np.random.default_rng(seed)
    x, num_components = case.x, case.model.num_components
    picks = np.stack([generator.choice(len(x), num_components, replace=False) for _ in range(STARTS)])
    cov = torch.cov(x.mT, correction=0)
    shape = (STARTS, num_components)
    spread = {"cov": cov.expand(*shape, *cov.shape)}
    if case.model.covariance == "diagonal":
        spread = {"var": cov.diagonal().expand(*shape, -1)}
    return {"weights": x.new_full(shape, 1 / num_components), "loc": x[torch.from_numpy(picks)], **spread}


# --- the three sides ------------------------------------------------------------------------------------------------


def probmix_fit(case: Case, init: Sites) -> PointPosterior:
    """Fit from all given starts as one batch."""
    method = EM(init=init, objective="ml", max_steps=case.max_steps)
    return infer(case.model, case.x, method, seed=0, throw=False)


def sklearn_fit(case: Case, start: Sites, steps: int) -> float:
    """Make the given number of steps; return the log-likelihood, NaN where scikit-learn refuses a covariance."""
    (spread,) = (value for name, value in start.items() if name in ("cov", "var"))
    full = spread.dim() == 3
    fit = SklearnMixture(
        case.model.num_components,
        covariance_type=SKLEARN_NAMES[case.model.covariance],
        tol=0.0,
        reg_covar=0.0,
        max_iter=steps,
        weights_init=start["weights"].numpy(),
        means_init=start["loc"].numpy(),
        precisions_init=(torch.linalg.inv(spread) if full else 1 / spread).numpy(),
    )
    try:
        fit.fit(case.x.numpy())
    except ValueError:
        return float("nan")
    return fit.score(case.x.numpy()) * len(case.x)


def steps_of(fit: PointPosterior) -> list[int]:
    """Steps that each start has made: entries of the history but for the last, which is the final objective."""
    return fit.history["objective"][:, :-1].isfinite().sum(-1).tolist()


def timed(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def worst_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference of two sets of log-likelihoods, where both are finite."""
    both = ours.isfinite() & theirs.isfinite()
    return float(((ours - theirs).abs() / theirs.abs())[both].max())


def measure(case: Case, repeats: int) -> Row:
    """Check that the three sides compute the same, then time them in turn."""
    batch = starts(case, seed=0)
    singles = [{name: value[i] for name, value in batch.items()} for i in range(STARTS)]
    first = probmix_fit(case, batch)
    steps = steps_of(first)
    alone = torch.stack([probmix_fit(case, start).objectives[0] for start in singles])
    theirs = torch.tensor(
        [sklearn_fit(case, start, n) for start, n in zip(singles, steps, strict=True)], dtype=torch.float64
    )
    difference = max(worst_difference(first.objectives, theirs), worst_difference(first.objectives, alone))
    collapsed = int(first.objectives.isnan().sum()), int(theirs.isnan().sum())
    sides = (
        lambda: probmix_fit(case, batch),
        lambda: [probmix_fit(case, start) for start in singles],
        lambda: [sklearn_fit(case, start, n) for start, n in zip(singles, steps, strict=True)],
    )
    rounds = [[timed(side) for side in sides] for _ in range(repeats)]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    return Row(case, *medians, sum(steps), collapsed, difference)


# --- the report -----------------------------------------------------------------------------------------------------


def report(rows: list[Row]) -> str:
    """One table, then ``name=value`` lines: times of the first named over times of the second."""
    lines = [HEADER, *map(str, rows), ""]
    for row in rows:
        lines.append(f"batch_of_20_over_20_single_runs_{row.case.name}={row.batch / row.singles:.3f}")
        lines.append(f"sklearn_over_probmix_{row.case.name}={row.sklearn / row.batch:.3f}")
    return "\n".join([*lines, f"largest_relative_difference={max(row.difference for row in rows):.1e}"])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in cases(quick=True)]
    parser.add_argument(
        "--quick", action="store_true", help="3 repeats for 5, fewer steps, less synthetic data: under a minute"
    )
    parser.add_argument("--data", nargs="+", choices=names, default=names, help="which data sets")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/em.txt too")
    return parser.parse_args()


def main() -> None:
    """Measure, print and, on request, save."""
    options = arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is set
    warnings.filterwarnings("ignore", category=UserWarning, module="__main__")  # a step limit that is meant
    with threadpool_limits(1):
        rows = [measure(case, 3 if options.quick else 5) for case in cases(options.quick) if case.name in options.data]
    text = f"torch {torch.__version__}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}\n{report(rows)}"
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "em.txt").write_text(text + "\n", encoding="utf-8")
    if any(row.difference > RELATIVE for row in rows):
        sys.exit(f"the log-likelihoods differ by more than {RELATIVE:g}, relatively")


if __name__ == "__main__":
    main()

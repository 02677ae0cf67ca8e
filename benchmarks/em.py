"""EM against scikit-learn: time of an iteration, many restarts as one batch, memory, and float32 far from the origin.

Both sides start from the same sites and make the same number of steps on the same data, so that the same iterates are
computed and the final log-likelihoods must be equal; they are compared, and the program fails if they are not.

    python benchmarks/em.py [--quick] [--save]

Times are CPU seconds of one thread, medians over rounds in which the sides take turns. An iteration is the difference
of a long fit and a short one over the steps between them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
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
from probmix.status import FitWarning

STARTS = 20
RELATIVE = 1e-8  # both sides add up the same float64 terms, in another order
NARROW = 1e-5  # float32: seven digits, of which the terms of a log density take one or two
SKLEARN_NAMES = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}

Sites = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """Rows, features and components, and the steps of a short and of a long fit."""

    rows: int
    features: int
    components: int
    steps: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.rows}_{self.features}_{self.components}"


SIZES = [Size(200, 2, 3, (20, 220)), Size(20_000, 64, 32, (1, 4)), Size(100_000, 16, 16, (1, 5))]
FULL_SIZES = [*SIZES, Size(1_000_000, 8, 8, (1, 4))]
QUICK_SIZES = [SIZES[0], Size(8_000, 64, 16, (1, 3)), Size(20_000, 16, 16, (1, 4)), Size(100_000, 8, 8, (1, 4))]


# --- data, starts and the two sides ---------------------------------------------------------------------------------


def overlapping(size: Size) -> tuple[Tensor, Tensor]:
    """Gaussian clusters two or three standard deviations apart in each feature: rows, and where their means start."""
    generator = np.random.default_rng(0)
    num, width = size.components, size.features
    loc = 2.0 * generator.standard_normal((num, width))
    factor = 0.5 * generator.standard_normal((num, width, width)) / np.sqrt(width) + np.eye(width)
    labels = generator.integers(num, size=size.rows)
    x = generator.standard_normal((size.rows, width))
    for component in range(num):
        mine = labels == component
        x[mine] = x[mine] @ factor[component].T + loc[component]
    near = loc + 0.5 * generator.standard_normal(loc.shape)
    return torch.from_numpy(x), torch.from_numpy(near)


def first_sites(x: Tensor, loc: Tensor, covariance: str) -> Sites:
    """Given means ``(*b, K, D)``, the covariance of all rows for every component, and equal weights."""
    cov = torch.cov(x.mT, correction=0).reshape(x.shape[-1], x.shape[-1])
    weights = x.new_full(loc.shape[:-1], 1 / loc.shape[-2])
    if covariance == "full":
        return {"weights": weights, "loc": loc, "cov": cov.expand(*loc.shape, -1)}
    return {"weights": weights, "loc": loc, "var": cov.diagonal().expand(loc.shape)}


def probmix_fit(x: Tensor, covariance: str, start: Sites, steps: int) -> PointPosterior:
    """Fit from the given sites, by maximum likelihood, to the last digit or for so many steps."""
    model = GaussianMixture(start["weights"].shape[-1], covariance)
    method = EM(init=start, objective="ml", max_steps=steps, tolerance=1e-300)
    return infer(model, x, method, seed=0, throw=False)


def sklearn_fit(x: np.ndarray, covariance: str, start: Sites, steps: int) -> SklearnMixture:
    """Make so many steps from the given sites."""
    (spread,) = (value.double() for name, value in start.items() if name in ("cov", "var"))
    precision = torch.linalg.inv(spread) if covariance == "full" else 1 / spread
    return SklearnMixture(
        start["weights"].shape[-1],
        covariance_type=SKLEARN_NAMES[covariance],
        tol=0.0,
        reg_covar=0.0,
        max_iter=steps,
        weights_init=start["weights"].numpy(),
        means_init=start["loc"].numpy(),
        precisions_init=precision.numpy().astype(x.dtype),
    ).fit(x)


def steps_of(fit: PointPosterior) -> list[int]:
    """Steps that each start has made: entries of the history but for the last, which is the final objective."""
    return fit.history["objective"][:, :-1].isfinite().sum(-1).tolist()


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turns(sides: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """CPU seconds of every side in every round, ``[side][round]``."""
    return list(map(list, zip(*([cpu_seconds(side) for side in sides] for _ in range(rounds)), strict=True)))


# --- time of an iteration -------------------------------------------------------------------------------------------


def iteration(size: Size, covariance: str, rounds: int) -> tuple[str, list[str], float]:
    """Measure one iteration of both sides: a line of the table, the claims, and the relative difference."""
    x, loc = overlapping(size)
    start, narrow = first_sites(x, loc, covariance), x.float()
    few, most = size.steps
    fit = probmix_fit(x, covariance, start, most)
    many = steps_of(fit)[0]
    theirs = sklearn_fit(x.numpy(), covariance, start, many).score(x.numpy()) * size.rows
    narrow_objective = probmix_fit(narrow, covariance, start, many).objective
    differences = [abs(fit.objective / theirs - 1), abs(narrow_objective / theirs - 1)]
    rows = x.numpy()
    sides: list[Callable[[], object]] = []
    for steps in (few, many):
        sides += [
            lambda steps=steps: probmix_fit(x, covariance, start, steps),
            lambda steps=steps: probmix_fit(narrow, covariance, start, steps),
            lambda steps=steps: sklearn_fit(rows, covariance, start, steps),
        ]
    times = in_turns(sides, rounds)
    wide_ms, narrow_ms, sklearn_ms = (
        1e3 * statistics.median(b - a for a, b in zip(times[i], times[i + 3], strict=True)) / (many - few)
        for i in range(3)
    )
    left = f"{covariance:<10}{size.rows:>9}{size.features:>4}{size.components:>4}"
    figures = f"{wide_ms:>11.3f}{narrow_ms:>11.3f}{sklearn_ms:>11.3f}{sklearn_ms / wide_ms:>8.2f}"
    claims = [
        f"sklearn_over_probmix_{covariance}_{size}={sklearn_ms / wide_ms:.3f}",
        f"float64_over_float32_{covariance}_{size}={wide_ms / narrow_ms:.3f}",
    ]
    if differences[1] > NARROW:
        sys.exit(f"float32 is off by {differences[1]:.1e} of the log-likelihood, more than {NARROW:g}")
    return f"{left}{figures}{differences[0]:>10.0e}{differences[1]:>10.0e}", claims, differences[0]


# --- many restarts --------------------------------------------------------------------------------------------------


def restarts(name: str, x: Tensor, num_components: int, covariance: str, steps: int, rounds: int) -> tuple[str, str]:
    """Twenty starts as one batch, and the same one after another: a line of the table and the claim."""
    generator = np.random.default_rng(0)
    picks = [generator.choice(len(x), num_components, replace=False) for _ in range(STARTS)]
    batch = first_sites(x, x[torch.from_numpy(np.stack(picks))], covariance)
    singles = [{key: value[i] for key, value in batch.items()} for i in range(STARTS)]
    together = probmix_fit(x, covariance, batch, steps).objectives
    alone = torch.stack([probmix_fit(x, covariance, start, steps).objectives[0] for start in singles])
    torch.testing.assert_close(together, alone, rtol=RELATIVE, atol=0, equal_nan=True)
    times = in_turns(
        [
            lambda: probmix_fit(x, covariance, batch, steps),
            lambda: [probmix_fit(x, covariance, start, steps) for start in singles],
        ],
        rounds,
    )
    one, many = map(statistics.median, times)
    line = f"{name:<10}{len(x):>9}{x.shape[1]:>4}{num_components:>4}{one:>11.3f}{many:>11.3f}{many / one:>8.2f}"
    return line, f"batch_of_20_over_20_single_runs_{name}={one / many:.3f}"


# --- memory ---------------------------------------------------------------------------------------------------------


MEMORY = """
import re, sys, warnings
from pathlib import Path
import torch
from threadpoolctl import threadpool_limits
sys.path.insert(0, {folder!r})
from em import Size, first_sites, probmix_fit, sklearn_fit
warnings.simplefilter("ignore")
torch.set_num_threads(1)
def read(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def fit(x):
    start = first_sites(x[:1000], x[:8], "full")
    return {side}
with threadpool_limits(1):
    fit(torch.randn(5000, 8, dtype=torch.float64))
    x = torch.randn({rows}, 8, dtype=torch.float64)
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    fit(x)
print(1024 * (read("VmHWM") - before) / (x.numel() * 8))
"""


def memory(rows: int) -> tuple[str, str]:
    """Peak memory above the data, in units of the data, each side in a process of its own (Linux alone).

    The least of three processes: the system's own accounting wavers.
    """
    sides = {"probmix": 'probmix_fit(x, "full", start, 2)', "sklearn": 'sklearn_fit(x.numpy(), "full", start, 2)'}
    found = []
    for side in sides.values():
        code = MEMORY.format(folder=str(Path(__file__).parent), rows=rows, side=side)
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)
        ]
        found.append(min(float(run.stdout) for run in runs))
    line = f"full {rows} x 8, K = 8: probmix {found[0]:.2f}, scikit-learn {found[1]:.2f} times the data above the data"
    return line, f"memory_above_data_{rows}_8_8={found[0]:.3f}"


# --- float32 far from the origin ------------------------------------------------------------------------------------


def far_away(covariance: str, separation: float, rows: int) -> tuple[str, str]:
    """Two unit clusters far apart and a thousand standard deviations from the origin, in float32 on both sides.

    The error is that of the worst variance after five steps, relative to the same in float64 on the same numbers.
    """
    noise = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    x = noise + 1000.0
    x[::2, 0] += separation
    exact = x.double()
    start = first_sites(exact, exact[:2], covariance)
    narrow = {name: value.float() for name, value in start.items()}
    reference = variances(probmix_fit(exact, covariance, start, 5).sites())
    ours = variances(probmix_fit(x, covariance, narrow, 5).sites())
    try:
        fit = sklearn_fit(x.numpy(), covariance, narrow, 5)
        spread = torch.from_numpy(np.array(fit.covariances_))
        theirs = f"{relative(variances({'cov' if spread.dim() == 3 else 'var': spread}), reference):.1e}"
    except ValueError:
        theirs = "refused"
    error = relative(ours, reference)
    line = f"{covariance:<10}{separation:>12g}{error:>12.1e}{theirs:>14}"
    return line, f"float32_error_of_variance_{covariance}_{separation:g}={error:.1e}"


def variances(sites: Sites) -> Tensor:
    """Diagonals of the covariances."""
    return sites["cov"].diagonal(dim1=-2, dim2=-1) if "cov" in sites else sites["var"]


def relative(found: Tensor, reference: Tensor) -> float:
    """Largest relative difference."""
    return float((found / reference - 1).abs().max())


# --- the report -----------------------------------------------------------------------------------------------------


def report(quick: bool) -> tuple[str, float]:
    """Measure everything; tables, then ``name=value`` lines, and the largest difference of two log-likelihoods."""
    sizes, rounds = (QUICK_SIZES, 3) if quick else (FULL_SIZES, 3)
    heading = "".join(f"{title:>11}" for title in ("float64 ms", "float32 ms", "sklearn ms"))
    lines = [f"{'covariance':<10}{'rows':>9}{'D':>4}{'K':>4}{heading}{'ratio':>8}{'diff.':>10}{'diff. 32':>10}"]
    claims, worst = [], 0.0
    for covariance in ("full", "diagonal"):
        for size in sizes:
            line, names, difference = iteration(size, covariance, 9 if size.rows < 1000 else rounds)
            lines.append(line)
            claims += names
            worst = max(worst, difference)
    lines += ["", f"{'20 starts':<10}{'rows':>9}{'D':>4}{'K':>4}{'batch s':>11}{'singles s':>11}{'ratio':>8}"]
    steps = 60 if quick else 300
    for name, x, num_components, covariance in (
        ("faithful", load_faithful().x, 2, "full"),
        ("iris", load_iris().x, 3, "full"),
        ("wine", load_wine().x, 3, "diagonal"),
    ):
        line, claim = restarts(name, x, num_components, covariance, steps, 3)
        lines.append(line)
        claims.append(claim)
    if Path("/proc/self/clear_refs").exists():
        line, claim = memory(200_000 if quick else 1_000_000)
        lines += ["", line]
        claims.append(claim)
    lines += ["", f"{'float32':<10}{'sds apart':>12}{'probmix':>12}{'scikit-learn':>14}  (error of a variance)"]
    for covariance in ("full", "diagonal"):
        for separation in (3.0, 30.0, 300.0, 3000.0):
            line, claim = far_away(covariance, separation, 20_000 if quick else 100_000)
            lines.append(line)
            claims.append(claim)
    claims.append(f"largest_relative_difference={worst:.1e}")
    return "\n".join([*lines, "", *claims]), worst


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and steps: under a minute")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/em.txt too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for category in (ConvergenceWarning, FitWarning, RuntimeWarning):  # the number of steps is set
        warnings.simplefilter("ignore", category)
    with threadpool_limits(1):
        text, worst = report(options.quick)
    text = f"torch {torch.__version__}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}\n{text}"
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "em.txt").write_text(text + "\n", encoding="utf-8")
    if worst > RELATIVE:
        sys.exit(f"the log-likelihoods differ by more than {RELATIVE:g}, relatively")


if __name__ == "__main__":
    main()

"""Samplers on one mixture posterior: effective draws per CPU second, with and without warm-up and compilation.

Three well-separated groups in the plane, 1,000 rows, three components with diagonal covariances:
``w ~ Dirichlet(1)``, ``mu ~ Normal(0, 5)``, ``sd ~ HalfNormal(2)``, labels summed out. Pyro, Pyro with its jit,
NumPyro, PyMC with nutpie (each where installed) and ours: NUTS, NUTS by nutpie (where installed) and ChEES, uncompiled
and compiled. All begin near the mode. The worst bulk effective sample size over all parameters counts.

    python benchmarks/mcmc.py [--quick] [--sides ...] [--repeats 5] [--save]

Every fit runs in a process of its own, one after another, all libraries on one thread; the sides take turns. Times are
CPU seconds with those of the compilers; medians over repeats. ``torch.compile`` finds no cache of earlier runs, other
compilers may. Posterior means must agree within Monte-Carlo error, or the program fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import arviz
import numpy as np
from mcmc_sides import SIDES, Fit
from threadpoolctl import threadpool_limits

from probmix.arviz import ess

WANTED = 4_000  # effective draws
LARGEST_Z = 5.0  # some hundreds of comparisons: false alarm below 1e-3
NEEDS = {"NumPyro NUTS": "numpyro", "PyMC, nutpie": "pymc", "NUTS by nutpie": "nutpie"}
ONE_THREAD = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON")},
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}
HEADER = f"{'side':<28}" + "".join(
    f"{title:>12}"
    for title in ("compile s", "warm-up s", "sampling s", "worst ESS", "ESS/s", "no warm-up", f"s for {WANTED}")
)


@dataclass(frozen=True)
class Result:
    """One fit: CPU seconds, worst effective sample size, posterior means and their Monte-Carlo standard errors."""

    compilation: float
    warmup: float
    sampling: float
    ess: float
    means: list[float]
    errors: list[float]

    @classmethod
    def of(cls, fit: Fit) -> Result:
        """Summarise the draws of a fit."""
        each = {name: np.asarray(value, dtype=float) for name, value in fit.draws.items()}
        flat = np.concatenate([value.reshape(*value.shape[:2], -1) for _, value in sorted(each.items())], -1)
        sizes = np.array([ess(flat[..., i]) for i in range(flat.shape[-1])], dtype=float)
        spread = flat.std((0, 1)) / np.sqrt(sizes)
        return cls(fit.compilation, fit.warmup, fit.sampling, sizes.min(), flat.mean((0, 1)).tolist(), spread.tolist())


@dataclass(frozen=True)
class Row:
    """The repeats of one side."""

    name: str
    results: list[Result]

    def median(self, figure: str) -> float:
        """Median over repeats of one figure of the fit, or of one derived from it."""
        return statistics.median(self._figure(figure, result) for result in self.results)

    def _figure(self, figure: str, r: Result) -> float:
        derived = {
            "per_second": r.ess / (r.warmup + r.sampling),
            "without_warmup": r.ess / r.sampling,
            "seconds_for_wanted": r.compilation + r.warmup + r.sampling * WANTED / r.ess,
        }
        return derived[figure] if figure in derived else float(getattr(r, figure))

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Means over repeats, and their standard errors."""
        means, errors = (np.array([getattr(r, name) for r in self.results]) for name in ("means", "errors"))
        return means.mean(0), np.sqrt((errors**2).sum(0)) / len(errors)

    def __str__(self) -> str:
        cells = [f"{self.median(name):>12.2f}" for name in ("compilation", "warmup", "sampling")]
        cells += [f"{self.median(name):>12.0f}" for name in ("ess", "per_second", "without_warmup")]
        return f"{self.name:<28}" + "".join(cells) + f"{self.median('seconds_for_wanted'):>12.1f}"


def run(side: str, seed: int, quick: bool) -> Result:
    """Fit in a process of its own, with a compiler cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--one", side, "--seed", str(seed), *(["--quick"] if quick else [])]
        environment = {**os.environ, **ONE_THREAD, "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def one(side: str, seed: int, quick: bool) -> None:
    """Do the work of such a process, and print it."""
    import torch

    torch.set_num_threads(1)
    with threadpool_limits(1):
        print(json.dumps(vars(Result.of(SIDES[side](quick, seed)))))


def largest_z(rows: list[Row]) -> float:
    """Largest difference of a posterior mean from that of the side with most draws, in standard errors."""
    reference = max(rows, key=lambda row: row.median("ess"))
    mean, error = reference.pooled()
    others = [row.pooled() for row in rows if row is not reference]
    return max((float((np.abs(m - mean) / np.hypot(e, error)).max()) for m, e in others), default=0.0)


def figures(rows: list[Row]) -> list[str]:
    """``name=value`` lines."""
    at = {row.name: row for row in rows}
    lines = []
    for ours, label in (("ChEES", "chees"), ("ChEES, compiled", "chees_compiled")):
        for theirs, name in (
            ("Pyro NUTS", "pyro_nuts"),
            ("Pyro NUTS, jit", "pyro_nuts_jit"),
            ("NumPyro NUTS", "numpyro"),
            ("PyMC, nutpie", "nutpie"),
        ):
            if ours in at and theirs in at:
                ratio = at[ours].median("per_second") / at[theirs].median("per_second")
                lines.append(f"ess_per_second_{label}_over_{name}={ratio:.1f}")
    if {"NUTS", "Pyro NUTS"} <= set(at):
        ratio = at["NUTS"].median("per_second") / at["Pyro NUTS"].median("per_second")
        lines.append(f"ess_per_second_nuts_over_pyro_nuts={ratio:.1f}")
    for row in rows:
        label = row.name.lower().replace(", ", "_").replace(" ", "_")
        lines.append(f"seconds_for_{WANTED}_incl_compile_{label}={row.median('seconds_for_wanted'):.1f}")
    return [*lines, f"largest_difference_of_means_in_standard_errors={largest_z(rows):.1f}"]


def installed(quick: bool) -> list[str]:
    """Sides whose libraries are here; a quick run leaves out those that compile."""
    absent = [start for start, module in NEEDS.items() if find_spec(module) is None]
    absent += ["NumPyro", "PyMC"] if quick else []
    names = [name for name in SIDES if not any(name.startswith(start) for start in absent)]
    return [name for name in names if not (quick and name.endswith(("jit", "compiled")))]


def versions() -> str:
    """Versions of what is compared."""
    from importlib.metadata import version

    names = [
        name for name in ("torch", "pyro-ppl", "numpyro", "jax", "pymc", "nutpie") if find_spec(name.split("-")[0])
    ]
    return ", ".join([*(f"{name} {version(name)}" for name in names), f"arviz {arviz.__version__}"])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one repeat, fewer draws, only what needs no compiler: a minute"
    )
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="which; default: all that are installed")
    parser.add_argument("--repeats", type=int, default=None, help="default 5; with --quick 1")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/mcmc.txt too")
    parser.add_argument("--one", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print and, on request, save."""
    options = arguments()
    if options.one:
        one(options.one, options.seed, options.quick)
        return
    sides, repeats = options.sides or installed(options.quick), options.repeats or (1 if options.quick else 5)
    results: dict[str, list[Result]] = {side: [] for side in sides}
    for seed in range(repeats):
        for side in sides:
            results[side].append(run(side, seed, options.quick))
            print(Row(f"{side}, seed {seed}", results[side][-1:]), file=sys.stderr, flush=True)
    rows = [Row(side, found) for side, found in results.items()]
    text = "\n".join([versions(), HEADER, *map(str, rows), "", *figures(rows)])
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "mcmc.txt").write_text(text + "\n", encoding="utf-8")
    if not math.isfinite(z := largest_z(rows)) or z > LARGEST_Z:
        sys.exit(f"posterior means differ by {z:.1f} standard errors")


if __name__ == "__main__":
    main()

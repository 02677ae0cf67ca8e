"""Kernel of a wide network: probmix, the recursion on whole matrices in torch, and neural-tangents.

All sides make the same matrix, and the same derivatives of its mean by the two variances; the program fails if they
differ. neural-tangents needs an old jax: give the interpreter of an environment of its own that has it.

    python benchmarks/nngp.py [--neural-tangents venv/bin/python] [--quick] [--save]

Times are CPU seconds of one thread on one core, medians over rounds in which the sides take turns, after compilation;
memory is the peak of one call above what the process held before, the matrix itself included.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from nngp_sides import SIDES, Case
from side_process import Side, sides

RELATIVE = {"float64": 1e-10, "float32": 2e-5}  # of the largest number; float32 loses digits where angles are small
SCRIPT = "nngp_sides.py"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
DEPTHS = (1, 3, 6, 12)
COLUMNS = 10


@dataclass
class Row:
    """Of one case: seconds and megabytes of each side, and the worst difference from probmix."""

    case: Case
    dtype: str
    difference: float
    seconds: dict[str, float]
    megabytes: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What is computed."""
        return "gradient" if self.case.gradient else "values"

    def __str__(self) -> str:
        left = f"{self.case.activation:<6}{self.dtype:<9}{self.name:<10}{self.case.rows:>6}{self.case.depth:>6}"
        times = "".join(_cell(self.seconds.get(s), 1e3) for s in SIDES)
        return left + times + "".join(_cell(self.megabytes.get(s)) for s in SIDES) + f"{self.difference:>10.0e}"

    def claims(self) -> list[str]:
        """Ratios to probmix."""
        ends = f"over_probmix_{self.case.activation}_{self.dtype}_{self.name}"
        found = []
        for side, start in (("torch", "torch_recursion"), ("neural-tangents", "neural_tangents")):
            if side in self.seconds:
                found.append(f"{start}_{ends}={self.seconds[side] / self.seconds['probmix']:.2f}")
            if side in self.megabytes:
                found.append(f"memory_of_{start}_{ends}={self.megabytes[side] / self.megabytes['probmix']:.2f}")
        return found


def _cell(value: float | None, unit: float = 1.0) -> str:
    return f"{'-':>9}" if value is None else f"{unit * value:>9.0f}"


HEADER = (
    f"{'phi':<6}{'dtype':<9}{'what':<10}{'rows':>6}{'depth':>6}{'ours ms':>9}{'torch ms':>9}{'nt ms':>9}"
    f"{'ours MB':>9}{'torch MB':>9}{'nt MB':>9}{'diff.':>10}"
)


def measure(case: Case, dtype: str, running: dict[str, Side], rounds: int) -> Row:
    """Check that the sides agree, then time them in turn."""
    at = {name: side.ask(make=asdict(case)) for name, side in running.items()}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, side in running.items():
            side.ask(save=[at[name], f"{folder}/{name}.npy"])
            found[name] = np.load(f"{folder}/{name}.npy")
    largest = abs(found["probmix"]).max()
    difference = max(float(abs(f - found["probmix"]).max() / largest) for f in found.values())
    times = [{name: side.ask(time=at[name])[0] for name, side in running.items()} for _ in range(rounds)]
    return Row(case, dtype, difference, {name: statistics.median(t[name] for t in times) for name in running})


def memory(case: Case, dtype: str, pythons: dict[str, str]) -> dict[str, float]:
    """Megabytes of each side, in a fresh process: a used one has memory to spare (Linux alone)."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    with sides(SCRIPT, pythons, ONE_THREAD, dtype) as fresh:
        return {name: side.ask(memory=side.ask(make=asdict(case))) for name, side in fresh.items()}


def depths(case: Case, side: Side, rounds: int) -> tuple[str, list[str]]:
    """Time of networks of several depths, and how far it is from a straight line."""
    at = [side.ask(make=asdict(replace(case, depth=depth))) for depth in DEPTHS]
    times = [[side.ask(time=number)[0] for number in at] for _ in range(rounds + 1)][1:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    line = np.polynomial.Polynomial.fit(DEPTHS, medians, 1)
    off = max(abs(time / line(depth) - 1) for depth, time in zip(DEPTHS, medians, strict=True))
    name = "gradient" if case.gradient else "values"
    cells = "".join(f"{1e3 * time:>9.0f}" for time in medians)
    return f"{name:<10}{cells}{off:>10.1%}", [f"off_a_straight_line_in_depth_{name}={off:.3f}"]


def report(pythons: dict[str, str], quick: bool) -> tuple[str, list[Row]]:
    """Measure everything; tables, then ``name=value`` lines."""
    rows, by_depth, count, rounds = [], [], 500 if quick else 2_000, 3 if quick else 9
    for dtype in ("float64",) if quick else ("float64", "float32"):
        with sides(SCRIPT, pythons, ONE_THREAD, dtype) as running:
            for activation in ("relu", "erf"):
                for gradient in (False, True):
                    case = Case(activation, 3, count, COLUMNS, gradient)
                    rows.append(measure(case, dtype, running, rounds))
                    if dtype == "float64" and (activation == "relu" or not quick):
                        rows[-1].megabytes = memory(case, dtype, pythons)
                    if dtype == "float64" and activation == "relu":
                        by_depth.append(depths(case, running["probmix"], rounds))
    heading = f"{'by depth':<10}" + "".join(f"{f'{depth} ms':>9}" for depth in DEPTHS) + f"{'off line':>10}"
    claims = [claim for row in rows for claim in row.claims()] + [claim for _, claims in by_depth for claim in claims]
    claims.append(f"largest_relative_difference_float64={max(r.difference for r in rows if r.dtype == 'float64'):.1e}")
    lines = [HEADER, *map(str, rows), "", heading, *(line for line, _ in by_depth), "", *claims]
    return "\n".join(lines), rows


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neural-tangents", metavar="PYTHON", help="an interpreter that can import neural_tangents")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, float64 alone: under a minute")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/nngp.txt too")
    options = parser.parse_args()
    pythons = {"probmix": sys.executable, "torch": sys.executable}
    if options.neural_tangents or importlib.util.find_spec("neural_tangents"):
        pythons["neural-tangents"] = options.neural_tangents or sys.executable
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # all sides on one core
    text, rows = report(pythons, options.quick)
    text = f"torch {torch.__version__}, NumPy {np.__version__}\n{text}"
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "nngp.txt").write_text(text + "\n", encoding="utf-8")
    if any(row.difference > RELATIVE[row.dtype] for row in rows):
        sys.exit(f"the sides differ by more than {RELATIVE}, relatively")


if __name__ == "__main__":
    main()

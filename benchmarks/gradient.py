"""Gradients of a mixture posterior: Pyro's, one chain at a time, eager and jitted; ours, in batches, flat and compiled.

Two programs on the same rows (three well-separated groups in the plane): a plain one, as a user of Pyro writes it,
whose labels are summed out, and the ready-made ``GaussianMixture``, which brings the gradient of its likelihood with
it. Pyro runs both as they stand, without argument checks, as its sampler does. All sides must give the same values and
gradients, or the program fails.

    python benchmarks/gradient.py [--quick] [--save]

Times are CPU seconds of one thread, medians over rounds in which the sides take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from probmix.arguments import Arguments
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture

RELATIVE = 1e-10  # sums of some thousand float64 terms, in another order
SIDES = ("pyro", "pyro jit", "flat", "compiled")
HEADER = f"{'program':<12}{'rows':>8}{'chains':>8}" + "".join(f"{side:>12}" for side in SIDES) + f"{'rel. diff.':>12}"
_UNTIMED = 3  # first calls, in which jit and compiler still work
ONE_AT_A_TIME = ("pyro", "pyro jit")

Call = Callable[[], tuple[Tensor, Tensor]]


def three_groups(rows: int) -> Tensor:
    """Rows ``(rows, 2)`` of three unit-variance groups."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.tensor([[-4.0, 0.0], [0.0, 4.0], [4.0, -2.0]], dtype=torch.float64)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return loc[torch.randint(3, (rows,), generator=generator)] + noise


def plain_program(x: Tensor) -> None:
    """Three components with standard deviations of their own in each column; labels to be summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        std = pyro.sample("std", dist.HalfNormal(2.0).expand([2]).to_event(1))
    with pyro.plate("row", len(x)):
        label = pyro.sample("label", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[label], std[label]).to_event(1), obs=x)


PROGRAMS: dict[str, Any] = {"plain": plain_program, "ready-made": GaussianMixture(3, "diagonal")}


@dataclass(frozen=True)
class Case:
    """A program, how many rows, and how many chains are tried; which of these also run compiled."""

    name: str
    rows: int
    chains: tuple[int, ...]
    compiled: tuple[int, ...]


def cases(quick: bool) -> list[Case]:
    """What is measured."""
    if quick:
        return [
            Case("plain", 1_000, (1, 64), (64,)),
            Case("plain", 100_000, (1,), ()),
            Case("ready-made", 1_000, (1, 64), ()),
            Case("ready-made", 100_000, (1, 16), ()),
        ]
    few, many = (1, 4, 16, 64), (1, 4, 16, 64, 256)
    return [
        Case("plain", 1_000, many, many),
        Case("plain", 100_000, few, few),
        Case("ready-made", 1_000, many, many),
        Case("ready-made", 100_000, few, few),
    ]


@dataclass
class Row:
    """Median seconds of one call of each side, and the worst difference from Pyro's eager values and gradients."""

    case: Case
    chains: int
    difference: float
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        left = f"{self.case.name:<12}{self.case.rows:>8}{self.chains:>8}"
        return left + "".join(self._cell(side) for side in SIDES) + f"{self.difference:>12.1e}"

    def _cell(self, side: str) -> str:
        if side not in self.seconds:
            return f"{'-':>12}"
        return f"{1e6 * self.seconds[side] / (1 if side in ONE_AT_A_TIME else self.chains):>12.1f}"


# --- the sides ------------------------------------------------------------------------------------------------------


def pyro_side(density: LogDensity, case: Case, z: Tensor, *, jit: bool) -> Call:
    """Pyro's potential and its gradient, for the first vector of the batch."""
    program = PROGRAMS[case.name]
    program = config_enumerate(program, default="parallel") if density.discrete else program
    _, potential, _, _ = initialize_model(
        program,
        (three_groups(case.rows),),
        max_plate_nesting=density.max_plate_nesting,
        jit_compile=jit,
        skip_jit_warnings=True,
    )

    def call() -> tuple[Tensor, Tensor]:
        params = {s.name: z[0, s.slice].reshape(s.unconstrained_shape).requires_grad_() for s in density.latents}
        value = potential(params)
        gradients = torch.autograd.grad(value, list(params.values()))
        return -value.detach()[None], -torch.cat([g.reshape(-1) for g in gradients])[None]

    return call


def our_side(case: Case, z: Tensor, *, compiled: bool) -> Call:
    """All vectors as one batch."""
    density = LogDensity(PROGRAMS[case.name], Arguments.of(three_groups(case.rows)))
    density.plan(batch=len(z), gradients=1, compile=compiled)
    return lambda: density.value_and_grad(z)


# --- measuring ------------------------------------------------------------------------------------------------------


def timed(call: Call, least: float) -> float:
    """Seconds of one call, from as many as take at least so long."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < least or not calls:
        call()
        calls += 1
    return spent / calls


def difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Largest difference of value and of gradient in the first vector, each relative to the largest entry."""
    return max(float((a[0] - b[0]).abs().max() / a[0].abs().max()) for a, b in zip(one, other, strict=True))


def batch(density: LogDensity, chains: int) -> Tensor:
    """Vectors about the middle of the parameter space, ``(chains, dim)``."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(chains, density.dim, generator=generator, dtype=torch.float64)


def measure(case: Case, chains: int, *, rounds: int, least: float) -> Row:
    """Check that the sides agree, then time them in turn."""
    density = LogDensity(PROGRAMS[case.name], Arguments.of(three_groups(case.rows)))
    z = batch(density, chains)
    sides: dict[str, Call] = {"pyro": pyro_side(density, case, z, jit=False)}
    if chains == 1:
        sides["pyro jit"] = pyro_side(density, case, z, jit=True)
    sides["flat"] = our_side(case, z, compiled=False)
    if chains in case.compiled:
        sides["compiled"] = our_side(case, z, compiled=True)
    for call in sides.values():
        for _ in range(_UNTIMED):
            call()
    answers = {name: call() for name, call in sides.items()}
    row = Row(case, chains, max(difference(answers["pyro"], answers[name]) for name in sides))
    times = [{name: timed(call, least) for name, call in sides.items()} for _ in range(rounds)]
    row.seconds = {name: statistics.median(t[name] for t in times) for name in sides}
    return row


# --- the report -----------------------------------------------------------------------------------------------------


def figures(rows: list[Row]) -> list[str]:
    """``name=value`` lines: times of the first named over times of the second."""
    at = {(row.case.name, row.case.rows, row.chains): row.seconds for row in rows}
    pyro_one = {key: at[key[0], key[1], 1]["pyro"] for key in at}
    lines = [
        f"chains64_{side}_over_one_pyro_gradient={at['plain', 1_000, 64][side] / pyro_one['plain', 1_000, 64]:.2f}"
        for side in ("flat", "compiled")
    ]
    for name, rows_, chains in at:
        seconds, label = at[name, rows_, chains], name.replace("-", "_")
        for side in ("flat", "compiled"):
            if side in seconds:
                ratio = pyro_one[name, rows_, chains] * chains / seconds[side]
                lines.append(f"pyro_over_{side}_per_chain_{label}_n{rows_}_chains{chains}={ratio:.1f}")
    best = max(
        pyro_one[key] * key[2] / at[key]["flat"] for key in at if key[:2] == ("ready-made", 100_000) and key[2] >= 4
    )
    lines.append(f"pyro_over_ours_per_chain_n100000_ready_made={best:.1f}")
    return [*lines, f"largest_relative_difference={max(row.difference for row in rows):.1e}"]


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer chains and rounds: under a minute")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/gradient.txt too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    rounds, least = (3, 0.05) if options.quick else (5, 0.3)
    warnings.filterwarnings("ignore", "To copy construct from a tensor")  # jit, of constants that it meets
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")), pyro.validation_enabled(False):
        rows = [measure(c, chains, rounds=rounds, least=least) for c in cases(options.quick) for chains in c.chains]
    title = f"torch {torch.__version__}, Pyro {pyro.__version__}; microseconds for one gradient of one chain"
    text = "\n".join([title, HEADER, *map(str, rows), "", *figures(rows)])
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "gradient.txt").write_text(text + "\n", encoding="utf-8")
    if any(row.difference > RELATIVE for row in rows):
        sys.exit(f"values or gradients differ by more than {RELATIVE:g}, relatively")


if __name__ == "__main__":
    main()

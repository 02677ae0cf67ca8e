"""Sliced Wasserstein distances at equal projections: variance with control variates beside plain Monte Carlo.

Both estimate the same distance from the same directions, over and over with other seeds; the ratio of their variances
is what the control variates save. The difference of their means, in standard errors, shows that neither is biased. The
seconds of either are there too, as a control variate is only worth it if it costs less than more directions would.

    python benchmarks/sample_quality.py [--save]
    python benchmarks/sample_quality.py --quick
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from probmix.sample_quality import sliced_wasserstein

PROJECTIONS, ROWS = 100, 1000
LARGEST_RATIO = 0.5  # of variances, where location or spread differ
LARGEST_Z = 4.5  # of the difference of means: one false alarm in 100,000 for each row of the table


def normals(seed: int, dim: int = 10) -> tuple[Tensor, Tensor]:
    """One shifted against the other."""
    x, y = torch.randn(2, ROWS, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, y + 1.0


def spreads(seed: int) -> tuple[Tensor, Tensor]:
    """One mean, axes of other lengths."""
    x, y = torch.randn(2, ROWS, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    return x * lengths, y * lengths.flip(0)


def dropped_modes(seed: int) -> tuple[Tensor, Tensor]:
    """A mixture, and a sample of it that has lost a third of its modes."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(9, 10, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, ROWS, 10, generator=generator, dtype=torch.float64)
    return centres[torch.arange(ROWS) % 9] + noise[0], centres[torch.arange(ROWS) % 6] + noise[1]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Images of small digits: 0 to 4 and 5 to 9."""
    data = load_digits()
    x, label = torch.tensor(data.data / 16), torch.tensor(data.target)
    return x[label < 5], x[label >= 5]


CASES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "shifted": normals, "other spreads": spreads, "lost modes": dropped_modes, "digits": digits,
}  # fmt: skip


def measure(pair: tuple[Tensor, Tensor], repetitions: int) -> dict[str, float]:
    """Both estimators of one pair, from the same seeds."""
    values, seconds = {}, {}
    for control in ("none", "full"):
        start = time.perf_counter()
        found = [
            sliced_wasserstein(*pair, seed=seed, projections=PROJECTIONS, control=control).power
            for seed in range(repetitions)
        ]
        seconds[control], values[control] = time.perf_counter() - start, torch.stack(found).double()
    plain, controlled = values["none"], values["full"]
    difference = controlled - plain
    z = difference.mean() / (difference.std() / math.sqrt(repetitions))
    return {
        "mean": float(plain.mean()), "controlled": float(controlled.mean()), "z": float(z),
        "ratio": float(controlled.var() / plain.var()), "time": seconds["full"] / seconds["none"],
    }  # fmt: skip


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: under a minute")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/ too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repetitions = 40 if options.quick else 400
    lines = [f"{'pair':<16}{'plain':>10}{'controlled':>12}{'z':>7}{'variance ratio':>16}{'time ratio':>12}"]
    claims, worst = [], 0.0
    for name, case in CASES.items():
        found = measure(case(0), repetitions)
        lines.append(
            f"{name:<16}{found['mean']:>10.4f}{found['controlled']:>12.4f}{found['z']:>7.1f}{found['ratio']:>16.4f}"
            f"{found['time']:>12.2f}"
        )
        claims.append(f"variance_ratio_{name.replace(' ', '_')}={found['ratio']:.4f}")
        worst = max(worst, abs(found["z"]))
        if found["ratio"] > LARGEST_RATIO:
            claims.append(f"not so: {name} above {LARGEST_RATIO}")
    text = "\n".join([*lines, "", *claims, f"largest_z={worst:.2f}"])
    print(text)
    if options.save:
        (Path(__file__).parent / "results" / "sample_quality.txt").write_text(text + "\n", encoding="utf-8")
    if worst > LARGEST_Z or any(claim.startswith("not so") for claim in claims):
        sys.exit("a claim does not hold: see the table")


if __name__ == "__main__":
    main()

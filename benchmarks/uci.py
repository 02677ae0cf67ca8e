"""Test log-likelihood of Student-t and Burr processes beside the Gaussian process: one NNGP kernel, the UCI sets.

The kernel of Lee, Yun, Yang and Lee (2022): four hidden ReLU layers. Three priors of the last layer's variance: none
(a Gaussian process), InverseGamma(2, 2) (a Student-t process) and Burr XII(2, 2). Columns and observations are
standardised by the training rows; hyperparameters by maximum a posteriori under weak priors, the two mixtures from the
optimum of the Gaussian process. Sets of more than 5,000 training rows go through 300 inducing points.

    python benchmarks/uci.py --data FOLDER [--quick] [--sets boston yacht] [--splits 5] [--few 20] [--jobs 2] [--save]

FOLDER (or PROBMIX_DATA) holds ``uci/UCI_Datasets/<set>/data`` with the standard 90/10 splits. The negative
log-likelihood is per test row in the units of the observations, mean and standard error over splits; columns of
differences are paired, negative where the heavier tail helps. ``--few`` repeats everything with so many training rows.
``syn-normal`` and ``syn-t`` are the paper's: 300 points of a smooth function with normal noise, or with Cauchy noise,
which is outside the model.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from probmix.burr import BurrXII
from probmix.inference import MAP, infer
from probmix.inference.ascent import ascend, begin, how_it_ended
from probmix.log_density import LogDensity
from probmix.models import ScaleMixtureNNGP
from probmix.status import FitWarning

FOLDERS = {
    "boston": "bostonHousing", "concrete": "concrete", "energy": "energy", "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant", "power": "power-plant", "wine": "wine-quality-red", "yacht": "yacht",
}  # fmt: skip
SYNTHETIC = ("syn-normal", "syn-t")
PRIORS = {"GP": None, "Student-t": dist.InverseGamma(2.0, 2.0), "Burr": BurrXII(2.0, 2.0)}
DEPTH, INDUCING, EXACT_UP_TO, BLOCKS, GAIN = 4, 300, 5000, 6, 1e-2
SPLITS = {600: 20, 1000: 10, 5000: 4, 10**9: 2}  # by default, up to so many rows: a run takes an hour on one core


class Split(NamedTuple):
    """One division into training and test rows, standardised; ``unit`` is what an observation was divided by."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    unit: float


class Score(NamedTuple):
    """Of one model on one split: negative log-likelihood and root mean squared error, per test row, original units."""

    nll: float
    rmse: float


def standardised(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Split:
    """Return a split in the units of its training rows."""
    loc, std = x[train].mean(0), x[train].std(0)
    std = np.where(std > 0, std, 1.0)
    centre, unit = y[train].mean(), y[train].std()
    columns, observations = torch.as_tensor((x - loc) / std), torch.as_tensor((y - centre) / unit)
    return Split(columns[train], observations[train], columns[test], observations[test], float(unit))


def splits_of(name: str, folder: Path) -> Iterator[Split]:
    """Yield the standard splits of a set."""
    if name in SYNTHETIC:
        yield from synthetic(name)
        return
    data = folder / "uci" / "UCI_Datasets" / FOLDERS[name] / "data"
    table = np.loadtxt(data / "data.txt")
    x = table[:, np.loadtxt(data / "index_features.txt").astype(int)]
    y = table[:, int(np.loadtxt(data / "index_target.txt"))]
    for split in range(int(np.loadtxt(data / "n_splits.txt"))):
        rows = (np.loadtxt(data / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test"))
        yield standardised(x, y, *rows)


def synthetic(name: str) -> Iterator[Split]:
    """Yield twenty splits of one function of the paper's, drawn anew here (its random numbers are not known)."""
    rng = np.random.default_rng(761)
    x = np.linspace(-150, 150, 300)
    cov = np.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-10 * np.eye(300)
    noise = 0.2 * rng.standard_normal(300) if name == "syn-normal" else 0.8 * rng.standard_t(1, 300)
    y = np.linalg.cholesky(cov) @ rng.standard_normal(300) + noise
    for _ in range(20):
        order = rng.permutation(300)
        yield standardised(x[:, None], y, order[30:], order[:30])


def shortened(split: Split, rows: int) -> Split:
    """Return a split with so many training rows, standardised by them anew."""
    y = split.y[:rows]
    loc, unit = y.mean(), y.std()
    return split._replace(
        x=split.x[:rows], y=(y - loc) / unit, y_test=(split.y_test - loc) / unit, unit=split.unit * float(unit)
    )


def climbed(density: LogDensity, z: Tensor) -> Tensor:
    """Return the optimum from a start ``(1, dim)``."""
    function = lambda points: density.value_and_grad(points, jacobian=False)  # noqa: E731
    ascent = begin(function, z)
    while how_it_ended(ascent, GAIN) is None and len(ascent.objectives) < BLOCKS:
        ascent = ascend(function, ascent, GAIN)
    return ascent.search.point


def scores(splits: list[Split]) -> dict[str, list[Score]]:
    """Fit and score all three models on all splits, which share their traced graphs."""
    first = splits[0]
    many = len(first.y) > EXACT_UP_TO
    inducing = first.x[torch.randperm(len(first.x), generator=torch.Generator().manual_seed(0))[:INDUCING]]
    models = {
        name: ScaleMixtureNNGP(depth=DEPTH, scale_prior=prior, inducing=inducing if many else None)
        for name, prior in PRIORS.items()
    }
    densities = {name: LogDensity.trace(model, (first.x, first.y)) for name, model in models.items()}
    method = MAP(restarts=1 if many else 3, max_steps=BLOCKS, tolerance=GAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # it need not converge: every split climbs on from there
        start = infer(models["GP"], (first.x, first.y), method, seed=0)
    z, found = densities["GP"].unconstrain(start.sites())[None], {name: [] for name in models}
    for split in splits:
        for name, model in models.items():
            density = densities[name].with_data((split.x, split.y))
            optimum = climbed(density, z)
            z = optimum if name == "GP" else z  # from which the mixtures start, and the next split
            found[name].append(score(model, split, density.constrain(optimum[0])))
    return found


def score(model: ScaleMixtureNNGP, split: Split, sites: dict[str, Tensor]) -> Score:
    """Score a model at hyperparameters on the test rows."""
    predictive = model.condition(split.x, split.y, sites).predictive(split.x_test)
    nll = np.log(split.unit) - float(predictive.log_prob(split.y_test).mean())
    return Score(nll, split.unit * float((predictive.mean - split.y_test).square().mean().sqrt()))


def mean_and_error(values: list[float]) -> str:
    """Return mean and standard error as text."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):8.3f} ±{error:6.3f}"


def row(name: str, splits: list[Split], found: dict[str, list[Score]]) -> tuple[str, list[str]]:
    """Return the line of the table, and the claims."""
    gp = [s.nll for s in found["GP"]]
    cells, lines = [mean_and_error(gp)], []
    label = f"{name.replace('-', '_')}_n{len(splits[0].y)}"
    for other in ("Student-t", "Burr"):
        difference = [s.nll - g for s, g in zip(found[other], gp, strict=True)]
        cells += [mean_and_error([s.nll for s in found[other]]), mean_and_error(difference)]
        lines.append(f"nll_{other.lower().replace('-', '_')}_minus_gp_{label}={np.mean(difference):.4f}")
    rmse = " ".join(f"{np.mean([s.rmse for s in found[m]]):8.4g}" for m in ("GP", "Student-t"))
    n, d = splits[0].x.shape
    return f"{name:10s} {n:6d} {d:3d} {len(splits):3d}  " + "  ".join(cells) + f"  {rmse}", lines


def check_same(split: Split) -> float:
    """Return the largest difference of our log joint densities from Pyro's distributions, on a few rows."""
    x, y = split.x[:50], split.y[:50]
    worst = 0.0
    for name in ("GP", "Student-t"):
        model = ScaleMixtureNNGP(depth=DEPTH, scale_prior=PRIORS[name])
        sites = infer(model, (x, y), MAP(restarts=1), seed=0).sites()
        process = model.process(x, y, sites)
        tril = process.joint(x).scale_tril.detach()
        normal = dist.MultivariateNormal(y.mean().expand(len(y)), scale_tril=tril)
        theirs = normal if name == "GP" else dist.MultivariateStudentT(4.0, y.mean().expand(len(y)), tril)
        worst = max(worst, abs(float(process.joint(x).log_prob(y) - theirs.log_prob(y))))
    return worst


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("PROBMIX_DATA"), help="folder that holds uci/")
    parser.add_argument("--quick", action="store_true", help="yacht, two splits")
    parser.add_argument("--sets", nargs="+", choices=[*FOLDERS, *SYNTHETIC], default=[*FOLDERS, *SYNTHETIC])
    parser.add_argument("--splits", type=int, help="of each set; by default fewer for larger sets")
    parser.add_argument("--few", type=int, default=20, help="training rows of the second table; 0: no second table")
    parser.add_argument("--jobs", type=int, default=1, help="sets at a time, each in a process of its own")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/uci.txt")
    return parser.parse_args()


def chosen_splits(splits: list[Split], options: argparse.Namespace) -> list[Split]:
    """Return as many splits as their size and the options allow."""
    most = next(number for rows, number in SPLITS.items() if len(splits[0].y) <= rows)
    return splits[: 2 if options.quick else options.splits or most]


def measured(name: str, options: argparse.Namespace) -> tuple[str, str | None, list[str]]:
    """Return the lines of one set in both tables, and its claims."""
    every, few = list(splits_of(name, Path(options.data))), None
    splits = chosen_splits(every, options)
    with threadpool_limits(1):
        text, claims = row(name, splits, scores(splits))
        print(text, flush=True, file=sys.stderr)
        if options.few and len(splits[0].y) > options.few:
            short = [shortened(split, options.few) for split in every[: 2 if options.quick else 20]]
            few, more = row(name, short, scores(short))
            claims += more
    return text, few, claims


def main() -> None:
    """Run everything."""
    options = arguments()
    if options.data is None or not (Path(options.data) / "uci").is_dir():
        print("skipped: no folder with uci/ in it. Pass --data FOLDER, or set PROBMIX_DATA.")
        return
    sets = ["yacht"] if options.quick else options.sets
    header = (
        f"{'set':10s} {'rows':>6s} {'col':>3s} {'spl':>3s}  {'NLL GP':>16s}  {'Student-t':>16s}  {'less GP':>16s}  "
        f"{'Burr':>16s}  {'less GP':>16s}  {'RMSE GP':>8s} {'t':>8s}"
    )
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        table, few, claims = zip(*pool.map(partial(measured, options=options), sets), strict=True)
    same = f"largest_difference_from_pyros_distributions={check_same(next(splits_of(sets[0], Path(options.data)))):.1e}"
    few_rows = [f"{options.few} training rows", header, *filter(None, few), ""] if any(few) else []
    lines = [line for of_set in claims for line in of_set]
    report = "\n".join([f"torch {torch.__version__}", header, *table, "", *few_rows, *lines, same])
    print(report)
    if options.save:
        (Path(__file__).parent / "results" / "uci.txt").write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

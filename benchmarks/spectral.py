"""Spectral-mixture Gaussian processes beside GPyTorch and mogptk: cost of a step, optimum found, frequencies found.

    python benchmarks/spectral.py [--mogptk venv/bin/python] [--quick] [--save]

Four tables. Eight components, float64, exact on all sides, by Cholesky factors where there is no structure.

1. A step of an optimiser: value and gradient of the log marginal likelihood by all hyperparameters. The sides take
   turns at the same hyperparameters and must agree. mogptk wants an environment of its own: give its interpreter.
2. The optimum on the carbon dioxide of Mauna Loa: 526 months, the five without a value take that of the next month, y
   standardised. Ours is ``MAP(restarts=16, tolerance=0.1)``; GPyTorch is its example, 150 steps of Adam at a rate of
   0.1 from either of its initialisers, with a constant mean (x in years; in months where the initialiser takes steps of
   one for granted). Figures are negative log marginal likelihoods per point, by a formula that is neither's, of ours at
   the mode of the posterior. The best of all includes a long fit of ours, and the best fit climbed without priors.
3. Cosines planted in noise at irregular times: all frequencies are found if each is within 1% of a centre of one of the
   K heaviest components. Ours is ``MAP(restarts=8, tolerance=0.01)``; GPyTorch as above.
4. Long even series, and grids by a product over the inputs; and how far the same figures are from a dense matrix's.

Times are CPU seconds of one thread, medians; memory is what the process takes at most above its data and libraries.
About half an hour on a core; with ``--quick`` (fewer rows, seeds and sets, the last 10 years) a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import gpytorch
import numpy as np
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from side_process import Side, sides
from spectral_sides import Problem, gpytorch_model
from threadpoolctl import threadpool_limits
from torch import Tensor

from probmix.datasets import load_co2
from probmix.inference import MAP, infer
from probmix.models import SpectralMixtureGP

VALUE, GRADIENT, STRUCTURE = 1e-8, 1e-6, 1e-7  # agreement: of a value; of a gradient, over its largest number
COMPONENTS, STEPS, RATE = 8, 150, 0.1
NEAR, WITHIN = 0.05, 0.01  # of the best optimum, nats per point; of a planted frequency, relatively
SPAN, ROWS, TOP, NOISE_STD = 20.0, 200, 4.0, 0.3  # of planted spectra
SCRIPT = "spectral_sides.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that what is free does not count as taken (glibc)


class Section(NamedTuple):
    """A table, its ``name=value`` lines, and what is wrong."""

    lines: list[str]
    claims: list[str]
    wrong: list[str]


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


# 1 and 4. The same hyperparameters on all sides.


def series(times: np.ndarray, y: np.ndarray | None = None, *, highest: float, noise_var: float = 0.1) -> Problem:
    """Rows of one input, with two cycles and noise where no y is given, and hyperparameters that are no optimum."""
    rng = np.random.default_rng(0)
    q = COMPONENTS
    if y is None:
        cycles = np.cos(2 * np.pi * 0.1 * highest * times) + np.cos(2 * np.pi * 0.37 * highest * times)
        y = cycles + NOISE_STD * rng.standard_normal(len(times))
        y -= y.mean()
    span = times[-1] - times[0]
    return Problem(
        times[:, None],
        y,
        np.exp(rng.normal(-2.0, 0.5, q)),
        rng.uniform(0.01 * highest, 0.5 * highest, (q, 1)),
        np.exp(rng.normal(np.log(5 / span), 1.0, (q, 1))),
        np.array(noise_var),
    )


def grid(sizes: tuple[int, int]) -> Problem:
    """All points of a grid with steps of a tenth, and a product over its inputs."""
    rng = np.random.default_rng(0)
    axes = [np.arange(size) / 10 for size in sizes]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    y = np.cos(2 * np.pi * 0.5 * x[:, 0]) * np.cos(2 * np.pi * 0.7 * x[:, 1]) + NOISE_STD * rng.standard_normal(len(x))
    shape = 2, COMPONENTS
    return Problem(
        x,
        y - y.mean(),
        np.exp(rng.normal(-2.0, 0.5, shape)),
        rng.uniform(0.05, 2.0, shape),
        np.exp(rng.normal(-2.0, 1.0, shape)),
        np.array(0.1),
    )


def differences(found: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Largest relative difference from probmix of the value, and of the gradient over its largest number."""
    ours = found["probmix"]
    values = [abs(other[0] / ours[0] - 1) for other in found.values()]
    gradients = [abs(other[1:] - ours[1:]).max() / abs(ours[1:]).max() for other in found.values()]
    return float(max(values)), float(max(gradients))


def reports(running: Mapping[str, Side], problem: Problem) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Numbers of the prepared steps, and what each side makes of the problem."""
    at, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        problem.write(f"{folder}/problem.npz")
        for name, side in running.items():
            at[name], *_ = side.ask(make=f"{folder}/problem.npz")
            side.ask(save=[at[name], f"{folder}/{name}.npy"])
            found[name] = np.load(f"{folder}/{name}.npy")
    return at, found


def steps(pythons: Mapping[str, str], quick: bool) -> Section:
    """Cost of a step on all sides."""
    count, rounds = (500, 3) if quick else (2_000, 5)
    scattered = np.sort(np.random.default_rng(1).uniform(0, count / 10, count))
    x, y = co2(quick=False)
    problems = {
        f"irregular_{count}": series(scattered, highest=5.0),
        f"even_{count}": series(np.arange(count) / 10, highest=5.0),
        "co2_526": series(x[:, 0].numpy(), y.numpy(), highest=6.0, noise_var=0.01),
    }
    heading = "".join(f"{f'{name} ms':>14}" for name in pythons)
    section = Section([f"{'a step':<16}{heading}{'value':>10}{'gradient':>10}"], [], [])
    with sides(SCRIPT, pythons, ONE_THREAD) as running:
        for label, problem in problems.items():
            at, found = reports(running, problem)
            value, gradient = differences(found)
            times = [{name: side.ask(time=at[name]) for name, side in running.items()} for _ in range(rounds)]
            seconds = {name: statistics.median(each[name] for each in times) for name in running}
            cells = "".join(f"{1e3 * seconds[name]:>14.1f}" for name in running)
            section.lines.append(f"{label:<16}{cells}{value:>10.0e}{gradient:>10.0e}")
            for name in list(running)[1:]:
                section.claims.append(f"{name}_over_probmix_{label}={seconds[name] / seconds['probmix']:.1f}")
            if value > VALUE or gradient > GRADIENT:
                section.wrong.append(f"{label}: values differ by {value:.0e}, gradients by {gradient:.0e}, relatively")
            say(section.lines[-1])
    if "mogptk" not in pythons:
        section.lines.append("mogptk is left out: it is not installed here, and --mogptk names no interpreter")
    return section


def large(quick: bool) -> Section:
    """Seconds and memory of a step by structure, and its difference from a dense matrix where there is room for one."""
    section = Section([f"{'by structure':<20}{'set-up s':>10}{'MB':>8}{'step s':>10}{'MB':>8}"], [], [])
    lengths, sizes = ((10_000,), (100, 100)) if quick else ((100_000, 1_000_000), (1_000, 1_000))
    problems = {f"even_{n}": series(np.arange(n) / 10, highest=5.0) for n in lengths}
    problems["grid_{}x{}".format(*sizes)] = grid(sizes)
    n, small = (500, (20, 25)) if quick else (2_000, (40, 50))
    checks = {f"even_{n}": series(np.arange(n) / 10, highest=5.0), "grid_{}x{}".format(*small): grid(small)}
    with sides(SCRIPT, {"probmix": sys.executable, "dense": sys.executable}, ONE_THREAD | GIVES_BACK) as running:
        for label, problem in checks.items():
            value, gradient = differences(reports(running, problem)[1])
            section.claims.append(f"difference_from_dense_{label}={max(value, gradient):.0e}")
            if value > STRUCTURE or gradient > STRUCTURE:
                section.wrong.append(f"{label}: by structure {max(value, gradient):.0e} from dense, relatively")
        side = running["probmix"]
        for label, problem in problems.items():
            with tempfile.TemporaryDirectory() as folder:
                problem.write(f"{folder}/problem.npz")
                at, set_up, set_up_peak = side.ask(make=f"{folder}/problem.npz")
            peak = side.ask(memory=at)
            seconds = statistics.median(side.ask(time=at) for _ in range(3))
            section.lines.append(f"{label:<20}{set_up:>10.1f}{set_up_peak:>8.0f}{seconds:>10.3f}{peak:>8.0f}")
            section.claims.append(f"seconds_of_a_step_{label}={seconds:.3f}")
            section.claims.append(f"megabytes_of_a_step_{label}={peak:.0f}")
            say(section.lines[-1])
    return section


# 2. The optimum.


class Fit(NamedTuple):
    """Hyperparameters of a process of one input, a component a number, and the CPU seconds that they took."""

    weights: Tensor
    frequencies: Tensor
    bandwidths: Tensor
    noise_var: Tensor
    mean: Tensor
    seconds: float = math.nan

    def negative_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Per point, by PyTorch's normal distribution on a dense matrix."""
        lags = 2 * math.pi * (x - x.mT)
        terms = [
            w * (-0.5 * (v * lags).square()).exp() * (f * lags).cos()
            for w, f, v in zip(self.weights, self.frequencies, self.bandwidths, strict=True)
        ]
        covariance = torch.stack(terms).sum(0) + self.noise_var * torch.eye(len(x), dtype=x.dtype)
        normal = torch.distributions.MultivariateNormal(self.mean.expand(len(x)), covariance, validate_args=False)
        return -normal.log_prob(y) / len(y)

    def heaviest(self, num: int) -> Tensor:
        """Centres of the heaviest components."""
        return self.frequencies[self.weights.argsort(descending=True)[:num]]


def co2(*, quick: bool) -> tuple[Tensor, Tensor]:
    """Years since the first month, and carbon dioxide, standardised; a month without a value takes the next one's."""
    years, level = load_co2().x.T.numpy()
    months = np.rint(12 * (years - years[0])).astype(int)
    every = np.arange(months[-1] + 1)
    filled = level[np.searchsorted(months, every)][-120 if quick else 0 :]
    x = torch.arange(len(filled), dtype=torch.float64)[:, None] / 12
    y = torch.from_numpy(filled)
    return x, (y - y.mean()) / y.std()


def ours(x: Tensor, y: Tensor, seed: int, method: MAP) -> Fit:
    """Fit as a user does."""
    start = time.process_time()
    sites = infer(SpectralMixtureGP(COMPONENTS), (x, y), method, seed=seed).sites()
    seconds = time.process_time() - start
    weights, bandwidths = sites["kernel.log_weights"].exp(), sites["kernel.log_bandwidths"][:, 0].exp()
    return Fit(weights, sites["kernel.frequencies"][:, 0], bandwidths, sites["noise_var"], y.mean(), seconds)


def theirs(x: Tensor, y: Tensor, seed: int, start: str = "initialize_from_data") -> Fit | None:
    """Fit as GPyTorch's example does; None if a factorisation fails."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what its other initialiser draws from
    began = time.process_time()
    model, likelihood = gpytorch_model(x, y, COMPONENTS, gpytorch.means.ConstantMean())
    kernel = model.covar_module
    getattr(kernel, start)(x, y)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    try:
        for _ in range(STEPS):
            optimiser.zero_grad()
            (-marginal(model(x), y)).backward()
            optimiser.step()
    except (NanError, NotPSDError):
        return None
    seconds = time.process_time() - began
    parameters = kernel.mixture_weights, kernel.mixture_means, kernel.mixture_scales, likelihood.noise
    weights, frequencies, bandwidths, noise_var = (value.detach().flatten() for value in parameters)
    return Fit(weights, frequencies, bandwidths, noise_var[0], model.mean_module.constant.detach(), seconds)


def climbed(fit: Fit, x: Tensor, y: Tensor, max_steps: int) -> float:
    """Lowest negative log likelihood per point that L-BFGS finds from a fit, without priors."""
    logs = [value.log().requires_grad_() for value in fit[:4]]
    mean = fit.mean.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([*logs, mean], max_iter=max_steps, line_search_fn="strong_wolfe")
    found = [float(fit.negative_log_likelihood(x, y))]

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = Fit(*(each.exp() for each in logs), mean).negative_log_likelihood(x, y)
        value.backward()
        found.append(float(value.detach()))
        return value

    try:
        optimiser.step(closure)
    except torch.linalg.LinAlgError:
        say("the climb without priors came to a singular covariance and ends there")
    return min(found)


def optimum(quick: bool) -> Section:
    """Fits of carbon dioxide from many seeds, and the best of all."""
    x, y = co2(quick=quick)
    many, few = (2, 1) if quick else (20, 10)
    fits: dict[str, list[Fit | None]] = {"probmix": [], "from_data": [], "empspect": []}
    for seed in range(many):
        fits["probmix"].append(ours(x, y, seed, MAP(restarts=16, tolerance=0.1)))
        if seed < few:
            fits["from_data"].append(theirs(x, y, seed))
            in_months = theirs(12 * x, y, seed, "initialize_from_data_empspect")
            fits["empspect"].append(in_months and _in_years(in_months))
        say(
            f"carbon dioxide, seed {seed}: "
            + ", ".join(f"{n} {_cell(x, y, e[seed])}" for n, e in fits.items() if len(e) > seed)
        )
    if not quick:
        fits["probmix_long"] = [ours(x, y, many, MAP(restarts=64, tolerance=0.01))]
    values = {name: [_value(x, y, fit) for fit in each] for name, each in fits.items()}
    best = min((value, name, i) for name, each in values.items() for i, value in enumerate(each))
    best_fit = fits[best[1]][best[2]]
    assert best_fit is not None
    lowest = climbed(best_fit, x, y, 50 if quick else 200)
    seconds = {name: statistics.median(fit.seconds for fit in each if fit) for name, each in fits.items()}
    title = f"{f'{len(y)} months':<14}{'median s':>10}{'median':>9}  negative log likelihood per point, by seed"
    lines = [title]
    for name, each in values.items():
        by_seed = " ".join(f"{value:.3f}" for value in each)
        lines.append(f"{name:<14}{seconds[name]:>10.1f}{statistics.median(each):>9.3f}  {by_seed}")
    lines.append(f"{'no priors':<14}{'':>10}{lowest:>9.3f}  from the best of {best[1]}")
    lowest = min(lowest, best[0])
    claims = [
        f"co2_best_negative_log_likelihood_per_point={lowest:.3f}",
        *(f"co2_within_{NEAR}_of_best_{n}={sum(v < lowest + NEAR for v in e)}_of_{len(e)}" for n, e in values.items()),
        f"co2_farthest_from_best_probmix={max(values['probmix']) - lowest:.3f}",
        f"co2_three_gpytorch_fits_over_probmix={3 * seconds['from_data'] / seconds['probmix']:.2f}",
    ]
    return Section(lines, claims, [])


def _in_years(fit: Fit) -> Fit:
    """Undo months as the unit."""
    return fit._replace(frequencies=12 * fit.frequencies, bandwidths=12 * fit.bandwidths)


def _value(x: Tensor, y: Tensor, fit: Fit | None) -> float:
    return math.inf if fit is None else float(fit.negative_log_likelihood(x, y))


def _cell(x: Tensor, y: Tensor, fit: Fit | None) -> str:
    return "failed" if fit is None else f"{_value(x, y, fit):.3f} ({fit.seconds:.1f} s)"


# 3. Planted spectra.


def planted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Irregular times, 2 to 6 cosines with noise, and their frequencies, no two nearer than four cycles of the span."""
    rng = np.random.default_rng(seed)
    count, near = 2 + seed % 5, 4 / SPAN
    frequencies = np.zeros(count)
    while np.diff(frequencies).min() < near:
        frequencies = np.sort(rng.uniform(0.2, TOP, count))
    amplitudes, phases = rng.uniform(0.5, 1.5, count), rng.uniform(0, 2 * np.pi, count)
    times = rng.uniform(0, SPAN, (ROWS, 1))
    y = np.cos(2 * np.pi * frequencies * times + phases) @ amplitudes + NOISE_STD * rng.standard_normal(ROWS)
    return torch.from_numpy(times), torch.from_numpy(y), torch.from_numpy(frequencies)


def off(fit: Fit | None, frequencies: Tensor) -> float:
    """Largest relative distance of a planted frequency from the nearest centre of as many heaviest components."""
    if fit is None:
        return math.inf
    apart = (fit.heaviest(len(frequencies))[:, None] - frequencies).abs().min(0).values
    return float((apart / frequencies).max())


def recovery(quick: bool) -> Section:
    """Planted frequencies, found or not."""
    section = Section([f"{'planted':<10}{'cosines':>8}{'probmix':>12}{'s':>7}{'gpytorch':>12}{'s':>7}"], [], [])
    found: dict[str, list[bool]] = {"probmix": [], "gpytorch": []}
    seconds: dict[str, list[float]] = {"probmix": [], "gpytorch": []}
    for seed in range(2 if quick else 20):
        x, y, frequencies = planted(seed)
        fits = {"probmix": ours(x, y, 0, MAP(restarts=8, tolerance=0.01)), "gpytorch": theirs(x, y, 0)}
        cells = ""
        for name, fit in fits.items():
            error = off(fit, frequencies)
            found[name].append(error <= WITHIN)
            seconds[name].append(fit.seconds if fit else math.nan)
            cells += f"{error:>12.2%}{seconds[name][-1]:>7.1f}"
        section.lines.append(f"{f'set {seed}':<10}{len(frequencies):>8}{cells}")
        say(section.lines[-1])
    for name, each in found.items():
        section.claims.append(f"planted_sets_with_all_frequencies_{name}={sum(each)}_of_{len(each)}")
    ratio = np.nanmedian(seconds["gpytorch"]) / statistics.median(seconds["probmix"])
    section.claims.append(f"planted_gpytorch_over_probmix={ratio:.2f}")
    return section


def main() -> None:
    """Measure, print and, on request, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mogptk", metavar="PYTHON", help="an interpreter that can import mogptk")
    parser.add_argument("--quick", action="store_true", help="fewer rows, seeds and sets: a minute")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/spectral.txt too")
    options = parser.parse_args()
    pythons = {"probmix": sys.executable, "gpytorch": sys.executable}
    if options.mogptk or importlib.util.find_spec("mogptk"):
        pythons["mogptk"] = options.mogptk or sys.executable
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        sections = [
            steps(pythons, options.quick),
            optimum(options.quick),
            recovery(options.quick),
            large(options.quick),
        ]
    tables = [line for section in sections for line in (*section.lines, "")]
    claims = [claim for section in sections for claim in section.claims]
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "gpytorch", "numpy"))
    text = "\n".join([names, *tables, *claims])
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "spectral.txt").write_text(text + "\n", encoding="utf-8")
    if wrong := [line for section in sections for line in section.wrong]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

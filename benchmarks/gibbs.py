"""Gibbs against Pyro's NUTS on one conjugate mixture posterior: worst effective draws per CPU second.

The 1,000 rows of ``mcmc.py``: three groups in the plane, three components with diagonal variances, here with the
conjugate prior ``w ~ Dirichlet(1)``, ``var ~ InverseGamma(2, 2)``, ``loc | var ~ Normal(0, var / 0.01)``. Pyro runs the
program that says so in Pyro's distributions, assignments summed out (they are discrete, NUTS cannot draw them); ours
is ``GaussianMixture(3, "diagonal")`` under ``Gibbs()``. Both begin at the same point near the mode, where labels do not
switch, so that draws compare as they are; the worst bulk effective sample size over all parameters counts.

    python benchmarks/gibbs.py [--quick] [--repeats 3] [--save]

Every fit runs in a process of its own, one after another, on one thread. Times are CPU seconds, warm-up and set-up
included; medians over repeats. That the two posteriors are equal is checked twice, or the program fails: the log joint
densities at random points to 1e-8, and the posterior means within Monte-Carlo error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from mcmc import HEADER, LARGEST_Z, ONE_THREAD, Result, Row, largest_z
from mcmc_sides import LOC, Fit, Watched, cpu, quiet, three_groups
from threadpoolctl import threadpool_limits
from torch import Tensor

from probmix.arguments import Arguments
from probmix.conjugate import NormalInverseGamma
from probmix.inference import Gibbs, infer
from probmix.inference.method import Problem
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture

MEAN_PRECISION, CONCENTRATION, RATE = 0.01, 2.0, 2.0
CHAINS = 64
CLAIM = 100.0  # times Pyro's effective draws per second


def start() -> dict[str, Tensor]:
    """Sites near the mode."""
    loc = torch.tensor(LOC, dtype=torch.float64)
    return {"weights": loc.new_full((3,), 1 / 3), "loc": loc, "var": torch.ones_like(loc)}


def program(x: Tensor) -> None:
    """The model in Pyro."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        var = pyro.sample("var", dist.InverseGamma(torch.full((2,), CONCENTRATION), RATE).to_event(1))
        loc = pyro.sample("loc", dist.Normal(0.0, (var / MEAN_PRECISION).sqrt()).to_event(1))
    with pyro.plate("row", len(x)):
        component = pyro.sample("component_of_row", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[component], var[component].sqrt()).to_event(1), obs=x)


def model() -> GaussianMixture:
    """The same as a model of ours."""
    zero = torch.zeros(2, dtype=torch.float64)
    return GaussianMixture(
        3, "diagonal", component_prior=NormalInverseGamma(zero, MEAN_PRECISION, CONCENTRATION, zero + RATE)
    )


def largest_difference() -> float:
    """Of the two log joint densities, at points around the start."""
    x, points = three_groups(), {name: value.expand(20, *value.shape) for name, value in start().items()}
    torch.manual_seed(0)
    points = {name: value * (0.2 * torch.randn_like(value)).exp() for name, value in points.items()}
    points["weights"] = points["weights"] / points["weights"].sum(-1, keepdim=True)
    return float((LogDensity.trace(program, x).log_joint(points) - model().log_joint(x, points)).abs().max())


def pyro_nuts(short: bool, seed: int) -> Fit:
    """Pyro's NUTS, one chain."""
    from pyro.infer import MCMC, NUTS
    from torch.distributions import biject_to, constraints

    warmup, draws = (150, 100) if short else (500, 500)
    pyro.set_rng_seed(seed)
    torch.set_default_dtype(torch.float64)
    over = [0.0]

    def watch(kernel: object, samples: object, stage: str, i: int) -> None:
        if stage.startswith("Warmup"):
            over[0] = cpu()

    supports = {"weights": constraints.simplex, "loc": constraints.real, "var": constraints.positive}
    init = {name: biject_to(supports[name]).inv(value) for name, value in start().items()}
    begin = cpu()
    chain = MCMC(NUTS(program), draws, warmup_steps=warmup, initial_params=init, disable_progbar=True, hook_fn=watch)
    chain.run(three_groups())
    drawn = {name: value.numpy() for name, value in chain.get_samples(group_by_chain=True).items()}
    return Fit(0.0, over[0] - begin, cpu() - over[0], drawn)


def gibbs(short: bool, seed: int) -> Fit:
    """Ours, many chains as one batch."""
    method = Watched(Gibbs(chains=CHAINS, warmup=20, draws=50 if short else 200, init=start()))
    x, begin = three_groups(), cpu()
    fit = infer(model(), x, method, seed=seed)
    return Fit(0.0, method.over - begin, cpu() - method.over, {n: v.numpy() for n, v in fit.draws.items()})


SIDES = {"Pyro NUTS": quiet(pyro_nuts), f"Gibbs, {CHAINS} chains": quiet(gibbs)}


def run(side: str, seed: int, short: bool) -> Result:
    """Fit in a process of its own."""
    command = [sys.executable, __file__, "--one", side, "--seed", str(seed), *(["--quick"] if short else [])]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def iteration_ms(short: bool) -> float:
    """CPU milliseconds of one iteration of all chains."""
    method = Gibbs(chains=CHAINS, warmup=10**6, draws=1, init=start())
    problem = Problem(model(), Arguments.of(three_groups()), 0)
    state, times = method.start(problem), 30 if short else 200
    for number in range(times + 10):
        if number == 10:
            begin = cpu()
        state = method.step(problem, state)
    return (cpu() - begin) / times * 1e3


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat and fewer draws: half a minute")
    parser.add_argument("--repeats", type=int, default=None, help="default 3; with --quick 1")
    parser.add_argument("--save", action="store_true", help="write the report to benchmarks/results/gibbs.txt too")
    parser.add_argument("--one", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print and, on request, save."""
    options = arguments()
    torch.set_num_threads(1)
    if options.one:
        with threadpool_limits(1):
            print(json.dumps(vars(Result.of(SIDES[options.one](options.quick, options.seed)))))
        return
    if not (difference := largest_difference()) < 1e-8:
        sys.exit(f"the two log joint densities differ by {difference:.3g}")
    repeats = options.repeats or (1 if options.quick else 3)
    rows = [Row(side, [run(side, seed, options.quick) for seed in range(repeats)]) for side in SIDES]
    ratio = rows[1].median("per_second") / rows[0].median("per_second")
    text = "\n".join(
        [
            f"torch {torch.__version__}, pyro-ppl {pyro.__version__}",
            HEADER,
            *map(str, rows),
            "",
            f"ess_per_second_gibbs_over_pyro_nuts={ratio:.0f}",
            f"milliseconds_of_one_iteration_of_{CHAINS}_chains={iteration_ms(options.quick):.2f}",
            f"largest_difference_of_log_joints={difference:.1e}",
            f"largest_difference_of_means_in_standard_errors={largest_z(rows):.1f}",
        ]
    )
    print(text)
    if options.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / "gibbs.txt").write_text(text + "\n", encoding="utf-8")
    if not math.isfinite(z := largest_z(rows)) or z > LARGEST_Z:
        sys.exit(f"posterior means differ by {z:.1f} standard errors")
    if ratio < CLAIM:
        sys.exit(f"expected {CLAIM:.0f} times as many effective draws per second, got {ratio:.0f} times")


if __name__ == "__main__":
    main()

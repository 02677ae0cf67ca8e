"""The sides of ``mcmc.py``: each fits the same posterior from the same start and says what it cost."""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from probmix.arguments import Arguments
from probmix.inference import NUTS, infer
from probmix.inference.chees import ChEES
from probmix.inference.method import AbstractMethod, Problem
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.posterior import AbstractPosterior
from probmix.status import Status

__all__ = ["SIDES", "Fit"]

ROWS = 1_000
_LONGER = 8  # times as many draws
LOC = ((-4.0, 0.0), (0.0, 4.0), (4.0, -2.0))
START = {"w": [1 / 3] * 3, "mu": [list(row) for row in LOC], "sd": [[1.0, 1.0]] * 3}  # near the mode

Draws = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Fit:
    """What one fit cost in CPU seconds, and its draws, ``(chains, draws, ...)`` each.

    Compilation is apart, so far as a side can tell it from its warm-up; set-up and tracing are part of warm-up.
    """

    compilation: float
    warmup: float
    sampling: float
    draws: Draws


def cpu() -> float:
    """CPU seconds of this process so far, all its threads and the compilers that it has called."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def three_groups() -> Tensor:
    """Rows ``(ROWS, 2)`` of three well-separated groups."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (ROWS,), generator=generator)
    noise = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    return torch.tensor(LOC, dtype=torch.float64)[label] + noise


def program(x: Tensor) -> None:
    """The model in Pyro; Pyro and probmix sum out ``z`` themselves."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(2.0).expand([2]).to_event(1))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], sd[z]).to_event(1), obs=x)


# --- probmix --------------------------------------------------------------------------------------------------------


class Watched(AbstractMethod):
    """A method that notes the CPU time at which its warm-up was over."""

    def __init__(self, method: Any) -> None:
        self.method, self.over = method, 0.0

    def start(self, problem: Problem) -> Any:
        """Pass on."""
        return self.method.start(problem)

    def step(self, problem: Problem, state: Any) -> Any:
        """Pass on, and look at the clock."""
        state = self.method.step(problem, state)
        if self.progress(state)[0] <= self.method.warmup:
            self.over = cpu()
        return state

    def status(self, problem: Problem, state: Any) -> Status | None:
        """Pass on."""
        return self.method.status(problem, state)

    def finish(self, problem: Problem, state: Any, status: Status) -> AbstractPosterior:
        """Pass on."""
        return self.method.finish(problem, state, status)

    def progress(self, state: Any) -> tuple[int, int]:
        """Pass on."""
        return self.method.progress(state)

    def figures(self, state: Any) -> Mapping[str, str]:
        """Pass on."""
        return self.method.figures(state)


def compilation(batch: int) -> float:
    """Compile the log density for a batch; return the seconds beyond those of tracing it.

    Equal graphs are compiled once in a process, so the fit that follows finds this one ready.
    """
    seconds = []
    for compiled in (False, True):
        density = LogDensity(program, Arguments.of(three_groups()))
        density.plan(batch=batch, gradients=1, compile=compiled)
        z = density.unconstrain({n: torch.tensor(v, dtype=torch.float64) for n, v in START.items()})
        start = cpu()
        density.value_and_grad(z.expand(batch, -1).clone())
        seconds.append(cpu() - start)
    return seconds[1] - seconds[0]


def probmix(method: Any, seed: int) -> Fit:
    """Fit by a method of ours."""
    compiling = 0.0
    if method.compile:
        together = isinstance(method, ChEES) or method.engine == "nutpie"
        with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
            compiling = compilation(method.chains if together else 1)
    init = {name: torch.tensor(value, dtype=torch.float64) for name, value in START.items()}
    watched, start = Watched(replace(method, init=init)), cpu()
    fit = infer(program, three_groups(), watched, seed=seed)
    return Fit(compiling, watched.over - start, cpu() - watched.over, {n: v.numpy() for n, v in fit.draws.items()})


# --- the others -----------------------------------------------------------------------------------------------------


def pyros(iterations: tuple[int, int], seed: int, *, jit: bool) -> Fit:
    """Pyro's NUTS; the jit compiles in warm-up."""
    from pyro.infer import MCMC
    from pyro.infer import NUTS as PyroNUTS  # noqa: N811 (a class, in capitals)
    from torch.distributions import biject_to

    warmup, draws = iterations
    pyro.set_rng_seed(seed)
    torch.set_default_dtype(torch.float64)
    over = [0.0]

    def watch(kernel: Any, samples: Any, stage: str, i: int) -> None:
        if stage.startswith("Warmup"):
            over[0] = cpu()

    supports = {
        "w": dist.Dirichlet(torch.ones(3)).support,
        "mu": dist.constraints.real,
        "sd": dist.constraints.positive,
    }
    init = {name: biject_to(supports[name]).inv(torch.tensor(value)) for name, value in START.items()}
    start = cpu()
    kernel = PyroNUTS(program, jit_compile=jit, ignore_jit_warnings=True)
    chain = MCMC(kernel, draws, warmup_steps=warmup, initial_params=init, disable_progbar=True, hook_fn=watch)
    chain.run(three_groups())
    drawn = {name: value.numpy() for name, value in chain.get_samples(group_by_chain=True).items()}
    return Fit(0.0, over[0] - start, cpu() - over[0], drawn)


def numpyros(iterations: tuple[int, int], seed: int) -> Fit:
    """NumPyro's NUTS. Every run compiles something; what a step costs without is seen from a longer run."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist
    from numpyro.infer import MCMC
    from numpyro.infer import NUTS as NumPyroNUTS  # noqa: N811 (a class, in capitals)
    from numpyro.infer.initialization import init_to_value

    jax.config.update("jax_enable_x64", True)

    def model(x: Any) -> None:
        w = numpyro.sample("w", ndist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("component", 3):
            mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0).expand([2]).to_event(1))
            sd = numpyro.sample("sd", ndist.HalfNormal(2.0).expand([2]).to_event(1))
        with numpyro.plate("row", len(x)):
            mixture = ndist.MixtureSameFamily(ndist.Categorical(w), ndist.Normal(mu, sd).to_event(1))
            numpyro.sample("x", mixture, obs=x)

    x, values = jnp.asarray(three_groups().numpy()), {name: jnp.asarray(v) for name, v in START.items()}

    def run(draws: int) -> tuple[float, Any]:
        kernel = NumPyroNUTS(model, init_strategy=init_to_value(values=values))
        chain = MCMC(kernel, num_warmup=iterations[0], num_samples=draws, progress_bar=False)
        start = cpu()
        chain.run(jax.random.PRNGKey(seed), x, extra_fields=("num_steps",))
        jax.block_until_ready(chain.get_samples())
        return cpu() - start, chain

    first, chain = run(iterations[1])
    draws = {name: np.asarray(value) for name, value in chain.get_samples(group_by_chain=True).items()}
    steps = int(chain.get_extra_fields()["num_steps"].sum())
    (short, _), (long, longer) = run(iterations[1]), run(_LONGER * iterations[1])
    per_step = (long - short) / (int(longer.get_extra_fields()["num_steps"].sum()) - steps)
    chain.warmup(jax.random.PRNGKey(seed), x, extra_fields=("num_steps",), collect_warmup=True)
    warm = int(chain.get_extra_fields()["num_steps"].sum())
    return Fit(first - per_step * (warm + steps), per_step * warm, per_step * steps, draws)


def pymcs(iterations: tuple[int, int], seed: int) -> Fit:
    """PyMC's model, sampled by nutpie; warm-up and sampling are parted by their gradients."""
    import nutpie
    import pymc as pm
    import pytensor.tensor as pt

    x = three_groups().numpy()
    with pm.Model() as model:
        w = pm.Dirichlet("w", np.ones(3), initval=START["w"])
        mu = pm.Normal("mu", 0.0, 5.0, shape=(3, 2), initval=START["mu"])
        sd = pm.HalfNormal("sd", 2.0, shape=(3, 2), initval=START["sd"])
        each = pm.logp(pm.Normal.dist(mu, sd, shape=(ROWS, 3, 2)), x[:, None, :]).sum(-1)
        pm.Potential("x", pt.logsumexp(pt.log(w) + each, axis=-1).sum())
    start = cpu()
    compiled = nutpie.compile_pymc_model(model, jitter_rvs=set())
    ready = cpu()
    trace = nutpie.sample(
        compiled, tune=iterations[0], draws=iterations[1], chains=1, cores=1, seed=seed, progress_bar=False
    )
    spent = cpu() - ready
    warm, kept = (float(group["n_steps"].sum()) for group in (trace.warmup_sample_stats, trace.sample_stats))
    draws = {name: trace.posterior[name].values for name in START}
    return Fit(ready - start, spent * warm / (warm + kept), spent * kept / (warm + kept), draws)


def quiet(side: Callable[[bool, int], Fit]) -> Callable[[bool, int], Fit]:
    """Run a side without the warnings of its libraries."""

    def run(quick: bool, seed: int) -> Fit:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return side(quick, seed)

    return run


def _one_chain(quick: bool) -> tuple[int, int]:
    return (150, 100) if quick else (500, 500)


def _nuts(quick: bool, **settings: Any) -> NUTS:
    warmup, draws = _one_chain(quick)
    return NUTS(**{"chains": 1, "warmup": warmup, "draws": draws, "compile": False, **settings})


def _nutpie(quick: bool, *, compile: bool) -> NUTS:
    return _nuts(
        quick, engine="nutpie", chains=16, warmup=100 if quick else 200, draws=20 if quick else 100, compile=compile
    )


def _chees(quick: bool, *, compile: bool) -> ChEES:
    return ChEES(warmup=50, draws=20, compile=compile) if quick else ChEES(compile=compile)


#: Name -> (quick, seed) -> what it cost.
SIDES: dict[str, Callable[[bool, int], Fit]] = {
    name: quiet(side)
    for name, side in {
        "Pyro NUTS": lambda quick, seed: pyros(_one_chain(quick), seed, jit=False),
        "Pyro NUTS, jit": lambda quick, seed: pyros(_one_chain(quick), seed, jit=True),
        "NumPyro NUTS": lambda quick, seed: numpyros(_one_chain(quick), seed),
        "PyMC, nutpie": lambda quick, seed: pymcs(_one_chain(quick), seed),
        "NUTS": lambda quick, seed: probmix(_nuts(quick), seed),
        "NUTS, compiled": lambda quick, seed: probmix(_nuts(quick, compile=True), seed),
        "NUTS by nutpie, 16 chains": lambda quick, seed: probmix(_nutpie(quick, compile=False), seed),
        "NUTS by nutpie, compiled": lambda quick, seed: probmix(_nutpie(quick, compile=True), seed),
        "ChEES": lambda quick, seed: probmix(_chees(quick, compile=False), seed),
        "ChEES, compiled": lambda quick, seed: probmix(_chees(quick, compile=True), seed),
    }.items()
}

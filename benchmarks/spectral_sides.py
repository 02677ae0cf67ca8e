"""The sides of ``spectral.py``, each in a process of its own that takes orders: one line of JSON in, one line out.

    python spectral_sides.py probmix|dense|gpytorch|mogptk

``{"make": path}`` reads a `Problem` and prepares the step of an optimiser: value and gradient of the log likelihood at
its hyperparameters (of probmix those of the log posterior, as its MAP takes them); it answers with a number, and the
CPU seconds and megabytes that the preparation took, first step included. Then ``{"time": number}`` answers with CPU
seconds of one step, ``{"memory": number}`` with megabytes above what the process held before it, and ``{"save":
[number, path]}`` writes the log likelihood and its derivatives by the logarithms of weights, frequencies, bandwidths
and noise variance, in this order. ``dense`` is probmix, told not to look for a grid. A side imports its library when it
is chosen.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Rows x ``(n, d)``, observations y ``(n,)`` of mean zero, and hyperparameters.

    Weights are ``(q,)``, frequencies and bandwidths ``(q, d)``; of a product over the inputs all are ``(d, q)``.
    """

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    frequencies: np.ndarray
    bandwidths: np.ndarray
    noise_var: np.ndarray

    @classmethod
    def read(cls, path: str) -> Problem:
        """Return what `write` has written."""
        with np.load(path) as found:
            return cls(**{name: found[name] for name in cls._fields})

    def write(self, path: str) -> None:
        """Write it to a file ``.npz``."""
        np.savez(path, **self._asdict())


class Step(NamedTuple):
    """What is timed, and what says whether it is right."""

    run: Callable[[], object]
    report: Callable[[], np.ndarray]


def probmix_side(problem: Problem, structure: Any = "auto") -> Step:
    """The traced log density, as `probmix.inference.MAP` calls it; the report takes off the priors."""
    import pyro
    import torch

    from probmix.log_density import LogDensity
    from probmix.models import SpectralMixtureGP

    torch.set_num_threads(1)
    x, y, weights, frequencies, bandwidths, noise_var = map(torch.from_numpy, problem)
    model = SpectralMixtureGP(
        frequencies.shape[-1 if weights.dim() > 1 else 0], product=weights.dim() > 1, structure=structure
    )
    density = LogDensity.trace(model, (x, y))
    sites = {
        "kernel.log_weights": weights.log(),
        "kernel.frequencies": frequencies,
        "kernel.log_bandwidths": bandwidths.log(),
        "noise_var": noise_var,
    }
    point = density.unconstrain(sites)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return density.value_and_grad(point, jacobian=False)

    def report() -> np.ndarray:
        value, gradient = run()
        z = point.clone().requires_grad_()
        at = density.constrain(z)
        drawn = pyro.poutine.trace(pyro.poutine.condition(model, at)).get_trace(x, y)
        prior = sum(drawn.nodes[name]["fn"].log_prob(at[name]).sum() for name in sites)
        logs = sum((at[name] if "log_" in name else at[name].log()).sum() for name in sites)
        [of_prior] = torch.autograd.grad(prior, z, retain_graph=True)
        [of_logs] = torch.autograd.grad(logs, z)  # each coordinate has a site of its own
        by_logs = (gradient - of_prior) / of_logs
        places = {site.name: site.slice for site in density.latents}
        parts = [(value - prior)[None], *(by_logs[places[name]] for name in sites)]
        return torch.cat([part.detach() for part in parts]).numpy()

    run()
    return Step(run, report)


def dense_side(problem: Problem) -> Step:
    """The same without the structure of a grid."""
    return probmix_side(problem, "dense")


def gpytorch_side(problem: Problem) -> Step:
    """GPyTorch's kernel and exact marginal likelihood, by Cholesky factors."""
    import gpytorch
    import torch

    torch.set_num_threads(1)
    x, y, weights, frequencies, bandwidths, noise_var = map(torch.from_numpy, problem)
    model, likelihood = gpytorch_model(x, y, len(weights), gpytorch.means.ZeroMean())
    kernel = model.covar_module
    kernel.mixture_weights, likelihood.noise = weights, noise_var
    kernel.mixture_means, kernel.mixture_scales = frequencies[:, None], bandwidths[:, None]
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    constrained = {
        kernel.raw_mixture_weights: weights,
        kernel.raw_mixture_means: frequencies,
        kernel.raw_mixture_scales: bandwidths,
        likelihood.noise_covar.raw_noise: noise_var,
    }

    def run() -> torch.Tensor:
        model.zero_grad()
        with gpytorch.settings.max_cholesky_size(len(x) + 1):
            value = marginal(model(x), y)  # of one point
            value.backward()
        return value.detach()

    def report() -> np.ndarray:
        parts = [run()[None]]
        for raw, value in constrained.items():  # softplus, the noise 1e-4 above
            parts.append((raw.grad / raw.detach().sigmoid()).flatten() * value.flatten())
        return len(x) * torch.cat(parts).numpy()

    run()
    return Step(run, report)


def gpytorch_model(x: Any, y: Any, num_components: int, mean: Any) -> tuple[Any, Any]:
    """Return GPyTorch's process, as in its spectral-mixture example, and its likelihood, in the dtype of the data."""
    import gpytorch

    class Exact(gpytorch.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = mean
            self.covar_module = gpytorch.kernels.SpectralMixtureKernel(num_mixtures=num_components)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Exact(x, y, gpytorch.likelihoods.GaussianLikelihood()).to(x)
    return model.train(), model.likelihood.train()


def mogptk_side(problem: Problem) -> Step:
    """The model inside mogptk, without its transforms of the data and with the smallest jitter that it takes."""
    import torch
    from mogptk import gpr

    torch.set_num_threads(1)
    x, y, weights, frequencies, bandwidths, noise_var = map(torch.from_numpy, problem)
    gpr.config.positive_minimum = 0.0  # else small values are not what they are set to
    kernel = gpr.SpectralMixtureKernel(Q=len(weights))
    kernel.magnitude.assign(weights)
    kernel.mean.assign(frequencies)
    kernel.variance.assign(bandwidths.square())
    model = gpr.Exact(kernel, x, y[:, None], variance=float(noise_var), jitter=0.0)
    # of log v half the derivative by log v^2 would be; of log noise variance half that by the logarithm of its root
    factors = {kernel.magnitude: 1.0, kernel.mean: 1.0, kernel.variance: 2.0, model.likelihood.scale: 0.5}

    def report() -> np.ndarray:
        parts = [model.loss().detach().reshape(1)]
        for parameter, factor in factors.items():
            raw = parameter.detach().clone().requires_grad_()
            value = parameter.transform.forward(raw) if parameter.transform is not None else raw
            [slope] = torch.autograd.grad(value.log().sum(), raw)
            parts.append(factor * (parameter.grad / slope).flatten())
        return -torch.cat(parts).numpy()

    model.loss()
    return Step(model.loss, report)


def tiny() -> Problem:
    """Return a problem of ten rows."""
    x = np.arange(10.0)
    one = np.ones((1, 1))
    return Problem(x[:, None], np.sin(x), one[0], 0.1 * one, 0.01 * one, np.array(0.1))


SIDES = {"probmix": probmix_side, "dense": dense_side, "gpytorch": gpytorch_side, "mogptk": mogptk_side}


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def megabytes(call: Callable[[], Any]) -> tuple[float, Any]:
    """Peak memory of one call above what is held before it (Linux alone), and its answer."""

    def read(name: str) -> int:
        return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan"), call()
    reset.write_text("5")
    before = read("VmRSS")
    answer = call()
    return (read("VmHWM") - before) * 1024 / 1e6, answer


def main() -> None:
    """Take orders until there are no more."""
    warnings.simplefilter("ignore")
    side = SIDES[sys.argv[1]]
    side(tiny())  # what is imported or set up once for all
    steps: list[Step] = []
    for line in sys.stdin:
        [(order, what)] = json.loads(line).items()
        answer: Any = None
        if order == "make":
            problem = Problem.read(what)
            start = time.process_time()
            peak, step = megabytes(lambda problem=problem: side(problem))
            steps.append(step)
            answer = len(steps) - 1, time.process_time() - start, peak
        elif order == "time":
            answer = seconds(steps[what].run)
        elif order == "memory":
            answer = megabytes(steps[what].run)[0]
        else:
            np.save(what[1], steps[what[0]].report())
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

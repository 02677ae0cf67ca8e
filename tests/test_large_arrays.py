"""Pointwise log-likelihoods of many draws: the same in a file as in memory, and memory that does not grow with them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from programs import COUNTS, gamma_poisson

from probmix import large_arrays
from probmix.inference import NUTS, infer

CODE = """
import resource, torch, pyro, pyro.distributions as dist
from probmix.arguments import Arguments
from probmix.large_arrays import joined
from probmix.log_density import LogDensity

def program(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

torch.set_default_dtype(torch.float64)
density = LogDensity(program, Arguments.of(torch.randn(100_000)))
sites = density.constrain(torch.randn({draws}, density.dim))
values = joined(density.pointwise_blocks(sites), {draws})["x"]
assert values.shape == ({draws}, 100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # GiB, where the kernel counts in KiB
"""


def test_a_file_holds_what_memory_holds(monkeypatch):
    fit = infer(gamma_poisson, COUNTS, NUTS(chains=2, warmup=20, draws=10), seed=0)
    expected = fit.log_density.pointwise(fit.draws)["x"].numpy()
    monkeypatch.setattr(large_arrays, "_IN_MEMORY", 0)
    values = fit.to_arviz(predictive_draws=0, prior_draws=0)["log_likelihood"]["x"]
    assert isinstance(values.values.base, np.memmap)
    np.testing.assert_array_equal(values, expected)


def test_blocks_of_any_size_are_joined_in_order():
    rows = torch.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(large_arrays.joined(iter([{"x": b} for b in rows.split(4)]), 6)["x"], rows)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts resident memory as Linux does")
def test_memory_does_not_grow_with_the_draws():
    """4,000 draws by 100,000 rows are 3.0 GiB of numbers; the whole process stays below 2 GB."""
    run = subprocess.run([sys.executable, "-c", CODE.format(draws=4000)], capture_output=True, text=True, check=True)
    assert float(run.stdout) * 1.074 < 2.0

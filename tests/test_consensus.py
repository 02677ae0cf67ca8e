"""Agents that keep their rows: one answer however many share the work, in one process or in two, and what they send."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from probmix.errors import DataError, MethodError
from probmix.inference import SCA, ConsensusADMM, infer
from probmix.inference.consensus import fuse, shards, stochastic_round
from probmix.inference.method import Problem
from probmix.models import GridSpectralGP
from probmix.posterior import load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

RNG = np.random.default_rng(3)
X = torch.arange(62.0, dtype=torch.float64)[:, None]
LOUDER = 0.3 + X[:, 0] / 20  # so that parts by themselves want other weights
Y = LOUDER * (2 * math.pi * 0.1 * X[:, 0]).sin() + 0.3 * torch.as_tensor(RNG.normal(size=62)) + 3
MODEL = GridSpectralGP(num_points=11, noise_var="evar")
FOUR = {agents: ConsensusADMM(agents=agents, parts=4) for agents in (1, 2, 4)}


@pytest.fixture(scope="module")
def fits():
    return {agents: infer(MODEL, (X, Y), method, seed=0) for agents, method in FOUR.items()}


def local_objectives(weights: torch.Tensor, parts: int) -> float:
    """Sum of the log-likelihoods of contiguous parts, by torch's normal: mean and noise are those of all rows."""
    grid = MODEL._grid_over(1)
    pieces = shards(X, Y, parts)
    noise = sum(float(MODEL.agreed(y)[2]) for _, y in pieces) / len(Y)
    total = 0.0
    for x, y in pieces:
        covariance = (
            torch.einsum("a,anm->nm", weights, grid.values(x[:, None] - x)) + noise * torch.eye(len(y)).double()
        )
        total += float(dist.MultivariateNormal(Y.mean().expand(len(y)), covariance).log_prob(y))
    return total


@pytest.mark.parametrize("agents", [2, 4])
def test_the_number_of_agents_changes_nothing(fits, agents):
    """Objective within 1e-3 nats of one agent's with the same four parts, predictions within 1% of their spread."""
    one, many = fits[1], fits[agents]
    assert many.status.state == one.status.state == "converged"
    assert many.objective == pytest.approx(one.objective, abs=1e-3)
    new = X[-1] + torch.arange(1.0, 11.0, dtype=torch.float64)[:, None]
    ours, theirs = (MODEL.predictive(new, fit.sites(), X, Y).mean for fit in (many, one))
    assert float((ours - theirs).norm()) < 0.01 * float((theirs - theirs.mean()).norm())


def test_the_objective_is_the_sum_over_parts(fits):
    for fit in fits.values():
        assert fit.objective == pytest.approx(local_objectives(fit.sites()["weights"], 4), rel=1e-9)


def test_one_agent_with_all_rows_is_sca():
    """And the sum over two parts is another objective: the control."""
    alone = infer(MODEL, (X, Y), ConsensusADMM(agents=1, tolerance=1e-8), seed=0)
    whole = infer(MODEL, (X, Y), SCA(), seed=0)
    assert alone.objective == pytest.approx(whole.objective, abs=1e-3)
    halves = infer(MODEL, (X, Y), ConsensusADMM(agents=2), seed=0)
    assert abs(halves.objective - whole.objective) > 0.02
    assert local_objectives(whole.sites()["weights"], 2) < halves.objective + 1e-3  # which is the best for its own sum


def test_agents_that_disagree_are_pulled_together(fits):
    """The distance from agreement falls by a thousand from the first step to the last."""
    primal = fits[4].history["primal"]
    assert primal[-1] < 1e-4
    assert primal[0] > 1e-2


def test_a_penalty_that_bends_up_more_than_the_likelihood_bends_down():
    """Of a random walk each part wants other slow components: agents end within 0.05 nats, else some 5 away."""
    y = torch.as_tensor(np.random.default_rng(3).normal(size=160)).cumsum(0)
    x, model = torch.arange(160.0, dtype=torch.float64)[:, None], GridSpectralGP(num_points=101, noise_var="evar")
    one, many, loose = (
        infer(model, (x, y), ConsensusADMM(agents=agents, parts=4, penalty=penalty), seed=0)
        for agents, penalty in ((1, 4.0), (4, 4.0), (4, 0.25))
    )
    assert many.objective == pytest.approx(one.objective, abs=0.05)
    assert many.history["primal"][-1] < 1e-4
    assert loose.objective < one.objective - 1
    assert loose.history["primal"][-1] > 0.01


# --- two processes --------------------------------------------------------------------------------------------------

AGENT = """
import sys, torch
from torch import distributed
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
from probmix.inference import ConsensusADMM, infer
from probmix.models import GridSpectralGP
x, y = (torch.as_tensor(v) for v in __import__("numpy").load(f"{folder}/{rank}.npz").values())
quantise = float(sys.argv[4]) or None
model = GridSpectralGP(num_points=11, noise_var="evar")
fit = infer(model, (x, y), ConsensusADMM(agents=2, quantise=quantise, max_steps=60), seed=0, throw=False)
fit.save(f"{folder}/{rank}.safetensors")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("quantise", [None, 1e-3])
def test_two_processes_give_what_one_gives(tmp_path, quantise):
    """Each process has only its own rows; all-reduce adds in another order, so to rounding, not to the bit."""
    for rank, (x, y) in enumerate(shards(X, Y, 2)):
        np.savez(tmp_path / f"{rank}.npz", x=x, y=y)
    port = str(20_000 + os.getpid() % 20_000)
    command = [sys.executable, "-W", "ignore", "-c", AGENT]
    rest = [port, str(tmp_path), str(quantise or 0)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(rank), *rest], cwd=Path(__file__).parent, env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    apart = [load_posterior(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    together = infer(MODEL, (X, Y), ConsensusADMM(agents=2, quantise=quantise, max_steps=60), seed=0)
    assert torch.equal(apart[0].sites()["weights"], apart[1].sites()["weights"])
    torch.testing.assert_close(apart[0].sites()["weights"], together.sites()["weights"], rtol=1e-6, atol=1e-9)
    assert apart[0].objective == pytest.approx(together.objective, rel=1e-9)
    assert float(apart[0].history["bits"][-1]) == pytest.approx(float(together.history["bits"][-1]))
    assert [len(fit.args[1]) for fit in apart] == [31, 31]


# --- messages -------------------------------------------------------------------------------------------------------


def test_rounding_is_unbiased_and_on_the_grid():
    """Null: the mean of 40,000 roundings is the value. 5 standard errors, false alarm 1e-6; rounding down fails."""
    values = torch.tensor([0.237, -1.43, 0.0, 0.6], dtype=torch.float64).repeat(40_000, 1)
    uniform = torch.rand(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = stochastic_round(values, 0.2, uniform)
    assert ((rounded / 0.2) - (rounded / 0.2).round()).abs().max() < 1e-9
    assert (rounded - values).abs().max() < 0.2
    error = 5 * 0.1 / 40_000**0.5
    assert ((rounded.mean(0) - values[0]).abs() < error).all()
    assert ((stochastic_round(values, 0.2, 1 - 1e-9 + 0 * uniform).mean(0) - values[0]).abs() > error)[:2].all()


def test_bits_are_counted():
    """64 for each of 11 weights, up and down, of each agent; a start sends weights and slopes, slopes go again."""
    fit = infer(MODEL, (X, Y), ConsensusADMM(agents=2, max_steps=6), seed=0, throw=False)
    each = 2 * 2 * 11 * 64
    again = [1, 2, 2, 2, 2, 2]  # after steps 1 and 2, of the first half
    assert fit.history["bits"].tolist() == [(2 + step + again[step - 1]) * each for step in range(1, 7)]
    uniform = ConsensusADMM(agents=2, max_steps=6, uniform_penalty=True)
    plain = infer(MODEL, (X, Y), uniform, seed=0, throw=False)
    assert plain.history["bits"][:2].tolist() == [2 * each, 3 * each]
    coarse = infer(MODEL, (X, Y), ConsensusADMM(agents=2, max_steps=6, quantise=1e-3), seed=0, throw=False)
    assert coarse.history["bits"][-1] < 0.7 * fit.history["bits"][-1]
    alone = infer(MODEL, (X, Y), ConsensusADMM(agents=1), seed=0)
    assert float(alone.history["bits"][-1]) == 0


def test_quantised_agents_agree_up_to_their_resolution(fits):
    """Delta of 1e-4 beside weights of 0.4 costs less than half a nat; of 20 it costs much more."""
    fine, coarse = (
        infer(MODEL, (X, Y), ConsensusADMM(agents=4, quantise=step, max_steps=60), seed=0, throw=False).objective
        for step in (1e-4, 20.0)
    )
    assert fine == pytest.approx(fits[4].objective, abs=0.5)
    assert coarse < fine - 0.5


def test_the_same_seed_gives_the_same_bits_on_the_wire():
    one, two, other = (
        infer(MODEL, (X, Y), ConsensusADMM(agents=4, quantise=0.05, max_steps=5), seed=seed).history["primal"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_senders_round_each_in_their_own_way():
    """With common random numbers the errors of the agents would add up instead of averaging out."""
    method, weights = ConsensusADMM(agents=2, quantise=0.1), torch.linspace(0, 1, 40, dtype=torch.float64)
    keys = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    rounded = {tuple(method._message(weights, torch.zeros_like(weights), key)[0].tolist()) for key in keys}
    assert len(rounded) == len(keys)


def test_rows_are_cut_as_in_the_paper():
    assert [len(y) for _, y in shards(X, Y, 4)] == [15, 15, 15, 17]
    assert torch.equal(torch.cat([y for _, y in shards(X, Y, 4)]), Y)
    with pytest.raises(DataError, match=r"at least 3 rows for each of 30 parts, got 62 rows"):
        shards(X, Y, 30)


def test_predictions_are_fused_by_precision():
    means, variances = RNG.normal(size=(3, 5)), RNG.gamma(2.0, size=(3, 5))
    fused = fuse(
        [dist.Normal(torch.as_tensor(m), torch.as_tensor(v**0.5)) for m, v in zip(means, variances, strict=True)]
    )
    shares = (1 / variances) / (1 / variances).sum(0)
    np.testing.assert_allclose(fused.mean, (shares * means).sum(0))
    np.testing.assert_allclose(fused.variance, 3 / (1 / variances).sum(0))
    with pytest.raises(MethodError, match="at least one agent, got none"):
        fuse([])


# --- it is a method of the house ------------------------------------------------------------------------------------


def test_a_fit_stopped_early_still_answers(fits):
    method = ConsensusADMM(agents=2, parts=4)
    problem = Problem(MODEL, fits[2].arguments, 0)
    early = method.finish(problem, method.start(problem), fits[2].status)
    assert early.objective == pytest.approx(local_objectives(early.sites()["weights"], 4), rel=1e-9)


def test_the_papers_penalty_is_an_option():
    """1e-10 for all weights: the first steps are local fits; balancing raises it until they agree."""
    method = ConsensusADMM(agents=2, penalty=1e-10, uniform_penalty=True, max_steps=100)
    primal = infer(MODEL, (X, Y), method, seed=0).history["primal"]
    assert primal[0] > 0.05
    assert primal[-1] < 0.1 * primal[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agents": 0}, "agents: expected at least 1, got 0"),
        ({"agents": 3, "parts": 4}, "parts: expected a multiple of 3 agents, got 4"),
        ({"quantise": 0.0}, "quantise: expected None or a positive number, got 0.0"),
        ({"penalty": -1.0}, "penalty: expected a positive number"),
        ({"balance": 1.0}, "balance: expected a number above 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(MethodError, match=message):
        ConsensusADMM(**settings)

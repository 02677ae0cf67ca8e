"""The transition by itself: its laws, and targets whose moments are known, for one data set and for several."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from targets import Funnel, Gaussian, LogGamma, random_cov
from z_scores import critical, z_scores

from probmix.errors import MethodError
from probmix.inference.adaptation import van_der_corput
from probmix.inference.hmc import Tuning, begin, transition
from probmix.inference.many_chains import run_chains
from probmix.inference.metric import Metric, Scatter, fit_metric, probe
from probmix.inference.warmup import Adaptation

FALSE_ALARM = 1e-4
TARGETS = {
    "correlated": Gaussian(random_cov(10, 100.0, seed=0)),
    "skewed": LogGamma(),
    "funnel": Funnel(),
}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def starts(target, chains=32, superchains=4):
    z = torch.rand(superchains, len(target.mean), dtype=torch.float64) * 4 - 2
    return z.repeat_interleave(chains // superchains, 0)


def unit(dim, **kwargs):
    return Metric(torch.ones(1, dim, **kwargs), torch.ones(1, dim, **kwargs))


# --- known moments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
@pytest.mark.parametrize("name", TARGETS)
def test_moments(name, mass):
    """Null: means and variances are the target's. Largest z-score over both at a false alarm of 1e-4 (Bonferroni);

    the standard errors are ArviZ's. The control: variances taken to be 20% larger are rejected.
    """
    target = TARGETS[name]
    run = run_chains(target, starts(target), Adaptation(warmup=80, mass=mass, groups=4), 300, thin=2)
    z = run.positions.numpy()
    mean, var = target.mean.numpy(), target.var.numpy()
    limit = critical(2 * len(mean), FALSE_ALARM)
    assert np.abs(z_scores(z, mean)).max() < limit
    assert np.abs(z_scores((z - mean) ** 2, var)).max() < limit
    assert np.abs(z_scores((z - mean) ** 2, 1.2 * var)).max() > limit


def test_without_the_acceptance_step_moments_are_wrong(monkeypatch):
    """The control of the method: the same test fails if every proposal is taken, at a step long enough to err."""
    target = TARGETS["skewed"]
    tuning = Tuning(*torch.tensor([1.6, 1.6], dtype=torch.float64), unit(3, dtype=torch.float64))
    found = {}
    for cheat in (False, True):
        if cheat:
            monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, -1.0))
        chains, kept = begin(target, starts(target)), []
        for i in range(600):
            chains, _ = transition(target, chains, tuning, i)
            kept.append(chains.position)
        z = torch.stack(kept[100:], 1).numpy()
        found[cheat] = np.abs(z_scores(z, target.mean.numpy())).max()
    limit = critical(3, FALSE_ALARM)
    assert found[False] < limit < found[True]


# --- laws -----------------------------------------------------------------------------------------------------------


def test_a_trajectory_can_be_run_backwards():
    """From its end, with the momentum turned round, it returns to its start: to 1e-9 for 40 gradients of rounding."""
    target, z = Funnel(), starts(Funnel())
    tuning = Tuning(*torch.tensor([0.1, 2.0], dtype=torch.float64), unit(3, dtype=torch.float64))
    _, there = transition(target, begin(target, z), tuning, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda _: -there.momentum)
        _, back = transition(target, begin(target, there.proposal), tuning, 0)
    assert there.gradients == back.gradients == 40
    torch.testing.assert_close(back.proposal, z, rtol=0, atol=1e-9)
    assert not torch.allclose(there.proposal, z, atol=0.1)


def energy_error(target, step, kick=0.21178):
    torch.manual_seed(1)
    tuning = Tuning(*torch.tensor([step, 1.5], dtype=torch.float64), unit(3, dtype=torch.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probmix.inference.hmc._KICK", kick)
        _, out = transition(target, begin(target, starts(target)), tuning, 0)
    return float(
        (0.5 * out.momentum.square().sum(-1) - target.value_and_grad(out.proposal)[0] - out.energy).abs().mean()
    )


def test_energy_error_is_of_second_order_and_small():
    """Half the step, a quarter of the error, to a tenth. At long steps on a normal, the error is below a quarter of

    that of two leapfrog steps (stage weight 1/4), which cost the same.
    """
    assert energy_error(LogGamma(), 0.05) / energy_error(LogGamma(), 0.025) == pytest.approx(4.0, rel=0.1)
    normal = Gaussian(torch.eye(3, dtype=torch.float64))
    assert energy_error(normal, 1.5) < 0.25 * energy_error(normal, 1.5, kick=0.25)


def test_trajectory_lengths_are_spread_evenly_about_their_mean():
    target, chains = LogGamma(), begin(LogGamma(), starts(LogGamma()))
    tuning = Tuning(*torch.tensor([0.3, 1.0], dtype=torch.float64), unit(3, dtype=torch.float64))
    lengths = np.array([float(transition(target, chains, tuning, i)[1].length) for i in range(63)])
    assert lengths.mean() == pytest.approx(1.0)
    assert np.diff(np.sort(lengths)) == pytest.approx(0.5 / 64)  # 63 points of the sequence fill a grid


def test_van_der_corput_is_the_reversed_binary_number():
    assert [van_der_corput(i) for i in range(1, 65)] == [int(f"{i:07b}"[::-1], 2) / 128 for i in range(1, 65)]


def test_outside_the_support_is_a_divergence_and_stays_put():
    class HalfLine:
        def value_and_grad(self, z):
            inside = (z > 0).all(-1)
            return torch.where(inside, -z.sum(-1), math.nan), torch.where(inside[..., None], -1.0, math.nan)

    z = torch.full((500, 1), 0.3, dtype=torch.float64)
    tuning = Tuning(*torch.tensor([0.5, 1.0], dtype=torch.float64), unit(1, dtype=torch.float64))
    chains, out = transition(HalfLine(), begin(HalfLine(), z), tuning, 0)
    assert 0 < out.diverging.sum() < 500
    assert (chains.position[out.diverging] == 0.3).all()
    assert (out.acceptance_rate[out.diverging] == 0).all()
    assert chains.position.isfinite().all()
    assert (chains.position > 0).all()


def test_a_large_energy_error_is_a_divergence():
    target = Gaussian(torch.eye(2, dtype=torch.float64) * 1e-4)
    tuning = Tuning(*torch.tensor([1.0, 1.0], dtype=torch.float64), unit(2, dtype=torch.float64))
    _, out = transition(target, begin(target, torch.zeros(20, 2, dtype=torch.float64)), tuning, 0)
    assert out.diverging.all()
    assert (out.acceptance_rate < 1e-6).all()


def test_trajectories_are_cut_at_the_most_steps():
    target = Gaussian(torch.eye(2, dtype=torch.float64))
    tuning = Tuning(*torch.tensor([0.01, 5.0], dtype=torch.float64), unit(2, dtype=torch.float64))
    _, out = transition(target, begin(target, torch.zeros(4, 2, dtype=torch.float64)), tuning, 0, max_steps=7)
    assert out.gradients == 14
    assert float(out.length) == pytest.approx(0.07)


# --- the metric -----------------------------------------------------------------------------------------------------


def test_the_metric_of_a_normal_is_exact_far_from_equilibrium():
    """30 chains, two iterations each, at arbitrary points: enough for 10 dimensions; a covariance is far off."""
    target = TARGETS["correlated"]
    scatter = Scatter.empty(torch.zeros(30, 10, dtype=torch.float64), groups=1, dense=True)
    points = 0.01 * torch.randn(5, 30, 10, dtype=torch.float64) + 50.0
    for z in points:
        scatter = scatter.add(z, target.value_and_grad(z)[1])
    root = fit_metric(scatter).root[0]
    eigenvalues = torch.linalg.eigvals(torch.linalg.solve(target.cov, root @ root.mT)).real
    assert (
        eigenvalues - 1
    ).abs().max() < 0.1  # the ridge, 0.001 * 10 / 120 of the mean eigenvalue, against those of 1/2000
    of_positions = scatter.squares[0, 0] / 120
    assert (torch.linalg.eigvals(torch.linalg.solve(target.cov, of_positions)).real < 0.01).all()


def test_the_diagonal_metric_of_independent_coordinates_is_exact():
    target = Gaussian(torch.tensor([1e-4, 1.0, 900.0], dtype=torch.float64).diag())
    step = 1e-3 * torch.randn(8, 3, dtype=torch.float64)
    z = torch.randn(8, 3, dtype=torch.float64)
    scatter = probe(target.value_and_grad(z)[1], target.value_and_grad(z + step)[1], step, dense=False)
    torch.testing.assert_close(fit_metric(scatter).root[0], torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64))


def test_groups_in_modes_apart_have_metrics_of_their_own():
    """Two groups whose coordinates trade places: pooled, both widths would be the same and right for neither."""
    std = torch.tensor([[0.1, 10.0], [10.0, 0.1]], dtype=torch.float64).repeat_interleave(8, 0)
    for distance, same in ((0.0, True), (1e3, False)):
        centre = torch.tensor([-distance, distance], dtype=torch.float64).repeat_interleave(8)[:, None]
        scatter = Scatter.empty(std, groups=2, dense=False)
        for _ in range(20):
            z = std * torch.randn_like(std)
            scatter = scatter.add(z + centre, -z / std**2)
        root = fit_metric(scatter).root
        expected = [[1.0, 1.0]] if same else [[0.1, 10.0], [10.0, 0.1]]
        torch.testing.assert_close(root, torch.tensor(expected, dtype=torch.float64), rtol=0.2, atol=0)


def test_whitening_and_its_inverse():
    root = torch.linalg.cholesky(torch.stack([random_cov(3, 10.0, seed) for seed in (0, 1)]))
    metric, z = Metric(root, torch.linalg.inv(root)), torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(metric.colour(metric.whiten(z)), z)
    for chain in range(6):
        torch.testing.assert_close(metric.colour(z)[chain], root[chain // 3] @ z[chain])
        torch.testing.assert_close(metric.pull(z)[chain], root[chain // 3].mT @ z[chain])


def test_a_dense_metric_saves_gradients_on_correlated_coordinates():
    target = TARGETS["correlated"]
    work = {m: run_chains(target, starts(target), Adaptation(80, mass=m), 50).gradients for m in ("dense", "diagonal")}
    assert 2 * work["dense"] < work["diagonal"]


# --- data sets ------------------------------------------------------------------------------------------------------


def test_data_sets_run_as_one_batch():
    """Three normals of other sizes and correlations: each as if alone, by means, variances and its own step size.

    Null: moments are those of the data set, z-scores as above. The control: those of the neighbour.
    """
    cov = torch.stack([random_cov(4, 10.0, 0), 100 * random_cov(4, 100.0, 1), 1e-4 * random_cov(4, 2.0, 2)])
    target = Gaussian(cov)
    z = cov.diagonal(dim1=-2, dim2=-1).sqrt()[:, None] * torch.randn(3, 16, 4, dtype=torch.float64)
    run = run_chains(target, z, Adaptation(warmup=80), 300)
    assert run.positions.shape == (3, 16, 300, 4)
    assert run.log_density.shape == run.acceptance_rate.shape == run.diverging.shape == (3, 16, 300)
    assert run.warm.tuning.step_size.shape == run.warm.tuning.trajectory_length.shape == (3,)
    limit = critical(24, FALSE_ALARM)
    for i in range(3):
        squares = run.positions[i].numpy() ** 2
        assert np.abs(z_scores(run.positions[i].numpy(), np.zeros(4))).max() < limit
        assert np.abs(z_scores(squares, target.var[i].numpy())).max() < limit
        assert np.abs(z_scores(squares, target.var[i - 1].numpy())).max() > limit


def test_a_data_set_in_a_batch_has_the_distribution_that_it_has_alone():
    """Two-sample Kolmogorov-Smirnov on independent last draws of 400 chains, p > 1e-4; control: the other data set."""
    cov = torch.stack([random_cov(2, 10.0, 0), 4 * random_cov(2, 10.0, 0)])
    z = torch.zeros(2, 400, 2, dtype=torch.float64)
    together = run_chains(Gaussian(cov), z, Adaptation(warmup=40), 20).positions[:, :, -1, 0].numpy()
    alone = run_chains(Gaussian(cov[0]), z[0], Adaptation(warmup=40), 20).positions[:, -1, 0].numpy()
    assert stats.ks_2samp(together[0], alone).pvalue > 1e-4
    assert stats.ks_2samp(together[1], alone).pvalue < 1e-4


# --- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_float32_stays_float32(mass):
    target = Gaussian(random_cov(3, 10.0, 0).float())
    run = run_chains(target, torch.zeros(16, 3), Adaptation(20, mass=mass, groups=2), 5)
    tensors = [run.positions, run.log_density, run.acceptance_rate, run.warm.metric.root]
    tensors += [run.warm.tuning.step_size, run.warm.tuning.trajectory_length]
    assert {t.dtype for t in tensors} == {torch.float32}


def test_gradients_are_counted():
    target = Gaussian(random_cov(3, 10.0, 0))
    run = run_chains(target, torch.zeros(16, 3, dtype=torch.float64), Adaptation(20), 5)
    assert run.gradients == target.calls


def test_warm_up_of_a_normal_finds_its_period():
    """Whitened, draws are independent after a quarter of a period, 1.57; the small squared jump moves that to 1.67."""
    target = Gaussian(random_cov(10, 100.0, 0))
    tuning = run_chains(target, starts(target, 64, 8), Adaptation(150, groups=8), 1).warm.tuning
    assert float(tuning.trajectory_length) == pytest.approx(1.67, abs=0.15)


def test_no_warm_up_is_possible():
    target = Gaussian(torch.eye(2, dtype=torch.float64))
    run = run_chains(target, torch.zeros(8, 2, dtype=torch.float64), Adaptation(0), 10)
    assert run.acceptance_rate.mean() > 0.8


def test_windows_grow_and_end_before_warm_up_does():
    ends = sorted(Adaptation(200).window_ends)
    assert ends[0] == 5
    assert ends[-1] <= 160
    assert all(later - end >= end / 3 for end, later in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "warmup: expected 0 or more, got -1"),
        ({"target_accept": 0.0}, "target_accept: expected a probability between 0 and 1, got 0.0"),
        ({"mass": "full"}, 'mass: expected "auto", "diagonal" or "dense", got \'full\''),
        ({"max_gradients": 1}, "max_gradients: expected at least 2, got 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(MethodError, match=message):
        Adaptation(**settings)

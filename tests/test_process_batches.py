"""Many draws of hyperparameters as one process, and data seen through inducing points."""

from __future__ import annotations

import math

import gpytorch
import pyro.distributions as dist
import pytest
import torch
from process_cases import LOC, NEW, PRIORS, N, X, Y, alike, every_prior, normal, outputs_too, prior_process, rbf, t

from probmix import process as module
from probmix.burr import BurrXII
from probmix.gpytorch_priors import covariance_matrix, prior_sites, with_values
from probmix.process import Process

# --- batches of hyperparameters ---------------------------------------------------------------------------------------


LENGTHS, NOISES = t([0.5, 1.0, 2.0]), t([0.1, 0.2, 0.4])
BATCH_PRIORS = {
    "none": (None, lambda i: None),
    "shared": (PRIORS["half-Cauchy"], lambda i: PRIORS["half-Cauchy"]),
    "inverse gamma": (dist.InverseGamma(NOISES + 1, t(2.0)), lambda i: dist.InverseGamma(NOISES[i] + 1, t(2.0))),
    "Burr": (BurrXII(NOISES + 1, t(2.0)), lambda i: BurrXII(NOISES[i] + 1, t(2.0))),
}
batches = pytest.mark.parametrize("name", BATCH_PRIORS)


def draws(name: str, outputs: int | None) -> tuple[Process, list[Process]]:
    """Three draws as one process, and apart."""
    kernel = rbf(lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0))
    prior, single = BATCH_PRIORS[name]
    together = Process(with_values(kernel, {"lengthscale": LENGTHS[:, None, None]}), NOISES, prior, LOC[outputs])
    apart = [
        Process(with_values(kernel, {"lengthscale": LENGTHS[i, None, None]}), NOISES[i], single(i), LOC[outputs])
        for i in range(3)
    ]
    return together, apart


@batches
@outputs_too
@pytest.mark.parametrize("through", [False, True])
def test_a_batch_is_single_computations(name, outputs, through):
    inducing, y = X[:6] if through else None, Y[outputs]
    together, apart = draws(name, outputs)
    for process, singles in (
        (together, apart),
        (together.condition(X, y, inducing=inducing), [p.condition(X, y, inducing=inducing) for p in apart]),
    ):
        points = torch.linspace(-4, 4, 9).double().reshape(-1, *[1] * (y.dim() + 1))
        expected = torch.stack([one.predictive(NEW).log_prob(points[:, 0]) for one in singles], 1)
        torch.testing.assert_close(process.predictive(NEW).log_prob(points), expected, rtol=1e-9, atol=1e-9)
        expected = torch.stack([one.joint(NEW).log_prob(y[:4]) for one in singles])
        torch.testing.assert_close(process.joint(NEW).log_prob(y[:4]), expected, rtol=1e-9, atol=1e-9)
        assert process.joint(NEW).sample((6,)).shape == (6, 3, *y[:4].shape)
    if not through:
        found, expected = process.leave_one_out(y), [one.leave_one_out(y).log_prob for one in singles]
        torch.testing.assert_close(found.log_prob, torch.stack(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: gpytorch.kernels.ScaleKernel(k).double(), lambda k: k + k])
def test_as_many_rows_as_draws(wrap):
    """GPyTorch takes variances ``(3, 3)`` of three draws and three rows for a square matrix, unless rows have axes."""
    kernel = wrap(rbf(lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 1.0)))
    name = next(iter(prior_sites(kernel)))
    values = [{name: LENGTHS[i, None, None]} for i in range(3)]
    together = with_values(kernel, {name: LENGTHS[:, None, None]})
    for rows in (1, 2, 3, 4):
        apart = torch.stack([covariance_matrix(with_values(kernel, v), X[:rows], diagonal=True) for v in values])
        assert torch.equal(covariance_matrix(together, X[:rows], diagonal=True).expand(3, rows), apart)
    one = with_values(kernel, {name: LENGTHS[:1, None, None]})
    assert covariance_matrix(one, X[:1], diagonal=True).shape == (1, 1)


@batches
@outputs_too
def test_average_is_the_mixture_of_draws(name, outputs):
    """Density: mean of the three; moments: by the law of total variance; draws have the right shape."""
    together, apart = draws(name, outputs)
    found = together.condition(X, Y[outputs]).predictive(NEW, average=True)
    singles = [one.condition(X, Y[outputs]).predictive(NEW) for one in apart]
    assert found.batch_shape == singles[0].batch_shape
    points = torch.linspace(-4, 4, 9).double().reshape(-1, *[1] * len(found.batch_shape))
    expected = torch.stack([one.log_prob(points) for one in singles]).logsumexp(0) - math.log(3)
    torch.testing.assert_close(found.log_prob(points), expected, rtol=1e-9, atol=1e-9)
    means, variances = (torch.stack([getattr(one, what) for one in singles]) for what in ("mean", "variance"))
    torch.testing.assert_close(found.mean, means.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.variance, variances.mean(0) + means.var(0, correction=0), rtol=1e-9, atol=1e-9)
    assert found.sample((7,)).shape == (7, *found.batch_shape)


def test_average_without_draws_is_the_process_itself():
    process = prior_process().condition(X, Y[None])
    alike(process.predictive(NEW, average=True), process.predictive(NEW))


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_batch_of_the_prior_alone(conditioned):
    """Draws of the degrees of freedom at one kernel and noise, of which the noise carries the batch."""
    process = Process(rbf(), t(0.2).expand(2), dist.InverseGamma(t([1.0, 4.0]), t(2.0)), t(0.3))
    process = process.condition(X, Y[None]) if conditioned else process
    for noise in (True, False):
        assert process.predictive(NEW, noise=noise).batch_shape == (2, 4)
    assert process.predictive(NEW, average=True).batch_shape == (4,)
    assert process.joint(NEW).batch_shape == (2,)


def test_rows_in_blocks_are_rows_together(monkeypatch):
    for outputs in (None, 2):
        together, _ = draws("Burr", outputs)
        process = together.condition(X, Y[outputs])
        expected = process.predictive(NEW)
        monkeypatch.setattr(module, "_AT_ONCE", 3 * N * 3)
        alike(process.predictive(NEW), expected, 1e-12)
        monkeypatch.undo()


# --- inducing points --------------------------------------------------------------------------------------------------


@every_prior
@outputs_too
def test_every_row_an_inducing_point_is_the_process(name, outputs):
    """1e-6: the covariance of inducing points has 1e-10 of its diagonal added, and a condition of 1e6."""
    process, y = prior_process(name, outputs), Y[outputs]
    exact, through = process.condition(X, y), process.condition(X, y, inducing=X)
    for noise in (True, False):
        alike(through.predictive(NEW, noise=noise), exact.predictive(NEW, noise=noise), 1e-6)
    torch.testing.assert_close(through.solver.quadratic, exact.solver.quadratic, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        through.joint(NEW).log_prob(y[:4]), exact.joint(NEW).log_prob(y[:4]), rtol=1e-6, atol=1e-6
    )


def test_the_units_of_the_kernel_do_not_matter():
    """Jitter is relative: y in units a billion times smaller gives the same answer in those units."""
    for unit in (1e-9, 1e9):
        kernel = gpytorch.kernels.ScaleKernel(rbf()).double()
        kernel.outputscale = t(unit**2)
        process = Process(kernel, t(0.2 * unit**2), PRIORS["inverse gamma"], t(0.3 * unit))
        found = process.condition(X, unit * Y[None], inducing=X[:6]).predictive(NEW)
        expected = prior_process().condition(X, Y[None], inducing=X[:6]).predictive(NEW)
        torch.testing.assert_close(found.loc / unit, expected.loc, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.scale / unit, expected.scale, rtol=1e-7, atol=0)


def test_six_thousand_rows():
    """A smooth function of one column, 30 points: predictions within a tenth of a standard deviation of the truth."""
    x = torch.linspace(-3, 3, 6000).double()[:, None]
    y = (2 * x[:, 0]).sin() + 0.3 * normal(6000)
    process = Process(rbf(), t(0.09), dist.HalfCauchy(t(1.0)), t(0.0))
    seen = process.condition(x, y, inducing=torch.linspace(-3, 3, 30).double()[:, None])
    new = torch.linspace(-2.8, 2.8, 11).double()
    assert (seen.predictive(new[:, None], noise=False).mean - (2 * new).sin()).abs().max() < 0.03
    assert float(seen.scale.sample((100,)).mean()) == pytest.approx(1.0, abs=0.1)

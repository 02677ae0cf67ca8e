"""Conjugate priors of rates and probabilities, against scipy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Beta, Dirichlet, Gamma, kl_divergence

from probmix.column_priors import BetaPrior, DirichletPrior, GammaPrior


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


GAMMAS = GammaPrior(tensor([[1.7, 3.0]]), tensor([[0.6, 2.0]])), GammaPrior(tensor([2.5, 0.8]), tensor(1.1))
BETAS = BetaPrior(tensor([[1.7, 3.0]]), tensor([[0.6, 2.0]])), BetaPrior(tensor([2.5, 0.8]), tensor(1.1))
DIRICHLETS = (
    DirichletPrior(tensor([[[1.7, 3.0, 0.0], [0.4, 2.0, 5.0]]]), (2, 3)),
    DirichletPrior(tensor([[1.0, 0.5, 0.0], [1.5, 1.0, 2.0]]), (2, 3)),
)


def test_normalisers_and_means_equal_scipy():
    gamma, beta = stats.gamma(1.7, scale=1 / 0.6), stats.beta(1.7, 0.6)
    value = 0.37
    kernel = 0.7 * np.log(value) - 0.6 * value
    assert float(GAMMAS[0].log_normaliser()[0, 0]) == pytest.approx(kernel - gamma.logpdf(value), rel=1e-12)
    kernel = 0.7 * np.log(value) - 0.4 * np.log(1 - value)
    assert float(BETAS[0].log_normaliser()[0, 0]) == pytest.approx(kernel - beta.logpdf(value), rel=1e-12)
    assert float(GAMMAS[0].mean()[0, 0]) == pytest.approx(gamma.mean(), rel=1e-12)
    assert float(BETAS[0].mean()[0, 0]) == pytest.approx(beta.mean(), rel=1e-12)
    expected = integrate.quad(lambda v: gamma.pdf(v) * np.log(v), 0, np.inf)[0]
    assert float(GAMMAS[0].expected_log()[0, 0]) == pytest.approx(expected, abs=1e-8)
    for ours, log in zip(BETAS[0].expected_log(), (np.log, lambda v: np.log1p(-v)), strict=True):
        # The density is infinite at 1: quad's own error bound.
        integral, error = integrate.quad(lambda v, log=log: beta.pdf(v) * log(v), 0, 1)
        assert float(ours[0, 0]) == pytest.approx(integral, abs=max(1e-7, 10 * error))


def test_divergences_equal_torch():
    for (one, two), kind in ((GAMMAS, Gamma), (BETAS, Beta)):
        expected = kl_divergence(kind(*one.parameters), kind(*two.parameters))
        torch.testing.assert_close(one.divergence(two), expected, rtol=1e-11, atol=1e-12)
    rows = [
        kl_divergence(Dirichlet(DIRICHLETS[0].concentration[0, d, :n]), Dirichlet(DIRICHLETS[1].concentration[d, :n]))
        for d, n in enumerate((2, 3))
    ]
    torch.testing.assert_close(DIRICHLETS[0].divergence(DIRICHLETS[1])[0], torch.stack(rows), rtol=1e-11, atol=1e-12)


def test_modes_have_the_greatest_density():
    for prior, step in ((GAMMAS[0], 1e-3), (BetaPrior(tensor([3.0, 2.0]), tensor([2.0, 5.0])), 1e-3)):
        mode = prior.mode()
        density = prior.distribution().log_prob
        assert (density(mode) > density(mode + step)).all()
        assert (density(mode) > density(mode - step)).all()
    assert BetaPrior(tensor([1.0]), 1.0).mode().tolist() == [0.5]  # flat: the mean
    assert BetaPrior(tensor([0.5]), 3.0).mode().tolist() == [0.0]  # on the edge
    assert GammaPrior(tensor([0.5]), 3.0).mode().tolist() == [0.0]
    mode = DIRICHLETS[0].mode()
    np.testing.assert_allclose(mode[0], [[0.7 / 2.7, 2.0 / 2.7, 0.0], [0.0, 0.2, 0.8]], rtol=1e-12)


def test_levels_that_do_not_exist_count_for_nothing():
    short = DirichletPrior(DIRICHLETS[0].concentration[:, :1, :2])
    torch.testing.assert_close(DIRICHLETS[0].log_normaliser()[:, :1], short.log_normaliser())
    torch.testing.assert_close(DIRICHLETS[0].expected_log()[:, :1, :2], short.expected_log())
    assert DIRICHLETS[0].expected_log()[0, 0, 2] == -torch.inf
    assert short.num_levels == (2,)


def test_numbers_become_tensors_and_priors_move():
    prior = GammaPrior(2.0, tensor([1.0, 2.0]))
    assert prior.concentration.dtype == torch.float64
    assert prior.to(torch.zeros(1, dtype=torch.float32)).rate.dtype == torch.float32
    assert [value.shape for value in GAMMAS[0].of_rows().parameters] == [(1, 1, 2)] * 2
    assert DIRICHLETS[0].of_rows().concentration.shape == (1, 1, 2, 3)

"""Spectra and their envelopes: against numerical Fourier transforms, autograd and finite differences."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from gpytorch.kernels import MaternKernel
from torch import Tensor

from probmix.errors import ProgramError
from probmix.spectra import (
    AbstractSpectrum,
    GaussianSpectrum,
    StudentTSpectrum,
    derivative_orders,
    spectrum_of,
    term_derivative,
)

SPECTRA = (GaussianSpectrum(), StudentTSpectrum(5), StudentTSpectrum(3), StudentTSpectrum(1))
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
R = torch.linspace(0, 6, 61, dtype=torch.float64)


def highest(spectrum: AbstractSpectrum) -> int:
    """As many derivatives as are tested: up to the fourth, which equations of second order need."""
    return min(spectrum.smoothness, 4)


# --- envelopes ------------------------------------------------------------------------------------------------------


@every_spectrum
@pytest.mark.parametrize(("loc", "bandwidth"), [(0.0, 0.4), (1.3, 0.25)])
def test_an_envelope_is_the_fourier_transform_of_its_spectrum(spectrum, loc, bandwidth):
    """By quadrature with a cosine as weight (QUADPACK, to 1e-10) of scipy's densities."""
    peak = scipy.stats.t(spectrum.df, loc, bandwidth) if spectrum.df else scipy.stats.norm(loc, bandwidth)
    for tau in (0.3, 0.9, 1.7):
        one_side = [
            scipy.integrate.quad(lambda s, sign=sign: peak.pdf(sign * s), 0, np.inf, weight="cos", wvar=math.tau * tau)[
                0
            ]
            for sign in (1, -1)
        ]
        r = torch.tensor(math.tau * bandwidth * tau, dtype=torch.float64)
        found = float(spectrum.envelope(r)) * math.cos(math.tau * loc * tau)
        assert found == pytest.approx(sum(one_side), abs=1e-8)


@every_spectrum
def test_the_distribution_is_scipys(spectrum):
    loc, bandwidth = torch.tensor([0.0, 1.5]).double(), torch.tensor([0.5, 0.2]).double()
    at = torch.tensor([0.3, -0.4]).double()
    found = spectrum.distribution(loc, bandwidth).log_prob(at)
    theirs = scipy.stats.t(spectrum.df, loc, bandwidth) if spectrum.df else scipy.stats.norm(loc, bandwidth)
    np.testing.assert_allclose(found, theirs.logpdf(at), rtol=1e-12)


@pytest.mark.parametrize("df", [1, 3, 5])
def test_student_t_envelopes_are_gpytorchs_matern(df):
    kernel = MaternKernel(df / 2).double().requires_grad_(requires_grad=False)
    kernel.lengthscale = 1.0
    expected = kernel(R[:1, None], R[:, None]).to_dense()[0]
    torch.testing.assert_close(StudentTSpectrum(df).envelope(R), expected, rtol=1e-10, atol=0)


@every_spectrum
def test_an_envelope_begins_at_one_and_falls(spectrum):
    values = spectrum.envelope(R)
    assert float(values[0]) == 1.0
    assert bool((values.diff() < 0).all())


@every_spectrum
def test_derivatives_by_r_are_autograds(spectrum):
    r = R.clone().requires_grad_()
    found = spectrum.derivatives(r.detach(), 5)
    expected = spectrum.envelope(r)
    for order in range(5):
        torch.testing.assert_close(found[order], expected.detach(), rtol=1e-12, atol=1e-13)
        (expected,) = torch.autograd.grad(expected.sum(), r, create_graph=True)


@every_spectrum
def test_the_log_slope_is_that_of_the_envelope(spectrum):
    """g' / (r g), finite at 0: the second derivative there, and 0 at the tip of a Matern-1/2."""
    found = spectrum.log_slope(R)
    envelope, slope = spectrum.derivatives(R, 1)
    torch.testing.assert_close((found * R * envelope)[1:], slope[1:], rtol=1e-12, atol=0)
    at_zero = spectrum.derivatives(R[:1], 2)[2] if spectrum.df != 1 else torch.zeros(1).double()
    torch.testing.assert_close(found[:1], at_zero, rtol=1e-12, atol=0)


@every_spectrum
def test_joint_and_pull_are_of_the_product_over_inputs(spectrum):
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(2, 1, 3, 4, 5, generator=generator, dtype=torch.float64)
    distances[..., 0, 0] = 0.0
    slopes = torch.rand(6, 7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    found = spectrum.joint(distances, slopes)
    expected = torch.ones(())
    for d in range(3):
        expected = expected * spectrum.envelope(slopes[..., d, None, None] * distances[..., None, d, :, :])
    assert found.shape == (2, 6, 7, 4, 5)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    gradient = torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    (by_slopes,) = torch.autograd.grad((expected * gradient[:, :, None]).sum(), slopes)
    for d in range(3):
        pulled = spectrum.pull(gradient, found.detach(), distances[..., d, :, :], slopes.detach()[..., d])
        torch.testing.assert_close(pulled.sum(0), by_slopes[..., d], rtol=1e-12, atol=1e-14)


# --- derivatives by the lag -----------------------------------------------------------------------------------------

FREQUENCY, BANDWIDTH = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.31))
LAGS = torch.tensor([-1.3, -0.2, 0.0, 1e-3, 0.4, 2.1], dtype=torch.float64)


def central(order: int, tau: Tensor, spectrum: AbstractSpectrum, phase: Tensor | None) -> tuple[Tensor, float]:
    """One central difference of the derivative one order below, and its error.

    The error is a sixth of the squared step times the third derivative of that, at most (2 pi (mu + 2 v))^(m + 2); for
    odd smoothness' sake only inside one side of 0, or where the function is smooth enough across it.
    """
    step = 1e-5
    up, down = (term_derivative(tau + side, FREQUENCY, BANDWIDTH, spectrum, order - 1, phase) for side in (step, -step))
    scale = (2 * math.pi * float(FREQUENCY + 2 * BANDWIDTH)) ** (order - 1)
    return (up - down) / (2 * step), scale * (step**2 * 100 + 1e-16 / step * 10)


@every_spectrum
@pytest.mark.parametrize("phase", [None, 0.6])
def test_derivatives_agree_with_differences(spectrum, phase):
    """Up to the smoothness. At a lag of 0 the last one has a kink, so its differences there are off by the step."""
    phase = None if phase is None else torch.tensor(phase, dtype=torch.float64)
    value = term_derivative(LAGS, FREQUENCY, BANDWIDTH, spectrum, 0, phase)
    shift = 0.0 if phase is None else phase
    plain = spectrum.envelope(math.tau * BANDWIDTH * LAGS.abs()) * torch.cos(math.tau * FREQUENCY * LAGS + shift)
    torch.testing.assert_close(value, plain, rtol=1e-14, atol=1e-15)
    for order in range(1, highest(spectrum) + 1):
        found = term_derivative(LAGS, FREQUENCY, BANDWIDTH, spectrum, order, phase)
        expected, error = central(order, LAGS, spectrum, phase)
        kink = LAGS.eq(0) if order == spectrum.smoothness else torch.zeros_like(LAGS, dtype=torch.bool)
        off = (found - expected).abs()
        assert float(off[~kink].max()) < error
        if kink.any():
            assert float(off[kink].max()) < 1e-5 * (2 * math.pi) ** (order + 1)  # the step, times the jump behind it


@pytest.mark.parametrize("spectrum", SPECTRA[:3], ids=str)
def test_autograd_through_the_distance_is_wrong_where_inputs_coincide(spectrum):
    """The reason for closed forms: at a lag of 0 it loses the curvature of the envelope, and only there."""
    tau = LAGS.clone().requires_grad_()
    value = spectrum.envelope(math.tau * BANDWIDTH * tau.abs()) * torch.cos(math.tau * FREQUENCY * tau)
    (slope,) = torch.autograd.grad(value.sum(), tau, create_graph=True)
    (by_autograd,) = torch.autograd.grad(slope.sum(), tau)
    right = term_derivative(LAGS, FREQUENCY, BANDWIDTH, spectrum, 2)
    coincide = LAGS == 0
    torch.testing.assert_close(by_autograd[~coincide], right[~coincide], rtol=1e-10, atol=1e-10)
    curvature = float(spectrum.derivatives(torch.zeros(()).double(), 2)[2]) * (math.tau * float(BANDWIDTH)) ** 2
    assert curvature < -3.7
    assert float((right - by_autograd)[coincide]) == pytest.approx(curvature, rel=1e-12)


def test_an_order_that_a_spectrum_has_not_is_refused():
    for first, second in pairwise(SPECTRA[1:]):
        assert first.smoothness == second.smoothness + 2
    for spectrum in SPECTRA[1:]:
        term_derivative(LAGS, FREQUENCY, BANDWIDTH, spectrum, spectrum.smoothness)
        order = spectrum.smoothness + 1
        message = (
            rf"up to order {order - 1} in all.*StudentTSpectrum\(df={spectrum.df}\).*got order {order}\. Take a smoo"
        )
        with pytest.raises(ProgramError, match=message):
            term_derivative(LAGS, FREQUENCY, BANDWIDTH, spectrum, order)


# --- names ----------------------------------------------------------------------------------------------------------


def test_spectra_by_name_and_number():
    assert spectrum_of("gaussian") == GaussianSpectrum()
    assert spectrum_of("student_t") == StudentTSpectrum(5)
    for spectrum in SPECTRA:
        assert spectrum_of(spectrum) is spectrum
        assert spectrum_of(spectrum.df) == spectrum
        assert copy.deepcopy(spectrum) is spectrum
    with pytest.raises(ProgramError, match=r"expected 'gaussian', 'student_t' or an object .*, got 'matern'"):
        spectrum_of("matern")
    with pytest.raises(
        ProgramError, match=r"df: expected 1, 3 or 5 degrees of freedom \(Matern-1/2.*got 7\. Without end"
    ):
        StudentTSpectrum(7)


def test_orders_count_the_columns_of_both_rows():
    assert derivative_orders([2, 0], [0, 0], 4) == [3, 0, 1, 0]
    assert derivative_orders([], [], 2) == [0, 0]
    with pytest.raises(ProgramError, match=r"columns of the inputs from 0 to 2, got \[3, -1\]\. Count from 0"):
        derivative_orders([3, 1], [-1], 3)

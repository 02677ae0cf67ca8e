"""Kernels of several outputs: derivatives, gradients, batches, tracing, priors, and delays that are found again."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Any

import pyro
import pytest
import torch
from gpytorch.priors import LogNormalPrior, NormalPrior
from gpytorch_cases import Exact, gaussian, level
from spectral_output_cases import every_case, every_kind, filled, matrix, rows, shared, with_priors
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probmix import spectral_outputs as module
from probmix.errors import DataError
from probmix.gpytorch_priors import covariance_matrix, prior_sites, require_priors, sampled, with_values
from probmix.inference import MAP, infer
from probmix.isolation import isolated
from probmix.log_density import LogDensity
from probmix.models.gpytorch_program import gpytorch_program
from probmix.spectral import SpectralMixtureKernel
from probmix.spectral_outputs import MultiOutputSpectralMixtureKernel, SpectralCoregionalizationKernel


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


# --- derivatives ----------------------------------------------------------------------------------------------------


def difference(
    kernel: Any, by1: tuple[int, ...], by2: tuple[int, ...], column: int, second: bool
) -> tuple[Tensor, float]:
    """One central difference of the derivative without one of its columns, and the tolerance.

    With a step h: h^2 / 6 of the third derivative of that, and rounding / h; frequencies here are at most B = 2 cycles,
    so that a derivative of order m is at most (2 pi B)^m of the variance.
    """
    h = 2e-6
    x, other = coincident()
    step = torch.zeros(3)
    step[column] = h
    pairs = [(x, other + side * step) if second else (x + side * step, other) for side in (1, -1)]
    up, down = (kernel.derivative(*pair, by1, by2) for pair in pairs)
    size = float(kernel(x, diag=True).max()) * (2 * math.pi * 2) ** (len(by1) + len(by2))
    return (up - down) / (2 * h), size * (h**2 / 6 * (2 * math.pi * 2) ** 3 + 1e-15 / h)


def coincident() -> tuple[Tensor, Tensor]:
    """Rows of which some share all inputs, or one of them, with the same output or another."""
    x = torch.tensor([[0.4, -0.3, 0.0], [0.1, 0.5, 1.0], [0.4, -0.3, 2.0]])
    other = torch.tensor([[0.4, -0.3, 0.0], [-0.6, 0.2, 1.0], [0.1, 0.9, 2.0], [0.1, 0.5, 1.0]])
    return x, other


@every_case
def test_derivatives_agree_with_differences(kind, settings):
    """Up to the fourth order, by rows and columns, mixed, where inputs coincide too, with and without delays.

    The fourth of a Matern-5/2 has a kink where lags are 0; differences across it are off by its jump times the step.
    """
    x, other = coincident()
    for delayed in (True, False):
        kernel = filled(kind(3, 2, 2, **settings))
        if not delayed and hasattr(kernel, "delays"):
            kernel.delays[:] = 0.0
        torch.testing.assert_close(kernel.derivative(x, other), matrix(kernel, x, other), rtol=1e-10, atol=1e-12)
        for columns in [s for order in range(1, 5) for s in combinations_with_replacement((0, 1), order)]:
            for cut in range(len(columns) + 1):
                by1, by2 = columns[:cut], columns[cut:]
                found = kernel.derivative(x, other, by1, by2)
                expected, tolerance = (
                    difference(kernel, by1, by2[:-1], by2[-1], second=True)
                    if by2
                    else difference(kernel, by1[:-1], by2, by1[-1], second=False)
                )
                if len(columns) == kernel.spectrum.smoothness:
                    tolerance += 2e-6 * float(kernel(x, diag=True).max()) * (2 * math.pi * 2) ** 5
                assert float((found - expected).abs().max()) < tolerance, (by1, by2)


@every_case
def test_values_and_slopes_of_all_outputs_have_one_covariance(kind, settings):
    """Symmetric and positive definite, which wrong signs or a lost curvature would break."""
    kernel, x = filled(kind(3, 2, 1, **settings)), torch.cat([rows(8), torch.tensor([[0.3, 0.0], [0.3, 1.0]])])
    blocks = [[kernel.derivative(x, x, a, b) for b in ([], [0])] for a in ([], [0])]
    joint = torch.cat([torch.cat(row, -1) for row in blocks], -2)
    torch.testing.assert_close(joint, joint.mT, rtol=1e-11, atol=1e-11)
    assert float(torch.linalg.eigvalsh(joint)[0] / joint.diagonal().max()) > -1e-12
    assert bool((blocks[1][1].diagonal() > 0).all())


# --- gradients, batches, tracing ------------------------------------------------------------------------------------


@every_case
def test_gradients_are_differences(kind, settings):
    """By every parameter, and by rows; none by the output, which is a label."""
    kernel = filled(kind(3, 2, 2, 2, **settings)).requires_grad_()
    names = [name for name, _ in kernel.named_parameters()]
    raw = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    x, other = (t[:, :2].clone().requires_grad_() for t in coincident())
    outputs = [t[:, 2:] for t in coincident()]

    def function(x: Tensor, other: Tensor, *values: Tensor) -> Tensor:
        for name, value in zip(names, values, strict=True):
            kernel._parameters[name] = value
        return kernel.forward(*(torch.cat(pair, -1) for pair in zip((x, other), outputs, strict=True)))

    assert torch.autograd.gradcheck(function, [x, other, *raw])
    labelled = coincident()[0].requires_grad_()
    (found,) = torch.autograd.grad(kernel.forward(labelled, coincident()[1]).sum(), labelled)
    assert bool((found[:, 2] == 0).all())


@every_case
def test_a_batch_of_kernels_is_as_many_kernels(kind, settings):
    x, other = rows(5, 3, 2), rows(5, 3, 2, seed=1)
    kernel = filled(kind(3, 2, 2, 2, batch_shape=torch.Size([4]), **settings))
    singles = [kind(3, 2, 2, 2, **settings).requires_grad_(requires_grad=False) for _ in range(4)]
    for i, single in enumerate(singles):
        for name, parameter in single.named_parameters():
            parameter.data = getattr(kernel, name)[i].clone()
    at = torch.linspace(0, 1, 4)
    for batch in (x, x.expand(4, 5, 3), torch.stack([rows(5, 3, 2, seed=s) for s in range(4)])):
        each = batch if batch.dim() == 3 else [batch] * 4
        expected = torch.stack([matrix(s, one) for s, one in zip(singles, each, strict=True)])
        torch.testing.assert_close(matrix(kernel, batch), expected)
        expected = torch.stack([s(one, other, diag=True) for s, one in zip(singles, each, strict=True)])
        torch.testing.assert_close(kernel(batch, other.expand_as(batch), diag=True), expected)
        expected = torch.stack([s.derivative(one, other, [0], [1]) for s, one in zip(singles, each, strict=True)])
        torch.testing.assert_close(kernel.derivative(batch, other, [0], [1]), expected)
    expected = torch.stack([s.cross_spectrum(at, 1) for s in singles])
    torch.testing.assert_close(kernel.cross_spectrum(at, 1), expected)
    torch.testing.assert_close(matrix(kernel[1], x), matrix(singles[1], x))


@every_kind
def test_vmap_is_a_loop(kind):
    """Over rows with their outputs, over parameters, and both."""
    kernel = with_priors(kind)
    sites = {name: site.prior.sample((4,)) for name, site in prior_sites(kernel).items()}
    many = torch.stack([rows(5, seed=s) for s in range(4)])

    def of(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return covariance_matrix(with_values(kernel, values), x)

    one_by_one = torch.stack([of({n: v[i] for n, v in sites.items()}, many[i]) for i in range(4)])
    torch.testing.assert_close(vmap(of)(sites, many), one_by_one)
    torch.testing.assert_close(vmap(of, (0, None))(sites, many[0])[0], one_by_one[0])
    torch.testing.assert_close(of(sites, many[0])[0], one_by_one[0])


@every_kind
def test_traced_it_is_the_same_function_of_parameters_and_rows(kind):
    """With labels as inputs of the graph, which looks at them as it runs: others may come, wrong ones are refused."""
    kernel = filled(kind(3, 2))
    many = {name: p + 0.1 * torch.randn(4, *p.shape) for name, p in kernel.named_parameters()}

    def total(raw: dict[str, Tensor], x: Tensor) -> Tensor:
        for name, value in raw.items():
            kernel._parameters[name] = value
        return (kernel.forward(x, x).square().sum() + kernel.forward(x, x, diag=True).sum()).sum()

    function = vmap(grad(total), (0, None))
    graph = make_fx(function)(many, rows(5))
    x = rows(5, seed=1)
    torch.testing.assert_close(graph(many, x), function(many, x), rtol=1e-12, atol=1e-13)
    one = {name: value[2].clone().requires_grad_() for name, value in many.items()}
    alone = torch.autograd.grad(total(one, x), list(one.values()))
    found = function(many, x)
    torch.testing.assert_close([found[name][2] for name in one], list(alone), rtol=1e-10, atol=1e-11)
    x[3, 1] = 7.0
    with pytest.raises(DataError, match="got 7 in row 3"):
        graph(many, x)


def test_the_selection_is_what_it_says():
    index = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert torch.equal(module._selection(index, 3), torch.eye(3)[index.long()])
    torch.library.opcheck(module._selection, (index, 3), test_utils=("test_schema", "test_faketensor"))


# --- priors ---------------------------------------------------------------------------------------------------------


@every_kind
def test_priors_are_sites_that_are_set_and_sampled(kind):
    kernel = with_priors(kind)
    require_priors(kernel)
    sites = prior_sites(kernel)
    own = ["var", "covar_factor"] if kind is SpectralCoregionalizationKernel else ["amplitudes", "delays", "phases"]
    assert sorted(sites) == sorted([*own, "frequencies", "bandwidths"])
    with pyro.poutine.trace() as trace:
        drawn = sampled(kernel)
    for name in sites:
        assert torch.equal(getattr(drawn, name), trace.trace.nodes[name]["value"])
        assert not torch.equal(getattr(drawn, name), getattr(kernel, name))
    copied = copy.deepcopy(kernel)
    copied.frequencies = 9.0
    assert not torch.equal(kernel.frequencies, copied.frequencies)
    assert list(prior_sites(copied)) == list(sites)


@every_kind
def test_columns_may_be_chosen(kind):
    """The output is the last of the active ones."""
    x = torch.cat([rows(6, 3, 2), torch.randn(6, 1)], -1)
    chosen, kernel = filled(kind(3, 2, 1, active_dims=(1, 2))), filled(kind(3, 2, 1))
    torch.testing.assert_close(matrix(chosen, x), matrix(kernel, x[:, 1:3]))


# --- fits -----------------------------------------------------------------------------------------------------------


def two_series() -> tuple[Tensor, Tensor]:
    """A narrow-band process at irregular times, and the same 1.3 later, half as large, at others; with noise."""
    times = [(30 * torch.rand(n)).sort().values for n in (50, 40)]
    x = torch.cat([torch.stack([t, torch.full_like(t, output)], -1) for output, t in enumerate(times)])
    source = SpectralMixtureKernel(1).requires_grad_(requires_grad=False)
    source.weights, source.frequencies, source.bandwidths = 4.0, 0.2, 0.05
    moved = x[:, :1] - 1.3 * x[:, 1:]
    draw = torch.linalg.cholesky(matrix(source, moved) + 1e-8 * torch.eye(90)) @ torch.randn(90)
    return x, draw * torch.where(x[:, 1] == 1, 0.5, 1.0) + 0.1 * torch.randn(90)


@pytest.mark.parametrize("kind", [MultiOutputSpectralMixtureKernel, shared])
def test_a_planted_delay_is_found_by_map(kind):
    """Within a tenth; the control, a phase in the place of the delay, has a lower log joint density.

    With noise of a twentieth and some 18 rows for each lengthscale of 1 / (2 pi 0.05) the delay is known to about 0.03.
    """
    x, y = two_series()
    kernel = with_priors(kind, 2, 1, delays_prior=NormalPrior(0.0, 1.0), frequencies_prior=LogNormalPrior(-1.5, 0.3))
    kernel.phases.requires_grad_(requires_grad=False)
    kernel._priors.pop("phases_prior")
    del kernel._modules["phases_prior"]
    fit = infer(gpytorch_program(Exact(kernel, gaussian(), level())), (x, y), MAP(restarts=4), seed=0)
    sites = fit.sites()
    assert float(sites["covar_module.delays"]) == pytest.approx(1.3, abs=0.1)
    ratio = sites["covar_module.amplitudes"][0, 1, 0] / sites["covar_module.amplitudes"][0, 0, 0]
    assert float(ratio) == pytest.approx(0.5, abs=0.1)


def test_a_delay_moves_what_one_series_says_about_the_other():
    """Prediction of the second at times where only the first was seen, against the truth: its own 1.3 later."""
    x, y = two_series()
    kernel = shared(2, 1).requires_grad_(requires_grad=False)
    kernel.amplitudes = torch.tensor([[[2.0], [1.0]]])
    kernel.frequencies, kernel.bandwidths, kernel.delays[:] = 0.2, 0.05, 1.3
    seen = (x[:, 1] == 0) | (x[:, 0] < 10)
    hidden = ~seen & (x[:, 0] < 28)

    def error(kernel: Any) -> float:
        among = matrix(kernel, x[seen]) + 0.01 * torch.eye(int(seen.sum()))
        predicted = matrix(kernel, x[hidden], x[seen]) @ torch.linalg.solve(among, y[seen])
        return float((predicted - y[hidden]).square().mean().sqrt())

    right = error(kernel)
    kernel.delays[:] = 0.0
    assert right < 0.25
    assert error(kernel) > 3 * right


@every_kind
def test_the_log_joint_is_batched_and_is_gpytorchs(kind):
    """In a traced graph, labels and all, for three draws at once."""
    x, y = two_series()
    program = gpytorch_program(Exact(with_priors(kind, 2), gaussian(), level()))
    density = LogDensity.trace(program, (x, y))
    assert density.batching == "vmap"
    sites = density.constrain(0.3 * torch.randn(3, density.dim))
    found = density.log_joint(sites)
    model = Exact(with_priors(kind, 2), gaussian(), level())
    for i in range(3):
        here = with_values(model, {name: value[i] for name, value in sites.items()})
        covariance = covariance_matrix(here.covar_module, x) + here.likelihood.noise * torch.eye(90)
        mean = here.mean_module.constant.expand(90)
        likelihood = torch.distributions.MultivariateNormal(mean, covariance).log_prob(y)
        prior = sum(site.prior.log_prob(sites[name][i]) for name, site in prior_sites(model).items())
        torch.testing.assert_close(found[i], likelihood + prior, rtol=1e-9, atol=1e-9)

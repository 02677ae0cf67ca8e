"""Network kernels in GPyTorch: against neural-tangents, inside other kernels and models, with priors, and refusals."""

from __future__ import annotations

import os
from pathlib import Path

import gpytorch
import numpy as np
import pyro
import pytest
import torch
from gpytorch.kernels import InducingPointKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from probmix.dual_activations import LeakyReLU
from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.nngp import NNGPKernel, NTKKernel

both_kernels = pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


# --- values ---------------------------------------------------------------------------------------------------------


@both_kernels
@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("relu", 3), ("erf", 3), ("gelu", 3)])
@pytest.mark.parametrize("side", [256, 7])
def test_values_are_neural_tangents(kind, activation, depth, side, monkeypatch):
    """Version 0.6.5, float64: dense layers of weight standard deviation 1.3 and bias 0.2, the read-out among them."""
    file = Path(os.environ.get("PROBMIX_DATA", ""), "nngp-reference.npz")
    if not file.is_file():
        pytest.skip("set PROBMIX_DATA to a folder that holds nngp-reference.npz")
    monkeypatch.setattr("probmix.tiles._TILE", side**2)
    monkeypatch.setattr("probmix.tiles._LEAST_SIDE", side)
    name = f"fc_{activation}_d{depth}__{'nngp' if kind is NNGPKernel else 'ntk'}"
    with np.load(file) as arrays:
        x, other, among, across = (
            torch.as_tensor(arrays[key]) for key in ("X", "X2", f"{name}__xx", f"{name}__x1x2")
        )  # fmt: skip
    kernel = kind(depth, activation, 1.3**2, 0.2**2)
    torch.testing.assert_close(kernel(x).to_dense(), among, rtol=1e-10, atol=0)
    torch.testing.assert_close(kernel(x, other).to_dense(), across, rtol=1e-10, atol=0)
    torch.testing.assert_close(kernel(x, diag=True), among.diagonal(), rtol=1e-10, atol=0)


@both_kernels
def test_the_diagonal_is_made_without_the_matrix(kind, monkeypatch):
    x, other = torch.randn(2, 6, 3).unbind()
    for settings in ({}, {"residual": True}, {"readout": False}):
        kernel = kind(2, "gelu", **settings)
        full = kernel(x, other).to_dense().diagonal(), kernel(x).to_dense().diagonal()
        monkeypatch.setattr(torch.Tensor, "__matmul__", None)
        for found in (
            (kernel(x, other, diag=True), kernel(x, diag=True)),
            (kernel(x, other).diagonal(), kernel(x).diagonal()),
        ):
            torch.testing.assert_close(found, full, rtol=1e-13, atol=0)
        monkeypatch.undo()


@both_kernels
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_float32_is_near_float64(kind, activation):
    """Where two rows nearly coincide their angle has half of the digits; the tangent kernel has it to first order."""
    x = torch.randn(40, 5)
    x[1] = x[0] + 1e-4
    kernel = kind(3, activation)
    right, found = kernel(x).to_dense(), kernel.float()(x.float()).to_dense()
    assert found.dtype == torch.float32
    off = (found.double() - right).abs().max() / right.max()
    assert float(off.detach()) < (1e-5 if kind is NNGPKernel else 1e-3)


def test_an_activation_may_be_an_object():
    x = torch.randn(4, 2)
    assert torch.equal(NNGPKernel(2, LeakyReLU(0.01))(x).to_dense(), NNGPKernel(2, "leaky_relu")(x).to_dense())


# --- within GPyTorch ------------------------------------------------------------------------------------------------


def matrix(kernel: gpytorch.kernels.Kernel, x: Tensor) -> Tensor:
    return kernel(x).to_dense()


@both_kernels
def test_it_composes_with_kernels(kind):
    x, z = torch.randn(7, 3), torch.randn(4, 3)
    own, other = kind(2, "erf"), RBFKernel()
    parts = matrix(own, x), matrix(other, x)
    torch.testing.assert_close(matrix(own + other, x), parts[0] + parts[1])
    torch.testing.assert_close(matrix(own * other, x), parts[0] * parts[1])
    scaled = ScaleKernel(kind(2, "erf"))
    scaled.outputscale = 2.5
    torch.testing.assert_close(matrix(scaled, x), 2.5 * parts[0])
    torch.testing.assert_close(matrix(kind(2, "erf", active_dims=(0, 2)), x), matrix(own, x[:, [0, 2]]))
    torch.testing.assert_close(own(x)[:3, 2:5].to_dense(), parts[0][:3, 2:5])
    inducing = InducingPointKernel(own, z.clone(), gpytorch.likelihoods.GaussianLikelihood())
    cross, among = own(x, z).to_dense(), own(z).to_dense()
    # GPyTorch adds a jitter of 1e-8 to the covariance of the inducing points in float64.
    nystroem = cross @ torch.linalg.solve(among + 1e-8 * torch.eye(4), cross.mT)
    torch.testing.assert_close(matrix(inducing, x), nystroem, rtol=1e-5, atol=1e-6)


@both_kernels
def test_a_batch_of_kernels_is_as_many_kernels(kind):
    x = torch.randn(5, 2)
    kernel = kind(2, "relu", batch_shape=torch.Size([3]))
    kernel.weight_var = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    kernel.bias_var = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    singles = [kind(2, "relu", w, b) for w, b in zip((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), strict=True)]
    assert kernel.weight_var.shape == (3, 1, 1)
    for batch in (x, x.expand(3, 5, 2)):
        torch.testing.assert_close(matrix(kernel, batch), torch.stack([matrix(single, x) for single in singles]))
        expected = torch.stack([single(x, diag=True) for single in singles])
        torch.testing.assert_close(kernel(batch, diag=True), expected)
    torch.testing.assert_close(matrix(kernel[1], x), matrix(singles[1], x))


class Regression(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, kernel: gpytorch.kernels.Kernel) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.parametrize("inducing", [False, True])
def test_a_gaussian_process_learns(inducing):
    x = torch.linspace(-2, 2, 40)[:, None]
    y = torch.sin(2 * x[:, 0]) + 0.05 * torch.randn(40)
    kernel = NNGPKernel(2, "erf")
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Regression(x, y, InducingPointKernel(kernel, x[::4].clone(), likelihood) if inducing else kernel)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    model.likelihood.noise = 0.1
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=0.1), []
    before = [parameter.detach().clone() for parameter in kernel.parameters()]
    for _ in range(25):
        optimiser.zero_grad()
        losses.append(-objective(model(x), y))
        losses[-1].backward()
        optimiser.step()
    assert float(losses[-1].detach()) < float(losses[0].detach()) - 0.3
    assert all(not torch.equal(a, b) for a, b in zip(before, kernel.parameters(), strict=True))
    model.eval()
    new = torch.tensor([[0.33], [-1.2]])
    torch.testing.assert_close(model(new).mean.detach(), torch.sin(2 * new[:, 0]), rtol=0, atol=0.15)


class Dense(nn.Module):
    """A kernel's matrix at once: what GPyTorch evaluates later does not see the parameters of `functional_call`."""

    def __init__(self, kernel: gpytorch.kernels.Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x).to_dense()


@both_kernels
def test_gradients_of_a_batch_of_hyperparameters(kind):
    """`vmap` over `functional_call`, as restarts and chains make it, against one kernel after another."""
    kernel, x = kind(2, "relu", residual=True), torch.randn(5, 2)
    dense = Dense(kernel)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(dense, parameters, (x,)).square().sum()

    raw = {name: torch.randn(3, 1, 1) for name, _ in dense.named_parameters()}
    found = vmap(grad(loss))(raw)
    for draw in range(3):
        dense.load_state_dict({name: value[draw] for name, value in raw.items()}, strict=False)
        expected = torch.autograd.grad(dense(x).square().sum(), list(dense.parameters()))
        torch.testing.assert_close([found[name][draw] for name, _ in dense.named_parameters()], list(expected))


# --- priors ---------------------------------------------------------------------------------------------------------


@both_kernels
def test_priors_are_registered_set_and_sampled(kind):
    priors = {"weight_var_prior": GammaPrior(2.0, 1.0), "bias_var_prior": LogNormalPrior(-1.0, 0.5)}
    kernel = kind(2, "erf", 1.5, 0.4, **priors)
    found = {name: (prior, closure(module)) for name, module, prior, closure, _ in kernel.named_priors()}
    assert {name: prior for name, (prior, _) in found.items()} == priors
    assert [float(value.detach()) for _, value in found.values()] == pytest.approx([1.5, 0.4], rel=1e-12)
    kernel.initialize(weight_var=0.7, bias_var=0.2)
    assert (kernel.weight_var.item(), kernel.bias_var.item()) == pytest.approx((0.7, 0.2), rel=1e-12)
    with pyro.poutine.trace() as trace:
        drawn = kernel.pyro_sample_from_prior()
    values = [site["value"].item() for site in trace.trace.nodes.values() if site["type"] == "sample"]
    assert [drawn.weight_var.item(), drawn.bias_var.item()] == pytest.approx(values, rel=1e-9)
    assert (kernel.weight_var.item(), kernel.bias_var.item()) == pytest.approx(
        (0.7, 0.2), rel=1e-12
    )  # a copy was drawn


@both_kernels
def test_a_value_is_set_in_the_dtype_of_the_kernel(kind):
    with isolated(0, dtype=torch.float32, device=torch.device("cpu")):
        kernel = kind(2).double()
        kernel.weight_var = 1.69
    assert kernel.weight_var.item() == pytest.approx(1.69, rel=1e-14)


@both_kernels
def test_without_biases_there_is_no_parameter_for_them(kind):
    kernel = kind(2, "relu", bias_var=0.0)
    assert [name for name, _ in kernel.named_parameters()] == ["raw_weight_var"]
    assert kernel.bias_var.tolist() == [[0.0]]
    x = torch.randn(4, 3)
    torch.testing.assert_close(matrix(kernel, 2 * x), 4 * matrix(kernel, x))  # homogeneous
    with pytest.raises(ProgramError, match="expected a kernel made with a positive bias_var, got one without biases"):
        kernel.bias_var = 0.1


# --- refusals -------------------------------------------------------------------------------------------------------


@both_kernels
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, r"depth: expected at least 1 hidden layer, got 0\. Change the setting depth="),
        ({"weight_var": -2.0}, r"weight_var: expected a positive number, got -2\.0\. Change the setting weight_var="),
        ({"weight_var": float("nan")}, r"weight_var: expected a positive number, got nan"),
        ({"bias_var": -0.1}, r"bias_var: expected a positive number, got -0\.1"),
        ({"activation": "tanh"}, r"activation: expected one of relu, .*got 'tanh'"),
        ({"bias_var": 0.0, "bias_var_prior": GammaPrior(1.0, 1.0)}, r"expected a positive bias_var beside it, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ProgramError, match=message):
        kind(**settings)


@pytest.mark.parametrize("activation", ["step", "sign"])
def test_a_jump_has_no_tangent_kernel(activation):
    with pytest.raises(ProgramError, match=rf"with a derivative, got '{activation}', which jumps.*Use NNGPKernel"):
        NTKKernel(2, activation)
    assert matrix(NNGPKernel(2, activation), torch.randn(3, 2)).isfinite().all()


@both_kernels
@pytest.mark.parametrize("diag", [False, True])
def test_inputs_that_do_not_fit_are_refused(kind, diag):
    kernel = kind(2)
    with pytest.raises(DataError, match=r"one number of columns, got 2 and 3\. Pass the columns of the fit"):
        kernel.forward(torch.zeros(4, 2), torch.zeros(4, 3), diag=diag)
    with pytest.raises(DataError, match=r"one dtype on one device, got torch.float64 on cpu and torch.float32 on cpu"):
        kernel.forward(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.float32), diag=diag)

"""Kernels of infinitely wide networks for GPyTorch: the neural-network Gaussian process and the tangent kernel."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import Positive
from gpytorch.priors import Prior
from torch import Tensor

from probmix.dual_activations import ActivationName, activation_of
from probmix.errors import DataError, ProgramError
from probmix.kernel_parameters import AbstractKernel, Constrained
from probmix.network_covariance import WideLimit, covariance, tangent_covariance, variance

__all__ = ["AbstractNetworkKernel", "NNGPKernel", "NTKKernel"]


class AbstractNetworkKernel(AbstractKernel):
    """A kernel with the two hyperparameters of a wide network: the variances of its weights and of its biases.

    Args:
        depth: number of hidden layers, at least 1.
        activation: name of the nonlinearity, or an object (`probmix.dual_activations.activation_of`).
        weight_var: variance of a weight times the number of inputs of its layer, positive.
        bias_var: variance of a bias, not negative. 0: there are no biases, and no parameter for them.
        weight_var_prior: prior of the weights' variance, for `probmix.models.gpytorch_program` and ``MAP`` alike.
        bias_var_prior: prior of the biases' variance.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
    """

    weight_var = Constrained("Variance of the weights, ``(*batch_shape, 1, 1)``.")

    def __init__(
        self,
        depth: int,
        activation: ActivationName,
        weight_var: float,
        bias_var: float,
        weight_var_prior: Prior | None,
        bias_var_prior: Prior | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth < 1:
            raise ProgramError(f"depth: expected at least 1 hidden layer, got {depth!r}. Change the setting depth=.")
        self.depth, self.activation = depth, activation_of(activation)
        self._register("weight_var", weight_var, weight_var_prior)
        if bias_var != 0:
            self._register("bias_var", bias_var, bias_var_prior)
        elif bias_var_prior is not None:
            raise ProgramError("bias_var_prior: expected a positive bias_var beside it, got 0. Give a first value.")

    @property
    def bias_var(self) -> Tensor:
        """Variance of the biases, ``(*batch_shape, 1, 1)``."""
        if not hasattr(self, "raw_bias_var"):
            return torch.zeros_like(self.raw_weight_var)
        return self.raw_bias_var_constraint.transform(self.raw_bias_var)

    @bias_var.setter
    def bias_var(self, value: Tensor | float) -> None:
        if not hasattr(self, "raw_bias_var"):
            raise ProgramError("bias_var: expected a kernel made with a positive bias_var, got one without biases.")
        self.set_value("bias_var", value)

    def _register(self, name: str, value: float, prior: Prior | None) -> None:
        if not value > 0:
            raise ProgramError(f"{name}: expected a positive number, got {value!r}. Change the setting {name}=.")
        self.register(name, torch.full((*self.batch_shape, 1, 1), float(value)), Positive(), prior)


class NNGPKernel(AbstractNetworkKernel):
    r"""The Gaussian process that a fully connected network with random weights is when its layers are wide.

    .. math:: k^1 = \sigma_w^2 \frac{x^\top x'}{d} + \sigma_b^2, \qquad
              k^{l + 1} = \sigma_w^2 \, E[\phi(u) \phi(v)] + \sigma_b^2, \quad (u, v) \sim N(0, k^l)

    Inputs are divided by the square root of their number, as in neural-tangents. It composes with GPyTorch's kernels,
    likelihoods and inducing points: ``ScaleKernel(NNGPKernel())``, ``NNGPKernel() + RBFKernel()``. Gradients are finite
    and right where inputs coincide or are opposite, but for the two activations that jump (step and sign), whose kernel
    has a cusp there.

    Args:
        depth: number of hidden layers, at least 1.
        activation: ``"relu"``, ``"leaky_relu"``, ``"erf"``, ``"gelu"``, ``"step"``, ``"sign"``, ``"sin"``, ``"cos"``,
            or an object such as `probmix.dual_activations.LeakyReLU`.
        weight_var: variance of a weight times the number of inputs of its layer; 2 keeps the size of ReLU's signals.
        bias_var: variance of a bias; 0: there are none, and no parameter for them.
        residual: every hidden layer but the first adds to what came before, ``h + dense(phi(h))``.
        readout: the last layer has the same variances; else its weights have unit variance and there is no bias, as
            where a scale of its own follows (`probmix.models.ScaleMixtureNNGP`).
        weight_var_prior: prior of the weights' variance; registered, so that it is there for every method.
        bias_var_prior: prior of the biases' variance.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: inputs of different dtypes, devices or numbers of columns.

    Source:
        Lee, Bahri, Novak, Schoenholz, Pennington and Sohl-Dickstein (2018), Deep neural networks as Gaussian
        processes, equation 5.

    Example:
        >>> kernel = NNGPKernel(depth=3, activation="relu", weight_var=2.0, bias_var=0.0)
        >>> kernel(torch.ones(2, 5)).to_dense().detach()
        tensor([[2.0000, 2.0000],
                [2.0000, 2.0000]])
    """

    def __init__(
        self,
        depth: int = 3,
        activation: ActivationName = "relu",
        weight_var: float = 2.0,
        bias_var: float = 0.1,
        *,
        residual: bool = False,
        readout: bool = True,
        weight_var_prior: Prior | None = None,
        bias_var_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(depth, activation, weight_var, bias_var, weight_var_prior, bias_var_prior, **kwargs)
        self.limit = WideLimit(self.activation, depth, residual, readout)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        require_alike(x1, x2)
        if diag:
            return variance(x1, x2, self.weight_var, self.bias_var, self.limit)
        return covariance(x1, x2, self.weight_var, self.bias_var, self.limit, symmetric=x1 is x2)


class NTKKernel(AbstractNetworkKernel):
    r"""The neural tangent kernel: what gradient descent on all layers of a wide network makes of the inputs.

    .. math:: \theta^{l + 1} = k^{l + 1} + \sigma_w^2 \, E[\phi'(u) \phi'(v)] \, \theta^l, \qquad \theta^1 = k^1

    with the covariances ``k`` of `NNGPKernel`, in the parametrisation where weights are standard normal and their
    layer multiplies by their standard deviation (as in neural-tangents). It is made in one piece, so its gradient keeps
    some ten matrices for each layer.

    Args:
        depth: number of hidden layers, at least 1.
        activation: as for `NNGPKernel`, but for the two that jump (step and sign).
        weight_var: variance of a weight times the number of inputs of its layer.
        bias_var: variance of a bias; 0: there are none, and no parameter for them.
        residual: every hidden layer but the first adds to what came before.
        readout: the last layer has the same variances; else unit variance and no bias.
        weight_var_prior: prior of the weights' variance.
        bias_var_prior: prior of the biases' variance.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range, or the activation has no derivative.
        DataError: inputs of different dtypes, devices or numbers of columns.

    Source:
        Jacot, Gabriel and Hongler (2018), Neural tangent kernel, theorem 1.

    Example:
        >>> kernel = NTKKernel(depth=3, activation="relu", weight_var=2.0, bias_var=0.0)
        >>> kernel(torch.ones(1, 5)).to_dense().detach()  # each of the 4 layers adds 2
        tensor([[8.]])
    """

    def __init__(
        self,
        depth: int = 3,
        activation: ActivationName = "relu",
        weight_var: float = 2.0,
        bias_var: float = 0.1,
        *,
        residual: bool = False,
        readout: bool = True,
        weight_var_prior: Prior | None = None,
        bias_var_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(depth, activation, weight_var, bias_var, weight_var_prior, bias_var_prior, **kwargs)
        if not self.activation.has_derivative:
            raise ProgramError(
                f"activation: expected one with a derivative, got {activation!r}, which jumps: its network has an NNGP "
                "but no tangent kernel. Use NNGPKernel, or another activation such as erf."
            )
        self.limit = WideLimit(self.activation, depth, residual, readout)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the tangent kernel, ``(*b, n, d), (*b, m, d) -> (*b, n, m)``, or of pairs of rows ``(*b, n)``."""
        require_alike(x1, x2)
        width, weight_var, bias_var = x1.shape[-1], self.weight_var, self.bias_var
        if diag:
            products, square1, square2 = ((a * b).sum(-1) / width for a, b in ((x1, x2), (x1, x1), (x2, x2)))
            weight_var, bias_var = weight_var.squeeze(-1), bias_var.squeeze(-1)
        else:
            products, (square1, square2) = x1 @ x2.mT / width, (x.square().sum(-1) / width for x in (x1, x2))
            square1, square2 = square1[..., :, None], square2[..., None, :]
        return tangent_covariance(products, square1, square2, weight_var, bias_var, self.limit)


def require_alike(x1: Tensor, x2: Tensor) -> None:
    """Raise `DataError` where two sets of inputs cannot meet: it names both, and what to do.

    Example:
        >>> require_alike(torch.zeros(3, 2), torch.zeros(4, 5))
        Traceback (most recent call last):
            ...
        probmix.errors.DataError: expected inputs with one number of columns, got 2 and 5. Pass the columns of the fit.
    """
    if x1.shape[-1] != x2.shape[-1]:
        raise DataError(
            f"expected inputs with one number of columns, got {x1.shape[-1]} and {x2.shape[-1]}. "
            "Pass the columns of the fit."
        )
    if x1.dtype != x2.dtype or x1.device != x2.device:
        raise DataError(
            f"expected inputs of one dtype on one device, got {x1.dtype} on {x1.device} and {x2.dtype} on "
            f"{x2.device}. Convert one of them, e.g. x2.to(x1)."
        )

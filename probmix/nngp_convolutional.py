"""Gaussian processes of wide convolutional networks, for small images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt, prod
from typing import Any, Literal

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import pad

from probmix.dual_activations import ActivationName
from probmix.errors import DataError, ProgramError
from probmix.nngp import AbstractNetworkKernel, require_alike

__all__ = ["ConvNNGPKernel"]

_BLOCK = 2**24  # numbers in a block, 128 MiB in float64
_BLOCK_ON_CPU = 2**18  # what stays in the cache through a layer: 2**22 took 1.6 times as long


class ConvNNGPKernel(AbstractNetworkKernel):
    r"""Covariance of the outputs of a convolutional network with infinitely many channels.

    The network is ``depth`` times a convolution, with zeros around the image so that its size stays, and a
    nonlinearity :math:`\phi`; then a dense read-out. With positions :math:`p, p'` in two images of C channels, and
    offsets :math:`\delta` to the F pixels of the window,

    .. math:: s_{pp'} &= \tfrac1C \, x_p^\top x'_{p'}, \\
              k_{pp'} &= \frac{\sigma_w^2}{F} \sum_\delta s_{p + \delta, \, p' + \delta} + \sigma_b^2, \qquad
              s_{pp'} \leftarrow E[\phi(u) \phi(v)], \quad
              (u, v) \sim N\Big(0, \begin{pmatrix} q_p & k_{pp'} \\ k_{pp'} & q'_{p'} \end{pmatrix}\Big)

    where q is the k of an image with itself at one position. The read-out is :math:`\sigma_w^2 \bar s + \sigma_b^2`:
    the mean is over equal positions without pooling, where the image is flattened, and over all pairs of positions with
    global average pooling.

    Time grows with ``n m H W``, with pooling with ``n m (H W)^2``: on one core at depth 3, four seconds for 200 digits
    of 28 x 28, and with pooling a fifth of a second for each pair of them. Memory beyond the result does not grow, also
    for gradients: pairs of images are taken in blocks of 2^18 covariances of positions on a CPU and 2^24 elsewhere, or
    one by one where that is too few, and a block is run again for its gradient. Axes of `torch.func.vmap` come on top.

    Args:
        image_shape: height H, width W and channels C; a row of x is one image, flattened in this order.
        depth: number of convolutions, at least 1.
        activation: as for `probmix.nngp.NNGPKernel`.
        weight_var: variance of a weight times the number of inputs of its unit, F C in a convolution.
        bias_var: variance of a bias; 0: there are none, and no parameter for them.
        pooling: before the read-out, ``"none"`` or ``"average"``.
        filter_size: side of the window, odd.
        readout: the read-out has the same variances; else its weights have unit variance and there is no bias.
        weight_var_prior: prior of the weights' variance.
        bias_var_prior: prior of the biases' variance.
        kwargs: ``batch_shape`` and ``active_dims``, as for every GPyTorch kernel.

    Raises:
        ProgramError: a setting is out of its range.
        DataError: rows of another length than H W C, or of different dtypes or devices.

    Source:
        Novak, Xiao, Lee, Bahri, Yang, Hron, Abolafia, Pennington and Sohl-Dickstein (2019), Bayesian deep convolutional
        networks with many channels are Gaussian processes, sections 2, 3.1 (flattened) and 3.2.1 (pooled);
        Garriga-Alonso, Rasmussen and Aitchison (2019), Deep convolutional networks as shallow Gaussian processes.

    Example:
        >>> images = torch.ones(2, 5 * 5 * 3)
        >>> kernel = ConvNNGPKernel((5, 5, 3), depth=1, weight_var=2.0, bias_var=0.0, readout=False)
        >>> kernel(images).to_dense().detach()  # ((5 * 3 - 2) / (5 * 3))^2: windows at the border see fewer pixels
        tensor([[0.7511, 0.7511],
                [0.7511, 0.7511]])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        depth: int = 3,
        activation: ActivationName = "relu",
        weight_var: float = 2.0,
        bias_var: float = 0.1,
        *,
        pooling: Literal["none", "average"] = "none",
        filter_size: int = 3,
        readout: bool = True,
        weight_var_prior: Prior | None = None,
        bias_var_prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(depth, activation, weight_var, bias_var, weight_var_prior, bias_var_prior, **kwargs)
        _require_settings(image_shape, pooling, filter_size)
        self.image_shape, self.pooling = tuple(image_shape), pooling
        self.filter_size, self.readout = filter_size, readout

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, ``(*b, n, m)``, or with ``diag`` that of each row with its partner, ``(*b, n)``.

        Raises:
            DataError: rows of another length than H W C, or of different dtypes or devices.
        """
        require_alike(x1, x2)
        variances = self.weight_var, self.bias_var
        images1, images2 = self._images(x1).unsqueeze(-4), self._images(x2).unsqueeze(-4 if diag else -5)
        pairs = self._pairs_at_once(images1, images2, *variances)
        side = pairs if diag else isqrt(pairs)
        rows, columns = images1.split(side, -5), images2.split(side, -5 if diag else -4)
        block = self._covariance if len(rows) == len(columns) == 1 else partial(_Recomputed.apply, self._covariance)
        if diag:
            return torch.cat([block(*pair, *variances) for pair in zip(rows, columns, strict=True)], -2).squeeze(-1)
        lines: list[list[Tensor]] = []
        for i, row in enumerate(rows):
            mirrored = [line[i].mT for line in lines] if x1 is x2 else []
            lines.append(mirrored + [block(row, column, *variances) for column in columns[len(mirrored) :]])
        return torch.cat([torch.cat(line, -1) for line in lines], -2)

    @property
    def _num_positions(self) -> int:
        """How many positions a covariance has: one, the same in both images, or one in each."""
        return 2 if self.pooling == "average" else 1

    def _pairs_at_once(self, images1: Tensor, images2: Tensor, weight_var: Tensor, bias_var: Tensor) -> int:
        leading = images1.shape[:-5], images2.shape[:-5], weight_var.shape[:-2], bias_var.shape[:-2]
        numbers = torch.broadcast_shapes(*leading).numel() * prod(self.image_shape[:2]) ** self._num_positions
        return max(1, (_BLOCK_ON_CPU if images1.device.type == "cpu" else _BLOCK) // max(1, numbers))

    def _images(self, x: Tensor) -> Tensor:
        """Return rows as images, ``(*b, n, H, W, C)``."""
        height, width, channels = self.image_shape
        if x.shape[-1] != height * width * channels:
            raise DataError(
                f"x: expected {height} * {width} * {channels} = {height * width * channels} columns, for images of "
                f"(height, width, channels) = {self.image_shape}, got {x.shape[-1]}. Flatten each image in this order, "
                "channels last, or set image_shape."
            )
        return x.unflatten(-1, self.image_shape)

    def _covariance(self, images1: Tensor, images2: Tensor, weight_var: Tensor, bias_var: Tensor) -> Tensor:
        """Return the covariance of one block, images ``(*b, n, 1, H, W, C), (*b, 1, m, H, W, C)`` to ``(*b, n, m)``."""
        pairs = self._num_positions == 2

        def convolved(s: Tensor, num_positions: int) -> Tensor:
            weight, bias = (v[(..., *[None] * (2 * num_positions))] for v in (weight_var, bias_var))
            return weight * _window_mean(s, self.filter_size, num_positions) + bias

        s = torch.einsum("...hwc,...ijc->...hwij" if pairs else "...hwc,...hwc->...hw", images1, images2)
        s = s / self.image_shape[-1]
        s1, s2 = (images.square().mean(-1) for images in (images1, images2))
        for _ in range(self.depth):
            k, q1, q2 = convolved(s, self._num_positions), convolved(s1, 1), convolved(s2, 1)
            s1, s2 = self.activation.variance(q1), self.activation.variance(q2)
            if pairs:
                q1, q2 = q1[..., None, None], q2[..., None, None, :, :]
            s = self.activation.dual(k, q1, q2)
        s = s.flatten(-2 * self._num_positions).mean(-1)
        return weight_var * s + bias_var if self.readout else s


def _window_mean(s: Tensor, size: int, num_positions: int) -> Tensor:
    """Average over the window, in which both positions of a pair move together; outside the image there are zeros."""
    s = pad(s, [size // 2] * (4 * num_positions))
    for axis in (-1, -2):
        length = s.shape[axis] - size + 1
        moved = []
        for start in range(size):
            part = s
            for of_one_position in range(axis, -2 * num_positions - 1, -2):
                part = part.narrow(of_one_position, start, length)
            moved.append(part)
        s = sum(moved[1:], moved[0])
    return s / size**2


class _Recomputed(torch.autograd.Function):
    """A function of tensors that keeps its inputs alone for the gradient, and then runs once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pull = vjp(ctx.function, *ctx.saved_tensors)[1]
        return None, *pull(gradient)


def _require_settings(image_shape: tuple[int, ...], pooling: str, filter_size: int) -> None:
    for holds, setting, expected, got in (
        (len(image_shape) == 3 and min(image_shape) >= 1, "image_shape", "(height, width, channels)", image_shape),
        (pooling in ("none", "average"), "pooling", "'none' or 'average'", pooling),
        (filter_size >= 1 and filter_size % 2, "filter_size", "an odd number, so that it has a middle", filter_size),
    ):
        if not holds:
            raise ProgramError(f"{setting}: expected {expected}, got {got!r}. Change the setting {setting}=.")

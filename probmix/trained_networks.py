"""The data and the networks of a deep model, checked before a fit: what does not fit together, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from probmix.errors import DataError, ProgramError
from probmix.networks import decoder_network, encoder_network
from probmix.typing import Generative, has_members

__all__ = [
    "ROWS",
    "Codes",
    "Generated",
    "checked_labels",
    "checked_rows",
    "derivatives",
    "first_where",
    "in_blocks",
    "networks_for",
    "require_trained",
    "with_parameters",
]

ROWS = 1000  # in one pass through a network without gradients


class Codes(NamedTuple):
    """Normals of latent vectors, one for each row.

    Args:
        loc: means, ``(n, d)``.
        std: standard deviations, ``(n, d)``.

    Example:
        >>> Codes(torch.zeros(3, 2), torch.ones(3, 2)).loc.shape
        torch.Size([3, 2])
    """

    loc: Tensor
    std: Tensor


class Generated(NamedTuple):
    """New data.

    Args:
        x: means, or draws, ``(n, *shape)``.
        z: latent vectors that they were made from, ``(n, d)``.
        component: which component those come from, ``(n,)``; of a `FactoredLatent` ``(n, P)``.

    Example:
        >>> Generated(torch.zeros(3, 8), torch.zeros(3, 2), torch.zeros(3)).x.shape
        torch.Size([3, 8])
    """

    x: Tensor
    z: Tensor
    component: Tensor


def checked_rows(x: Tensor) -> Tensor:
    """Return data ``(n, *shape)`` as floating-point numbers.

    Raises:
        DataError: no rows, no columns, or not finite.

    Example:
        >>> checked_rows(torch.zeros(2, 3, dtype=torch.uint8)).dtype
        torch.float32
    """
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if x.dim() < 2 or not x.numel():
        raise DataError(
            f"x: expected rows (n, d) or images (n, channels, height, width), got {tuple(x.shape)}. A single column is "
            "x[:, None]."
        )
    if bad := first_where(x, ~x.isfinite()):
        row, value = bad
        raise DataError(f"x: expected finite numbers, got {value} in row {row}. Drop such rows, or fill them in.")
    return x


def first_where(x: Tensor, bad: Tensor) -> tuple[int, float] | None:
    """Return the first row of data ``(n, *shape)`` with a value that is bad, and that value; None: there is none.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [3.0, 7.0]])
        >>> first_where(x, x > 2), first_where(x, x > 9)
        ((1, 3.0), None)
    """
    places = bad.nonzero()
    return (int(places[0, 0]), float(x[tuple(places[0])])) if len(places) else None


def checked_labels(name: str, y: Tensor, num_rows: int, num_classes: int, *, some_unknown: bool = True) -> Tensor:
    """Return labels ``(n,)`` as whole numbers, -1 where there is none.

    Args:
        name: what to call them in messages.
        y: labels.
        num_rows: n.
        num_classes: labels are below.
        some_unknown: whether -1 will do.

    Raises:
        DataError: another shape, or a class that there is not.

    Example:
        >>> checked_labels("y", torch.tensor([0.0, -1.0]), 2, 3)
        tensor([ 0, -1])
    """
    if y.shape != (num_rows,):
        raise DataError(
            f"{name}: expected a label for each of {num_rows} rows, got shape {tuple(y.shape)}. Of one-hot labels take "
            f"y.argmax(-1){', and -1 where there is none' if some_unknown else ''}."
        )
    if bad := first_where(y, (y != y.long()) | (y < -some_unknown) | (y >= num_classes)):
        known = ", or -1 where there is none" if some_unknown else ", the classes that latent.labels maps onto"
        raise DataError(
            f"{name}: expected labels 0 to {num_classes - 1}{known}, got {bad[1]:g} in row {bad[0]}. Number the "
            "classes from 0, as `labels` of the prior does, or give it components for more."
        )
    return y.long()


def networks_for(
    x: Tensor, dim: int, encoder: nn.Module | None, decoder: nn.Module | None, width: int
) -> tuple[nn.Module, nn.Module]:
    """Return an encoder and a decoder for data ``(n, *shape)``: those given, tried on two rows, or default ones.

    Args:
        x: data.
        dim: d, length of the latent vector.
        encoder: from data to ``(n, 2 d)``, or None.
        decoder: from ``(n, d)`` to data, or None.
        width: units of a hidden layer of the default networks.

    Raises:
        ProgramError: the output of a network has another shape.

    Example:
        >>> encoder, decoder = networks_for(torch.zeros(5, 3), 2, None, None, 8)
        >>> encoder(torch.zeros(1, 3)).shape, decoder(torch.zeros(1, 2)).shape
        (torch.Size([1, 4]), torch.Size([1, 3]))
    """
    shape = tuple(x.shape[1:])
    encoder = (encoder_network(shape, 2 * dim, width=width) if encoder is None else encoder).to(x)
    decoder = (decoder_network(dim, shape, width=width) if decoder is None else decoder).to(x)
    _try("encoder", encoder, x[:2], (2 * dim,), "the means and the log standard deviations of the latent vectors")
    _try("decoder", decoder, x.new_zeros(len(x[:2]), dim), shape, "one number for each of the data")
    return encoder, decoder


def in_blocks(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, rows: int = ROWS) -> tuple[Tensor, ...]:
    """Return the results, tuples of tensors, of a function of some rows, for all rows.

    Example:
        >>> in_blocks(lambda rows: (2 * rows,), torch.ones(3), 2)
        (tensor([2., 2., 2.]),)
    """
    return tuple(map(torch.cat, zip(*(function(block) for block in x.split(rows)), strict=True)))


def derivatives(network: Callable[[Tensor], Tensor], z: Tensor) -> Iterator[Tensor]:
    """Yield the derivative of a network's output by each number of its inputs ``(*n, d)`` in turn.

    Example:
        >>> [by.item() for by in derivatives(lambda z: z[..., 0] * z[..., 1], torch.tensor([2.0, 5.0]))]
        [5.0, 2.0]
    """
    for axis in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device):
        yield jvp(network, (z,), (axis.expand_as(z),))[1]


def require_trained(model: Any) -> None:
    """Raise unless a model can generate.

    Raises:
        ProgramError: it has no latent mixture, or no generator yet.

    Example:
        >>> require_trained(nn.Linear(2, 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        probmix.errors.ProgramError: model: expected a trained model with a latent mixture and a generator, got ...
    """
    if not has_members(model, Generative) or getattr(model, "generator", model) is None:
        raise ProgramError(
            f"model: expected a trained model with a latent mixture and a generator, got {type(model).__name__}. Pass "
            "fit.program of infer(MixtureGAN(...), x, Adversarial(), seed=0)."
        )


def with_parameters(owner: nn.Module, parameters: Mapping[str, Tensor], method: Callable[..., Any], *args: Any) -> Any:
    """Return ``method(owner, *args)`` with other tensors in the place of some of its parameters.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> with_parameters(linear, {"bias": torch.ones(1)}, lambda module: module.bias)
        tensor([1.])
    """
    return functional_call(_Method(owner, method), {f"owner.{name}": p for name, p in parameters.items()}, args)


class _Method(nn.Module):
    """A method of a module as a module itself, as `functional_call` wants it."""

    def __init__(self, owner: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, *args: Any) -> Any:
        return self.method(self.owner, *args)


def _try(name: str, network: nn.Module, rows: Tensor, shape: Sequence[int], what: str) -> None:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(rows)
    except RuntimeError as reason:
        raise ProgramError(
            f"{name}: expected a network of inputs {tuple(rows.shape)}, got an error: {reason}. Change its first layer."
        ) from reason
    finally:
        network.train(training)
    expected = (len(rows), *shape)
    if not isinstance(output, Tensor) or tuple(output.shape) != expected:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ProgramError(
            f"{name}: expected an output of shape {expected} for {len(rows)} rows, {what}, got {got}. Change its last "
            "layer, or leave it out for a default network."
        )

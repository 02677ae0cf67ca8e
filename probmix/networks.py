"""Small networks to begin with, for rows of numbers and for images: from latent vectors to data, and from data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probmix.errors import DataError

__all__ = ["Bounded", "ToImages", "decoder_network", "encoder_network"]

_SLOPE = 0.2  # of a leaky ReLU below 0, as is usual in discriminators (Radford, Metz and Chintala 2016)


def decoder_network(dim: int, shape: Sequence[int], *, width: int = 256) -> nn.Module:
    """Return a network from latent vectors ``(n, dim)`` to data ``(n, *shape)``, of no bounds.

    Rows: two hidden layers of ``width`` ReLU units. Images: a linear layer and two transposed convolutions, with
    ``width / 4`` and ``width / 8`` channels.

    Args:
        dim: length of a latent vector.
        shape: of one observation: ``(d,)``, or ``(channels, height, width)``.
        width: units of a hidden layer.

    Raises:
        DataError: the shape is neither.

    Example:
        >>> decoder_network(4, (1, 28, 28))(torch.zeros(3, 4)).shape, decoder_network(4, (2,))(torch.zeros(3, 4)).shape
        (torch.Size([3, 1, 28, 28]), torch.Size([3, 2]))
    """
    if len(_checked(shape)) == 3:
        return ToImages(dim, shape, channels=(max(1, width // 4), max(1, width // 8)))
    return nn.Sequential(
        nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, shape[0])
    )


def encoder_network(shape: Sequence[int], outputs: int, *, width: int = 256) -> nn.Module:
    """Return a network from data ``(n, *shape)`` to ``(n, outputs)``: a discriminator, an encoder or a classifier.

    Rows: two hidden layers of ``width`` leaky ReLU units. Images: two convolutions with ``width / 8`` and
    ``width / 4`` channels, each of which halves height and width, and a hidden layer.

    Args:
        shape: of one observation: ``(d,)``, or ``(channels, height, width)``, at least 4 pixels high and wide.
        outputs: numbers for each observation.
        width: units of a hidden layer.

    Raises:
        DataError: the shape is neither.

    Example:
        >>> encoder_network((1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """
    if len(_checked(shape)) == 1:
        return nn.Sequential(
            nn.Linear(shape[0], width), nn.LeakyReLU(_SLOPE), nn.Linear(width, width), nn.LeakyReLU(_SLOPE),
            nn.Linear(width, outputs),
        )  # fmt: skip
    channels, pixels = max(1, width // 4), (shape[1] // 4) * (shape[2] // 4)
    return nn.Sequential(
        nn.Conv2d(shape[0], max(1, width // 8), 4, 2, 1), nn.LeakyReLU(_SLOPE),
        nn.Conv2d(max(1, width // 8), channels, 4, 2, 1), nn.LeakyReLU(_SLOPE), nn.Flatten(),
        nn.Linear(channels * pixels, width), nn.LeakyReLU(_SLOPE), nn.Linear(width, outputs),
    )  # fmt: skip


class ToImages(nn.Module):
    """Latent vectors to images of any size: a quarter of it, doubled twice, cut to size.

    Args:
        dim: length of a latent vector.
        shape: ``(channels, height, width)``.
        channels: of the two images on the way.

    Example:
        >>> ToImages(2, (3, 9, 10), channels=(16, 8))(torch.zeros(5, 2)).shape
        torch.Size([5, 3, 9, 10])
    """

    def __init__(self, dim: int, shape: Sequence[int], *, channels: tuple[int, int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self._first = (channels[0], -(-shape[1] // 4), -(-shape[2] // 4))
        self.linear = nn.Linear(dim, self._first[0] * self._first[1] * self._first[2])
        self.middle = nn.ConvTranspose2d(channels[0], channels[1], 4, 2, 1)
        self.last = nn.ConvTranspose2d(channels[1], shape[0], 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Return images ``(n, channels, height, width)`` of latent vectors ``(n, dim)``."""
        image = torch.relu(self.linear(z)).unflatten(-1, self._first)
        return self.last(torch.relu(self.middle(image)))[..., : self.shape[1], : self.shape[2]]


class Bounded(nn.Module):
    r"""Numbers to a range by the logistic function, ``low + (high - low) / (1 + exp(-a))``.

    Args:
        value_range: ``(low, high)``.

    Example:
        >>> Bounded((-1.0, 3.0))(torch.tensor([-50.0, 0.0, 50.0]))
        tensor([-1.,  1.,  3.])
    """

    def __init__(self, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.value_range = value_range

    def forward(self, a: Tensor) -> Tensor:
        """Return the bounded numbers."""
        low, high = self.value_range
        return low + (high - low) * torch.sigmoid(a)


def _checked(shape: Sequence[int]) -> Sequence[int]:
    if len(shape) not in (1, 3) or (len(shape) == 3 and min(shape[1:]) < 4):
        raise DataError(
            f"expected observations of shape (d,) or (channels, height, width), with images of at least 4 x 4 pixels, "
            f"got {tuple(shape)}. Add a channel by x[:, None], flatten by x.flatten(1), or pass networks of your own."
        )
    return shape

"""What the output of a decoder says about data: probabilities of pixels, or means with a common noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from probmix.errors import DataError, ProgramError
from probmix.trained_networks import first_where

__all__ = ["AbstractDecoderLikelihood", "BernoulliPixels", "NormalNoise", "decoder_likelihood"]


class AbstractDecoderLikelihood(nn.Module, ABC):
    """Independent data given the output of a decoder, of the same shape as the data."""

    @abstractmethod
    def start(self, x: Tensor) -> None:
        """Take from the data where a fit starts."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise `DataError` for data that it cannot have made."""

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the log density of data ``(n, *shape)`` given outputs ``(*b, n, *shape)``, ``(*b, n)``."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of the data, of the same shape as the output."""

    @abstractmethod
    def distribution(self, output: Tensor, event_dim: int = 1) -> dist.Distribution:
        """Return the law of rows whose last ``event_dim`` axes are the data's."""


class BernoulliPixels(AbstractDecoderLikelihood):
    r"""Pixels that are on or off; the output is the log odds.

    .. math:: \log p(x \mid a) = \sum_j x_j a_j - \log (1 + e^{a_j})

    Values between 0 and 1 are taken as probabilities that a pixel is on. The same formula is then the expectation of
    the log density over such pixels, not the log density of grey values, and figures compare only with their like.

    Example:
        >>> BernoulliPixels().log_prob(torch.zeros(1, 2), torch.ones(1, 2)).exp()
        tensor([0.2500])
    """

    def start(self, x: Tensor) -> None:
        """There is nothing to fit."""

    def check(self, x: Tensor) -> None:
        """Raise unless all values are from 0 to 1.

        Raises:
            DataError: with the first value that is not, and its row.
        """
        if bad := first_where(x, (x < 0) | (x > 1)):
            remedy = "Divide by 255" if bool((x.amin() >= 0) & (x.amax() <= 255)) else "Rescale each column to [0, 1]"
            raise DataError(
                f"x: expected values from 0 to 1, probabilities of a pixel, got {bad[1]:g} in row {bad[0]}. {remedy}, "
                'or use likelihood="normal".'
            )

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Return log probabilities, ``(*b, n)``."""
        each = -binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none")
        return each.flatten(output.dim() - x.dim() + 1).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """Return probabilities."""
        return output.sigmoid()

    def distribution(self, output: Tensor, event_dim: int = 1) -> dist.Distribution:
        """Return the law of rows whose last ``event_dim`` axes are the data's."""
        return dist.Bernoulli(logits=output, validate_args=False).to_event(event_dim)  # grey values are welcome


class NormalNoise(AbstractDecoderLikelihood):
    r"""Means with independent normal noise, of one standard deviation for all columns or pixels.

    .. math:: x_j = a_j + \sigma \epsilon_j, \qquad \epsilon_j \sim N(0, 1)

    Args:
        noise_std: :math:`\sigma`. None: learnt, from half the standard deviation of the data.

    Source:
        Rybkin, Daniilidis and Levine (2021), Simple and effective VAE training with calibrated decoders: that a learnt
        noise takes the place of tuning the weight of the divergence.

    Example:
        >>> NormalNoise(0.5).noise_std
        tensor(0.5000)
    """

    started: Tensor

    def __init__(self, noise_std: float | None) -> None:
        super().__init__()
        if noise_std is not None and not 0 < noise_std < math.inf:
            raise ProgramError(f"noise_std: expected a positive number, or None to learn it, got {noise_std!r}.")
        first = torch.tensor(0.0 if noise_std is None else math.log(noise_std))
        self.log_noise_std = nn.Parameter(first, requires_grad=noise_std is None)
        self.register_buffer("started", torch.tensor(noise_std is not None))

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation, ``()``."""
        return self.log_noise_std.detach().exp()

    def start(self, x: Tensor) -> None:
        """Start a noise that is learnt from half the standard deviation of the data, the first time."""
        if not bool(self.started):
            std = x.std() if x.numel() > 1 else x.new_ones(())
            self.log_noise_std.data = torch.where(std > 0, 0.5 * std, 1.0).log()
            self.started = torch.ones_like(self.started)

    def check(self, x: Tensor) -> None:
        """Any number will do."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """Return log densities, ``(*b, n)``."""
        squares = (output - x).square().flatten(output.dim() - x.dim() + 1)
        log_std, columns = self.log_noise_std, squares.shape[-1]
        normaliser = columns * (log_std + 0.5 * math.log(2 * math.pi))
        return -0.5 * (-2 * log_std).exp() * squares.sum(-1) - normaliser

    def mean(self, output: Tensor) -> Tensor:
        """Return means."""
        return output

    def distribution(self, output: Tensor, event_dim: int = 1) -> dist.Distribution:
        """Return the law of rows whose last ``event_dim`` axes are the data's."""
        return dist.Normal(output, self.noise_std).to_event(event_dim)


def decoder_likelihood(name: Literal["bernoulli", "normal"], noise_std: float | None) -> AbstractDecoderLikelihood:
    """Return a likelihood by its name.

    Raises:
        ProgramError: another name, or a noise where there is none.

    Example:
        >>> type(decoder_likelihood("normal", 0.1)).__name__
        'NormalNoise'
    """
    if name not in ("bernoulli", "normal"):
        raise ProgramError(f'likelihood: expected "bernoulli" or "normal", got {name!r}.')
    if name == "normal":
        return NormalNoise(noise_std)
    if noise_std is not None:
        raise ProgramError(
            f'noise_std: expected None with likelihood="bernoulli", got {noise_std!r}. Use likelihood="normal".'
        )
    return BernoulliPixels()

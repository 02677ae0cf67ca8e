"""The small adaptive parts of Hamiltonian Monte Carlo; every tensor has the axes of data sets, ``(*s,)``, or none."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["JITTER", "DualAveraging", "LengthAscent", "harmonic_mean", "van_der_corput"]

JITTER = 0.25
"""Trajectories are spread evenly over (1 - jitter, 1 + jitter) times their mean length, against resonances."""

_GAIN, _CALM, _STEP_DECAY = 20.0, 10.0, 0.75  # 1 / gamma, t_0 and kappa of Hoffman and Gelman (2014)
_MEMORY, _RATE, _LENGTH_DECAY = 0.95, 0.05, 0.5  # Adam's second moment; relative change of the length an iteration
_LEAST_ACCEPTANCE = 0.1  # one chain in trouble among 64 costs a tenth of the step size, not all of it


class DualAveraging(NamedTuple):
    r"""A step size that brings the acceptance rate to its target, by dual averaging (Nesterov 2009).

    ``log step_t = centre - sqrt(t) / (gamma (t + t_0)) sum_i error_i`` (Hoffman and Gelman 2014, section 3.2), where an
    error is the target less the acceptance.

    Args:
        log_step: of the next iteration, ``(*s,)``.
        log_average: the average that is kept after warm-up, ``(*s,)``.
        centre: where it began, ``(*s,)``.
        total: sum of errors, ``(*s,)``.
        iterations: done since it began.

    Example:
        >>> step = DualAveraging.at(torch.tensor(0.0))
        >>> for _ in range(200):  # accepts exp(-step): the target of 0.8 is met at -log 0.8
        ...     step = step.update(0.8 - (-step.log_step.exp()).exp(), torch.tensor(5.0))
        >>> round(float(step.log_average.exp()), 1)
        0.2
    """

    log_step: Tensor
    log_average: Tensor
    centre: Tensor
    total: Tensor
    iterations: int

    @classmethod
    def at(cls, log_step: Tensor) -> DualAveraging:
        """Return the state that begins at a step."""
        return cls(log_step, log_step, log_step, torch.zeros_like(log_step), 0)

    def update(self, error: Tensor, log_longest: Tensor) -> DualAveraging:
        """Return the state after an iteration; steps stay below the longest, without winding up there."""
        n = self.iterations + 1
        speed = _GAIN * math.sqrt(n) / (n + _CALM)
        log_step = torch.minimum(self.centre - speed * (self.total + error), log_longest)
        weight = n**-_STEP_DECAY
        average = weight * log_step + (1 - weight) * self.log_average
        return DualAveraging(log_step, average, self.centre, (self.centre - log_step) / speed, n)


class LengthAscent(NamedTuple):
    """A trajectory length that climbs a criterion: Adam (Kingma and Ba 2015), without momentum, on its logarithm.

    Args:
        log_length: of the next iteration, ``(*s,)``.
        log_average: the average that is kept after warm-up, ``(*s,)``.
        square: running mean of squared slopes, ``(*s,)``.
        iterations: done since it began.

    Example:
        >>> length = LengthAscent.at(torch.tensor(0.0))
        >>> for _ in range(200):
        ...     length = length.update(1.0 - length.log_length)
        >>> round(float(length.log_average))
        1
    """

    log_length: Tensor
    log_average: Tensor
    square: Tensor
    iterations: int

    @classmethod
    def at(cls, log_length: Tensor) -> LengthAscent:
        """Return the state that begins at a length."""
        return cls(log_length, log_length, torch.zeros_like(log_length), 0)

    def update(self, slope: Tensor) -> LengthAscent:
        """Return the state after a step up the slope of the criterion by the log length."""
        n = self.iterations + 1
        square = _MEMORY * self.square + (1 - _MEMORY) * slope.square()
        size = (square / (1 - _MEMORY**n)).sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
        log_length = self.log_length + _RATE * slope / size
        weight = n**-_LENGTH_DECAY
        return LengthAscent(log_length, weight * log_length + (1 - weight) * self.log_average, square, n)


def harmonic_mean(acceptance_rate: Tensor) -> Tensor:
    """Return the harmonic mean over chains, ``(*s, chains)`` -> ``(*s,)``, no rate counting as less than 0.1.

    It heeds the chains that accept least, which have most to gain from a shorter step (Hoffman, Radul and Sountsov
    2021).

    Example:
        >>> round(float(harmonic_mean(torch.tensor([1.0, 0.25]))), 3)
        0.4
    """
    return 1 / (1 / acceptance_rate.clamp_min(_LEAST_ACCEPTANCE)).mean(-1)


def van_der_corput(index: int) -> float:
    """Return the ``index``-th point, from 1, of the sequence 1/2, 1/4, 3/4, 1/8, ..., evenly spread over (0, 1).

    It is Halton's sequence (1960) in base 2.

    Example:
        >>> [van_der_corput(i) for i in (1, 2, 3, 4)]
        [0.5, 0.25, 0.75, 0.125]
    """
    point, weight = 0.0, 0.5
    while index:
        point += weight * (index % 2)
        index, weight = index // 2, weight / 2
    return point

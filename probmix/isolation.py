"""Run Pyro code without leaving a trace: random state, parameter store, validation flags, default dtype."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pyro
import torch

__all__ = ["isolated", "unvalidated"]


@contextmanager
def isolated(seed: int, *, dtype: torch.dtype, device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Seed every generator and give the block a parameter store of its own; put everything back afterwards.

    Inside, new tensors take the data's ``dtype`` and ``device`` by default, so that a program's
    ``Normal(0., 1.)`` follows its data.

    Args:
        seed: seeds torch (CPU and the data's device), NumPy and ``random``.
        dtype: floating-point default inside the block.
        device: default device inside the block.
        threads: torch's threads inside the block; None leaves them as they are.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        ...     torch.randn(2).dtype
        torch.float64
        >>> bool((torch.random.get_rng_state() == before).all())
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002 (the global one)
    cuda = [device] if device.type == "cuda" else []
    validating, threads_before = torch.distributions.Distribution._validate_args, torch.get_num_threads()
    try:
        torch.set_num_threads(threads or threads_before)
        with (
            torch.random.fork_rng(devices=cuda),
            pyro.get_param_store().scope(),
            pyro.validation_enabled(True),
            _default_device(device),
        ):
            pyro.set_rng_seed(seed)
            torch.set_default_dtype(dtype)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_default_dtype(states[2])
        torch.set_num_threads(threads_before)
        torch.distributions.Distribution.set_default_validate_args(validating)


@contextmanager
def _default_device(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":  # the mode intercepts every operation: not for free
        yield
    else:
        with device:
            yield


@contextmanager
def unvalidated(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run a program fast: no argument checks (tracing cannot see through them), new tensors like the data.

    Distributions that were made outside, as those of a `PyroModule` are, check nothing inside either.

    Example:
        >>> with unvalidated(torch.float64, torch.device("cpu")):
        ...     torch.zeros(2).dtype
        torch.float64
        >>> torch.zeros(2).dtype
        torch.float32
    """
    base = torch.distributions.Distribution
    validating, default = base._validate_args, torch.get_default_dtype()
    try:
        with (
            pyro.validation_enabled(False),
            _default_device(device),
            mock.patch.object(base, "_validate_sample", _accept),
        ):
            torch.set_default_dtype(dtype)
            yield
    finally:
        torch.set_default_dtype(default)
        base.set_default_validate_args(validating)


def _accept(distribution: torch.distributions.Distribution, value: torch.Tensor) -> None:
    """Take any value."""

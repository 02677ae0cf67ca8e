"""Blocks that leave nothing behind."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pytest
import torch

from probmix.isolation import isolated, unvalidated

CPU = torch.device("cpu")


def snapshot():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 (the global one)
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.distributions.Distribution._validate_args,
        sorted(pyro.get_param_store()),
    )


@pytest.mark.parametrize("fail", [False, True])
def test_everything_comes_back(fail):
    before = snapshot()
    try:
        with isolated(3, dtype=torch.float64, device=CPU, threads=1):
            assert torch.get_num_threads() == 1
            pyro.param("leak", torch.randn(2))
            random.random()
            np.random.rand()  # noqa: NPY002
            pyro.enable_validation(False)
            if fail:
                raise RuntimeError
    except RuntimeError:
        assert fail
    assert snapshot() == before


def test_the_seed_decides_every_generator():
    draws = []
    for _ in range(2):
        with isolated(5, dtype=torch.float64, device=CPU):
            draws.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002
    assert draws[0] == draws[1]
    with isolated(6, dtype=torch.float64, device=CPU):
        assert float(torch.rand(())) != draws[0][0]


def test_nested_blocks():
    with isolated(0, dtype=torch.float64, device=CPU):
        inside = torch.get_rng_state()
        with isolated(1, dtype=torch.float32, device=CPU):
            torch.rand(3)
            assert torch.get_default_dtype() == torch.float32
        assert torch.equal(torch.get_rng_state(), inside)
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("validate", [True, False])
def test_unvalidated_restores_the_flag_it_found(validate):
    torch.distributions.Distribution.set_default_validate_args(validate)
    with unvalidated(torch.float64, CPU):
        assert not torch.distributions.Distribution._validate_args
    assert torch.distributions.Distribution._validate_args == validate
    torch.distributions.Distribution.set_default_validate_args(True)

"""Batches cut into blocks, data sets side by side, functions that cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probmix import gradient
from probmix.gradient import Gradient, Plan

X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def value(z: Tensor, x: Tensor) -> Tensor:
    return -((z[0] * x - z[1]) ** 2).sum()


def exact(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    residual = z[..., :1] * x - z[..., 1:]
    return -residual.square().sum(-1), torch.stack([-2 * (residual * x).sum(-1), 2 * residual.sum(-1)], -1)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 12])
def test_blocks_give_what_one_batch_gives(rows, monkeypatch):
    monkeypatch.setattr(gradient, "_LARGEST_TABLE", 12)  # three numbers a row: four rows in a block
    z = torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    got = Gradient(value, [X], numbers=3)(z)
    torch.testing.assert_close(got, exact(z, X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sets", [1, 3, 5])
def test_data_sets_in_blocks(sets, monkeypatch):
    monkeypatch.setattr(gradient, "_LARGEST_TABLE", 12)
    generator = torch.Generator().manual_seed(sets)
    z = torch.randn(sets, 2, 2, dtype=torch.float64, generator=generator)
    data = torch.randn(sets, 3, dtype=torch.float64, generator=generator)
    got = Gradient(value, [data], numbers=3, datasets=True)(z)
    torch.testing.assert_close(got, exact(z, data[:, None]), rtol=1e-12, atol=1e-12)


def test_other_data_share_the_graph():
    first = Gradient(value, [X])
    z = torch.ones(2, 2, dtype=torch.float64)
    first(z)
    other = first.with_data([X + 1])
    torch.testing.assert_close(other(z), exact(z, X + 1))
    assert other._graphs is first._graphs


def test_control_flow_on_a_value_runs_one_by_one_and_is_reported():
    def branches(z: Tensor, x: Tensor) -> Tensor:
        return value(z, x) if z[0] > 0 else 2 * value(z, x)

    z = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    expected = exact(z, X)
    factor = torch.tensor([1.0, 2.0], dtype=torch.float64)
    got = Gradient(branches, [X], batching="loop")(z)
    torch.testing.assert_close(got, (factor * expected[0], factor[:, None] * expected[1]))


def test_what_vmap_takes_and_tracing_refuses_still_runs():
    reasons = []

    def untraceable(z: Tensor, x: Tensor) -> Tensor:
        if torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None:
            raise RuntimeError("not while tracing")
        return value(z, x)

    z = torch.ones(2, 2, dtype=torch.float64)
    torch.testing.assert_close(Gradient(untraceable, [X], report=reasons.append)(z), exact(z, X))
    assert [str(r) for r in reasons] == ["not while tracing"]


def test_only_the_planned_batch_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(gradient.FlatGraph, "faster", lambda self: compiled.append(1) or self)
    plan = Plan(batch=4, gradients=10, compile=True)
    of = Gradient(value, [X])
    of(torch.ones(3, 2, dtype=torch.float64), plan)
    assert not compiled
    of(torch.ones(4, 2, dtype=torch.float64), plan)
    assert compiled == [1]

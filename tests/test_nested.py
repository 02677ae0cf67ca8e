"""Tensors inside nested values."""

from __future__ import annotations

import torch

from probmix.nested import map_tensors, tensors_in
from probmix.statistics import Statistics
from probmix.table import Expectation


def test_changes_every_tensor_and_keeps_every_type():
    statistics = Statistics(torch.ones(2, 3), torch.ones(2, 3, 1), torch.ones(2, 3))
    value = {"a": Expectation(torch.ones(2), [statistics, None]), "b": ("text", 4)}
    first = map_tensors(lambda x: x[0], value)
    assert isinstance(first["a"], Expectation)
    assert isinstance(first["a"].statistics[0], Statistics)
    assert first["a"].statistics[0].mean.shape == (3, 1)
    assert (first["a"].statistics[1], first["b"]) == (None, ("text", 4))
    assert statistics.count.shape == (2, 3)  # the value given is as before


def test_finds_every_tensor_in_the_order_in_which_they_are_changed():
    value = ({"a": torch.zeros(1)}, Statistics(torch.zeros(2), torch.zeros(3), torch.zeros(4)))
    assert [len(x) for x in tensors_in(value)] == [1, 2, 3, 4]

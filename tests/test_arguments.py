"""Data as the arguments of a call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from probmix.arguments import Arguments
from probmix.errors import DataError
from probmix.models import SpectralMixtureGP


def test_one_table_is_one_argument():
    x = torch.zeros(3, 2)
    assert Arguments.of(x).args[0] is x
    assert torch.equal(Arguments.of(x.numpy()).args[0], x)
    assert Arguments.of([1.0, 2.0]).args[0].shape == (2,)


def test_tuples_are_positional_and_mappings_named():
    both = Arguments.of((np.zeros(2), torch.ones(3), 5, "word"))
    assert [type(v).__name__ for v in both.args] == ["Tensor", "Tensor", "int", "str"]
    named = Arguments.of({"x": np.zeros(2), "k": 3})
    assert named.call(lambda x, k: (x.shape, k)) == (torch.Size([2]), 3)


def test_frames_carry_their_names():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    arguments = Arguments.of(frame)
    assert arguments.feature_names == ("a", "b")
    assert arguments.args[0].dtype == torch.float64
    assert arguments.args[0].is_contiguous()
    assert Arguments.of(frame["a"]).args[0].shape == (2,)


def test_arrays_are_copied_so_that_later_changes_do_not_reach_the_fit():
    array = np.zeros(3)
    arguments = Arguments.of(array)
    array[0] = 7
    assert float(arguments.args[0].sum()) == 0.0


def test_dtype_and_device_follow_the_first_floats():
    assert Arguments.of((torch.arange(3), torch.zeros(2, dtype=torch.float64))).dtype == torch.float64
    assert Arguments.of(torch.arange(3)).dtype == torch.get_default_dtype()
    assert Arguments.of(()).device == torch.device("cpu")


def test_small_data_take_one_thread():
    assert Arguments.of(torch.zeros(272, 2)).threads() == 1
    assert Arguments.of(torch.zeros(100_000, 2)).threads() is None


def test_a_program_says_how_large_its_work_is():
    """A process of few numbers has matrices of many; through inducing points, of fewer."""
    model, inducing = SpectralMixtureGP(2), torch.zeros(20, 1)
    data = {rows: Arguments.of((torch.zeros(rows, 1), torch.zeros(rows))) for rows in (300, 3000)}
    assert data[300].threads(model) == 1
    assert data[3000].threads(model) is None
    assert data[3000].threads(replace(model, inducing=inducing)) == 1
    assert data[3000].threads(lambda x, y: None) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a", "b"]), "argument 0: expected numbers, got an array of dtype <U1.*columns of text"),
        (pd.DataFrame({"n": [1.0], "kind": ["x"]}), r"text or objects in \['kind'\].*e.g. data\[\['n'\]\]"),
        ({"x": np.array([object()])}, "x: expected numbers, got an array of dtype object"),
    ],
)
def test_text_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        Arguments.of(data)

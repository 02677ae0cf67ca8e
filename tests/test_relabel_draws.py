"""What cannot be relabelled is refused in words that say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from relabel_cases import (
    CHAINS,
    DRAWS,
    Normals,
    mixture,
    refused,
)

from probmix.errors import DataError, MethodError
from probmix.relabel import (
    Order,
    permute_sites,
    relabel,
)
from probmix.relabel_permutations import assign


def test_a_point_and_a_guide_are_refused() -> None:
    @dataclass(frozen=True)
    class PointPosterior:
        program: Any = None

    with pytest.raises(
        MethodError, match=r"PointPosterior has none\..*single point has none to match, and a guide has one labelling"
    ):
        relabel(PointPosterior())  # type: ignore[type-var]


def test_errors_about_axes() -> None:
    assert "the program has no 'dims'. Pass dims={'weights': ('component',)" in refused(program=None)
    short = {"weights": ("component",), "cov": ("component", "feature", "feature_bis")}
    text = refused(dims=short)
    assert "expected 2 axis names for site 'loc', one draw of which has shape (3, 2); dims gives ()" in text
    assert "Name each axis in dims['loc']" in text
    nameless = {name: tuple("abc"[: len(axes)]) for name, axes in Normals().dims.items()}
    assert "dims names it for none of the sites ['concentration', 'cov', 'loc'" in refused(dims=nameless)
    wrong = {**Normals().dims, "loc": ("feature", "component")}
    assert "{'weights': 3, 'loc': 2, 'cov': 3}. Correct dims" in refused(dims=wrong)
    with pytest.raises(MethodError, match=r"site 'loc' with axes \('component',\) to have 3 components.*\(5, 2\)"):
        permute_sites({"loc": torch.zeros(5, 2)}, torch.tensor([[0, 1, 2]]), {"loc": ("component",)})


def test_errors_about_draws_that_are_not_finite() -> None:
    draws = mixture(8.0).draws
    draws["loc"][1, 7, 0, 0] = torch.nan
    draws["loc"][2, 0, 1, 1] = torch.inf
    text = refused(Order(), draws=draws)
    assert f"2 of {CHAINS * DRAWS} draws of site 'loc' are not, the first is draw {DRAWS + 7}" in text
    assert "Drop those draws" in text
    with pytest.raises(DataError, match=r"1 of 3 draws have one that is not, the first is draw 2\. Drop"):
        assign(torch.tensor([0.0, 0.0, torch.inf]).reshape(3, 1, 1))

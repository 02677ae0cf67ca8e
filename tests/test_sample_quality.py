"""One place to import the scores from."""

from __future__ import annotations

import importlib

from house import ROOMS

import probmix.sample_quality as sample_quality

#: What the scores are made of; a user has no need of it.
PARTS = {"sample_quality_inputs", "sample_quality_variates"}


def test_everything_is_exported():
    files = {file.stem for file in ROOMS["probmix"].glob("sample_quality_*.py")} - PARTS
    modules = [importlib.import_module(f"probmix.{name}") for name in files]
    names = {name for module in modules for name in module.__all__} - {"Kernel"}
    assert set(sample_quality.__all__) == names
    assert all(hasattr(sample_quality, name) for name in names)

"""Every example in a docstring runs, and everything a user can call has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import types

import pytest
from house import module_names, public

#: Made by another function and shown in its example; nobody builds one by hand.
SHOWN_ELSEWHERE = {
    "probmix.arviz.Group",
    "probmix.guides.ProgramGuide",
    "probmix.inference.method.Problem",
    "probmix.pointwise.Pointwise",
    "probmix.posterior.DrawsPosterior",
    "probmix.posterior.GuidePosterior",
    "probmix.posterior.PointPosterior",
    "probmix.storage.Missing",
}

# Pytest's own --doctest-modules would import the rooms under their folders' names, which they refuse.


@pytest.mark.parametrize("name", module_names())
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_a_wrong_example_fails():
    wrong = types.ModuleType("wrong", ">>> 1 + 1\n3\n")
    assert doctest.testmod(wrong, report=False).failed == 1


def needs_example(thing: object) -> bool:
    """Not what cannot be called by itself: abstract classes, protocols, errors."""
    if not isinstance(thing, type):
        return True
    abstract = thing.__name__.startswith("Abstract") or getattr(thing, "_is_protocol", False)
    return not abstract and not issubclass(thing, BaseException)


def has_example(thing: object) -> bool:
    own = vars(thing).values() if isinstance(thing, type) else []
    members = [member.fget if isinstance(member, property) else member for member in own]
    texts = [thing.__doc__, *(inspect.getdoc(m) for m in members if getattr(m, "__module__", "") == thing.__module__)]
    return any(">>>" in text for text in texts if text)


def without_example(name: str) -> set[str]:
    things = public(importlib.import_module(name))
    return {f"{name}.{n}" for n, thing in things if needs_example(thing) and not has_example(thing)}


@pytest.mark.parametrize("name", module_names())
def test_everything_callable_has_an_example(name):
    assert without_example(name) - SHOWN_ELSEWHERE == set()


def test_the_exceptions_are_still_needed():
    assert SHOWN_ELSEWHERE - {thing for name in module_names() for thing in without_example(name)} == set()


def test_the_lack_of_an_example_is_seen():
    def without() -> None:
        """Do nothing."""

    def with_one() -> None:
        """Do nothing.

        >>> 1
        1
        """

    assert not has_example(without)
    assert has_example(with_one)
    assert needs_example(without)
    assert not needs_example(ValueError)

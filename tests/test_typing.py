"""Protocols are seen on every Python: from 3.12 on ``isinstance`` looks where submodules of torch modules are not."""

from __future__ import annotations

import inspect

import pytest
import torch
from models_table import MODELS

from probmix import typing
from probmix.errors import MethodError
from probmix.inference import Adversarial, infer
from probmix.models import GridSpectralGP, MixtureGAN, MixtureLatent, MixtureVAE, SpectralMixtureGP, generator_program
from probmix.typing import is_implicit

GAN = MixtureGAN(MixtureLatent(2, 2)).built_for(torch.zeros(4, 3))
VAE, GRID = MixtureVAE(MixtureLatent(2, 2)), GridSpectralGP(num_points=3)
PROGRAMS = [GAN, VAE, GRID, generator_program(GAN, 0.1), SpectralMixtureGP(1), *(row.model for row in MODELS)]
CHECKED = [
    protocol for name in typing.__all__ if getattr(protocol := getattr(typing, name), "_is_runtime_protocol", False)
]


def members(protocol: type) -> set[str]:
    public = {name for kind in protocol.__mro__ for name in (*vars(kind), *getattr(kind, "__annotations__", ()))}
    return {name for name in public if not name.startswith("_")}


@pytest.mark.parametrize("protocol", CHECKED, ids=lambda protocol: protocol.__name__)
def test_what_a_program_has_is_seen_without_running_it(protocol):
    for program in PROGRAMS:
        if all(hasattr(program, name) for name in members(protocol)):
            for name in members(protocol):
                inspect.getattr_static(program, name)
            assert isinstance(program, protocol)


def test_the_control_a_submodule_is_not_seen():
    assert hasattr(GAN, "generator")
    with pytest.raises(AttributeError):
        inspect.getattr_static(GAN, "generator")


def test_a_game_needs_a_model_of_two_players():
    assert is_implicit(GAN)
    assert not any(is_implicit(program) for program in PROGRAMS[1:])
    with pytest.raises(MethodError, match="such as MixtureGAN, got GaussianMixture"):
        infer(MODELS[0].model, MODELS[0].data, Adversarial(steps=1), seed=0)

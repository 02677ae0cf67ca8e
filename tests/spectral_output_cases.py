"""Kernels of several outputs, all kinds, with values and rows, that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from torch import Tensor

from probmix.spectra import StudentTSpectrum
from probmix.spectral_outputs import MultiOutputSpectralMixtureKernel, SpectralCoregionalizationKernel


def shared(*sizes: Any, **settings: Any) -> MultiOutputSpectralMixtureKernel:
    return MultiOutputSpectralMixtureKernel(*sizes, shared_spectra=True, **settings)


KINDS: dict[str, Callable[..., Any]] = {
    "coregionalisation": SpectralCoregionalizationKernel,
    "own spectra": MultiOutputSpectralMixtureKernel,
    "shared spectra": shared,
}
STUDENT_T = {"spectrum": StudentTSpectrum(5)}
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **{name: (kind, {}) for name, kind in KINDS.items()},
    **{f"{name}, Student-t": (KINDS[name], STUDENT_T) for name in ("coregionalisation", "shared spectra")},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_case = pytest.mark.parametrize(("kind", "settings"), CASES.values(), ids=CASES)


def filled(kernel: Any, seed: int = 0) -> Any:
    """The same kernel with other values, apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in kernel.named_parameters():
        centre = {"raw_frequencies": -0.5, "raw_bandwidths": -1.5}.get(name, 0.0)
        parameter.data = centre + 0.5 * torch.randn(parameter.shape, generator=generator)
    return kernel.requires_grad_(requires_grad=False)


def rows(num: int, outputs: int = 3, inputs: int = 1, seed: int = 0) -> Tensor:
    """Inputs at random, outputs in no order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, inputs, generator=generator)
    return torch.cat([x, torch.randint(outputs, (num, 1), generator=generator).to(x)], -1)


def matrix(kernel: gpytorch.kernels.Kernel, *inputs: Tensor) -> Tensor:
    return kernel(*inputs).to_dense()


def with_priors(kind: Callable[..., Any], outputs: int = 3, components: int = 2, **settings: Any) -> Any:
    priors = {"frequencies_prior": LogNormalPrior(-1.0, 0.3), "bandwidths_prior": LogNormalPrior(-2.0, 0.5)}
    if kind is SpectralCoregionalizationKernel:
        priors |= {"covar_factor_prior": NormalPrior(0.0, 1.0), "var_prior": GammaPrior(2.0, 4.0)}
    else:
        priors |= {"amplitudes_prior": LogNormalPrior(0.0, 0.5), "delays_prior": NormalPrior(0.0, 2.0)}
        priors |= {"phases_prior": NormalPrior(0.0, 2.0)}
    return kind(outputs, components, **(priors | settings))

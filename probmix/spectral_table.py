"""The components of a spectral kernel as a table for people: shares, periods, lengthscales."""

from __future__ import annotations

import math

import pandas as pd

from probmix.errors import ProgramError
from probmix.spectral import AbstractSpectralKernel, SpectralProductKernel

__all__ = ["component_table"]


def component_table(kernel: AbstractSpectralKernel) -> pd.DataFrame:
    """Return one row for each component (and input, if there are several), the heaviest first.

    Columns: its share of the variance (of the factor of its input, in a product), frequency and period, bandwidth, and
    lengthscale, after which a component has lost its phase. Units are those of the inputs.

    Raises:
        ProgramError: a kernel with a batch.

    Example:
        >>> from probmix.spectral import SpectralMixtureKernel
        >>> component_table(SpectralMixtureKernel(2))[["share", "period"]].round(2).to_dict("list")
        {'share': [0.5, 0.5], 'period': [8.0, 2.67]}
    """
    product = isinstance(kernel, SpectralProductKernel)
    weights, frequencies, bandwidths = (
        value.detach() for value in (kernel.weights, kernel.frequencies, kernel.bandwidths)
    )
    if frequencies.dim() != 2:
        raise ProgramError(
            f"expected one kernel, got a batch of shape {tuple(frequencies.shape[:-2])}. Choose one draw, or a point."
        )
    if not product:
        weights, frequencies, bandwidths = (
            value.mT for value in (weights[:, None].expand_as(frequencies), frequencies, bandwidths)
        )
    columns = {
        "share": weights / weights.sum(-1, keepdim=True),
        "frequency": frequencies,
        "period": 1 / frequencies,
        "bandwidth": bandwidths,
        "lengthscale": 1 / (2 * math.pi * bandwidths),
    }
    index = pd.MultiIndex.from_product([range(size) for size in frequencies.shape], names=["input", "component"])
    table = pd.DataFrame({name: value.flatten().tolist() for name, value in columns.items()}, index=index)
    table = table.sort_values(["input", "share"], ascending=[True, False], kind="stable")
    return table.droplevel("input") if len(frequencies) == 1 else table

"""The table of components: every number by hand, its order, and which kernels it takes."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from process_cases import t
from torch import Tensor

from probmix.errors import ProgramError
from probmix.models import SpectralMixtureGP
from probmix.spectral import AbstractSpectralKernel, SpectralMixtureKernel, SpectralProductKernel
from probmix.spectral_table import component_table

WEIGHTS = t([0.5, 2.0, 1.5])
FREQUENCIES = t([[1.0, 0.1], [4.0, 0.25], [0.5, 0.2]])
BANDWIDTHS = t([[0.1, 0.02], [0.5, 0.05], [0.2, 0.01]])
COLUMNS = ["share", "frequency", "period", "bandwidth", "lengthscale"]


def kernel(columns: int, *, product: bool = False, weights: Tensor = WEIGHTS) -> AbstractSpectralKernel:
    kind = SpectralProductKernel if product else SpectralMixtureKernel
    made = kind(3, columns).double().requires_grad_(False)
    made.weights = torch.stack([weights, weights.flip(0)][:columns]) if product else weights
    frequencies, bandwidths = FREQUENCIES[:, :columns], BANDWIDTHS[:, :columns]
    made.frequencies, made.bandwidths = (frequencies.T, bandwidths.T) if product else (frequencies, bandwidths)
    return made


def expected(shares: list[float], order: list[int], column: int) -> pd.DataFrame:
    frequencies, bandwidths = FREQUENCIES[:, column].tolist(), BANDWIDTHS[:, column].tolist()
    rows = [
        [shares[q], frequencies[q], 1 / frequencies[q], bandwidths[q], 1 / (2 * math.pi * bandwidths[q])] for q in order
    ]
    return pd.DataFrame(rows, columns=COLUMNS, index=pd.Index(order, name="component"))


def test_one_input():
    """The heaviest first, each with its own number; 1e-12: the logarithm inside the kernel rounds."""
    pd.testing.assert_frame_equal(component_table(kernel(1)), expected([0.125, 0.5, 0.375], [1, 2, 0], 0), rtol=1e-12)


@pytest.mark.parametrize("product", [False, True])
def test_several_inputs_have_a_block_each(product):
    """In a sum a component has one share; in a product it has another along each input, of that input's factor."""
    table = component_table(kernel(2, product=product))
    assert table.index.names == ["input", "component"]
    first = expected([0.125, 0.5, 0.375], [1, 2, 0], 0)
    other = expected([0.375, 0.5, 0.125], [1, 0, 2], 1) if product else expected([0.125, 0.5, 0.375], [1, 2, 0], 1)
    pd.testing.assert_frame_equal(table.loc[0], first, rtol=1e-12)
    pd.testing.assert_frame_equal(table.loc[1], other, rtol=1e-12)
    assert table["share"].groupby("input").sum().tolist() == pytest.approx([1.0, 1.0])


def test_equal_shares_stay_in_order():
    table = component_table(kernel(1, weights=t([1.0, 1.0, 1.0])))
    assert table.index.tolist() == [0, 1, 2]


def test_no_gradient_stays():
    made = kernel(1).requires_grad_(True)
    assert component_table(made)["share"].dtype == "float64"


@pytest.mark.parametrize("product", [False, True])
def test_a_batch_of_kernels_is_refused(product):
    kind = SpectralProductKernel if product else SpectralMixtureKernel
    message = r"expected one kernel, got a batch of shape \(4,\). Choose one draw, or a point"
    with pytest.raises(ProgramError, match=message):
        component_table(kind(3, 2, batch_shape=torch.Size([4])))


@pytest.mark.parametrize("product", [False, True])
def test_a_model_makes_it_of_its_sites(product):
    """In the units of x, whatever its origin; draws are refused, as is a site that is missing."""
    model, made = SpectralMixtureGP(3, product=product), kernel(2, product=product)
    sites = {
        "kernel.log_weights": made.weights.log(),
        "kernel.frequencies": made.frequencies,
        "kernel.log_bandwidths": made.bandwidths.log(),
    }
    x = torch.arange(20.0, dtype=torch.float64).reshape(10, 2) + 1958
    pd.testing.assert_frame_equal(model.table(sites, x), component_table(made), rtol=1e-12)
    with pytest.raises(ProgramError, match=r"got a batch of shape \(2,\). Choose one draw, or a point"):
        model.table({name: torch.stack([value, value]) for name, value in sites.items()}, x)
    del sites["kernel.frequencies"]
    with pytest.raises(
        ProgramError, match=r"expected a value for the site 'kernel.frequencies', got .* Pass sites of a fit"
    ):
        model.table(sites, x)

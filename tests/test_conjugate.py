from __future__ import annotations

import numpy as np
import pytest
import torch

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.family import AbstractComponentFamily
from probmix.gaussian_family import FAMILIES


def test_numbers_become_tensors_of_the_dtype_of_the_mean() -> None:
    prior = NormalInverseWishart(torch.zeros(2, dtype=torch.float64), 0.01, 4, torch.eye(2, dtype=torch.float64))
    assert prior.mean_precision.dtype == prior.dof.dtype == torch.float64
    assert prior.dof.item() == 4.0


def test_a_prior_moves_to_the_dtype_of_the_data() -> None:
    prior = NormalInverseGamma(torch.zeros(2), 0.01, 2.0, torch.ones(2)).to(torch.zeros(1, dtype=torch.float64))
    assert {v.dtype for v in (prior.loc, prior.mean_precision, prior.concentration, prior.rate)} == {torch.float64}


def test_the_inverse_gamma_is_an_inverse_wishart_of_order_one() -> None:
    prior = NormalInverseGamma(torch.zeros(2), 0.01, 2.0, torch.tensor([3.0, 4.0]))
    again = prior.updated(prior.loc, prior.mean_precision, prior.dof, prior.scatter)
    assert isinstance(again, NormalInverseGamma)
    np.testing.assert_array_equal(again.rate, prior.rate)
    assert again.concentration == prior.concentration


def test_every_family_keeps_the_contract() -> None:
    for family in FAMILIES.values():
        assert isinstance(family, AbstractComponentFamily)
        assert set(family.dims) == {"loc", family.covariance.site}


def test_a_family_without_its_methods_cannot_be_made() -> None:
    class Half(AbstractComponentFamily):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()

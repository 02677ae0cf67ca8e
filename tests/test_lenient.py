"""Factorisations that fail, row by row."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from probmix.arguments import Arguments
from probmix.lenient import Lenient
from probmix.log_density import LogDensity

GOOD, BAD = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    "function",
    [torch.linalg.cholesky, torch.linalg.inv, lambda a: torch.linalg.solve(a, torch.ones(2))],
    ids=["cholesky", "inv", "solve"],
)
def test_only_the_bad_row_is_nan(function):
    bad = BAD if function is torch.linalg.cholesky else torch.ones(2, 2)
    with Lenient():
        result = function(torch.stack([GOOD, bad]))
    torch.testing.assert_close(result[0], function(GOOD))
    assert result[1].isnan().all()


def test_outside_errors_are_raised():
    with Lenient():
        pass
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(BAD)


def test_one_bad_chain_does_not_stop_the_others():
    def program(x):
        rho = pyro.sample("rho", dist.Normal(0.0, 3.0))
        cov = torch.eye(2, dtype=x.dtype) + rho * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=x.dtype)
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), cov), obs=x)

    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    density = LogDensity(program, Arguments.of(x))  # draws from the prior may be bad ones: it tries again
    z = torch.tensor([[0.5], [1.5], [-0.2]], dtype=torch.float64)
    values, gradients = density.value_and_grad(z)
    assert values.isfinite().tolist() == density.value(z).isfinite().tolist() == [True, False, True]
    assert gradients.isfinite()[:, 0].tolist() == [True, False, True]
    torch.testing.assert_close(values[2], density.value_and_grad(z[2])[0])

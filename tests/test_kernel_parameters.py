"""Parameters declared in one line: units, constraints, priors, and refusals."""

from __future__ import annotations

import copy
import re

import pyro
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.priors import GammaPrior, NormalPrior, Prior
from torch import Tensor

from probmix.errors import ProgramError
from probmix.gpytorch_priors import prior_sites, require_priors, sampled, with_values
from probmix.kernel_parameters import AbstractKernel, Constrained, log_positive


class Line(AbstractKernel):
    slope = Constrained("The slope.")
    level = Constrained("The level.")

    def __init__(
        self, slope: Tensor | None = None, prior: Prior | None = None, log_prior: Prior | None = None, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.register("slope", torch.tensor([2.0, 3.0]) if slope is None else slope, log_positive(), prior, log_prior)
        self.register("level", torch.tensor(0.25), Interval(0.0, 1.0))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        return torch.einsum("...d,...nd,...md->...nm", self.slope, x1, x2)


def test_a_parameter_is_read_and_set_in_its_own_units():
    line = Line()
    torch.testing.assert_close(line.raw_slope.detach(), torch.tensor([2.0, 3.0]).log())
    torch.testing.assert_close(line.level, torch.tensor(0.25))
    assert line.raw_level.item() == pytest.approx(-1.0986, abs=1e-4)  # log(0.25 / 0.75)
    line.slope, line.level = 5.0, 0.5
    torch.testing.assert_close(line.slope, torch.tensor([5.0, 5.0]))
    assert line.raw_level.item() == pytest.approx(0.0, abs=1e-6)
    line.initialize(slope=torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(line.slope, torch.tensor([1.0, 4.0]))
    assert isinstance(Line.slope, Constrained)
    assert Line.slope.__doc__ == "The slope."
    assert [name for name, _ in line.named_parameters()] == ["raw_slope", "raw_level"]
    assert not line.has_lengthscale


def test_a_value_is_set_in_the_dtype_of_the_kernel():
    line = Line().double()
    line.slope = 1 / 3
    assert line.slope.detach().tolist() == pytest.approx([1 / 3, 1 / 3], rel=1e-15)
    assert line.raw_slope.dtype == torch.float64


def test_gradients_are_by_the_logarithm():
    line = Line().double()
    (found,) = torch.autograd.grad(line.slope.square().sum(), line.raw_slope)
    torch.testing.assert_close(found, 2 * line.slope.detach().square())


def test_a_prior_is_of_the_value_and_a_log_prior_of_its_logarithm():
    value, log_value = Line(prior=GammaPrior(2.0, 1.0)), Line(log_prior=NormalPrior(0.0, 1.0))
    assert list(prior_sites(value)) == ["slope"]
    assert list(prior_sites(log_value)) == ["log_slope"]
    torch.testing.assert_close(prior_sites(log_value)["log_slope"].value, torch.tensor([2.0, 3.0]).log())
    at = torch.tensor([0.5, 4.0])
    torch.testing.assert_close(with_values(value, {"slope": at}).slope, at)
    torch.testing.assert_close(with_values(log_value, {"log_slope": at.log()}).slope, at)
    many = torch.rand(7, 2) + 0.1
    torch.testing.assert_close(with_values(log_value, {"log_slope": many.log()}).slope, many)
    torch.testing.assert_close(value.slope, torch.tensor([2.0, 3.0]))  # a copy was set
    with pytest.raises(ProgramError, match=r"got none for \['raw_level'\]"):
        require_priors(value)
    ((prior, closure),) = ((prior, closure) for _, _, prior, closure, _ in log_value.named_priors())
    logs = torch.tensor([2.0, 3.0]).log()
    torch.testing.assert_close(prior.log_prob(closure(log_value)), torch.distributions.Normal(0.0, 1.0).log_prob(logs))


@pytest.mark.parametrize("settings", [{"prior": GammaPrior(2.0, 1.0)}, {"log_prior": NormalPrior(0.0, 1.0)}])
def test_values_are_drawn_from_priors(settings):
    line = Line(**settings)
    with pyro.poutine.trace() as trace:
        drawn = sampled(line)
    (name, site), *_ = ((n, s) for n, s in trace.trace.nodes.items() if s["type"] == "sample")
    expected = site["value"].exp() if name == "log_slope" else site["value"]
    torch.testing.assert_close(drawn.slope, expected)
    own = line.pyro_sample_from_prior()
    assert own.slope.shape == (2,)
    assert not torch.equal(own.slope, line.slope)


def test_copies_are_apart():
    line = Line(prior=GammaPrior(2.0, 1.0))
    copied = copy.deepcopy(line)
    copied.slope = 7.0
    torch.testing.assert_close(line.slope, torch.tensor([2.0, 3.0]))
    assert list(prior_sites(copied)) == ["slope"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ProgramError, match=r"slope: expected values in \(0, inf\), got \[1\.0, -2\.0\]\. Change the set"
    ):
        Line(torch.tensor([1.0, -2.0]))
    with pytest.raises(ProgramError, match=r"slope: expected values in \(0, inf\), got 0\.0"):
        Line(torch.tensor(0.0))
    with pytest.raises(
        ProgramError, match=r"slope: expected one prior, got one of it and one of its logarithm\. Pass on"
    ):
        Line(prior=GammaPrior(2.0, 1.0), log_prior=NormalPrior(0.0, 1.0))


def test_bounds_of_any_constraint_are_named():
    class Other(AbstractKernel):
        pass

    bounds = {"(2, inf)": GreaterThan(2.0), "(0, 1)": Interval(0.0, 1.0), "(0, inf)": Positive()}
    for shown, constraint in bounds.items():
        with pytest.raises(ProgramError, match=re.escape(f"thing: expected values in {shown}, got -1.0.")):
            Other().register("thing", torch.tensor(-1.0), constraint)

"""The engine for families of a model's own: its batches, its defaults, estimates that are not numbers, and Ctrl-C."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from probmix.amortised_guide import AmortisedGuide
from probmix.errors import FitError
from probmix.inference import SVI, infer
from probmix.inference.svi_structured import Batches
from probmix.status import FitWarning
from probmix.typing import OwnGuide, OwnSettings

pytestmark = pytest.mark.filterwarnings("ignore:max_steps")

X = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]


class Level:
    """The mean of the rows by least squares, with a bound that has noise and may break in some step."""

    def __init__(self, breaks_in: int | None = None, interrupted_in: int | None = None) -> None:
        self.breaks_in, self.interrupted_in = breaks_in, interrupted_in
        self.rows: list[Tensor] = []
        self.particles: list[int] = []

    def __call__(self, x: Tensor) -> None:
        """There are no statements."""

    def svi_settings(self, num_rows: int) -> OwnSettings:
        return OwnSettings(num_particles=3, last_particles=20, learning_rate=0.05)

    def first_parameters(self, x: Tensor) -> dict[str, Tensor]:
        return {"level": x.new_tensor(3.0)}

    def elbo(self, parameters: dict[str, Tensor], x: Tensor, *, num_rows: int, num_particles: int) -> Tensor:
        self.rows.append(x)
        self.particles.append(num_particles)
        if len(self.rows) == self.interrupted_in:
            raise KeyboardInterrupt
        noise = 0.01 * torch.randn(num_particles, dtype=x.dtype)
        value = -num_rows / len(x) * (x - parameters["level"]).square().sum() + noise
        return value * math.nan if len(self.rows) == self.breaks_in else value

    def guide(self, parameters: dict[str, Tensor], *data: Tensor) -> AmortisedGuide:
        level = parameters["level"].reshape(1, 1)
        return AmortisedGuide(level, torch.ones_like(level), {}, (1,), {"level": 1})

    def fitted(self, guide: Any) -> Level:
        return self


def test_the_model_is_asked_for_its_defaults():
    assert isinstance(Level(), OwnGuide)
    model = Level()
    fit = infer(model, X, SVI(max_steps=4), seed=0, throw=False)
    assert model.particles == [3, 3, 3, 3, 20]
    assert abs(float(fit.guide.loc) - (3.0 - 4 * 0.05)) < 1e-3  # the first steps of Adam are as long as its rate
    infer(model, X, SVI(max_steps=1, num_particles=7), seed=0, throw=False)
    assert model.particles[-2:] == [7, 20]


def test_every_row_comes_once_in_an_epoch():
    batches = Batches(10, 3)
    torch.manual_seed(0)
    epochs = [torch.cat([batches.rows() for _ in range(3)]) for _ in range(200)]
    assert all(len(epoch.unique()) == 9 for epoch in epochs)
    left_out = torch.stack([torch.bincount(epoch, minlength=10) for epoch in epochs]).eq(0).sum(0)
    # each row is left out of one epoch in ten: binomial(200, 0.1) is above 45 or at 0 with a chance of 1e-7
    assert left_out.max() <= 45
    assert left_out.min() > 0
    assert Batches(10, 20).of((X,))[0] is X


def test_batches_are_scaled_to_all_rows():
    model = Level()
    infer(model, X, SVI(max_steps=6, batch_size=5), seed=0, throw=False)
    assert [len(rows) for rows in model.rows] == [5] * 6 + [10]
    assert torch.equal(torch.cat(model.rows[:2]).sort(0).values, X)


def test_an_estimate_that_is_no_number_ends_the_fit_with_what_there_was():
    """Breaks in step 12 of windows of 5: the parameters after 10 steps are kept, as those of a fit of 10 steps."""
    method = SVI(window=5, tolerance=-1e9)
    with pytest.warns(FitWarning, match=r"not a number in step 12; .* on the 10 steps before.*Lower learning_rate"):
        fit = infer(Level(breaks_in=12), X, method, seed=0)
    assert fit.status.state == "interrupted"
    ten = infer(Level(), X, SVI(window=5, tolerance=-1e9, max_steps=10), seed=0, throw=False)
    assert torch.equal(fit.guide.loc, ten.guide.loc)
    assert math.isfinite(fit.elbo[0])
    assert fit.history["elbo"].shape == (1, 15)


@pytest.mark.parametrize(("breaks_in", "kept"), [(6, 5), (10, 5), (11, 10)])
def test_which_steps_are_kept(breaks_in, kept):
    with pytest.warns(FitWarning, match=f"in step {breaks_in}; what follows rests on the {kept} steps"):
        infer(Level(breaks_in=breaks_in), X, SVI(window=5, tolerance=-1e9, max_steps=12), seed=0)


def test_a_fit_that_breaks_at_once_has_failed():
    with pytest.raises(FitError, match=r"not a number in step 2. Lower learning_rate \(it was 0.05\)"):
        infer(Level(breaks_in=2), X, SVI(window=5), seed=0)


def test_an_interrupted_fit_has_the_steps_that_were_done():
    with pytest.warns(FitWarning, match="stopped by the user after 7"):
        fit = infer(Level(interrupted_in=8), X, SVI(window=5, tolerance=-1e9), seed=0)
    seven = infer(Level(), X, SVI(window=5, tolerance=-1e9, max_steps=7), seed=0, throw=False)
    assert torch.equal(fit.guide.loc, seven.guide.loc)
    assert fit.history["elbo"].shape == (1, 7)


def test_ends_by_its_own_rule():
    fit = infer(Level(), X, SVI(window=20, learning_rate=0.3), seed=0)
    assert fit.status.state == "converged"
    assert abs(float(fit.guide.loc)) < 0.01


def test_the_error_of_the_last_elbo_is_honest():
    """9,000 rows are nine blocks of 20 draws, the noise of each 0.01 by nine: its standard error is known.

    The estimate has 171 degrees of freedom, a relative error of 0.054: within 0.7 and 1.4 but for one time in a
    million. Errors that are added up, not their squares, are three times as large.
    """
    fit = infer(Level(), torch.zeros(9000, 1).double(), SVI(max_steps=1), seed=0, throw=False)
    expected = math.sqrt(9 * (0.01 / 9) ** 2 / 20)
    assert 0.7 < fit.elbo[1] / expected < 1.4


def test_two_fits_in_a_row_are_two_fits_apart():
    method = SVI(batch_size=4, max_steps=30)
    bits = [infer(Level(), X, method, seed=seed, throw=False).history["elbo"] for seed in (0, 0, 1)]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])

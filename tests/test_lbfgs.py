"""L-BFGS for many rows: against scipy and torch, row by row; walls, rounding, precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from programs import one_dimensional, two_groups
from scipy import optimize
from torch import Tensor

from probmix.arguments import Arguments
from probmix.inference import lbfgs
from probmix.inference.lbfgs import Objective, minimise, start, step
from probmix.isolation import isolated
from probmix.log_density import LogDensity


def differentiated(function: Callable[[Tensor], Tensor]) -> Objective:
    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        value = function(leaf)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return objective


def rosenbrock(z: Tensor) -> Tensor:
    return (100 * (z[..., 1:] - z[..., :-1] ** 2) ** 2 + (1 - z[..., :-1]) ** 2).sum(-1)


def badly_scaled(z: Tensor) -> Tensor:
    """A bowl about 1 whose axes differ a thousandfold in width."""
    return 0.5 * (10.0 ** torch.linspace(-3, 3, z.shape[-1], dtype=z.dtype) * (z - 1) ** 2).sum(-1)


def scipy_minimum(objective: Objective, first: Tensor) -> np.ndarray:
    def one(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(torch.as_tensor(point)[None])
        return float(value[0]), gradient[0].numpy()

    options = {"gtol": 1e-10, "ftol": 0.0, "maxiter": 20_000, "maxfun": 20_000}
    return optimize.minimize(one, first.numpy(), jac=True, method="L-BFGS-B", options=options).x


def starts(rows: int, dim: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(rows, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "dim", "allowed"), [(rosenbrock, 2, 1e-8), (rosenbrock, 3, 1e-8), (badly_scaled, 6, 1e-6)]
)
def test_every_row_ends_at_the_known_minimum(function, dim, allowed):
    """The gradient's tolerance, 1e-9, over the smallest curvature: above 0.3 for the first, 1e-3 for the second."""
    found = minimise(differentiated(function), starts(64, dim), max_evaluations=2000)
    assert (found.point - 1).abs().max() < allowed
    assert found.stopped.all()
    assert not found.lost.any()
    early = minimise(differentiated(function), starts(64, dim), max_evaluations=5)
    assert (early.point - 1).abs().max() > 1e-2  # the control: five evaluations are too few


def test_the_same_minimum_as_scipy_and_torch():
    """In 10 dimensions Rosenbrock's function has two minima; from the same start all three find one of these."""
    objective, first = differentiated(rosenbrock), starts(8, 10)
    found = minimise(objective, first)
    minima = found.value.round(decimals=6).unique()
    assert len(minima) <= 2
    for row in range(4):
        theirs = torch.as_tensor(scipy_minimum(objective, first[row]))
        assert (rosenbrock(theirs) - minima).abs().min() < 1e-6
        leaf = first[row].clone().requires_grad_()
        other = torch.optim.LBFGS([leaf], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0.0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

        def closure(leaf: Tensor = leaf, other: torch.optim.LBFGS = other) -> Tensor:
            other.zero_grad()
            value = rosenbrock(leaf)
            value.backward()
            return value

        other.step(closure)
        assert (rosenbrock(leaf.detach()) - minima).abs().min() < 1e-6
        if (rosenbrock(leaf.detach()) - found.value[row]).abs() < 1e-6:  # the same of the two
            assert (found.point[row] - leaf.detach()).abs().max() < 1e-8


def test_the_mode_of_a_mixture_is_scipys():
    """The gradient vanishes to 1e-8 nats a unit at both; the curvatures here are above 1, so points agree to 1e-7."""
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        density = LogDensity(one_dimensional(), Arguments.of(two_groups()))

        def objective(z: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = density.value_and_grad(z)
            return -value, -gradient

        middle = density.unconstrain(
            {"weights": torch.tensor([0.5, 0.5]), "loc": torch.tensor([[1.0], [5.0]]), "var": torch.tensor([2.0, 2.0])}
        )
        found = minimise(objective, middle + 0.3 * torch.randn(16, density.dim))
        theirs = torch.as_tensor(scipy_minimum(objective, middle))
        assert (found.point - theirs).abs().max() < 1e-7


def test_a_row_does_not_know_its_neighbours():
    """The same alone and in a batch, whatever happens next to it; 1e-9 is what sums in another order may do."""
    objective, first = differentiated(rosenbrock), starts(3, 4)
    first[1] = torch.nan
    batch = minimise(objective, first, max_evaluations=60)
    for row in (0, 2):
        alone = minimise(objective, first[row : row + 1], max_evaluations=60)
        torch.testing.assert_close(batch.point[row], alone.point[0], rtol=1e-9, atol=1e-9)
        assert batch.iterations[row] == alone.iterations[0]
    assert batch.lost.tolist() == [False, True, False]
    assert batch.value[1] == torch.inf


def test_a_state_is_not_changed_by_its_successor():
    objective = differentiated(rosenbrock)
    state = start(objective, starts(2, 2))
    before = [value.clone() for value in state if isinstance(value, Tensor)]
    step(objective, state)
    assert all(torch.equal(a, b) for a, b in zip(before, [v for v in state if isinstance(v, Tensor)], strict=True))


def test_one_evaluation_a_step_always_of_the_whole_batch():
    sizes = []

    def counted(z: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(z))
        return differentiated(rosenbrock)(z)

    state = start(counted, starts(5, 2))
    for _ in range(20):
        state = step(counted, state)
    assert sizes == [5] * 21


def walled(z: Tensor) -> Tensor:
    """Lowest at 1/2; not defined from 0 downwards."""
    return torch.where(z[:, 0] > 0, z[:, 0] - 0.5 * z[:, 0].log(), torch.nan)


def test_line_searches_turn_back_from_a_wall():
    found = minimise(differentiated(walled), torch.tensor([[30.0], [1e-3], [1e5]], dtype=torch.float64))
    torch.testing.assert_close(found.point, torch.full((3, 1), 0.5, dtype=torch.float64), rtol=1e-8, atol=0)
    assert not found.lost.any()


def test_a_function_that_falls_all_the_way_to_a_wall_is_lost():
    def falling(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] > 0, z[:, 0].log(), torch.nan)

    found = minimise(differentiated(falling), torch.tensor([[3.0], [-1.0]], dtype=torch.float64))
    assert found.lost.tolist() == [True, True]
    assert found.value[0] < torch.tensor(3.0).log()


def test_values_without_gradients_are_a_wall_too():
    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = differentiated(walled)(z)
        return value.nan_to_num(0.0), torch.where(z > 0, gradient, torch.nan)

    found = minimise(objective, torch.tensor([[30.0]], dtype=torch.float64))
    torch.testing.assert_close(found.point, torch.full((1, 1), 0.5, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_rounding_ends_a_row_and_does_not_spoil_it(offset):
    """A large constant hides the last gains. What rounding allows is sqrt(eps * offset); ten times that is accepted."""
    found = minimise(differentiated(lambda z: rosenbrock(z) + offset), starts(16, 2), gradient_tolerance=0.0)
    allowed = 10 * (torch.finfo(torch.float64).eps * max(offset, 1.0)) ** 0.5
    assert found.stopped.all()
    assert not found.lost.any()
    assert (found.value - offset).max() < allowed


def test_single_precision():
    """Ten times the square root of float32's rounding: values near 0 are known no better."""
    found = minimise(differentiated(rosenbrock), starts(16, 2).float(), gradient_tolerance=1e-5)
    assert found.point.dtype == torch.float32
    assert (found.point - 1).abs().max() < 10 * torch.finfo(torch.float32).eps ** 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_stays_on_the_device():
    found = minimise(differentiated(rosenbrock), starts(4, 2).cuda())
    assert found.point.is_cuda
    assert (found.point.cpu() - 1).abs().max() < 1e-8


def test_the_compact_form_is_that_of_the_two_loops():
    """Liu and Nocedal (1989), section 2, pair by pair; with empty pairs, and where there are none at all."""
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    steps = torch.randn(4, 3, 6, generator=draw, dtype=torch.float64)
    steps[:2, 1], steps[:, 2] = 0, 0
    changes, gradient = steps @ (root @ root.mT), torch.randn(3, 6, generator=draw, dtype=torch.float64)
    result, weights = gradient, []
    pairs = [
        (s, y, torch.where((s * y).sum(-1) > 0, 1 / (s * y).sum(-1), 0.0)) for s, y in zip(steps, changes, strict=True)
    ]
    for s, y, rate in reversed(pairs):
        weights.append(rate * (s * result).sum(-1))
        result = result - weights[-1][:, None] * y
    last = (steps[-1] * changes[-1]).sum(-1) / changes[-1].square().sum(-1)
    result = result * last.nan_to_num(1.0)[:, None]
    for (s, y, rate), weight in zip(pairs, reversed(weights), strict=True):
        result = result + (weight - rate * (y * result).sum(-1))[:, None] * s
    ours = lbfgs._times_inverse_hessian(gradient, steps, changes)
    torch.testing.assert_close(ours, result, rtol=1e-12, atol=1e-12)

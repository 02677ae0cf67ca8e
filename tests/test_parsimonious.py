"""Covariances that share volume, shape or orientation, against a numerical optimiser and other algorithms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from constrained_cases import ALL, K, from_free
from torch import Tensor

from probmix.parsimonious import CONSTRAINED, constrained_spread, num_spread_parameters

every_constraint = pytest.mark.parametrize("letters", CONSTRAINED)


def scatters(letters: str, size: int = 3, *batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scatters of K components that no constraint fits, and how many rows they are of."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, K, size, size, generator=generator, dtype=torch.float64)
    widths = torch.arange(1.0, size + 1).square() * torch.tensor([1.0, 4.0, 0.3])[:, None]
    scatter = root @ (widths[..., None] * root.mT)
    divisor = 20 * torch.rand(*batch, K, generator=generator, dtype=torch.float64) + 5
    return (scatter.diagonal(dim1=-2, dim2=-1) if letters.endswith("I") else scatter), divisor


def dense(spread: Tensor, letters: str) -> Tensor:
    return torch.diag_embed(spread) if letters.endswith("I") else spread


def criterion(letters: str, spread: Tensor, scatter: Tensor, divisor: Tensor) -> Tensor:
    cov = dense(spread, letters)
    ratio = torch.linalg.solve(cov, dense(scatter, letters)).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (divisor * torch.logdet(cov) + ratio).sum(-1)


def best(letters: str, scatter: Tensor, divisor: Tensor, spread: Tensor | None = None) -> Tensor:
    """The iterations run on from their own result, as they do from one step of EM to the next."""
    for _ in range(60):
        spread = constrained_spread(letters, scatter, divisor, spread)
    return spread


def optimum(letters: str, scatter: Tensor, divisor: Tensor, size: int) -> float:
    """Best of several runs of BFGS with torch's gradients."""

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.tensor(free, requires_grad=True)
        value = criterion("VVV", from_free(letters, z, size), dense(scatter, letters), divisor)
        return value.item(), torch.autograd.grad(value, z)[0].numpy()

    starts = np.random.default_rng(0).normal(size=(8, num_spread_parameters(letters, K, size)))
    return min(
        scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).fun for start in starts
    )


@every_constraint
@pytest.mark.parametrize("size", [2, 3])
def test_the_criterion_is_as_low_as_an_optimiser_takes_it(letters: str, size: int) -> None:
    """1e-7 is where BFGS, whose gradients are rounded at 1e-9, stops on sums of size 100.

    A common orientation of unlike scatters has several local optima: both sides take the best of several starts.
    """
    scatter, divisor = scatters(letters, size)
    starts = [None]
    if letters in ("EVE", "VVE"):
        frames = torch.linalg.qr(torch.randn(8, size, size, generator=torch.Generator().manual_seed(3)).double()).Q
        starts += [frame * torch.arange(1, size + 1) @ frame.mT.expand(K, size, size) for frame in frames]
    spreads = [best(letters, scatter, divisor, start) for start in starts]
    reached = min(criterion(letters, spread, scatter, divisor).item() for spread in spreads)
    assert reached == pytest.approx(optimum(letters, scatter, divisor, size), abs=1e-7)


@every_constraint
def test_the_optimum_is_stationary_in_its_units(letters: str) -> None:
    """Scaling all matrices by s changes the criterion by D sum(n) log s: at the best s the traces are D sum(n)."""
    scatter, divisor = scatters(letters)
    spread = best(letters, scatter, divisor)
    trace = torch.linalg.solve(dense(spread, letters), dense(scatter, letters)).diagonal(dim1=-2, dim2=-1).sum()
    assert trace.item() == pytest.approx(3 * divisor.sum().item(), rel=1e-9)


@every_constraint
def test_the_constraint_holds(letters: str) -> None:
    scatter, divisor = scatters(letters)
    cov = dense(best(letters, scatter, divisor), letters)
    widths = torch.linalg.eigvalsh(cov)
    volume = widths.log().mean(-1, keepdim=True).exp()
    for letter, part in zip(letters, (volume, widths / volume), strict=False):
        assert bool((part - part[0]).abs().max() < 1e-9) == (letter == "E")
    commuting = (cov[0] @ cov[1] - cov[1] @ cov[0]).abs().max() < 1e-9 * cov.square().max()
    assert bool(commuting) == (letters[2] in "EI")
    assert bool((cov - torch.diag_embed(cov.diagonal(dim1=-2, dim2=-1)) == 0).all()) == (letters[2] == "I")


@every_constraint
def test_the_criterion_never_rises_from_a_start_that_keeps_the_constraint(letters: str) -> None:
    """The start is the best for other scatters; rounding is 1e-12 of the sums."""
    other, divisor = scatters(letters, 4, 50, seed=1)
    before = best(letters, other, divisor)
    scatter, _ = scatters(letters, 4, 50, seed=2)
    after = constrained_spread(letters, scatter, divisor, before)
    start, end = (criterion(letters, spread, scatter, divisor) for spread in (before, after))
    assert (end <= start + 1e-12 * start.abs()).all()
    again = criterion(letters, constrained_spread(letters, scatter, divisor, after), scatter, divisor)
    assert (again <= end + 1e-12 * end.abs()).all()


@every_constraint
def test_a_batch_gives_what_a_loop_gives(letters: str) -> None:
    """An entry stops by its own rule, whatever runs beside it; matrix products of other sizes round otherwise."""
    scatter, divisor = scatters(letters, 3, 2, 5)
    together = constrained_spread(letters, scatter, divisor)
    for i, j in np.ndindex(2, 5):
        alone = constrained_spread(letters, scatter[i, j], divisor[i, j])
        torch.testing.assert_close(together[i, j], alone, rtol=1e-12, atol=1e-12)


@every_constraint
def test_permuting_components_permutes_the_result(letters: str) -> None:
    scatter, divisor = scatters(letters)
    order = torch.tensor([2, 0, 1])
    permuted = best(letters, scatter[order], divisor[order])
    torch.testing.assert_close(permuted, best(letters, scatter, divisor)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("letters", [c for c in CONSTRAINED if not c.endswith("I")])
def test_rotating_the_scatters_rotates_the_result(letters: str) -> None:
    scatter, divisor = scatters(letters)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)).Q
    rotated = best(letters, turn @ scatter @ turn.mT, divisor)
    torch.testing.assert_close(rotated, turn @ best(letters, scatter, divisor) @ turn.mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("letters", ["VEI", "EVI", "VEE", "EVV"])
def test_changing_the_unit_of_one_column_changes_the_result_alike(letters: str) -> None:
    scatter, divisor = scatters(letters)
    unit = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)
    square = unit.square() if letters.endswith("I") else unit[:, None] * unit
    scaled = best(letters, scatter * square, divisor)
    torch.testing.assert_close(scaled, best(letters, scatter, divisor) * square, rtol=1e-6, atol=0)


def test_more_freedom_never_fits_worse() -> None:
    """Every pair of which one contains the other; each criterion is the least over its own set."""
    scatter, divisor = scatters("VVV")
    diagonal = scatter.diagonal(dim1=-2, dim2=-1)
    value = {
        c: criterion(
            c,
            best(c, diagonal if c.endswith("I") else scatter, divisor),
            diagonal if c.endswith("I") else scatter,
            divisor,
        )
        for c in CONSTRAINED
    }
    total = divisor.sum()
    value["EEE"] = criterion("VVV", (scatter.sum(0) / total).expand(K, 3, 3), scatter, divisor)
    value["VVV"] = criterion("VVV", scatter / divisor[:, None, None], scatter, divisor)
    value["EEI"] = criterion("VVI", (diagonal.sum(0) / total).expand(K, 3), diagonal, divisor)
    value["VVI"] = criterion("VVI", diagonal / divisor[:, None], diagonal, divisor)
    freedom = "IEV"
    pairs = [
        (a, b)
        for a in value
        for b in value
        if a != b and all(freedom.index(i) <= freedom.index(j) for i, j in zip(a, b, strict=True))
    ]
    assert len(pairs) > 30
    for narrow, wide in pairs:
        assert value[wide] <= value[narrow] + 1e-9, (narrow, wide)


def majorised_orientation(scatter: np.ndarray, precision: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Browne and McNicholas (2014): minimise a linear bound over orthogonal matrices, by singular values."""
    for _ in range(20000):
        slope = sum(
            (w - np.linalg.eigvalsh(w)[-1] * np.eye(len(w))) @ axes @ np.diag(c)
            for w, c in zip(scatter, precision, strict=True)
        )
        left, _, right = np.linalg.svd(slope)
        axes = -left @ right
    return axes


def test_the_common_orientation_is_that_of_the_mm_algorithm() -> None:
    """With the shapes held where the planes' rotations end, MM from a start nearby ends there too."""
    scatter, divisor = scatters("VVE", 3)
    cov = best("VVE", scatter, divisor)
    axes = torch.linalg.eigh(cov[0]).eigenvectors
    precision = (axes.mT @ cov @ axes).diagonal(dim1=-2, dim2=-1).reciprocal()
    tilt = torch.linalg.matrix_exp(torch.tensor([[0, 0.1, -0.1], [-0.1, 0, 0.1], [0.1, -0.1, 0]], dtype=torch.float64))
    found = torch.tensor(majorised_orientation(scatter.numpy(), precision.numpy(), (axes @ tilt).numpy()))
    torch.testing.assert_close((found.mT @ axes).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)


@every_constraint
def test_one_component_is_unconstrained(letters: str) -> None:
    scatter, divisor = (part[:1] for part in scatters(letters))
    expected = scatter / divisor[:, None] if letters.endswith("I") else scatter / divisor[:, None, None]
    torch.testing.assert_close(best(letters, scatter, divisor), expected, rtol=1e-9, atol=1e-9)


@every_constraint
def test_one_column_knows_volumes_alone(letters: str) -> None:
    scatter, divisor = scatters(letters, 1)
    flat = scatter.flatten()
    expected = flat / divisor if letters[0] == "V" else (flat.sum() / divisor.sum()).expand(K)
    torch.testing.assert_close(best(letters, scatter, divisor).flatten(), expected, rtol=1e-9, atol=0)


@every_constraint
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scatters_without_a_fit_are_finite(letters: str, dtype: torch.dtype) -> None:
    """An empty component, one on a single point, one on a line, one that has overflowed, and nothing at all."""
    scatter, divisor = scatters(letters)
    empty, point, line, overflown = (scatter.clone() for _ in range(4))
    overflown[0] = torch.inf
    empty[0] = point[1] = 0
    vector = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    line[2] = vector.square() if letters.endswith("I") else vector[:, None] * vector
    without = divisor.clone()
    without[0] = 0
    for w, n in [
        (empty, without),
        (point, divisor),
        (line, divisor),
        (overflown, divisor),
        (0 * scatter, divisor),
        (0 * scatter, 0 * divisor),
    ]:
        for before in (None, scatter / 7, 0 * scatter):
            spread = constrained_spread(letters, w.to(dtype), n.to(dtype), None if before is None else before.to(dtype))
            assert spread.isfinite().all()
            assert spread.dtype == dtype
            assert spread.shape == scatter.shape


# By hand from the formulas in mclust's help page nVarParams (Celeux and Govaert 1995, table 1, less weights and means),
# in the order of ALL: 1, G, d, G + (d - 1), 1 + G (d - 1), G d, d (d + 1) / 2, G + (d - 1) + d (d - 1) / 2,
# 1 + G (d - 1) + d (d - 1) / 2, G + G (d - 1) + d (d - 1) / 2, 1 + (d - 1) + G d (d - 1) / 2,
# G + (d - 1) + G d (d - 1) / 2, 1 - G + G d (d + 1) / 2, G d (d + 1) / 2.
TABLE = {
    (2, 3): (1, 3, 2, 4, 4, 6, 3, 5, 5, 7, 5, 7, 7, 9),
    (4, 3): (1, 3, 4, 6, 10, 12, 10, 12, 16, 18, 22, 24, 28, 30),
    (1, 2): (1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2),
}


@pytest.mark.parametrize(("size", "components"), list(TABLE))
def test_the_numbers_of_parameters_are_those_of_the_published_table(size: int, components: int) -> None:
    counts = tuple(num_spread_parameters(letters, components, size) for letters in ALL)
    assert counts == TABLE[size, components]

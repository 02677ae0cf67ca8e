"""Blocks of a climb from many starts: which rows go on, and that leaving out the others changes nothing for them."""

from __future__ import annotations

import torch
from torch import Tensor

from probmix.inference.ascent import ascend, begin
from probmix.inference.lbfgs import start, step, take_rows

CURVATURES = torch.logspace(0, 6, 6, dtype=torch.float64)


def ridge(sizes: list[int]):
    """A quartic bowl, badly conditioned: rows that start near the top are done long before the others."""

    def log_density(z: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(z))
        leaf = z.detach().requires_grad_()
        value = -(CURVATURES * leaf.square()).sum(-1) - leaf.pow(4).sum(-1)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return log_density


def starts() -> Tensor:
    scale = torch.tensor([0.0, 1e-9, 1e-9, 1e-9, 1e-9, 3.0, 5.0, 1e-9], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    return scale[:, None] * torch.randn(8, 6, generator=draw, dtype=torch.float64)


def test_rows_that_are_done_are_left_out_and_the_others_do_not_notice():
    sizes: dict[bool, list[int]] = {False: [], True: []}
    ended = {}
    for thin, seen in sizes.items():
        ascent = begin(ridge(seen), starts())
        for _ in range(8):
            ascent = ascend(ridge(seen), ascent, 1e-6, thin=thin)
        ended[thin] = ascent
    assert set(sizes[False]) == {8}
    assert {8, 2} <= set(sizes[True]) <= {8, 4, 2, 1}
    torch.testing.assert_close(ended[True].search.point[[5, 6]], ended[False].search.point[[5, 6]], rtol=0, atol=0)
    assert not ended[True].active.any()
    assert len(ended[True].objectives) == 8
    assert (ended[True].latest.abs() < 1e-9).all()


def test_rows_go_on_from_where_they_were():
    """Some rows of a search, taken out, make the steps that they make among the others."""
    function = ridge([])
    objective = lambda z: tuple(-value for value in function(z))  # noqa: E731
    state = start(objective, starts() + 1)
    for _ in range(7):
        state = step(objective, state)
    rows = torch.tensor([6, 1])
    alone, together = take_rows(state, rows), state
    for _ in range(7):
        alone, together = step(objective, alone), step(objective, together)
    for ours, theirs in zip(alone, take_rows(together, rows), strict=True):
        torch.testing.assert_close(ours, theirs)

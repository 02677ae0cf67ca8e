"""What generator and discriminator play for: losses of scores, and penalties on the slope of the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = ["LOSSES", "LossName", "Losses", "slope_penalty"]

LossName: TypeAlias = Literal["non_saturating", "wasserstein", "hinge"]


class Losses(NamedTuple):
    r"""The two losses of a game, of scores that are high for what the discriminator takes for real.

    Args:
        discriminator: of the scores of real and of generated data, each ``(n,)``; to a loss ``()``.
        generator: of the scores of generated data ``(n,)``; to a loss ``()``.
        target: slope of the score that its penalty asks for; None: zero slope at real data.

    Example:
        >>> LOSSES["hinge"].discriminator(torch.tensor([2.0]), torch.tensor([-0.5]))
        tensor(0.5000)
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    target: float | None = None


#: Goodfellow et al. (2014), with the logit of D as the score; Arjovsky, Chintala and Bottou (2017) with the penalty of
#: Gulrajani et al. (2017); Lim and Ye (2017).
LOSSES: dict[LossName, Losses] = {
    "non_saturating": Losses(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(), lambda fake: softplus(-fake).mean()
    ),
    "wasserstein": Losses(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), target=1.0),
    "hinge": Losses(lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(), lambda fake: -fake.mean()),
}


def slope_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, target: float | None) -> Tensor:
    r"""Return a penalty on the slope of the score.

    .. math:: E_{\hat x} \big(\lVert \nabla D(\hat x) \rVert - c\big)^2 \quad \text{or} \quad
              \tfrac12 E_x \lVert \nabla D(x) \rVert^2

    The first is at random points between real and generated data (Gulrajani et al. 2017, equation 3, where c = 1); the
    second, R1, at real data (Mescheder, Geiger and Nowozin 2018, equation 9), which makes the game converge near its
    equilibrium.

    Args:
        score: of data ``(n, ...)`` to scores ``(n,)``.
        real: real data.
        fake: generated data of the same shape.
        target: c; None for R1.

    Example:
        >>> x = torch.ones(4, 2)
        >>> slope_penalty(lambda x: 3 * x[:, 0], x, x, 1.0), slope_penalty(lambda x: 3 * x[:, 0], x, x, None)
        (tensor(4.), tensor(4.5000))
    """
    if target is None:
        place = real.detach().requires_grad_()
    else:
        share = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype, device=real.device)
        place = torch.lerp(real.detach(), fake.detach(), share).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(place).sum(), place, create_graph=True)
    square = slope.flatten(1).square().sum(-1)
    if target is None:
        return 0.5 * square.mean()
    return ((square + torch.finfo(square.dtype).tiny).sqrt() - target).square().mean()

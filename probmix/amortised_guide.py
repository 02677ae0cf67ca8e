"""A fitted encoder as a guide: a normal for the latent vector of every row, and the networks that it came with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probmix.arguments import Arguments
from probmix.log_density import LogDensity
from probmix.typing import Sites

__all__ = ["AmortisedGuide"]


@dataclass(frozen=True, eq=False)
class AmortisedGuide:
    r"""Independent normals, one for each row, whose parameters a network computes from the row.

    .. math:: q(z_1, \dots, z_N) = \prod_n N\big(z_n; m(x_n), \mathrm{diag} \, s^2(x_n)\big)

    It holds m and s of the rows of the fit, and the parameters of the program, in which is the network: for other rows
    ask the program, ``fit.program.encode(x)``.

    Args:
        loc: m, ``(N, d)``.
        std: s, ``(N, d)``.
        parameters: name -> value of all that was fitted or counted: the program's state.
        shape: of one row of data, from which networks are built again.
        sizes: names of the latent sites, and how many axes of d each has, in turn.

    Source:
        Kingma and Welling (2014), Auto-encoding variational Bayes.

    Example:
        >>> guide = AmortisedGuide(torch.zeros(5, 2), torch.ones(5, 2), {}, (3,), {"z": 2})
        >>> guide.sample(10, None, Arguments())["z"].shape
        torch.Size([10, 5, 2])
    """

    loc: Tensor
    std: Tensor
    parameters: Sites
    shape: tuple[int, ...]
    sizes: Mapping[str, int]

    traces: ClassVar[bool] = False

    def centre(self, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return the mean of every latent vector, ``(N, d)``."""
        return self._sites(self.loc)

    def sample(self, num: int, density: LogDensity | None, arguments: Arguments) -> Sites:
        """Return ``num`` draws of all latent vectors, ``(num, N, d)``; uses torch's global generator."""
        noise = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._sites(self.loc + self.std * noise)

    def log_ratios(self, num: int, density: LogDensity, arguments: Arguments) -> Tensor:
        """Return ``log p - log q`` of all latent vectors at ``num`` draws, ``(num,)``."""
        sites = self.sample(num, density, arguments)
        z = torch.cat([sites[name] for name in self.sizes], -1)
        log_q = torch.distributions.Normal(self.loc, self.std).log_prob(z).sum((-2, -1))
        return density.log_joint(sites) - log_q

    def _sites(self, z: Tensor) -> Sites:
        return dict(zip(self.sizes, z.split(list(self.sizes.values()), -1), strict=True))

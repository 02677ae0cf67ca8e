"""Several independent priors side by side, one for each factor that data are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.models.ard_latent import ARDLatent
from probmix.models.mixture_latent import Latents, MixtureLatent

__all__ = ["FactoredLatent"]


class FactoredLatent(nn.Module):
    r"""A latent vector of several parts, each with a mixture of its own: a prior in which factors are independent.

    .. math:: z = (z_1, \dots, z_P), \qquad p(z) = \prod_p p_p(z_p)

    With ``labels`` in the parts, such as the instruments and pitches of notes, a `probmix.models.MixtureVAE` learns
    what of the data belongs to which: see ``recombine`` there.

    Args:
        parts: two priors or more.

    Raises:
        ProgramError: fewer, or of other kinds.

    Source:
        Luo, Agres and Herremans (2019), Learning disentangled representations of timbre and pitch for musical
        instrument sounds using Gaussian mixture variational autoencoders.

    Example:
        >>> latent = FactoredLatent(MixtureLatent(3, 2), MixtureLatent(5, 4))
        >>> draws = latent.sample(15, seed=0)
        >>> draws.z.shape, draws.component.shape, [part.shape[-1] for part in latent.split(draws.z)]
        (torch.Size([15, 6]), torch.Size([15, 2]), [2, 4])
    """

    def __init__(self, *parts: MixtureLatent | ARDLatent) -> None:
        super().__init__()
        if len(parts) < 2 or not all(isinstance(part, MixtureLatent | ARDLatent) for part in parts):
            names = [type(part).__name__ for part in parts]
            raise ProgramError(f"expected two priors or more, such as MixtureLatent(...), got {names}.")
        self.parts: Any = nn.ModuleList(parts)
        self.dim = sum(part.dim for part in parts)

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of vectors ``(*n, d)``, each ``(*n, d_p)``."""
        return z.split([part.dim for part in self.parts], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of vectors ``(*n, d)``, ``(*n,)``."""
        each = [part.log_prob(piece) for part, piece in zip(self.parts, self.split(z), strict=True)]
        return torch.stack(each).sum(0)

    def sample(
        self,
        num: int,
        *,
        seed: int,
        component: tuple[int | Tensor | None, ...] | None = None,
        temperature: float = 1.0,
    ) -> Latents:
        """Return draws, whose ``component`` is ``(n, P)``.

        Args:
            num: n.
            seed: the same seed gives the same draws.
            component: for each part as in `MixtureLatent.sample`, or None.
            temperature: factor of all covariances.

        Raises:
            DataError: components for another number of parts.
        """
        chosen = component or (None,) * len(self.parts)
        if len(chosen) != len(self.parts):
            raise DataError(f"component: expected one for each of {len(self.parts)} parts, got {len(chosen)}.")
        first = next(self.parameters())
        with isolated(seed, dtype=first.dtype, device=torch.device("cpu")):
            seeds = torch.randint(2**31, (len(self.parts),)).unbind()
        draws = [
            part.sample(num, seed=int(own), component=choice, temperature=temperature)
            for part, own, choice in zip(self.parts, seeds, chosen, strict=True)
        ]
        return Latents(torch.cat([draw.z for draw in draws], -1), torch.stack([draw.component for draw in draws], -1))

"""What has become of the latent vector of an autoencoder: which axes and components carry anything."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["ACTIVE_VAR", "Collapse"]

ACTIVE_VAR = 0.01  # of the posterior mean over rows: Burda et al. (2016), section 5.1 (data with latents of unit size)
_USED = 0.1  # of an even share


class Collapse(NamedTuple):
    r"""Use of the axes and components of a latent vector, from the codes of some rows.

    Args:
        divergence: mean over rows of the divergence of q(z_l | x) from the prior along axis l, given the component,
            ``(d,)``, nats. Near 0: nothing of the data goes through that axis, except which component they come from:
            an axis that only tells components apart has a spread none the less.
        spread: variance over rows of the posterior mean, as a share of the prior's variance, ``(d,)``.
        active: axes whose spread is above 0.01, ``(d,)``.
        use: mean responsibility of each component, ``(K,)``.
        component_divergence: mean over the rows of a component of the divergence of q(z | x) from it, ``(K,)``, nats;
            NaN where it has none.
        merged: components with another so near (a Mahalanobis distance below 1) that draws do not tell them, ``(K,)``.

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, section 5.1.

    Example:
        >>> import torch
        >>> yes, no = torch.tensor([True, True]), torch.tensor([False, False])
        >>> half = torch.tensor([0.5, 0.5])
        >>> print(Collapse(half, half, yes, half, half, no))
        2 of 2 axes are active; 2 of 2 components are used
        >>> print(Collapse(0 * half, 0 * half, no, half, half, no))
        no axis of 2 is active: the decoder does without the latent vector (posterior collapse). Lower divergence_weight
        or noise_std, train longer, or use a weaker decoder; 2 of 2 components are used
    """

    divergence: Tensor
    spread: Tensor
    active: Tensor
    use: Tensor
    component_divergence: Tensor
    merged: Tensor

    @property
    def used(self) -> Tensor:
        """Components with more than a tenth of an even share of the rows, ``(K,)``."""
        return self.use > _USED / len(self.use)

    def __str__(self) -> str:
        num, active = len(self.active), int(self.active.sum())
        if not active:
            text = (
                f"no axis of {num} is active: the decoder does without the latent vector (posterior collapse). Lower "
                "divergence_weight\nor noise_std, train longer, or use a weaker decoder"
            )
        elif active < num / 2:
            text = (
                f"{active} of {num} axes are active, the others are idle: a smaller dim, or a lower divergence_weight"
            )
        else:
            text = f"{active} of {num} axes are active"
        components, used = len(self.use), int(self.used.sum())
        text += f"; {used} of {components} components are used"
        if used < components:
            dead = ", ".join(str(int(k)) for k in (~self.used).nonzero().flatten()[:10])
            text += f" (not {dead}): start the prior from an EM fit of the codes (with_prior), or have fewer"
        if bool((self.merged & self.used).any()):
            text += f"; {int((self.merged & self.used).sum())} have merged: fewer components, or with_prior"
        return text

"""A normal prior of latent vectors with a variance for every axis, which finds out how many axes the data need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.models.mixture_latent import Latents
from probmix.trained_networks import derivatives

__all__ = ["ARDLatent", "Relevance"]

_AT_ONCE = 100  # codes at which the decoder is differentiated
_LEAST_STD = 1e-6


class Relevance(NamedTuple):
    r"""How much of what a decoder shows comes from each axis of the latent vector.

    .. math:: \mathrm{score}_l = \hat\sigma_l^2 \, w_l, \qquad
              w_l = \frac1n \sum_n \Big\| \frac{\partial \hat x(z_n)}{\partial z_l} \Big\|^2

    Args:
        score: to first order, the variance of the decoded data, summed over columns or pixels, that axis l gives,
            ``(d,)``. It does not change when an axis is stretched and the decoder shrinks it back.
        weight: w, ``(d,)``.
        active: the smallest set of axes with the asked-for share of all score, ``(d,)``.

    Example:
        >>> latent = ARDLatent(3)
        >>> str(latent.relevance(lambda z: z * torch.tensor([2.0, 1.0, 0.0]), torch.randn(9, 3)))
        '2 of 3 axes are active: 0 (80.0 %), 1 (20.0 %)'
    """

    score: Tensor
    weight: Tensor
    active: Tensor

    def __str__(self) -> str:
        shares = 100 * self.score / self.score.sum().clamp_min(torch.finfo(self.score.dtype).tiny)
        order = self.score.argsort(descending=True)[: int(self.active.sum())]
        axes = ", ".join(f"{int(axis)} ({float(shares[axis]):.1f} %)" for axis in order[:20])
        more = ", ..." if len(order) > 20 else ""
        return f"{len(order)} of {len(self.score)} axes are active: {axes}{more}"


class ARDLatent(nn.Module):
    r"""A normal prior with one variance for each axis, learnt with the networks: automatic relevance determination.

    .. math:: z_l \sim N(0, \hat\sigma_l^2), \qquad l = 1, \dots, d

    To be given to `probmix.models.MixtureVAE` with a generous d. The bound that trains the networks says of a variance
    that it should be the mean square of the codes, :math:`E_q[z_l^2]`, and the gradient of the bound takes it there.
    An axis that the data do not need has codes that are all alike, whatever its variance; `relevance` tells it by what
    the decoder does with it, which is the same in any unit.

    The paper treats a variance as an unknown precision with a prior Gamma(a, b), sets the variance to the mean square
    of ten thousand codes at the start of every epoch, and keeps it until the next. For a = b = 0, its choice, both
    have the same fixed point; here there is no lag, no second set of rows and no codes from another state of the
    network. `update` is the paper's step, to be made by hand, as a start for instance.

    Args:
        dim: d.
        var: variances to start from, ``(d,)``; None: 1.
        dynamic: learn them; else they stay.

    Raises:
        ProgramError: a setting out of its range.

    Source:
        Saha, Joshi and Whitaker (2025), ARD-VAE: a statistical formulation to find the relevant latent dimensions of
        variational autoencoders; MacKay (1994) for automatic relevance determination.

    Example:
        >>> latent = ARDLatent(2)
        >>> latent.update(torch.tensor([[1.0, 0.1], [-1.0, -0.1]]))
        >>> latent.var
        tensor([1.0000, 0.0100])
    """

    num_components, num_classes = 1, None

    def __init__(self, dim: int, *, var: Tensor | None = None, dynamic: bool = True) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ProgramError(f"dim: expected a whole number of at least 1, got {dim!r}.")
        first = torch.ones(dim) if var is None else var
        if first.shape != (dim,) or not bool(((first > 0) & first.isfinite()).all()):
            raise ProgramError(f"var: expected {dim} positive numbers, got shape {tuple(first.shape)} or others.")
        self.dim, self.dynamic = dim, dynamic
        self.log_var = nn.Parameter(first.detach().log(), requires_grad=dynamic)
        self.register_buffer("labels", None)
        self.register_buffer("logits", torch.zeros(1).to(first))

    @property
    def var(self) -> Tensor:
        """Variance along every axis, ``(d,)``."""
        return self.log_var.detach().exp()

    @property
    def loc(self) -> Tensor:
        """Where the one component is: at 0, ``(1, d)``."""
        return torch.zeros_like(self.log_var)[None]

    @property
    def std(self) -> Tensor:
        """Standard deviation along every axis, ``(1, d)``."""
        return (0.5 * self.log_var).exp()[None]

    def distribution(self, *, temperature: float = 1.0) -> dist.Distribution:
        """Return the law of z, a distribution of one vector."""
        std = math.sqrt(temperature) * self.std[0]
        return dist.Normal(torch.zeros_like(std), std).to_event(1)

    def log_prob_components(self, z: Tensor) -> Tensor:
        """Return the log density of vectors ``(*n, d)``, as of a mixture of one component, ``(*n, 1)``."""
        return self.log_prob(z)[..., None]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of vectors ``(*n, d)``, ``(*n,)``."""
        quadratic = z.square() * (-self.log_var).exp()
        return -0.5 * (quadratic + self.log_var + math.log(2 * math.pi)).sum(-1)

    def divergence(self, loc: Tensor, std: Tensor) -> Tensor:
        r"""Return the divergence of diagonal normals from the prior, ``(*n, 1)``.

        .. math:: \tfrac12 \sum_l \Big(\frac{m_l^2 + s_l^2}{\hat\sigma_l^2} - 1 - \log \frac{s_l^2}{\hat\sigma_l^2}\Big)

        Args:
            loc: m, ``(*n, d)``.
            std: s, ``(*n, d)``.
        """
        ratio = (loc.square() + std.square()) * (-self.log_var).exp()
        return 0.5 * (ratio - 1 - 2 * std.log() + self.log_var).sum(-1, keepdim=True)

    def sample(
        self, num: int, *, seed: int, component: None = None, temperature: float = 1.0, active: Tensor | None = None
    ) -> Latents:
        """Return draws from a seed.

        Args:
            num: n.
            seed: the same seed gives the same draws.
            component: None; there is one.
            temperature: factor of all variances.
            active: axes to draw, ``(d,)``, such as those of `relevance`; all others are 0.
        """
        with isolated(seed, dtype=self.log_var.dtype, device=self.log_var.device), torch.no_grad():
            z = math.sqrt(temperature) * self.std * torch.randn(num, self.dim)
        z = z if active is None else torch.where(active, z, 0.0)
        return Latents(z, torch.zeros(num, dtype=torch.long, device=z.device))

    @torch.no_grad()
    def update(self, codes: Tensor, *, concentration: float = 0.0, rate: float = 0.0) -> None:
        r"""Set the variances from codes ``(n, d)``, draws of an encoder, in closed form.

        .. math:: \hat\sigma_l^2 = b_l / a, \qquad a = a_0 + \tfrac n2, \qquad b_l = b_0 + \tfrac12 \sum_n z_{nl}^2

        Args:
            codes: z.
            concentration: a0, of the Gamma prior of a precision.
            rate: b0.

        Raises:
            DataError: codes of another length, none, or not finite.
        """
        if codes.dim() != 2 or codes.shape[1] != self.dim or not len(codes) or not bool(codes.isfinite().all()):
            raise DataError(
                f"codes: expected finite numbers of shape (n, {self.dim}), got {tuple(codes.shape)}. Pass draws, "
                'fit.sample(1, seed=0)["z"][0].'
            )
        var = (rate + 0.5 * codes.square().sum(0)) / (concentration + 0.5 * len(codes))
        self.log_var.copy_(var.clamp_min(_LEAST_STD**2).log())

    def relevance(self, decoder: Callable[[Tensor], Tensor], codes: Tensor, *, threshold: float = 0.99) -> Relevance:
        """Return how much of what a decoder shows comes from each axis, and the axes that are enough.

        Args:
            decoder: from latent vectors ``(n, d)`` to means of data: ``fit.program.generate``.
            codes: where it is differentiated, ``(n, d)``: ``fit.sites()["z"]``, of which 100 are taken, evenly spaced.
            threshold: share of all score that the active axes have.

        Raises:
            DataError: the threshold is not in (0, 1].
        """
        if not 0 < threshold <= 1:
            raise DataError(f"threshold: expected a share in (0, 1], got {threshold!r}.")
        places = torch.linspace(0, len(codes) - 1, min(len(codes), _AT_ONCE), device=codes.device).round().long()
        codes = codes[places].to(self.log_var)
        with torch.no_grad():
            squares = [derivative.square().flatten(1).sum(-1) for derivative in derivatives(decoder, codes)]
        weight = torch.stack(squares).mean(-1)
        score = weight * self.var
        values, order = score.double().sort(descending=True)  # a small share is not lost in the sum
        before = values.cumsum(0) - values
        enough = before < threshold * values.sum()  # what came before was not
        return Relevance(score, weight, torch.zeros_like(enough).scatter(0, order, enough))

    def active_dims(self, decoder: Callable[[Tensor], Tensor], codes: Tensor, *, threshold: float = 0.99) -> Tensor:
        """Return which axes are active, ``(d,)``: see `relevance`."""
        return self.relevance(decoder, codes, threshold=threshold).active

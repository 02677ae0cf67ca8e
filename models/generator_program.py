"""A trained generator with its mixture prior as a program: from data back to component and latent vector."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from probmix.errors import DataError, ProgramError
from probmix.models.mixture_latent import MixtureLatent
from probmix.trained_networks import require_trained
from probmix.typing import Dims, Generative, Sites

__all__ = ["GeneratorProgram", "generator_program"]

_POOL = 4096  # draws of the generator, of which the nearest to each row are where a search begins
_AT_ONCE = 2**24  # numbers in the largest tensor of a pass over that pool


def generator_program(model: Generative, noise_std: float | Distribution) -> GeneratorProgram:
    r"""Return a trained generator as a program for data x: component k and latent vector z of every row.

    .. math:: k_n \sim \mathrm{Categorical}(w), \qquad z_n \mid k_n \sim N(\mu_{k_n}, \Sigma_{k_n}), \qquad
              x_n \mid z_n \sim N(G(z_n), \sigma^2 I)

    with k summed out, so that the posterior is one of z (and of :math:`\sigma`, if it has a prior); the program's
    ``responsibilities`` are those of k given z. Numbers of x that are NaN are missing: inpainting is inference from the
    others.

    Args:
        model: a trained `MixtureGAN` (``fit.program``), a `MixtureVAE`, or anything with a ``latent`` mixture and a
            ``generate`` that takes latent vectors ``(*n, d)`` to data ``(*n, *shape)``.
        noise_std: :math:`\sigma`, in units of x: how far data may be from what the generator makes. A number, or a
            prior for it, e.g. ``dist.HalfNormal(0.2)``. As a rule of thumb, the root mean square error of
            reconstructions.

    Raises:
        ProgramError: a model that is not trained or has no mixture, or a noise that is not positive.

    Example:
        >>> from probmix.inference import Adversarial, Inversion, infer
        >>> from probmix.models import MixtureGAN, MixtureLatent
        >>> x = torch.randn(500, 2)
        >>> model = MixtureGAN(MixtureLatent(3, 2), value_range=None, width=16)
        >>> trained = infer(model, x, Adversarial(steps=20), seed=0).program
        >>> fit = infer(generator_program(trained, noise_std=0.1), x[:4], Inversion(), seed=0)
        >>> fit.sites()["z"].shape
        torch.Size([4, 2])
    """
    require_trained(model)
    if not isinstance(model.latent, MixtureLatent):
        raise ProgramError(
            f"model: expected a MixtureLatent as the prior, got {type(model.latent).__name__}. Train with one; or "
            "run the model itself: a MixtureVAE is a program too."
        )
    if not isinstance(noise_std, Distribution) and not 0 < noise_std < math.inf:
        raise ProgramError(
            f"noise_std: expected a positive number, or a distribution, got {noise_std!r}. It is in units of the data."
        )
    constant = copy.deepcopy(model).eval().requires_grad_(False) if isinstance(model, nn.Module) else model
    return GeneratorProgram(constant, noise_std)


@dataclass(frozen=True, eq=False)
class GeneratorProgram:
    """The program that `generator_program` returns; the example is there.

    Args:
        model: a trained generator with a latent mixture.
        noise_std: a number or its prior.

    Example:
        >>> GeneratorProgram.__name__  # made by `generator_program`, whose example shows one
        'GeneratorProgram'
    """

    model: Any
    noise_std: float | Distribution

    def __call__(self, x: Tensor) -> None:
        """Run the program."""
        std: Any = self.noise_std  # a number, or a law of Pyro's
        if isinstance(self.noise_std, Distribution):
            std = pyro.sample("noise_std", std)
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", self.model.latent.distribution())
            pyro.deterministic("responsibilities", self.model.latent.responsibilities(z), event_dim=1)
            mean = pyro.deterministic("reconstruction", self.model.generate(z), event_dim=x.dim() - 1)
            noise = dist.Normal(mean, std).mask(x.isfinite())
            pyro.sample("x", noise.to_event(x.dim() - 1), obs=x.nan_to_num())

    @property
    def dims(self) -> Dims:
        """Site name -> axis names; the components are those of a prior that is given, not to be relabelled."""
        return {"noise_std": (), "z": ("row", "latent"), "responsibilities": ("row", "prior_component")}

    def observe(self, x: Tensor) -> Tensor:
        """Check the data once, before a fit.

        Raises:
            DataError: of another shape than what the generator makes, infinite, or rows without any number.
        """
        latent = self.model.latent
        x = x.to(latent.loc.dtype)
        with torch.no_grad():
            shape = self.model.generate(latent.loc[:1]).shape[1:]
        if x.shape[1:] != shape or not len(x):
            raise DataError(
                f"x: expected data of shape (n, {', '.join(map(str, shape))}), as the generator makes them, got "
                f"{tuple(x.shape)}. A single one is x[None]."
            )
        if x.isinf().any():
            raise DataError(
                "x: expected finite numbers, or NaN where they are missing, got infinity. Mask them by NaN."
            )
        empty = x.flatten(1).isnan().all(-1).nonzero()
        if len(empty):
            raise DataError(
                f"x: expected at least one number in each row, but all of row {int(empty[0, 0])} are NaN. Drop it: its "
                "posterior is the prior."
            )
        return x

    # -- of any row by itself, for starts and inversion ---------------------------------------------------------------

    def log_joint_rows(self, x: Tensor, z: Tensor) -> Tensor:
        """Return ``log p(x, z)`` of latent vectors ``(*b, n, d)`` for rows ``(n, *shape)``, ``(*b, n)``.

        Raises:
            ProgramError: the noise has a prior, so that rows are not independent.
        """
        return self.log_likelihood_rows(x, self.model.generate(z)) + self.model.latent.log_prob(z)

    def log_likelihood_rows(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the log density of rows ``(n, *shape)`` given what the generator makes, ``(*b, n, *shape)``."""
        std, known = self.fixed_noise_std, x.isfinite()
        square = ((x.nan_to_num() - mean) / std).square().where(known, 0).flatten(mean.dim() - x.dim() + 1)
        count = known.flatten(1).sum(-1)
        return -0.5 * square.sum(-1) - count * (math.log(std) + 0.5 * math.log(2 * math.pi))

    @property
    def fixed_noise_std(self) -> float:
        """The noise, where it is a number.

        Raises:
            ProgramError: it has a prior.
        """
        if isinstance(self.noise_std, Distribution):
            raise ProgramError(
                "noise_std: expected a number, got a prior, under which rows are not independent. Fix it, e.g. at the "
                'value of a fit: fit.sites()["noise_std"].'
            )
        return float(self.noise_std)

    @property
    def start_names(self) -> tuple[str, ...]:
        """Names of the ways to guess."""
        return ("nearest",)

    def starts(self, name: str, num: int, x: Tensor) -> Sites:
        """Return guesses: for each row the latent vectors, of 4,096 draws, whose data are nearest to it.

        Guess i is the i-th nearest of every row. Uses torch's global generator.
        """
        z = self.nearest(num, x)
        if not isinstance(self.noise_std, Distribution):
            return {"z": z}
        return {"z": z, "noise_std": self.noise_std.sample(torch.Size([num])).to(x)}

    @torch.no_grad()
    def nearest(self, num: int, x: Tensor, *, each_component: bool = False) -> Tensor:
        """Return the nearest of 4,096 draws to each row ``(num, n, d)``, nearest first.

        Args:
            num: at most 4,096.
            x: rows, NaN where numbers are missing.
            each_component: of each component the nearest ``num`` by itself, ``(num * K, n, d)``.
        """
        latent = self.model.latent
        size = -(-_POOL // latent.num_components) * latent.num_components
        every = torch.arange(latent.num_components, device=x.device).repeat(size // latent.num_components)
        z = latent.rsample(size, component=every if each_component else None).z
        pool = torch.cat([self.model.generate(rows).flatten(1) for rows in z.split(1000)])
        known, flat = x.isfinite().flatten(1).to(x.dtype), x.nan_to_num().flatten(1)
        found = []
        for rows in torch.arange(len(x), device=x.device).split(max(1, _AT_ONCE // size)):
            seen = known[rows]
            square = flat[rows].square().sum(-1, keepdim=True) + seen @ pool.square().T - 2 * flat[rows] @ pool.T
            found.append(self._smallest(square, num, each_component))
        return z[torch.cat(found, 1)]

    def _smallest(self, square: Tensor, num: int, each_component: bool) -> Tensor:
        """Return indices of the smallest of each row ``(n, pool)``, ``(num, n)``."""
        num_groups = self.model.latent.num_components if each_component else 1
        best = square.unflatten(1, (-1, num_groups)).topk(num, dim=1, largest=False).indices  # of draws i * K + k
        return (best * num_groups + torch.arange(num_groups, device=square.device)).flatten(1).T

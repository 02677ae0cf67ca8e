"""Variational autoencoders whose latent vectors come from a mixture: clusters, classes and new data from one bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from probmix.amortised_guide import AmortisedGuide
from probmix.collapse import ACTIVE_VAR, Collapse
from probmix.decoder_likelihoods import decoder_likelihood
from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.mixture_bound import class_log_prob, divergence, divergence_by_axis, log_prob_classes
from probmix.models.ard_latent import ARDLatent
from probmix.models.factored_latent import FactoredLatent
from probmix.models.mixture_latent import MixtureLatent
from probmix.scale_mixture_guide import normal_points
from probmix.trained_networks import (
    ROWS,
    Codes,
    Generated,
    checked_labels,
    checked_rows,
    in_blocks,
    networks_for,
    with_parameters,
)
from probmix.typing import OwnSettings, Sites

__all__ = ["MixtureVAE"]

_DECODES = 100_000  # for the last ELBO
_POINTS = 32  # of the normal of a row, over which responsibilities are averaged
_LARGEST_LOG_STD = 10.0  # of a code, either way: a wild step of an optimiser does not end in infinity


class MixtureVAE(nn.Module):
    r"""A variational autoencoder with a mixture of normals as its prior, whose component is summed out exactly.

    .. math:: k \sim \mathrm{Categorical}(w), \quad z \mid k \sim N(\mu_k, \Sigma_k), \quad
              x \mid z \sim p(x \mid \mathrm{decoder}(z)), \quad
              q(z \mid x) = N(m(x), \mathrm{diag} \, s^2(x))

    .. math:: \log p(x) \ge E_{q(z \mid x)}\Big[\log p(x \mid z) + \log \sum_k w_k N(z; \mu_k, \Sigma_k)
              - \log q(z \mid x)\Big]

    Fit it by ``infer(vae, x, SVI(batch_size=128), seed=0)``: networks, prior and noise together, by Adam. The model
    that you pass stays as it is; ``fit.program`` is the trained one, and fitting that again goes on from there. Data
    are rows ``(n, d)`` or images ``(n, channels, height, width)``.

    One component is the usual autoencoder. VaDE (Jiang et al. 2017) has a second approximation, q(k | x), and a bound
    that is lower by :math:`E_q \mathrm{KL}(q(k \mid x) \,\|\, p(k \mid z))`; here none is needed, and what a cluster is
    follows from the prior: `responsibilities`. A mixture that starts at random next to networks that do easily merges
    all data into few components: train with one component first, fit a `GaussianMixture` to the means of the codes by
    `EM()`, and go on from `with_prior`. Clusters depend on the covariances of that mixture: on MNIST ten components of
    ``"EEV"``, one volume and shape, match 0.85 to 0.94 of the classes over three seeds, of ``"full"`` 0.68 to 0.78.

    Labels: with a prior that has ``labels``, pass ``(x, y)``, where y is -1 for rows whose class is not known. The sum
    of a labelled row is over the components of its class, so that the bound is one of log p(x, y); and ``class_weight``
    times the mean of log p(y | z) over the labelled rows is added to the bound of every row in training, whether it has
    a label or not. Where some have none, that mean is over a second mini-batch, of labelled rows. Several priors: a
    `FactoredLatent`, or a sequence, of independent parts, and data ``(x, y1, y2, ...)``.

    As a program it is ``z`` (``z1``, ``z2``, ... with several parts) and ``x`` for each row, with the networks
    constant: for held-out rows any other method, such as `NUTS()`, says what their latent vectors are.

    Args:
        latent: the prior of z; a sequence of them becomes a `FactoredLatent`.
        encoder: any network from data to ``(n, 2 d)``: means and log standard deviations. None: one of
            `probmix.networks`, made when a fit starts, from its seed.
        decoder: any network from ``(n, d)`` to data: log odds of pixels, or means. None: likewise.
        likelihood: ``"bernoulli"`` for pixels from 0 to 1; ``"normal"`` for any numbers.
        noise_std: standard deviation of the normal noise; None: learnt.
        width: units of a hidden layer of the default networks.
        class_weight: of the classification of labelled rows, in training, nats for each row. On MNIST with one label in
            twenty, 1 leaves test accuracy 0.03 lower than 10 does, 50 gains less than 0.01 more and costs 3 nats of the
            bound.
        divergence_weight: of the divergence, in training; 1 is the bound. Below, codes are freer.

    Attributes:
        shape: of one row of data, ``(d,)`` or ``(channels, height, width)``; None before a fit.

    Raises:
        ProgramError: a setting out of its range; from a fit, a network whose output has another shape.
        DataError: from a fit, data that are not as above.

    Source:
        Kingma and Welling (2014); Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding; Luo, Agres and
        Herremans (2019) for supervised components and several parts; Kingma, Rezende, Mohamed and Welling (2014) for
        the classification term; Higgins et al. (2017) for the weight of the divergence.

    Example:
        >>> from probmix.datasets import load_iris
        >>> from probmix.inference import SVI, infer
        >>> x = load_iris().x
        >>> vae = MixtureVAE(MixtureLatent(3, 2, dynamic=True), likelihood="normal", width=16)
        >>> fit = infer(vae, x, SVI(batch_size=50, learning_rate=0.01, window=20), seed=0)
        >>> fit.program.encode(x).loc.shape, fit.program.responsibilities(x).shape
        (torch.Size([150, 2]), torch.Size([150, 3]))
        >>> fit.program.sample(10, seed=0).x.shape
        torch.Size([10, 4])
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        latent: MixtureLatent | ARDLatent | FactoredLatent | Sequence[MixtureLatent | ARDLatent],
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        *,
        likelihood: Literal["bernoulli", "normal"] = "bernoulli",
        noise_std: float | None = None,
        width: int = 256,
        class_weight: float = 10.0,
        divergence_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check(width, class_weight, divergence_weight)
        self.latent = latent if isinstance(latent, nn.Module) else FactoredLatent(*latent)
        self.register_module("encoder", encoder)
        self.register_module("decoder", decoder)
        self.likelihood = decoder_likelihood(likelihood, noise_std)
        self.width, self.class_weight, self.divergence_weight = width, class_weight, divergence_weight
        self.shape: tuple[int, ...] | None = None
        self._labelled: tuple[Tensor, ...] | None = None  # rows of a fit with labels, where others have none
        self._learnt: Sites | None = None  # parameters of a fit

    @property
    def parts(self) -> tuple[Any, ...]:
        """The priors of the parts of the latent vector: one, or those of a `FactoredLatent`."""
        return tuple(self.latent.parts) if isinstance(self.latent, FactoredLatent) else (self.latent,)

    # -- the program ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *y: Tensor) -> None:
        """Run the program, its networks constant."""
        self._with_constants(MixtureVAE._statements, x, *y)

    def observe(self, x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        """Check the data once, before a fit.

        Raises:
            DataError: not as the class says.
        """
        x = checked_rows(x)
        self.likelihood.check(x)
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise DataError(f"x: expected rows of shape {self.shape}, as in the fit before, got {tuple(x.shape[1:])}.")
        if not y:
            return (x,)
        names = [name.replace("z", "y") for name in self._sizes]
        if len(y) != len(self.parts) or any(part.labels is None for part in self.parts):
            raise DataError(
                f"expected x or (x, {', '.join(names)}), got {len(y)} tables of labels and "
                f"{sum(part.labels is not None for part in self.parts)} priors with labels. Give every prior `labels`, "
                "the class of each component, and pass one table for each part."
            )
        tables = zip(names, y, self.parts, strict=True)
        return (x, *(checked_labels(name, table, len(x), part.num_classes) for name, table, part in tables))

    # -- what SVI asks for ------------------------------------------------------------------------------------------

    def svi_settings(self, num_rows: int) -> OwnSettings:
        """Return one draw for each row in a step, and for the last ELBO some 100,000 in all, two for a row at least."""
        return OwnSettings(num_particles=1, last_particles=min(1000, max(2, _DECODES // num_rows)), learning_rate=1e-3)

    def first_parameters(self, x: Tensor, *y: Tensor) -> Sites:
        """Return what is to be learnt; makes the default networks of this model where it has none yet."""
        self._build(x)
        self.likelihood.start(x)
        known = (torch.stack(y) >= 0).any(0) if y else torch.ones(1, dtype=torch.bool)
        self._labelled = None if bool(known.all()) else tuple(table[known] for table in (x, *y))
        self.train()
        self._learnt = {name: value for name, value in self.named_parameters() if value.requires_grad}
        return self._learnt

    def elbo(self, parameters: Sites, x: Tensor, *y: Tensor, num_rows: int, num_particles: int) -> Tensor:
        """Return independent estimates ``(num_particles,)`` of the bound, from some of the rows.

        In training mode with the weights of the settings; in evaluation mode, as after a fit, without any.
        """
        if parameters is self._learnt:  # there is nothing to put in their place
            bounds = self._bounds(num_particles, x, *y)
        else:
            bounds = with_parameters(self, parameters, MixtureVAE._bounds, num_particles, x, *y)
        return num_rows / len(x) * bounds.sum(-1)

    def guide(self, parameters: Sites, x: Tensor, *y: Tensor) -> AmortisedGuide:
        """Return the codes of all rows, with everything that was fitted."""
        assert self.shape is not None
        state = {name: value.detach().clone() for name, value in {**self.state_dict(), **parameters}.items()}
        unknown = AmortisedGuide(x.new_zeros(0), x.new_zeros(0), state, self.shape, self._sizes)
        return AmortisedGuide(*self.fitted(unknown).encode(x), state, self.shape, self._sizes)

    def fitted(self, guide: Any) -> Self:
        """Return a copy with the parameters that a guide holds, in evaluation mode.

        Raises:
            ProgramError: they are those of other networks.
        """
        if not isinstance(guide, AmortisedGuide):
            return self
        program, like = copy.deepcopy(self), next(iter(guide.parameters.values()))
        program._labelled = program._learnt = None
        with isolated(0, dtype=guide.loc.dtype, device=like.device):
            program._build(guide.loc.new_zeros(1, *guide.shape))
        try:
            program.load_state_dict(guide.parameters)
        except RuntimeError as reason:
            raise ProgramError(
                f"expected the networks and the prior of the fit, got others: {reason}. Make the MixtureVAE with the "
                "settings of the fit."
            ) from reason
        return program.eval()

    # -- codes ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor) -> Codes:
        """Return the normals of the latent vectors of rows ``(n, *shape)``.

        Raises:
            ProgramError: before a fit.
            DataError: rows of another shape.
        """
        return Codes(*in_blocks(self._code, self._rows(x)))

    @torch.no_grad()
    def responsibilities(self, x: Tensor, *, part: int = 0) -> Tensor:
        r"""Return the probability of every component, :math:`E_{q(z \mid x)} \, p(k \mid z)`, ``(n, K)``.

        The mean over 32 points of the normal, always the same, so that an unsure code has an unsure component.

        Args:
            x: rows ``(n, *shape)``.
            part: which prior, of several.
        """
        prior, points = self.parts[part], normal_points(_POINTS, self.latent.dim)

        def of(rows: Tensor) -> tuple[Tensor]:
            loc, std = self._code(rows)
            z = self._pieces(loc + std * points.to(loc)[:, None])[part]
            return (prior.log_prob_components(z).softmax(-1).mean(0),)

        return in_blocks(of, self._rows(x))[0]

    def class_probabilities(self, x: Tensor, *, part: int = 0) -> Tensor:
        """Return the probability of every class, ``(n, num_classes)``: summed over its components.

        Raises:
            ProgramError: the prior has no labels.
        """
        prior = self.parts[part]
        if prior.labels is None:
            raise ProgramError("expected a prior with labels, got none. Components are clusters: see responsibilities.")
        responsibilities = self.responsibilities(x, part=part)
        of_class = torch.nn.functional.one_hot(prior.labels, prior.num_classes).to(responsibilities)
        return responsibilities @ of_class

    def predict(self, x: Tensor, *, part: int = 0) -> Tensor:
        """Return the likeliest class of every row, ``(n,)``; the likeliest component where the prior has no labels."""
        labelled = self.parts[part].labels is not None
        return (self.class_probabilities if labelled else self.responsibilities)(x, part=part).argmax(-1)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, *, draws: int = 100, seed: int) -> Tensor:
        r"""Return estimates of log p(x), ``(n,)``, nats, by importance sampling.

        .. math:: \log \frac1S \sum_s \frac{p(x \mid z_s) \, p(z_s)}{q(z_s \mid x)}, \qquad z_s \sim q(z \mid x)

        On average it is below log p(x), above the bound, and rises with the number of draws.

        Args:
            x: rows ``(n, *shape)``.
            draws: S.
            seed: the same seed gives the same draws.

        Source:
            Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
        """
        x = self._rows(x)

        def of(rows: Tensor) -> tuple[Tensor]:
            loc, std = self._code(rows)
            z = loc + std * torch.randn(draws, *loc.shape, dtype=loc.dtype, device=loc.device)
            log_q = dist.Normal(loc, std, validate_args=False).log_prob(z).sum(-1)
            log_ratio = self.likelihood.log_prob(self._decoded(z), rows) + self.latent.log_prob(z) - log_q
            return (log_ratio.logsumexp(0) - math.log(draws),)

        with isolated(seed, dtype=x.dtype, device=x.device):
            return in_blocks(of, x, max(1, 10 * ROWS // draws))[0]

    @torch.no_grad()
    def collapse(self, x: Tensor, *, part: int = 0) -> Collapse:
        """Return which axes and components carry anything of rows ``(n, *shape)``; ``print`` says what to do."""
        prior, codes, r = self.parts[part], self.encode(x), self.responsibilities(x, part=part)
        loc, std = (self._pieces(value)[part] for value in codes)
        spread = loc.var(0) / prior.distribution().variance
        by_component = (r * prior.divergence(loc, std)).sum(0) / r.sum(0)
        merged = (
            prior.separation().merged if isinstance(prior, MixtureLatent) else torch.zeros_like(r[0], dtype=torch.bool)
        )
        by_axis = divergence_by_axis(prior, loc, std, r)
        return Collapse(by_axis, spread, spread > ACTIVE_VAR, r.mean(0), by_component, merged)

    # -- data -------------------------------------------------------------------------------------------------------

    def generate(self, z: Tensor) -> Tensor:
        """Return the mean of the data given latent vectors, ``(*n, d) -> (*n, *shape)``, the network constant."""
        return self._with_constants(MixtureVAE._mean, z)

    @torch.no_grad()
    def sample(
        self, num: int, *, seed: int, component: Any = None, temperature: float = 1.0, noise: bool = False
    ) -> Generated:
        """Return new data.

        Args:
            num: n.
            seed: the same seed gives the same draws.
            component: one for all, or one for each ``(n,)``; None: by their weights; of several parts a tuple of these.
            temperature: factor of the covariances of the prior.
            noise: draw data; else their means.
        """
        z, chosen = self.latent.sample(num, seed=seed, component=component, temperature=temperature)
        x = self.generate(z)
        if noise:
            with isolated(seed, dtype=x.dtype, device=x.device):
                law = lambda rows: (self.likelihood.distribution(self._decoded(rows), x.dim() - 1).sample(),)  # noqa: E731
                x = in_blocks(law, z)[0]
        return Generated(x, z, chosen)

    @torch.no_grad()
    def recombine(self, *x: Tensor) -> Tensor:
        """Return the means of data whose parts of the latent vector come from different rows, ``(n, *shape)``.

        Args:
            x: rows ``(n, *shape)`` for each part: of the first, the first part of their code, and so on.

        Raises:
            DataError: another number of tables, or of other lengths.
        """
        if len(x) != len(self.parts) or len({len(rows) for rows in x}) > 1:
            raise DataError(
                f"expected {len(self.parts)} tables of as many rows, one for each part of the latent vector, got "
                f"{[len(rows) for rows in x]} rows."
            )
        pieces = [self._pieces(self.encode(rows).loc)[part] for part, rows in enumerate(x)]
        return self.generate(torch.cat(pieces, -1))

    def with_prior(
        self, prior: MixtureLatent | Mapping[str, Tensor], codes: Codes | None = None, **settings: Any
    ) -> Self:
        """Return a copy with another mixture as its prior, such as one that was fitted to the means of its codes.

        Args:
            prior: the mixture, or the sites of a fitted `probmix.models.GaussianMixture`.
            codes: those to whose means it was fitted: the variance that they have themselves is added to its
                covariances. Without it components are too narrow, and rows have next to no component of their own.
            settings: of `MixtureLatent.from_sites`, such as ``learn_weights`` and ``labels``.

        Raises:
            ProgramError: it is of vectors of another length, or this model has several parts.

        Example:
            >>> from probmix.datasets import load_iris
            >>> from probmix.inference import EM, SVI, infer
            >>> from probmix.models import GaussianMixture
            >>> x, quick = load_iris().x, SVI(batch_size=50, learning_rate=0.01, window=20)
            >>> vae = MixtureVAE(MixtureLatent(1, 2, component_std=1.0), likelihood="normal", width=16)
            >>> alone = infer(vae, x, quick, seed=0)
            >>> codes = alone.program.encode(x)
            >>> em = infer(GaussianMixture(3), codes.loc, EM(), seed=0)
            >>> joint = infer(alone.program.with_prior(em.sites(), codes, learn_weights=True), x, quick, seed=0)
            >>> joint.program.responsibilities(x).shape
            torch.Size([150, 3])
        """
        if isinstance(prior, Mapping):
            own_var = None if codes is None else codes.std.square().mean(0)
            prior = MixtureLatent.from_sites(prior, added_var=own_var, **settings)
        if len(self.parts) > 1 or prior.dim != self.latent.dim:
            raise ProgramError(
                f"prior: expected one of vectors of length {self.latent.dim}, in one part, got length {prior.dim} for "
                f"{len(self.parts)} parts. Fit it to the codes of this model."
            )
        other = copy.deepcopy(self)
        other.latent = copy.deepcopy(prior).to(next(self.latent.parameters()))
        return other

    # -- the rest ---------------------------------------------------------------------------------------------------

    def _with_constants(self, method: Any, *args: Tensor) -> Any:
        """Return what a method gives while no parameter has a gradient."""
        constants = {name: value.detach() for name, value in self._ready().named_parameters()}
        return with_parameters(self, constants, method, *args)

    def _mean(self, z: Tensor) -> Tensor:
        means = in_blocks(lambda rows: (self.likelihood.mean(self._decoded(rows)),), z.reshape(-1, z.shape[-1]))[0]
        return means.reshape(*z.shape[:-1], *means.shape[1:])

    def _bounds(self, num: int, x: Tensor, *y: Tensor) -> Tensor:
        """Return estimates of the bound of every row, ``(num, n)``."""
        loc, std = self._code(x)
        z = loc + std * torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)
        bounds, tables = self.likelihood.log_prob(self._decoded(z), x), y or (None,) * len(self.parts)
        pieces = [self._pieces(value) for value in (loc, std, z)]
        for prior, part_loc, part_std, part_z, labels in zip(self.parts, *pieces, tables, strict=True):
            lost = divergence(prior, part_loc, part_std, part_z, labels)
            bounds = bounds - (self.divergence_weight if self.training else 1.0) * lost
        return bounds + self._class_log_prob(z, y) if y and self.training and self.class_weight else bounds

    def _class_log_prob(self, z: Tensor, y: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted mean of log p(y | z) over labelled rows, ``()``.

        Where only some rows have labels, few of a batch do: then those of a second batch, from the labelled rows alone.
        """
        if self._labelled is not None and len(self._labelled[0]):
            rows = torch.randint(len(self._labelled[0]), z.shape[1:2], device=z.device)
            x, *labels = (table[rows] for table in self._labelled)
            loc, std = self._code(x)
            z, y = (loc + std * torch.randn_like(std))[None], tuple(labels)
        each = [
            class_log_prob(prior, piece, table).sum() / (len(z) * (table >= 0).sum().clamp_min(1))
            for prior, piece, table in zip(self.parts, self._pieces(z), y, strict=True)
        ]
        return self.class_weight * torch.stack(each).sum()

    def _statements(self, x: Tensor, *y: Tensor) -> None:
        names, tables = self._sizes, y or (None,) * len(self.parts)
        with pyro.plate("row", len(x)):
            laws = zip(names, self.parts, strict=True)
            pieces = [pyro.sample(name, prior.distribution()) for name, prior in laws]
            law: Any = self.likelihood.distribution(self._decoded(torch.cat(pieces, -1)), x.dim() - 1)
            pyro.sample("x", law, obs=x)
            for name, prior, z, labels in zip(names, self.parts, pieces, tables, strict=True):
                if labels is not None:
                    law_of_class = dist.Categorical(logits=log_prob_classes(prior, z))
                    known: Any = labels >= 0
                    with poutine.mask(mask=known):
                        pyro.sample(name.replace("z", "y"), law_of_class, obs=labels.clamp_min(0))

    @property
    def _sizes(self) -> dict[str, int]:
        """Names of the latent sites and their lengths."""
        several = len(self.parts) > 1
        return {f"z{i + 1}" if several else "z": part.dim for i, part in enumerate(self.parts)}

    def _code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.encoder(x).chunk(2, -1)
        return loc, log_std.clamp(-_LARGEST_LOG_STD, _LARGEST_LOG_STD).exp()

    def _decoded(self, z: Tensor) -> Tensor:
        """Return outputs of the decoder ``(*b, n, *shape)`` for vectors ``(*b, n, d)``."""
        return self.decoder(z.reshape(-1, z.shape[-1])).unflatten(0, z.shape[:-1])

    def _pieces(self, z: Tensor) -> tuple[Tensor, ...]:
        return self.latent.split(z) if isinstance(self.latent, FactoredLatent) else (z,)

    def _build(self, x: Tensor) -> None:
        """Make what is missing, in the dtype and on the device of the data."""
        networks = networks_for(x, self.latent.dim, self.encoder, self.decoder, self.width)
        self.encoder, self.decoder = networks
        self.shape = tuple(x.shape[1:])
        self.to(x)

    def _ready(self) -> Self:
        if self.shape is None:
            raise ProgramError(
                "expected a fitted model, got one whose networks do not know the data yet. Fit it, "
                "infer(vae, x, SVI(batch_size=128), seed=0), and take fit.program."
            )
        return self

    def _rows(self, x: Tensor) -> Tensor:
        shape, x = self._ready().shape, torch.as_tensor(x).to(next(self.parameters()))
        if tuple(x.shape[1:]) != shape:
            raise DataError(
                f"x: expected rows of shape {shape}, as in the fit, got {tuple(x.shape)}. A single row is x[None]."
            )
        return x


def _check(width: int, class_weight: float, divergence_weight: float) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ProgramError(f"width: expected a whole number of at least 1, got {width!r}.")
    for name, weight in (("class_weight", class_weight), ("divergence_weight", divergence_weight)):
        if not 0 <= weight < math.inf:
            raise ProgramError(f"{name}: expected a number of at least 0, got {weight!r}.")

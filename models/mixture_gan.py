"""Generative adversarial networks whose latent vectors come from a mixture of Gaussians."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from probmix.errors import DataError, ProgramError
from probmix.isolation import isolated
from probmix.models.mixture_latent import MixtureLatent
from probmix.networks import Bounded, decoder_network, encoder_network
from probmix.trained_networks import Generated, checked_labels, checked_rows, first_where
from probmix.typing import Dims, Sites

__all__ = ["MixtureGAN"]

_ROWS = 1000  # generated or judged at once outside training
_BYTES = 200.0  # values beyond this look like bytes


class MixtureGAN(nn.Module):
    r"""A generator of a mixture of Gaussians, and the discriminator that it is trained against.

    .. math:: k \sim \mathrm{Categorical}(w), \qquad z \mid k \sim N(\mu_k, \Sigma_k), \qquad x = G(z)

    There is no likelihood: `probmix.inference.Adversarial` trains it, and ``fit.program`` is the trained model. For
    inference about the component and latent vector of given data see `probmix.models.generator_program`.

    Supervised training ties components to classes by ``latent.labels``, f. With ``"each_class"`` the discriminator has
    a score for each of the N classes, and the loss looks at :math:`D(x)_y` of real data and at
    :math:`D(G(z))_{f(k)}`. With ``"classes_and_fake"`` it is a classifier of N + 1 classes, the last one for what is
    generated, and the generator wants its data taken for class f(k); this takes the non-saturating loss.

    Args:
        latent: the mixture.
        generator: latent vectors ``(n, d)`` to data ``(n, *shape)``. None: `probmix.networks.decoder_network`, bounded
            to ``value_range``, made at the fit for the shape of the data.
        discriminator: data to scores ``(n, S)``, where S is 1, N or N + 1 as above, plus K with ``recognise``. None:
            `probmix.networks.encoder_network`.
        supervision: None, ``"each_class"`` or ``"classes_and_fake"``; the data are then ``(x, y)``, with labels y from
            0 to N - 1.
        recognise: let the discriminator guess from which component data come, and reward a generator whose
            components can be told apart. This is a bound of their mutual information (Chen et al. 2016), not in the
            paper: without it nothing but the gaps between components makes clusters of them.
        value_range: least and largest value of the data, ``(low, high)``. None: no bounds.
        width: of the default networks.

    Raises:
        ProgramError: a setting out of its range, or supervision without labels.
        DataError: from a fit: data out of the range, not finite, or labels of other classes.

    Source:
        Ben-Yosef and Weinshall (2018), Gaussian mixture generative adversarial networks for diverse datasets, and the
        unsupervised clustering of images. Of its supervised game two descriptions are in circulation; both are here.

    Example:
        >>> from probmix.inference import Adversarial, infer
        >>> x = torch.randn(500, 2)
        >>> model = MixtureGAN(MixtureLatent(3, 4), value_range=None, width=16)
        >>> fit = infer(model, x, Adversarial(steps=20), seed=0)
        >>> fit.program.sample(5, seed=0, temperature=0.5).x.shape
        torch.Size([5, 2])
    """

    has_program = False  # there is no density to be traced

    def __init__(
        self,
        latent: MixtureLatent,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        supervision: Literal["each_class", "classes_and_fake"] | None = None,
        recognise: bool = False,
        value_range: tuple[float, float] | None = (0.0, 1.0),
        width: int = 256,
    ) -> None:
        super().__init__()
        _check(latent, supervision, value_range)
        self.latent, self.generator, self.discriminator = latent, generator, discriminator
        self.supervision, self.recognise = supervision, recognise
        self.value_range, self.width = value_range, width
        self._constant: frozenset[str] | None = None  # of a trained model: parameters that were not learnt

    @property
    def num_scores(self) -> int:
        """Outputs of the discriminator without those that recognise components."""
        classes = self.latent.num_classes or 1
        return {None: 1, "each_class": classes, "classes_and_fake": classes + 1}[self.supervision]

    @property
    def dims(self) -> Dims:
        """No sites: parameters of networks have no axes with names."""
        return {}

    @property
    def observed_dims(self) -> Dims:
        """No names: data have any number of axes."""
        return {}

    def rows(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the data."""
        return x

    @property
    def observe(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        """The check of the data, once, before a fit: of ``x``, or of ``x, y`` where training is supervised.

        Raises:
            DataError: as in the class.
        """
        return self._observe if self.supervision is None else self._observe_labelled

    def built_for(self, x: Tensor, y: Tensor | None = None) -> Self:
        """Return a copy with networks for data of this shape, dtype and device, made from torch's global generator.

        Of a trained model the parameters that were learnt will be learnt again.

        Raises:
            ProgramError: a network of the user's gives another shape than it should.
        """
        model = copy.deepcopy(self).to(x)
        shape, outputs = x.shape[1:], self.num_scores + self.recognise * self.latent.num_components
        if model.generator is None:
            network = decoder_network(self.latent.dim, shape, width=self.width)
            model.generator = network if self.value_range is None else nn.Sequential(network, Bounded(self.value_range))
        if model.discriminator is None:
            model.discriminator = encoder_network(shape, outputs, width=self.width)
        model.to(x)
        if model._constant is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in model._constant)
        with torch.no_grad():
            _require_shape("generator", model.generator, model.latent.rsample(2).z, (2, *shape))
            _require_shape("discriminator", model.discriminator, x[:2], (len(x[:2]), outputs))
        return model

    def with_parameters(self, parameters: Sites, x: Tensor, y: Tensor | None = None) -> Self:
        """Return a copy with these parameters, for data of this shape; a saved fit is read back with it.

        Raises:
            ProgramError: they are those of other networks.
        """
        with isolated(0, dtype=x.dtype, device=x.device):
            model = self.built_for(x)
        try:
            model.load_state_dict(parameters)
        except RuntimeError as reason:
            raise ProgramError(
                f"expected the networks that were fitted, got others: {str(reason).splitlines()[-1].strip()}. "
                "Pass a model with the same settings and networks."
            ) from reason
        return model.frozen()

    def frozen(self) -> Self:
        """Return this model as it is to be used: in evaluation mode, all parameters constant."""
        constant = frozenset(name for name, value in self.named_parameters() if not value.requires_grad)
        self._constant = self._constant if self._constant is not None else constant
        return self.eval().requires_grad_(False)

    # -- generated data ---------------------------------------------------------------------------------------------

    def forward(self, z: Tensor) -> Tensor:
        """Return data ``(n, *shape)`` of latent vectors ``(n, d)``."""
        if self.generator is None:
            raise ProgramError(
                "expected a trained model, got one without networks. Fit it by infer(model, x, Adversarial(), seed=0) "
                "and take fit.program."
            )
        return self.generator(z)

    def generate(self, z: Tensor) -> Tensor:
        """Return data ``(*n, *shape)`` of latent vectors ``(*n, d)``."""
        data = self(z.reshape(-1, z.shape[-1]))
        return data.reshape(*z.shape[:-1], *data.shape[1:])

    def rsample(self, num: int) -> Generated:
        """Return generated data with gradients, from torch's global generator; components are stratified."""
        z, component = self.latent.rsample(num)
        return Generated(self(z), z, component)

    def sample(
        self, num: int, *, seed: int, component: int | Tensor | None = None, temperature: float = 1.0
    ) -> Generated:
        """Return generated data, without gradients, from a seed; arguments as for `MixtureLatent.sample`.

        Each component has its share to within one, so that samples are more even than independent draws would be.

        Args:
            num: n.
            seed: the same seed gives the same data.
            component: one for all, or one for each ``(n,)``; None: by their weights, stratified.
            temperature: 1 is that of training; above, data are more diverse, below, more typical.

        Raises:
            DataError: components that there are not.
            ProgramError: the model is not trained.
        """
        z, chosen = self.latent.sample(num, seed=seed, component=component, temperature=temperature)
        with torch.no_grad():
            return Generated(torch.cat([self(rows) for rows in z.split(_ROWS)]), z, chosen)

    # -- what the discriminator says, of its outputs (n, S) -----------------------------------------------------------

    def judge(self, x: Tensor) -> Tensor:
        """Return the outputs of the discriminator, ``(n, S)``."""
        assert self.discriminator is not None
        return self.discriminator(x)

    def real_score(self, outputs: Tensor, label: Tensor | None) -> Tensor:
        """Return the scores of real data with these labels as real data of their class, ``(n,)``."""
        scores = outputs[:, : self.num_scores]
        if self.supervision is None:
            return scores.squeeze(-1)
        assert label is not None
        own = scores.gather(-1, label[:, None]).squeeze(-1)
        if self.supervision == "each_class":
            return own
        others = scores.scatter(-1, label[:, None], -torch.inf)
        return own - others.logsumexp(-1)  # the log odds, whose softplus(-) is the cross-entropy

    def fake_score(self, outputs: Tensor, component: Tensor) -> Tensor:
        """Return the scores of generated data as real data, which the discriminator lowers, ``(n,)``."""
        if self.supervision == "classes_and_fake":
            scores = outputs[:, : self.num_scores]
            return scores[:, :-1].logsumexp(-1) - scores[:, -1]
        return self.wanted_score(outputs, component)

    def wanted_score(self, outputs: Tensor, component: Tensor) -> Tensor:
        """Return the scores of generated data as real data of their class, which the generator raises, ``(n,)``."""
        labels = self.latent.labels
        return self.real_score(outputs, None if self.supervision is None or labels is None else labels[component])

    def component_logits(self, outputs: Tensor) -> Tensor:
        """Return the log probabilities, but for a constant, of every component, ``(n, K)``; needs ``recognise``."""
        return outputs[:, self.num_scores :]

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the probability of every component given data, as the discriminator recognises them, ``(n, K)``.

        Raises:
            ProgramError: the model was not trained with ``recognise=True``.
        """
        if not self.recognise:
            raise ProgramError(
                "expected a model trained with recognise=True, got one whose discriminator does not know components. "
                "Invert the generator instead: generator_program(model, noise_std)."
            )
        with torch.no_grad():
            blocks = [self.component_logits(self.judge(rows)).softmax(-1) for rows in x.split(_ROWS)]
        return torch.cat(blocks)

    # The rest.

    def _observe(self, x: Tensor) -> Tensor:
        if x.dim() not in (2, 4) or not len(x):
            raise DataError(
                f"x: expected rows (n, d) or images (n, channels, height, width), got shape {tuple(x.shape)}. "
                "Add a channel to images by x[:, None]."
            )
        x = checked_rows(x)
        if self.value_range is not None:
            low, high = self.value_range
            if bad := first_where(x, (x < low) | (x > high)):
                row, value = bad
                remedy = "Bytes are brought to that range by x / 255" if value > _BYTES else "Rescale the data"
                raise DataError(
                    f"x: expected values from {low:g} to {high:g}, got {value:g} in row {row}. {remedy}, or set "
                    "value_range=(low, high), or None for data without bounds."
                )
        return x

    def _observe_labelled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._observe(x), checked_labels("y", y, len(x), self.latent.num_classes or 0, some_unknown=False)


def _check(latent: MixtureLatent, supervision: str | None, value_range: tuple[float, float] | None) -> None:
    if supervision not in (None, "each_class", "classes_and_fake"):
        raise ProgramError(
            f'supervision: expected None, "each_class" or "classes_and_fake", got {supervision!r}. None is training '
            "without labels."
        )
    if supervision is not None and latent.num_classes is None:
        raise ProgramError(
            "supervision: expected a latent mixture whose components have classes, got one without. Pass labels= to "
            "MixtureLatent, e.g. labels=range(10) for a component for each of ten classes."
        )
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ProgramError(f"value_range: expected None or (low, high) with low < high, got {value_range!r}.")


def _require_shape(name: str, network: nn.Module, inputs: Tensor, expected: tuple[int, ...]) -> None:
    try:
        found = tuple(network(inputs).shape)
    except RuntimeError as reason:
        raise ProgramError(
            f"{name}: expected a network that takes {tuple(inputs.shape)} to {expected}, but it failed: "
            f"{str(reason).splitlines()[0]}. Change its first layer."
        ) from reason
    if found != expected:
        raise ProgramError(
            f"{name}: expected a network that takes {tuple(inputs.shape)} to {expected}, got {found}. Change its last "
            "layer" + (", or the shape of the data." if name == "generator" else ".")
        )

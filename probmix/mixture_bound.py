"""Divergence of normals from a mixture of normals, its component summed out; and from those of one class."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ComponentPrior", "class_log_prob", "divergence", "divergence_by_axis", "log_prob_classes", "within_class"]


class ComponentPrior(Protocol):
    """What the prior of a latent vector tells of its K components."""

    num_components: int
    num_classes: int | None
    dim: int
    labels: Tensor | None
    logits: Tensor

    @property
    def loc(self) -> Tensor:
        """Locations, ``(K, d)``."""
        ...

    @property
    def std(self) -> Tensor:
        """Standard deviations along the axes, ``(K, d)``."""
        ...

    def log_prob_components(self, z: Tensor) -> Tensor:
        """Return log weight plus log density, ``(*n, d) -> (*n, K)``."""
        ...

    def divergence(self, loc: Tensor, std: Tensor) -> Tensor:
        """Return the divergence of diagonal normals from every component, ``(*n, K)``."""
        ...


def divergence(prior: ComponentPrior, loc: Tensor, std: Tensor, z: Tensor, y: Tensor | None) -> Tensor:
    r"""Return unbiased estimates of the divergence of normals q from a mixture, one for each draw, ``(j, n)``.

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_k r_k \big(\mathrm{KL}(q \,\|\, p_k) - \log w_k\big)
              + E_q\Big[\sum_k r_k \log p(k \mid z)\Big]

    for any r that sums to one: that is Bayes' rule, :math:`\log p(z) = \log w_k p_k(z) - \log p(k \mid z)`, averaged
    over k. The first part is exact, and :math:`r_k \propto w_k e^{-\mathrm{KL}(q \| p_k)}` leaves least to chance in
    the second; nothing where there is one component. The bound of VaDE (Jiang et al. 2017) with that r as its q(k | x),
    the best there is, has a larger divergence, by :math:`E_q \mathrm{KL}(r \,\|\, p(\cdot \mid z))`: here the component
    is summed out, not approximated.

    Args:
        prior: the mixture.
        loc: means of q, ``(n, d)``.
        std: standard deviations of q, ``(n, d)``.
        z: draws of q, ``(j, n, d)``.
        y: class of each row, ``(n,)``, or -1 where it is not known; then p is :math:`\sum_{k \in y} w_k p_k`, not
            normalised, so that the result has :math:`-\log p(y)` in it. None: not known of any.

    Source:
        The sum over components as a bound: Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding; Luo,
        Agres and Herremans (2019) for the supervised part.

    Example:
        >>> from probmix.models import MixtureLatent
        >>> loc, std = torch.zeros(1, 2), torch.ones(1, 2)
        >>> divergence(MixtureLatent(1, 2, component_std=1.0), loc, std, loc[None], None)
        tensor([[0.]])
    """
    weighted = prior.divergence(loc, std) - prior.logits.log_softmax(-1)
    if prior.num_components == 1:
        return weighted.squeeze(-1).expand(len(z), -1)
    expected, log_joint = -weighted.detach(), prior.log_prob_components(z)  # r needs no gradient: any r will do
    if y is not None:
        expected, log_joint = within_class(prior, expected, y), within_class(prior, log_joint, y)
    return (expected.softmax(-1) * (weighted + log_joint.log_softmax(-1))).sum(-1)


def within_class(prior: ComponentPrior, log_joint: Tensor, y: Tensor) -> Tensor:
    """Return log joint densities ``(*b, n, K)`` without the components of other classes, where y is not -1.

    Example:
        >>> from probmix.models import MixtureLatent
        >>> prior = MixtureLatent(2, 1, labels=[0, 1])
        >>> within_class(prior, torch.zeros(2, 2), torch.tensor([1, -1])).softmax(-1)
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    assert prior.labels is not None
    other = (y[:, None] >= 0) & (y[:, None] != prior.labels)
    return log_joint.masked_fill(other, 1e-3 * torch.finfo(log_joint.dtype).min)  # finite: 0 times it is 0


def class_log_prob(prior: ComponentPrior, z: Tensor, y: Tensor) -> Tensor:
    """Return the log probability of each row's class given draws of its vector, ``(j, n)``; 0 where y is -1.

    Example:
        >>> from probmix.models import MixtureLatent
        >>> prior = MixtureLatent(2, 1, loc=torch.tensor([[-1.0], [1.0]]), labels=[0, 1])
        >>> class_log_prob(prior, torch.zeros(1, 2, 1), torch.tensor([1, -1])).exp()
        tensor([[0.5000, 1.0000]])
    """
    log_joint = prior.log_prob_components(z)
    return within_class(prior, log_joint, y).logsumexp(-1) - log_joint.logsumexp(-1)


def log_prob_classes(prior: ComponentPrior, z: Tensor) -> Tensor:
    """Return log prior probability plus log density of vectors ``(*n, d)`` under every class, ``(*n, num_classes)``.

    Example:
        >>> from probmix.models import MixtureLatent
        >>> prior = MixtureLatent(3, 1, loc=torch.zeros(3, 1), labels=[0, 1, 1])
        >>> log_prob_classes(prior, torch.zeros(1, 1)).softmax(-1)
        tensor([[0.3333, 0.6667]])
    """
    assert prior.labels is not None
    assert prior.num_classes is not None
    log_joint = prior.log_prob_components(z)
    classes = torch.arange(prior.num_classes, device=z.device)
    return torch.stack([log_joint[..., prior.labels == y].logsumexp(-1) for y in classes], -1)


def divergence_by_axis(prior: ComponentPrior, loc: Tensor, std: Tensor, responsibilities: Tensor) -> Tensor:
    r"""Return the mean over rows of the divergence along each axis, given the component, ``(d,)``, nats.

    .. math:: \frac1N \sum_{nk} r_{nk} \, \mathrm{KL}\big(N(m_{nl}, s_{nl}^2) \,\|\, N(\mu_{kl}, \sigma_{kl}^2)\big)

    Example:
        >>> from probmix.models import MixtureLatent
        >>> one = MixtureLatent(1, 2, component_std=1.0)
        >>> divergence_by_axis(one, torch.tensor([[2.0, 0.0]]), torch.ones(1, 2), torch.ones(1, 1))
        tensor([2., 0.])
    """
    use = responsibilities.sum(0)  # all is a sum of moments of each component's rows: no tensor of n K d
    first, second = responsibilities.mT @ loc, responsibilities.mT @ (loc.square() + std.square())
    squares = second - 2 * first * prior.loc + use[:, None] * prior.loc.square()
    of_components = 0.5 * squares / prior.std.square() + use[:, None] * (prior.std.log() - 0.5)
    return (of_components.sum(0) - std.log().sum(0)) / len(loc)

"""The exact evidence of a conjugate mixture, by summing over all assignments of a few rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probmix.errors import DataError, ProgramError
from probmix.typing import ConjugateMixture

__all__ = ["exact_log_evidence"]

_BLOCK = 2**20  # numbers in the largest temporary table


@runtime_checkable
class _WithFamily(ConjugateMixture, Protocol):
    """A conjugate mixture whose family knows the evidence of one component."""

    @property
    def conjugate(self) -> bool:
        """Whether it does."""
        ...

    @property
    def family(self) -> Any:
        """The family of the components."""
        ...


def exact_log_evidence(model: Any, *data: Tensor, max_assignments: int = 2**20) -> Tensor:
    r"""Return the log evidence of the rows under a conjugate mixture: no approximation, a sum over assignments.

    .. math:: p(x) = \sum_{z \in \{1..K\}^N} p(z) \, p(x \mid z), \qquad
              p(z) = \int \prod_n w_{z_n} p(w) \, dw, \quad
              p(x \mid z) = \int \prod_n f(x_n \mid \theta_{z_n}) \, p(\theta) \, d\theta

    A single component has one assignment, so that it may have any number of rows. Otherwise it is for the tests of
    methods that estimate the evidence: two components and 20 rows are a second's work, three and 20 are out of reach.

    Args:
        model: a mixture of `probmix.models` whose components have a conjugate prior.
        data: rows ``(N, D)``, or whatever tables the model is called with. A default prior is scaled to them.
        max_assignments: refuse if ``K**N`` is above it.

    Returns:
        A scalar, nats, of the dtype of the rows.

    Raises:
        ProgramError: the model's components have no conjugate prior, or latent variables of each row.
        DataError: too many assignments, or rows that the model refuses.

    Example:
        >>> from probmix.models import GaussianMixture
        >>> x = torch.tensor([[0.0], [1.0], [7.0]], dtype=torch.float64)
        >>> [round(float(exact_log_evidence(GaussianMixture(k), x)), 3) for k in (1, 2)]
        [-11.046, -10.22]
    """
    if not isinstance(model, _WithFamily) or not model.conjugate:
        raise ProgramError(
            "exact_log_evidence: expected a mixture whose components have a conjugate prior, and no latent variable of "
            f"each row, got {getattr(model, '__name__', type(model).__name__)}. Estimate it with Laplace() or VB()."
        )
    num, x = model.num_components, model.rows(*data)
    digits = len(x) * math.log10(num)
    if digits > math.log10(max_assignments) + 1e-9:
        raise DataError(
            f"exact_log_evidence: expected at most {max_assignments} assignments, got {num} components and {len(x)} "
            f"rows, which have 10**{digits:.1f}. Use fewer rows, or estimate it: VB() and Laplace() have log_evidence."
        )
    prior, parts = model.prior(x), []
    for shares in _assignments(x, num):
        statistics = model.sufficient_statistics(x, shares)
        log_rows = model.family.log_marginal(prior.component, statistics)
        parts.append(log_rows + prior.weights.log_marginal(statistics.count))
    return torch.cat(parts).logsumexp(0)


def _assignments(x: Tensor, num: int) -> Iterator[Tensor]:
    """Yield all assignments of the rows as zeros and ones ``(block, N, K)``: the digits of 0, 1, 2, ... in base K."""
    powers = torch.tensor([num**row for row in range(len(x))], device=x.device)
    for codes in torch.arange(num ** len(x), device=x.device).split(max(1, _BLOCK // (num * x.numel()))):
        yield one_hot((codes[:, None] // powers) % num, num).to(x)

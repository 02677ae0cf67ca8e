"""A sum over products in log space, as a backend of opt_einsum that can be batched and differentiated in any order.

Pyro's own goes through an autograd function that ``torch.func.vmap`` refuses.
"""

from __future__ import annotations

import torch
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from pyro.poutine import Trace
from torch import Tensor

__all__ = ["BatchedEinsumEvaluator", "einsum", "tensordot", "transpose"]


class BatchedEinsumEvaluator(TraceEinsumEvaluator):
    """Pyro's sum over discrete sites by variable elimination, Markov chains included, in operations that batch.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> def program():
        ...     z = pyro.sample("z", dist.Bernoulli(0.25))
        ...     pyro.sample("x", dist.Bernoulli(0.5 + 0.5 * z), obs=torch.tensor(1.0))
        >>> enumerated = poutine.enum(pyro.infer.config_enumerate(program), first_available_dim=-1)
        >>> trace = poutine.trace(enumerated).get_trace()
        >>> BatchedEinsumEvaluator(trace, True, 0).log_prob(poutine.trace(enumerated).get_trace()).exp()
        tensor(0.6250)
    """

    def log_prob(self, model_trace: Trace) -> Tensor:
        """Return the log density of a trace, its enumerated sites summed out."""
        if not self.has_enumerable_sites:
            return torch.as_tensor(model_trace.log_prob_sum())
        return contract_to_tensor(self._get_log_factors(model_trace), self._enum_dims, ring=_Ring())


class _Ring(LogRing):
    _backend = __name__


def einsum(equation: str, *operands: Tensor) -> Tensor:
    r"""Return :math:`\log \sum \prod_i \exp(\mathrm{operand}_i)` over the axes that the output does not have.

    Example:
        >>> a, b = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25], [0.75]])
        >>> einsum("ab,bc->ac", a.log(), b.log()).exp()
        tensor([[0.5000]])
    """
    inputs, output = equation.split("->")
    summed = sorted(set(inputs) - set(output) - {","})
    axes = [*output, *summed]
    total = sum(_aligned(operand, names, axes) for names, operand in zip(inputs.split(","), operands, strict=True))
    assert isinstance(total, Tensor)
    return _logsumexp(total, len(summed)) if summed else total.clone()


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permute the axes of a tensor.

    Example:
        >>> transpose(torch.zeros(2, 3), (1, 0)).shape
        torch.Size([3, 2])
    """
    return a.permute(axes)


tensordot = Tensordot(einsum)


def _aligned(operand: Tensor, names: str, axes: list[str]) -> Tensor:
    present = [name for name in axes if name in names]
    operand = operand.permute([names.index(name) for name in present])
    return operand.reshape([operand.shape[present.index(a)] if a in present else 1 for a in axes])


def _logsumexp(terms: Tensor, count: int) -> Tensor:
    """Sum over the last axes; where all terms are zero, the gradient is zero, not NaN."""
    terms = terms.flatten(-count)
    nothing = (terms == -torch.inf).all(-1)
    value = torch.where(nothing[..., None], 0.0, terms).logsumexp(-1)
    return torch.where(nothing, -torch.inf, value)

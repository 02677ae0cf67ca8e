"""The question that variational Bayes and Gibbs ask first: is this a mixture with a conjugate prior?"""

from __future__ import annotations

from probmix.errors import MethodError
from probmix.inference.method import Problem
from probmix.typing import ClosedFormMixture, ConjugateMixture

__all__ = ["conjugate_model"]


def conjugate_model(problem: Problem, method: str) -> ConjugateMixture:
    """Return the problem's program as a mixture whose components have a conjugate prior.

    Args:
        problem: program and data.
        method: the method that asks, for the message.

    Raises:
        MethodError: it is not one; the message names the methods that do work.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import GaussianMixture
        >>> conjugate_model(Problem(GaussianMixture(2), Arguments(), 0), "VB()").num_components
        2
    """
    program = problem.program
    if isinstance(program, ConjugateMixture) and program.conditionally_conjugate:
        return program
    if isinstance(program, ClosedFormMixture):
        family = type(getattr(program, "family", program)).__name__
        others = ", or what runs any Pyro program: MAP(), SVI(), NUTS() and ChEES()"
        raise MethodError(
            f"{method} needs components with a conjugate prior, which those of {type(program).__name__} ({family}) "
            f"have not. Use EM(), which does without{others if getattr(program, 'has_program', True) else ''}."
        )
    name = getattr(program, "__name__", type(program).__name__)
    raise MethodError(
        f"{method} needs a mixture whose components have a conjugate prior, such as probmix.models.GaussianMixture; "
        f"got the program {name!r}. MAP(), SVI(), NUTS() and ChEES() run any Pyro program."
    )

"""The front door, and the one loop that runs every method."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from typing import Any

from torch import nn
from tqdm import tqdm

from probmix.arguments import Arguments
from probmix.errors import FitError, MethodError
from probmix.inference.method import AbstractMethod, Problem
from probmix.isolation import isolated
from probmix.posterior import AbstractPosterior
from probmix.status import FitWarning, Status
from probmix.typing import Program

__all__ = ["infer"]

_SECONDS_BETWEEN_FIGURES = 0.5  # figures such as an effective sample size are not free


def infer(
    program: Program, data: Any, method: AbstractMethod, *, seed: int, progress: bool = False, throw: bool = True
) -> AbstractPosterior:
    """Fit a program to data by a method: ``p(sites | data)`` as a point, a guide or draws.

    Everything runs on the data's device in the data's dtype, from the given seed, in a parameter store of its own;
    the caller's random state, parameter store and flags are as before afterwards. Small data (fewer than 131,072
    numbers) run on one thread: more would only wait for each other. Ctrl-C ends the fit and
    returns what it has, with a status that says so.

    Args:
        program: a callable with Pyro statements, or a model from `probmix.models`.
        data: a tensor, NumPy array or data frame; a tuple of positional or a mapping of named arguments.
        method: settings such as ``EM(restarts=20)``, ``SVI()``, ``NUTS(chains=4)``, ``ChEES()``.
        seed: the same seed gives the same bits on the same machine.
        progress: show a progress bar (on a terminal only).
        throw: raise on a failed fit; otherwise look at ``posterior.status``.

    Raises:
        DataError: the data cannot be used as they are.
        ProgramError: the program cannot be run as written.
        MethodError: the method does not apply to this program.
        FitError: the fit failed and ``throw`` is set.

    Warns:
        FitWarning: the fit ended at its step limit, by interruption, or (``throw=False``) failed.

    Example:
        >>> from probmix.datasets import load_faithful
        >>> from probmix.inference import EM, infer
        >>> from probmix.models import GaussianMixture
        >>> em = infer(GaussianMixture(2), load_faithful().x, EM(objective="ml"), seed=0)
        >>> round(em.objective, 3)
        -1130.264
    """
    _check(program, method, seed)
    arguments = Arguments.of(data).checked_by(program)
    program = copy.deepcopy(program) if isinstance(program, nn.Module) else program  # its parameters stay the caller's
    start = time.perf_counter()
    with isolated(seed, dtype=arguments.dtype, device=arguments.device, threads=arguments.threads(program)):
        posterior = _run(Problem(program, arguments, seed), method, progress)
    posterior = dataclasses.replace(posterior, seconds=time.perf_counter() - start)
    if throw and posterior.status.state == "failed":
        raise FitError(posterior.status.message)
    if not posterior.status.ok:
        warnings.warn(str(posterior.status), FitWarning, stacklevel=2)
    return posterior


def _run(problem: Problem, method: AbstractMethod, progress: bool) -> AbstractPosterior:
    state, shown = method.start(problem), 0.0
    done, total = method.progress(state)
    # disable=None: silent where the output is not a terminal
    with tqdm(total=total, desc=type(method).__name__, disable=None if progress else True, leave=False) as bar:
        try:
            while (status := method.status(problem, state)) is None:
                state = method.step(problem, state)
                before, (done, _) = done, method.progress(state)
                bar.update(done - before)
                if not bar.disable and time.perf_counter() - shown > _SECONDS_BETWEEN_FIGURES:
                    bar.set_postfix(method.figures(state), refresh=False)
                    shown = time.perf_counter()
        except KeyboardInterrupt:
            status = Status(
                "interrupted", f"stopped by the user after {done} of at most {total} steps; what follows rests on those"
            )
    return method.finish(problem, state, status)


def _check(program: Program, method: AbstractMethod, seed: int) -> None:
    if isinstance(program, type) or not callable(program):
        name = program.__name__ if isinstance(program, type) else type(program).__name__
        raise MethodError(
            f"expected a program (a callable with Pyro statements or a model object), got {name!r}. "
            "Write GaussianMixture(num_components=2), not the class itself."
        )
    if isinstance(method, type) or not isinstance(method, AbstractMethod):
        name = method.__name__ if isinstance(method, type) else repr(method)
        raise MethodError(
            f"expected a method object such as EM(), SVI(), NUTS() or ChEES(), got {name}. "
            "Write the brackets, and put settings inside them: EM(restarts=20)."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise MethodError(f"expected a whole-number seed from 0 to 2**32 - 1, got {seed!r}. Write seed=0.")

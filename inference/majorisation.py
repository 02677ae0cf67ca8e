"""Sparse weights of many kernels by majorisation: successive convex approximation, by Newton on a working set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from probmix.covariance_sum import CovarianceBlocks, CovarianceSum, Evaluated, LinearInWeights
from probmix.errors import MethodError
from probmix.inference.method import AbstractMethod, Problem, common, require
from probmix.posterior import PointPosterior
from probmix.status import Status

__all__ = [
    "SCA",
    "Climb",
    "Covariance",
    "Pull",
    "covariance_of",
    "descended",
    "evaluated",
    "linear_model",
    "surrogate_minimum",
]

_ADDED = 16  # components that enter a working set at a time
_ROUNDS, _NEWTON, _SHORTEST = 100, 3, 1e-9  # a working set need not be solved well before more enter
_STEEP = 1e-6  # relative: a component enters where its slope is steeper
_SOLVED = 1e-9  # relative gain that is left in a convex problem
_DAMPING = 1e-10  # of the diagonal of the curvature: neighbours on a fine grid are nearly the same kernel

Covariance: TypeAlias = CovarianceSum | CovarianceBlocks


class Pull(NamedTuple):
    r"""What ADMM adds to an agent's objective.

    .. math:: \lambda^\top (\theta - c) + \tfrac12 \sum_i \rho_i (\theta_i - c_i)^2

    Args:
        centre: c, ``(a,)``.
        dual: :math:`\lambda`, ``(a,)``.
        penalty: :math:`\rho`, ``(a,)``.

    Example:
        >>> pull = Pull(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([4.0]))
        >>> pull.value(torch.tensor([2.0])), pull.slope(torch.tensor([2.0]))
        (tensor(2.5000), tensor([4.5000]))
    """

    centre: Tensor
    dual: Tensor
    penalty: Tensor

    def value(self, weights: Tensor) -> Tensor:
        """Return the term."""
        away = weights - self.centre
        return (self.dual * away + 0.5 * self.penalty * away.square()).sum()

    def slope(self, weights: Tensor) -> Tensor:
        """Return its gradient, ``(a,)``."""
        return self.dual + self.penalty * (weights - self.centre)


class Climb(NamedTuple):
    """Where one start has got to.

    Args:
        weights: all weights, that of the noise last where it is learnt, ``(a,)``.
        at: the covariance there, factored.
        slopes: ``tr(C^-1 K_i)``, ``(a,)``.
        squares: ``z^T K_i z``, ``(a,)``, ``z = C^-1 y``.
        change: relative fall of the objective by the last step.

    Example:
        >>> from probmix.spectral_grid import KernelBank, spectral_grid
        >>> bank = KernelBank(spectral_grid("diagonal", 1, 2, bandwidth=0.0), torch.arange(4.0)[:, None])
        >>> covariance = CovarianceSum(bank, torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor(1.0))
        >>> climb = evaluated(covariance, torch.zeros(2))
        >>> climb.slopes, climb.squares.round()  # all of the evidence is for the second
        (tensor([4., 4.]), tensor([ 0., 16.]))
    """

    weights: Tensor
    at: Evaluated
    slopes: Tensor
    squares: Tensor
    change: float = math.inf


class _State(NamedTuple):
    covariance: Covariance
    climbs: tuple[Climb, ...]
    objectives: tuple[Tensor, ...]
    violations: tuple[Tensor, ...]


@dataclass(frozen=True)
class SCA(AbstractMethod):
    r"""Successive convex approximation of ``l(theta) = y^T C^-1 y + log |C|``, ``C = sum_i theta_i K_i + noise``.

    The first term is convex in the weights, the second concave. A step replaces the second by its tangent,
    :math:`\sum_i \theta_i \, \mathrm{tr}(C_k^{-1} K_i)`, which lies above it, and minimises the convex sum over
    :math:`\theta \ge 0`; so the objective never rises. The convex problem is solved by projected Newton steps on a
    working set: components enter by their evidence, where :math:`z^\top K_i z > \mathrm{tr}(C^{-1} K_i)` at weight
    zero, and leave when their weight reaches it. A fixed point satisfies the conditions of a (local) minimum, whose
    relative violation is reported as ``history["violation"]``. The noise variance is one more weight, of the identity,
    where the model learns it.

    It maximises the likelihood: priors of the program play no part. Weights that end above zero are few where the noise
    is known. A grid as fine as the rows are many can explain any series without noise, and learnt noise then goes to
    its bound: compare on rows kept out, or give ``noise_var``.

    Args:
        blocks: S, solved side by side from the same :math:`C_k`, as the paper's distributed version does; where their
            sum would raise the objective it is shortened (at 1 / S it cannot rise).
        inner: ``"newton"`` solves each convex problem; ``"multiplicative"`` makes one step
            :math:`\theta_i \sqrt{z^\top K_i z / \mathrm{tr}(C_k^{-1} K_i)}`, a majorisation of both parts, slower.
        restarts: starts. The first has weights zero and all variance in the noise; the others random weights and noise.
        max_steps: steps at most.
        tolerance: a start is done when a step lowers its objective by less, relatively.
        reference_double_noise: count the noise twice in the convex problem but not in its tangent, as the program
            behind the paper does, to get its published numbers. The objective may then rise.

    Raises:
        MethodError: a setting is out of its range, or the program is not linear in weights.
        FitError: no start ended at a finite value.

    Source:
        Suwandi, Lin, Yin, Wang and Theodoridis (2023), Sparsity-aware distributed learning for Gaussian processes with
        linear multiple kernel, section on distributed successive convex approximation. The Newton solver is ours: it
        takes the place of a second-order cone program.

    Example:
        >>> from probmix.inference import infer
        >>> from probmix.models import GridSpectralGP
        >>> x = torch.arange(60.0, dtype=torch.float64)[:, None]
        >>> y = (2 * torch.pi * 0.1 * x[:, 0]).sin() + 0.1 * (7.3 * x[:, 0]).sin()
        >>> fit = infer(GridSpectralGP(num_points=51), (x, y), SCA(), seed=0)
        >>> round(float(fit.program.components(x, fit.sites()).frequencies[0, 0]), 2)
        0.1
    """

    blocks: int = 1
    inner: str = "newton"
    restarts: int = 1
    max_steps: int = 200
    tolerance: float = 1e-7
    reference_double_noise: bool = False

    def __post_init__(self) -> None:
        for setting in ("blocks", "restarts", "max_steps"):
            require(getattr(self, setting) >= 1, setting, "at least 1", getattr(self, setting))
        require(self.tolerance > 0, "tolerance", "a positive number", self.tolerance)
        require(self.inner in ("newton", "multiplicative"), "inner", "'newton' or 'multiplicative'", self.inner)

    def start(self, problem: Problem) -> _State:
        """Return the first state: all starts, evaluated."""
        covariance = covariance_of(problem)
        climbs = []
        for restart in range(self.restarts):
            weights = covariance.first_weights(at_random=restart > 0, positive=self.inner == "multiplicative")
            climbs.append(evaluated(covariance, weights))
        return _State(covariance, tuple(climbs), (), ())

    def step(self, problem: Problem, state: _State) -> _State:
        """Return the state after one convex approximation for every start that still moves."""
        covariance = state.covariance
        climbs = tuple(c if c.change < self.tolerance else self._next(covariance, c) for c in state.climbs)
        objectives = torch.stack([climb.at.log_likelihood for climb in climbs])
        violations = torch.stack([_violation(covariance, climb) for climb in climbs])
        return _State(covariance, climbs, (*state.objectives, objectives), (*state.violations, violations))

    def status(self, problem: Problem, state: _State) -> Status | None:
        """Return how the fit ended, or None to go on."""
        if not any(bool(climb.at.value.isfinite()) for climb in state.climbs):
            return Status(
                "failed",
                "the covariance was not positive definite in any start: the noise is too small beside the weights. "
                "Give a larger noise_var, or let it be learnt (noise_var=None).",
            )
        if not state.objectives:
            return None
        if all(climb.change < self.tolerance for climb in state.climbs):
            worst = float(state.violations[-1][int(state.objectives[-1].argmax())])
            return Status("converged", f"the optimality conditions hold to {worst:.1e}, relatively")
        if len(state.objectives) >= self.max_steps:
            return Status(
                "max_steps",
                f"SCA() still lowered the objective after {self.max_steps} steps. Raise max_steps, or tolerance.",
            )
        return None

    def finish(self, problem: Problem, state: _State, status: Status) -> PointPosterior:
        """Return the best start."""
        latest = torch.stack([climb.at.log_likelihood for climb in state.climbs])
        best = int(latest.nan_to_num(-torch.inf).argmax())
        history = {"objective": torch.stack(state.objectives or (latest,), -1)}
        if state.violations:
            history["violation"] = torch.stack(state.violations, -1)
        return PointPosterior(
            **common(self, problem, status),
            history=history,
            point=state.covariance.sites(state.climbs[best].weights),
            objective=float(latest[best]),
            objectives=latest,
        )

    def progress(self, state: _State) -> tuple[int, int]:
        """Return steps done and steps at most."""
        return len(state.objectives), self.max_steps

    def figures(self, state: _State) -> Mapping[str, str]:
        """Return the best log-likelihood and its number of components."""
        best = min(state.climbs, key=lambda climb: float(climb.at.value))
        return {
            "objective": f"{float(best.at.log_likelihood):.4f}",
            "components": str(int((best.weights > 0).sum())),
        }

    def _next(self, covariance: Covariance, climb: Climb) -> Climb:
        if self.inner == "multiplicative":
            weights = (climb.weights * (climb.squares / climb.slopes).sqrt()).maximum(covariance.least)
            return evaluated(covariance, weights, climb)
        target = self._targets(covariance, climb)
        if self.reference_double_noise:
            return evaluated(covariance, target, climb)
        return _shortened(covariance, climb, target)

    def _targets(self, covariance: Covariance, climb: Climb) -> Tensor:
        """Return where the blocks, each solved with the others as they are, would go together."""
        if self.reference_double_noise:
            covariance = covariance.with_extra(covariance.noise_of(climb.weights))
        place = torch.arange(len(climb.weights), device=climb.weights.device)
        target = climb.weights
        for block in place.tensor_split(self.blocks):
            inside = torch.zeros_like(place, dtype=torch.bool).index_fill(0, block, True)
            found = surrogate_minimum(covariance, climb.weights, climb.slopes, inside)
            target = torch.where(inside, found, target)
        return target


def covariance_of(problem: Problem) -> CovarianceSum:
    """Return the covariance of a program that is linear in its weights.

    Raises:
        MethodError: it is not.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import GridSpectralGP
        >>> data = Arguments((torch.arange(4.0)[:, None], torch.arange(4.0)))
        >>> covariance_of(Problem(GridSpectralGP(num_points=7), data, 0)).num_weights  # and the noise
        8
    """
    return linear_model(problem).covariance_sum(*problem.arguments.args)


def linear_model(problem: Problem) -> LinearInWeights:
    """Return the program, if it is linear in its weights.

    Raises:
        MethodError: it is not.

    Example:
        >>> from probmix.arguments import Arguments
        >>> from probmix.models import GridSpectralGP
        >>> type(linear_model(Problem(GridSpectralGP(), Arguments(), 0))).__name__
        'GridSpectralGP'
    """
    program = problem.program
    if not isinstance(program, LinearInWeights):
        raise MethodError(
            f"expected a model whose covariance is a sum of kernels with unknown weights, got "
            f"{type(program).__name__}. Use GridSpectralGP, or MAP() for this program."
        )
    return program


def surrogate_minimum(
    covariance: Covariance, weights: Tensor, slopes: Tensor, inside: Tensor, pull: Pull | None = None
) -> Tensor:
    r"""Return the weights that minimise :math:`y^\top C^{-1} y + \sum_i t_i \theta_i`, and a pull, within bounds.

    Newton on a working set, which takes in the components of steepest descent until there is none left: convex, so the
    answer is the minimum. The value never rises.

    Args:
        covariance: the problem.
        weights: where to start, ``(a,)``.
        slopes: t, ``(a,)``, positive.
        inside: which of the weights may change, ``(a,)``.
        pull: of other agents.

    Example:
        >>> from probmix.spectral_grid import KernelBank, spectral_grid
        >>> x, y = torch.arange(4.0).double()[:, None], torch.tensor([2.0, -2.0, 2.0, -2.0]).double()
        >>> bank = KernelBank(spectral_grid("diagonal", 1, 2, bandwidth=0.0), x)
        >>> weights, slopes = torch.zeros(2).double(), torch.full((2,), 4.0).double()
        >>> covariance, every = CovarianceSum(bank, y, torch.ones(()).double()), torch.tensor([True, True])
        >>> surrogate_minimum(covariance, weights, slopes, every).round(decimals=3)
        tensor([0.0000, 0.7500], dtype=torch.float64)
    """
    at = covariance.at(weights)
    for _ in range(_ROUNDS):
        gradient = slopes - covariance.squares(at)
        if pull is not None:
            gradient = gradient + pull.slope(weights)
        positive = inside & (weights > covariance.least)
        ratio = torch.where(inside & ~positive, -gradient / slopes, -torch.inf)
        entering = _peaks(ratio) & (ratio > _STEEP)
        flat = (gradient * weights)[positive].abs() <= _SOLVED * (1 + at.quadratic)
        if not bool(entering.any() | ~flat.all()):
            break
        working, before = (positive | entering).nonzero()[:, 0], at
        weights, at = _newton(covariance, weights, at, slopes, working, pull)
        if at is before:
            break
    return weights


def _peaks(ratio: Tensor) -> Tensor:
    """Return the largest entries that exceed both neighbours: next to each other on a grid they say the same."""
    padded = torch.cat([ratio.new_full((1,), -torch.inf), ratio, ratio.new_full((1,), -torch.inf)])
    peak = (ratio >= padded[:-2]) & (ratio >= padded[2:]) & ratio.isfinite()
    scored = torch.where(peak, ratio, -torch.inf)
    top = scored.topk(min(_ADDED, len(ratio))).indices
    return torch.zeros_like(peak).index_fill(0, top, True) & peak


class _Point(NamedTuple):
    weights: Tensor
    at: Evaluated
    value: Tensor


def _newton(
    covariance: Covariance, weights: Tensor, at: Evaluated, slopes: Tensor, working: Tensor, pull: Pull | None
) -> tuple[Tensor, Evaluated]:
    """Return weights and covariance after projected Newton steps in the components ``working``."""
    least, bends = covariance.least[working], covariance.bends(working)

    def point(weights: Tensor, at: Evaluated | None = None) -> _Point:
        at = covariance.at(weights) if at is None else at
        value = at.quadratic + (slopes * weights).sum()
        return _Point(weights, at, value if pull is None else value + pull.value(weights))

    now = point(weights, at)
    for _ in range(_NEWTON):
        squares, bent = bends(now.at)
        gradient, curvature = slopes[working] - squares, 2 * bent
        if pull is not None:
            gradient, curvature = gradient + pull.slope(now.weights)[working], curvature + pull.penalty[working].diag()
        step = _bounded_newton_step(now.weights[working], gradient, curvature, least)
        expected = -(gradient @ step)
        if not bool(expected > _SOLVED * (1 + now.value.abs())):
            break

        def along(length: float, start: Tensor = now.weights, step: Tensor = step) -> _Point:
            return point(start.index_copy(0, working, (start[working] + length * step).maximum(least)))

        best = _searched(along, now.value, expected)
        if best is None:
            break
        now = best
    return now.weights, now.at


def _searched(along: Callable[[float], _Point], value: Tensor, expected: Tensor) -> _Point | None:
    """Return a lower point on a line, None if there is none: shorter until it is low enough, or longer while it falls.

    Far from the minimum ``y^T C^-1 y`` is like 1 / theta, of which Newton sees too little: steps may be 4^k as long.
    """
    length, best = 1.0, along(1.0)
    while not bool(best.value < value - 1e-4 * length * expected):
        length /= 4
        if length < _SHORTEST:
            return best if bool(best.value < value) else None
        best = along(length)
    while length >= 1.0:
        length *= 4
        further = along(length)
        if not bool(further.value < best.value):
            break
        best = further
    return best


def _bounded_newton_step(weights: Tensor, gradient: Tensor, curvature: Tensor, least: Tensor) -> Tensor:
    """Return the step that minimises the quadratic over all weights within bounds: a primal active set."""
    unit = curvature.diagonal().clamp(min=torch.finfo(curvature.dtype).tiny).rsqrt()
    curvature = unit[:, None] * curvature * unit + _DAMPING * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    gradient, lowest = unit * gradient, (least - weights) / unit
    step, bound = torch.zeros_like(gradient), (lowest == 0) & (gradient >= 0)
    for _ in range(4 * len(unit)):
        free = (~bound).nonzero()[:, 0]
        slope = gradient + curvature @ step
        root, _ = torch.linalg.cholesky_ex(curvature[free][:, free])
        ahead = torch.zeros_like(step).index_copy(0, free, -torch.cholesky_solve(slope[free, None], root)[:, 0])
        ratio = torch.where(~bound & (ahead < 0), (lowest - step) / ahead, torch.inf).clamp(min=0)
        length, first = ratio.min(0)
        step = torch.maximum(step + length.clamp(max=1) * ahead, lowest)
        if bool(length < 1):
            bound[first] = True
            continue
        slope = torch.where(bound, gradient + curvature @ step, 0.0)
        if not bool((slope < -1e-9).any()):
            break
        bound[slope.argmin()] = False
    return unit * step


def descended(covariance: Covariance, climb: Climb) -> Climb:
    """Return the next point of one convex approximation in all weights: the step of `SCA`.

    Example:
        >>> from probmix.spectral_grid import KernelBank, spectral_grid
        >>> bank = KernelBank(spectral_grid("diagonal", 1, 2, bandwidth=0.0), torch.arange(4.0)[:, None])
        >>> covariance = CovarianceSum(bank, torch.tensor([2.0, -2.0, 2.0, -2.0]), torch.tensor(1.0))
        >>> climb = evaluated(covariance, torch.zeros(2))
        >>> bool(descended(covariance, climb).at.value < climb.at.value)
        True
    """
    every = torch.ones_like(climb.weights, dtype=torch.bool)
    return _shortened(covariance, climb, surrogate_minimum(covariance, climb.weights, climb.slopes, every))


def evaluated(covariance: Covariance, weights: Tensor, before: Climb | None = None) -> Climb:
    """Return the point at some weights; ``before`` says by how much the objective has fallen since.

    Example:
        >>> from probmix.spectral_grid import KernelBank, spectral_grid
        >>> bank = KernelBank(spectral_grid("diagonal", 1, 2), torch.arange(4.0)[:, None])
        >>> evaluated(CovarianceSum(bank, torch.ones(4), torch.tensor(1.0)), torch.zeros(2)).at.quadratic
        tensor(4.)
    """
    at = covariance.at(weights)
    slopes, squares = covariance.moments(at)
    change = math.inf
    if before is not None:
        change = float((before.at.value - at.value).abs() / at.value.abs().clamp(min=1))
    return Climb(weights, at, slopes, squares, change)


def _shortened(covariance: Covariance, climb: Climb, target: Tensor) -> Climb:
    """Return the furthest point on the way to the target, or the double of it, where the objective does not rise."""
    ahead = target - climb.weights
    at = covariance.at(target)
    length = 1.0
    while not bool(at.value <= climb.at.value) and length > 1e-3:
        length /= 2
        at = covariance.at(climb.weights + length * ahead)
    if not bool(at.value <= climb.at.value):
        return climb._replace(change=0.0)
    if length == 1.0:  # the curvature of the convex part is about twice the objective's, so a step is half of one
        doubled = (climb.weights + 2 * ahead).maximum(covariance.least)
        further = covariance.at(doubled)
        if bool(further.value < at.value):
            return evaluated(covariance, doubled, climb)
    return evaluated(covariance, climb.weights + length * ahead, climb)


def _violation(covariance: Covariance, climb: Climb) -> Tensor:
    """Return how far the conditions of a minimum are from holding: slope zero, or not negative at weight zero."""
    gradient = 1 - climb.squares / climb.slopes
    free = climb.weights > covariance.least
    share = climb.weights * climb.slopes / climb.at.num_rows
    return torch.where(free, gradient.abs() * share, -gradient).clamp(min=0).max()

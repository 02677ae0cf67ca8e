"""Tables of probabilities, one simplex in each row, where rows may have different numbers of levels."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from probmix.codes import level_cells, level_places

__all__ = ["DirichletRows", "SimplexRows", "StickBreakingRows"]


class SimplexRows(Constraint):
    """Tables ``(D, C)`` whose row d is a distribution on its first ``num_levels[d]`` entries and exactly 0 beyond.

    Args:
        num_levels: levels of each row.

    Example:
        >>> tables = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], [[0.5, 0.4, 0.1], [0.2, 0.3, 0.5]]])
        >>> SimplexRows((2, 3)).check(tables)
        tensor([ True, False])
    """

    event_dim = 2

    def __init__(self, num_levels: tuple[int, ...]) -> None:
        self.num_levels = num_levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Tell which tables of a batch are such, ``(*b,)``."""
        outside = value.masked_fill(_real(self.num_levels, value), 0.0)
        rows = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < 1e-6) & (outside == 0).all(-1)
        return rows.all(-1)


class StickBreakingRows(Transform):
    r"""Bijection from vectors to tables of probabilities; each row is a stick that is broken level by level.

    .. math:: v_l = \mathrm{sigmoid}\{z_l - \log(L - l)\}, \qquad p_l = v_l \prod_{j<l} (1 - v_j), \qquad
              \log |J| = \sum_{l<L} \log p_l + \log(1 - v_l)

    A row with L levels takes L - 1 coordinates; zeros become equal probabilities. Levels beyond L get exactly 0.

    Shapes: ``(*b, sum of L - 1)`` to ``(*b, D, C)``.

    Args:
        num_levels: L of each row.

    Example:
        >>> StickBreakingRows((2, 3))(torch.zeros(3))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """

    domain = constraints.real_vector
    bijective = True

    def __init__(self, num_levels: tuple[int, ...]) -> None:
        self.num_levels = num_levels
        super().__init__()

    @property
    def codomain(self) -> SimplexRows:  # type: ignore[override]
        """Tables of probabilities."""
        return SimplexRows(self.num_levels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StickBreakingRows) and self.num_levels == other.num_levels

    __hash__ = Transform.__hash__

    def _logits(self, x: Tensor) -> Tensor:
        """Logits of the breaks in a table ``(*b, D, C - 1)``, 0 where there is no break."""
        places = level_places(tuple(levels - 1 for levels in self.num_levels), x.device)
        return torch.cat([x, torch.zeros_like(x[..., :1])], -1)[..., places] - self._log_left(x)

    def _log_left(self, like: Tensor) -> Tensor:
        """Log of the number of levels after each one, ``(D, C - 1)``, so that a logit of 0 breaks off an equal part."""
        levels = torch.tensor(self.num_levels, device=like.device)[:, None]
        after = levels - 1 - torch.arange(max(self.num_levels) - 1, device=like.device)
        return after.clamp_min(1).to(like).log()

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logs of what each break takes, of what it leaves, and of what was there before, the last ``(*b, D, C)``."""
        logits, breaks = self._logits(x), _breaks(self.num_levels, x)
        log_taken = torch.where(breaks, torch.nn.functional.logsigmoid(logits), 0.0)
        log_left = torch.where(breaks, torch.nn.functional.logsigmoid(-logits), 0.0)
        return log_taken, log_left, torch.nn.functional.pad(log_left.cumsum(-1), (1, 0))

    def _call(self, x: Tensor) -> Tensor:
        log_taken, _, log_before = self._logs(x)
        table = (torch.nn.functional.pad(log_taken, (0, 1)) + log_before).exp()
        return torch.where(_real(self.num_levels, x), table, 0.0)

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        table = y[..., :-1].log() - left.log() + self._log_left(y)
        column, level = level_cells(tuple(levels - 1 for levels in self.num_levels), y.device)
        return table[..., column, level]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the Jacobian determinant at ``x``, ``(*b,)``."""
        log_taken, log_left, log_before = self._logs(x)
        terms = log_taken + log_left + log_before[..., :-1]
        return torch.where(_breaks(self.num_levels, x), terms, 0.0).sum((-2, -1))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the table that a vector of this shape becomes."""
        return torch.Size((*shape[:-1], len(self.num_levels), max(self.num_levels)))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the vector that a table of this shape becomes."""
        return torch.Size((*shape[:-2], sum(self.num_levels) - len(self.num_levels)))


class DirichletRows(TorchDistribution):
    r"""Independent Dirichlet distributions of the rows of a table of probabilities.

    .. math:: p(\theta) = \prod_d \frac{\Gamma(\sum_l \alpha_{dl})}{\prod_l \Gamma(\alpha_{dl})}
              \prod_{l \le L_d} \theta_{dl}^{\alpha_{dl} - 1}

    Args:
        concentration: :math:`\alpha > 0`, and 0 for the levels that a row does not have, ``(*b, D, C)``.
        num_levels: :math:`L_d`, levels of each row; they are the first ones.
        validate_args: check values; None leaves it to torch's global setting.

    Example:
        >>> prior = DirichletRows(torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]), (2, 3))
        >>> prior.mean
        tensor([[0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """

    arg_constraints = {"concentration": constraints.independent(constraints.nonnegative, 2)}  # noqa: RUF012 - torch's

    def __init__(self, concentration: Tensor, num_levels: tuple[int, ...], validate_args: bool | None = None) -> None:
        self.concentration, self.num_levels = concentration, num_levels
        super().__init__(concentration.shape[:-2], concentration.shape[-2:], validate_args=validate_args)

    @property
    def support(self) -> SimplexRows:
        """Tables of probabilities with these levels."""
        return SimplexRows(self.num_levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DirichletRows:
        """Return the same distribution with a larger batch shape."""
        concentration = self.concentration.expand(torch.Size(batch_shape) + self.event_shape)
        return DirichletRows(concentration, self.num_levels, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """Each row proportional to its concentration."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw tables, ``(*sample_shape, *b, D, C)``; no row is all 0, however small its concentration."""
        real = _real(self.num_levels, self.concentration)
        padded = torch.where(real, self.concentration, 1.0).expand(self._extended_shape(torch.Size(sample_shape)))
        # log Gamma(a) = log Gamma(a + 1) + log(U) / a, whose exponent does not underflow where a is small.
        gamma = torch.distributions.Gamma(padded + 1, torch.ones_like(padded), validate_args=False).sample()
        log_gamma = gamma.log() + torch.rand_like(padded).log() / padded
        return torch.where(real, log_gamma, -torch.inf).softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to all levels of each row but its last, ``(*b,)``."""
        if self._validate_args:
            self._validate_sample(value)
        real = _real(self.num_levels, value)
        alpha = torch.where(real, self.concentration, 1.0)
        log_normaliser = alpha.lgamma().sum(-1) - torch.where(real, alpha, 0.0).sum(-1).lgamma()
        return (torch.xlogy(alpha - 1, torch.where(real, value, 1.0)).sum(-1) - log_normaliser).sum(-1)


def _real(num_levels: tuple[int, ...], like: Tensor) -> Tensor:
    """Which entries of the table are levels, ``(D, C)``."""
    levels = torch.tensor(num_levels, device=like.device)[:, None]
    return torch.arange(max(num_levels), device=like.device) < levels


def _breaks(num_levels: tuple[int, ...], like: Tensor) -> Tensor:
    """Which entries but the last column are a break of the stick, ``(D, C - 1)``: all levels but the last of a row."""
    levels = torch.tensor(num_levels, device=like.device)[:, None]
    return torch.arange(max(num_levels) - 1, device=like.device) < levels - 1


@biject_to.register(SimplexRows)
@transform_to.register(SimplexRows)
def _stick_breaking(constraint: SimplexRows) -> StickBreakingRows:
    return StickBreakingRows(constraint.num_levels)

"""Parameters of a GPyTorch kernel with a constraint and a prior each, written down in one line."""

from __future__ import annotations

from typing import Any, overload

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor, nn

from probmix.errors import ProgramError

__all__ = ["AbstractKernel", "Constrained", "log_positive"]


def log_positive() -> Positive:
    """Return the constraint to positive numbers whose raw parameter is the logarithm.

    Example:
        >>> log_positive().inverse_transform(torch.ones(()))
        tensor(0.)
    """
    return Positive(transform=torch.exp, inv_transform=torch.log)


class Constrained:
    """A constrained parameter as an attribute of a kernel: read in its own units, set in them.

    Example:
        >>> class Line(AbstractKernel):
        ...     slope = Constrained("its slope")
        >>> line = Line()
        >>> line.register("slope", torch.tensor(2.0), log_positive())
        >>> line.slope = 3.0
        >>> line.slope.detach(), line.raw_slope.detach()
        (tensor(3.), tensor(1.0986))
    """

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, kernel: None, owner: type) -> Constrained: ...

    @overload
    def __get__(self, kernel: Any, owner: type) -> Tensor: ...

    def __get__(self, kernel: Any, owner: type) -> Any:
        """Return the value, or the descriptor itself when asked of the class."""
        if kernel is None:
            return self
        raw, constraint = getattr(kernel, f"raw_{self._name}"), getattr(kernel, f"raw_{self._name}_constraint")
        return constraint.transform(raw)

    def __set__(self, kernel: Any, value: Tensor | float) -> None:
        """Set the value."""
        kernel.set_value(self._name, value)


class AbstractKernel(Kernel):
    """A GPyTorch kernel that declares its parameters by `register` and reads them by `Constrained`."""

    has_lengthscale = False

    def register(
        self, name: str, value: Tensor, constraint: Interval, prior: Prior | None = None, log_prior: Prior | None = None
    ) -> None:
        """Make a parameter, its constraint and its prior.

        Args:
            name: of the attribute.
            value: a first value.
            constraint: where it may be.
            prior: of the value.
            log_prior: of its logarithm, in the place of that.

        Raises:
            ProgramError: a first value that is outside the constraint, or two priors.
        """
        raw = constraint.inverse_transform(value)
        if not raw.isfinite().all():
            raise ProgramError(
                f"{name}: expected values in {_shown(constraint)}, got {value.tolist()}. Change the setting {name}=."
            )
        if prior is not None and log_prior is not None:
            raise ProgramError(f"{name}: expected one prior, got one of it and one of its logarithm. Pass one of them.")
        self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        self.register_constraint(f"raw_{name}", constraint)
        if prior is not None:
            self.register_prior(f"{name}_prior", prior, lambda m: getattr(m, name), lambda m, v: m.set_value(name, v))
        if log_prior is not None:
            self.register_prior(
                f"log_{name}_prior",
                log_prior,
                lambda m: getattr(m, name).log(),
                lambda m, v: m.set_value(name, v.exp()),
            )

    def set_value(self, name: str, value: Tensor | float) -> None:
        """Set a parameter to a value in its own units."""
        raw, constraint = getattr(self, f"raw_{name}"), getattr(self, f"raw_{name}_constraint")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        self.initialize(**{f"raw_{name}": constraint.inverse_transform(value)})


def _shown(constraint: Interval) -> str:
    return f"({float(constraint.lower_bound):g}, {float(constraint.upper_bound):g})"

"""The shapes that a Gaussian's spread can take, and the few operations in which they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from probmix.distributions import InverseWishart
from probmix.positive_definite import safe_cholesky

__all__ = ["COVARIANCES", "AbstractCovariance", "Dense", "Diagonal", "Spherical"]


class AbstractCovariance(ABC):
    """A shape of covariance. Every one is made of independent Wishart blocks.

    A *block* is a set of features that share one matrix or variance: all features at once for a dense matrix (one block
    of order D), each feature alone for a diagonal (D blocks of order 1), and for a spherical covariance one block of
    order 1 that sees D numbers in each row.
    """

    site: ClassVar[str]
    spread_dim: ClassVar[int]
    pooled: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it in ``covariance=``."""

    @property
    @abstractmethod
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the spread."""

    @abstractmethod
    def order(self, num_features: int) -> int:
        """Order of the matrix in one block."""

    @abstractmethod
    def blocks(self, num_features: int) -> int:
        """Count of blocks in one component."""

    @abstractmethod
    def second_moments(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of squares and products, ``(N, D), (*b, N, K) -> (*b, K, ...)``."""

    @abstractmethod
    def squares(self, columns: Tensor) -> Tensor:
        """Squares and products of features that make up the squared distance, ``(*b, D, N) -> (*b, Q, N)``."""

    @abstractmethod
    def natural(self, loc: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the log density: of the features, ``(*b, K, D)``, and of ``squares``, ``(*b, K, Q)``.

        They are the precision times the mean, and minus half the precision. With them comes ``log_det``, ``(*b, K)``.
        For a shared spread (``lift``) K is 1 in the last two.
        """

    @abstractmethod
    def pack(self, scatter: Tensor) -> Tensor:
        """Entries of a symmetric matrix, or variances, in the order of ``squares``, ``(*b, ...) -> (*b, Q)``."""

    @abstractmethod
    def log_det(self, spread: Tensor) -> Tensor:
        """Log determinant of one component's blocks, together."""

    @abstractmethod
    def block_distance(self, x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """Squared Mahalanobis distances by block, ``(N, D), (*b, K, D) -> (*b, K, blocks, N)``."""

    @abstractmethod
    def trace(self, scatter: Tensor, spread: Tensor) -> Tensor:
        r"""Trace of :math:`S \\Sigma^{-1}` for each component."""

    @abstractmethod
    def variances(self, spread: Tensor, num_features: int) -> Tensor:
        """Variance of each feature, ``(*b, K, D)``."""

    @abstractmethod
    def independence(self, spread: Tensor) -> Tensor:
        """Least share of a feature's variance that the features before it leave unexplained, ``(*b, K)``."""

    @abstractmethod
    def factor(self, spread: Tensor) -> Tensor:
        """Square root: lower Cholesky factor of a matrix, standard deviation of a variance."""

    @abstractmethod
    def normal(self, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Gaussian of one row."""

    @abstractmethod
    def student(self, df: Tensor, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Student-t of one row (a product of them, one per block)."""

    @abstractmethod
    def colour(self, factor: Tensor, noise: Tensor) -> Tensor:
        """Turn standard normal rows ``(*b, D)`` into rows of this spread, given one factor per row."""

    @abstractmethod
    def prior(self, dof: Tensor, scatter: Tensor) -> dist.TorchDistribution:
        """Inverse Wishart distribution of the spread (an inverse gamma where the order is 1)."""

    def features(self, columns: Tensor) -> Tensor:
        """One, the features and ``squares``: the log density is linear in these, ``(*b, D, N) -> (*b, P, N)``."""
        return torch.cat([torch.ones_like(columns[..., :1, :]), columns, self.squares(columns)], -2)

    def replicates(self, num_features: int) -> int:
        """Numbers that one row tells each entry of a block."""
        return num_features // (self.order(num_features) * self.blocks(num_features))

    def lift(self, spread: Tensor, event_dim: int | None = None) -> Tensor:
        """Give a spread shared by all components its component axis (of size 1)."""
        axis = -1 - (self.spread_dim if event_dim is None else event_dim)
        return spread.unsqueeze(axis) if self.pooled else spread

    def drop(self, spread: Tensor, event_dim: int | None = None) -> Tensor:
        """Undo ``lift``: sum out the component axis if all components share one spread."""
        axis = -1 - (self.spread_dim if event_dim is None else event_dim)
        return spread.sum(axis) if self.pooled else spread


@dataclass(frozen=True)
class Dense(AbstractCovariance):
    """A matrix per component ("full"), or one for all of them (``pooled``, "tied").

    Example:
        >>> import torch
        >>> Dense().block_distance(torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2), torch.eye(2)[None]).flatten()
        tensor([9.])
    """

    site: ClassVar[str] = "cov"
    spread_dim: ClassVar[int] = 2
    pooled: bool = False

    @property
    def name(self) -> str:
        """The word for it in ``covariance=``."""
        return "tied" if self.pooled else "full"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of ``cov``."""
        return ("feature", "feature_bis") if self.pooled else ("component", "feature", "feature_bis")

    def order(self, num_features: int) -> int:
        """All features in one matrix."""
        return num_features

    def blocks(self, num_features: int) -> int:
        """One matrix."""
        return 1

    def second_moments(self, x: Tensor, weights: Tensor) -> Tensor:
        """One matrix product: weighted rows with rows, or weights with products of features if those are fewer."""
        size = x.shape[-1]
        num_components = weights.shape[:-2].numel() * weights.shape[-1]
        if 2 * num_components <= size + 1:
            moments = (weights.mT[..., None, :] * x.mT) @ x
            return (moments + moments.mT) / 2
        packed = weights.mT @ self.squares(x.mT.contiguous()).mT  # one stretch of memory per feature is faster to read
        index = torch.arange(size, device=x.device)
        low, high = torch.minimum(index, index[:, None]), torch.maximum(index, index[:, None])
        return packed[..., low * (2 * size - low - 1) // 2 + high]

    def squares(self, columns: Tensor) -> Tensor:
        """``x_i x_j`` for ``i <= j``, row by row of the upper triangle."""
        return torch.cat([columns[..., i : i + 1, :] * columns[..., i:, :] for i in range(columns.shape[-2])], -2)

    def natural(self, loc: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Off the diagonal the precision counts twice."""
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        whitener = torch.linalg.solve_triangular(safe_cholesky(spread), identity, upper=False)
        precision = whitener.mT @ whitener
        log_det = -2 * whitener.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (precision @ loc[..., None]).squeeze(-1), self.pack((identity / 2 - 1) * precision), log_det

    def pack(self, scatter: Tensor) -> Tensor:
        """Upper triangle."""
        row, column = torch.triu_indices(*scatter.shape[-2:], device=scatter.device)
        return scatter[..., row, column]

    def log_det(self, spread: Tensor) -> Tensor:
        """Twice the log diagonal of the Cholesky factor."""
        return 2 * safe_cholesky(spread).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def block_distance(self, x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """Whiten rows and means with the inverse Cholesky factor, so that the rows meet one matrix product.

        Both are first shifted by the mean of the rows: no digits are lost to a large offset of the data.
        """
        centre = x.mean(-2)
        tril = safe_cholesky(spread)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        whitener = torch.linalg.solve_triangular(tril, identity, upper=False)
        white_rows = (whitener.flatten(0, -2) @ (x - centre).mT).reshape(*whitener.shape[:-1], -1)
        white_loc = whitener @ (loc - centre)[..., None]
        return (white_rows - white_loc).square().sum(-2, keepdim=True)

    def trace(self, scatter: Tensor, spread: Tensor) -> Tensor:
        """Squared norm of one whitened Cholesky factor, never negative."""
        tril = safe_cholesky(spread)
        return torch.linalg.solve_triangular(tril, safe_cholesky(scatter), upper=False).square().sum((-2, -1))

    def variances(self, spread: Tensor, num_features: int) -> Tensor:
        """Diagonal."""
        return spread.diagonal(dim1=-2, dim2=-1)

    def independence(self, spread: Tensor) -> Tensor:
        """Least squared diagonal entry of the Cholesky factor over that of the matrix."""
        tril_diagonal = safe_cholesky(spread).diagonal(dim1=-2, dim2=-1)
        return (tril_diagonal.square() / spread.diagonal(dim1=-2, dim2=-1)).amin(-1)

    def factor(self, spread: Tensor) -> Tensor:
        """Lower Cholesky factor."""
        return safe_cholesky(spread)

    def normal(self, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Multivariate normal; not validated, since a factor of NaN stands for a failed component."""
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False)

    def student(self, df: Tensor, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Multivariate Student-t."""
        return dist.MultivariateStudentT(df, loc, factor, validate_args=False)

    def colour(self, factor: Tensor, noise: Tensor) -> Tensor:
        """``L z``."""
        return (factor @ noise[..., None]).squeeze(-1)

    def prior(self, dof: Tensor, scatter: Tensor) -> dist.TorchDistribution:
        """Inverse Wishart."""
        return InverseWishart(dof, scatter)


@dataclass(frozen=True)
class Diagonal(AbstractCovariance):
    """A variance per feature, of each component ("diagonal") or of all (``pooled``, "EEI" in mclust's words).

    Example:
        >>> import torch
        >>> Diagonal().block_distance(torch.tensor([[3.0, 2.0]]), torch.zeros(1, 2), torch.ones(1, 2)).flatten()
        tensor([9., 4.])
    """

    site: ClassVar[str] = "var"
    spread_dim: ClassVar[int] = 1
    pooled: bool = False

    @property
    def name(self) -> str:
        """The word for it in ``covariance=``."""
        return "EEI" if self.pooled else "diagonal"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of ``var``."""
        return ("feature",) if self.pooled else ("component", "feature")

    def order(self, num_features: int) -> int:
        """Single variances."""
        return 1

    def blocks(self, num_features: int) -> int:
        """Every feature is a block."""
        return num_features

    def second_moments(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of squares of each feature."""
        return weights.mT @ x.square()

    def squares(self, columns: Tensor) -> Tensor:
        """``x_j**2``."""
        return columns.square()

    def natural(self, loc: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``loc_j / var_j`` and ``-1 / (2 var_j)``."""
        return loc / spread, -0.5 / spread, self.log_det(spread)

    def pack(self, scatter: Tensor) -> Tensor:
        """One for each feature as it is."""
        return scatter

    def log_det(self, spread: Tensor) -> Tensor:
        """Sum of log variances."""
        return spread.log().sum(-1)

    def block_distance(self, x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """``(x_j - loc_j)**2 / var_j``."""
        return (x.mT - loc[..., None]).square() / spread[..., None]

    def trace(self, scatter: Tensor, spread: Tensor) -> Tensor:
        """Sum of ratios."""
        return (scatter / spread).sum(-1)

    def variances(self, spread: Tensor, num_features: int) -> Tensor:
        """The spread itself."""
        return spread

    def independence(self, spread: Tensor) -> Tensor:
        """One: the features are independent."""
        return torch.ones_like(spread[..., 0])

    def factor(self, spread: Tensor) -> Tensor:
        """Standard deviations."""
        return spread.sqrt()

    def normal(self, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Independent normals."""
        return dist.Normal(loc, factor, validate_args=False).to_event(1)

    def student(self, df: Tensor, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Independent Student-t, one per feature."""
        return dist.StudentT(df[..., None], loc, factor, validate_args=False).to_event(1)

    def colour(self, factor: Tensor, noise: Tensor) -> Tensor:
        """``std_j z_j``."""
        return factor * noise

    def prior(self, dof: Tensor, scatter: Tensor) -> dist.TorchDistribution:
        """Inverse gamma of each feature, with half the degrees of freedom and half the scatter."""
        return dist.InverseGamma(dof[..., None] / 2, scatter / 2).to_event(1)


@dataclass(frozen=True)
class Spherical(AbstractCovariance):
    """One variance for all directions, of each component ("spherical") or of all (``pooled``, "EII").

    Example:
        >>> import torch
        >>> Spherical().block_distance(torch.tensor([[3.0, 2.0]]), torch.zeros(1, 2), torch.ones(1)).flatten()
        tensor([13.])
    """

    site: ClassVar[str] = "var"
    spread_dim: ClassVar[int] = 0
    pooled: bool = False

    @property
    def name(self) -> str:
        """The word for it in ``covariance=``."""
        return "EII" if self.pooled else "spherical"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of ``var``."""
        return () if self.pooled else ("component",)

    def order(self, num_features: int) -> int:
        """A single variance."""
        return 1

    def blocks(self, num_features: int) -> int:
        """One variance for all features."""
        return 1

    def second_moments(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of squares over all features."""
        return (weights.mT @ x.square().sum(-1, keepdim=True)).squeeze(-1)

    def squares(self, columns: Tensor) -> Tensor:
        """``|x|**2``."""
        return columns.square().sum(-2, keepdim=True)

    def natural(self, loc: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``loc / var`` and ``-1 / (2 var)``."""
        return loc / spread[..., None], -0.5 / spread[..., None], self.log_det(spread)

    def pack(self, scatter: Tensor) -> Tensor:
        """The one number."""
        return scatter[..., None]

    def log_det(self, spread: Tensor) -> Tensor:
        """Log variance."""
        return spread.log()

    def block_distance(self, x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        """``|x - loc|**2 / var``."""
        return (x.mT - loc[..., None]).square().sum(-2, keepdim=True) / spread[..., None, None]

    def trace(self, scatter: Tensor, spread: Tensor) -> Tensor:
        """Ratio."""
        return scatter / spread

    def variances(self, spread: Tensor, num_features: int) -> Tensor:
        """The same for every feature."""
        return spread[..., None].expand(*spread.shape, num_features)

    def independence(self, spread: Tensor) -> Tensor:
        """One: the features are independent."""
        return torch.ones_like(spread)

    def factor(self, spread: Tensor) -> Tensor:
        """Standard deviation."""
        return spread.sqrt()

    def normal(self, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Independent normals of equal standard deviation."""
        return dist.Normal(loc, factor[..., None], validate_args=False).to_event(1)

    def student(self, df: Tensor, loc: Tensor, factor: Tensor) -> dist.TorchDistribution:
        """Multivariate Student-t with an isotropic scale: the features share one unknown variance."""
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        return dist.MultivariateStudentT(df, loc, factor[..., None, None] * identity, validate_args=False)

    def colour(self, factor: Tensor, noise: Tensor) -> Tensor:
        """``std z``."""
        return factor[..., None] * noise

    def prior(self, dof: Tensor, scatter: Tensor) -> dist.TorchDistribution:
        """Inverse gamma with half the degrees of freedom and half the scatter."""
        return dist.InverseGamma(dof / 2, scatter / 2)


COVARIANCES: Mapping[str, AbstractCovariance] = MappingProxyType(
    {
        "full": Dense(),
        "tied": Dense(pooled=True),
        "diagonal": Diagonal(),
        "spherical": Spherical(),
        "EEI": Diagonal(pooled=True),
        "EII": Spherical(pooled=True),
    }
)

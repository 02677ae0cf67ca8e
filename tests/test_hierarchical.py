"""Model-based agglomeration, against scipy's Ward tree and a search over all pairs at every merge."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.cluster.hierarchy
import torch
from torch import Tensor

from probmix import hierarchical
from probmix.datasets import load_diabetes_145, load_faithful, load_iris
from probmix.errors import DataError, MethodError
from probmix.hierarchical import hierarchical_labels
from probmix.inference import EM, infer
from probmix.models import GaussianMixture

CRITERIA = ("VVV", "VII", "EII")
every_criterion = pytest.mark.parametrize("covariance", CRITERIA)


def rows(count: int = 40, size: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return x * torch.arange(1, size + 1) + 4 * (torch.arange(count) % 3)[:, None]


def axes(x: Tensor) -> np.ndarray:
    """The columns the tree is grown on, another way: eigenvectors of the correlation matrix."""
    scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    return scaled @ vectors / values**0.25


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


def total(covariance: str, x: np.ndarray, labels: np.ndarray) -> float:
    """The sum in the docstring, cluster by cluster."""
    size = x.shape[1]
    a, value = x.var(0).mean(), 0.0
    for k in set(labels.tolist()):
        mine = x[labels == k]
        scatter = (mine - mine.mean(0)).T @ (mine - mine.mean(0))
        count, trace = len(mine), np.trace(scatter)
        value += {
            "EII": lambda w=trace: w,
            "VII": lambda w=trace, m=count: m * size * np.log((w + a) / (m * size)),
            "VVV": lambda w=scatter, m=count: m * np.linalg.slogdet((w + a * np.eye(size)) / m)[1],
        }[covariance]()
    return value


def greedy(covariance: str, x: np.ndarray, num_clusters: int) -> np.ndarray:
    """Try every merge, keep the cheapest."""
    labels = np.arange(len(x))
    while len(set(labels.tolist())) > num_clusters:
        names = sorted(set(labels.tolist()))
        merged = [np.where(labels == j, i, labels) for i in names for j in names if i < j]
        labels = min(merged, key=lambda candidate: total(covariance, x, candidate))
    return labels


@pytest.mark.parametrize("num_components", [2, 3, 7])
def test_wards_tree_is_that_of_scipy(num_components: int) -> None:
    x = rows(80)
    tree = scipy.cluster.hierarchy.linkage(axes(x), "ward")
    expected = scipy.cluster.hierarchy.fcluster(tree, num_components, "maxclust")
    labels = hierarchical_labels(x, num_components, covariance="EII", seed=0)
    assert same_partition(labels.numpy(), expected)
    other = hierarchical_labels(x.roll(1, 0) + rows(80, seed=1), num_components, covariance="EII", seed=0)
    assert not same_partition(other.numpy(), expected)


@every_criterion
@pytest.mark.parametrize("size", [1, 3])
def test_every_merge_is_the_cheapest(covariance: str, size: int) -> None:
    x = rows(14, size)
    expected = greedy(covariance, axes(x), 3)
    assert same_partition(hierarchical_labels(x, 3, covariance=covariance, seed=0).numpy(), expected)


@every_criterion
def test_one_tree_serves_all_numbers_and_its_clusters_are_nested(covariance: str) -> None:
    x, numbers = rows(60), [1, 2, 5, 60]
    labels = hierarchical_labels(x, numbers, covariance=covariance, seed=0)
    assert labels.shape == (4, 60)
    assert [int(cut.max()) + 1 for cut in labels] == numbers
    for coarse, fine in pairwise(labels):
        assert len(set(zip(coarse.tolist(), fine.tolist(), strict=True))) == int(fine.max()) + 1
    for number, cut in zip(numbers, labels, strict=True):
        assert torch.equal(cut, hierarchical_labels(x, number, covariance=covariance, seed=0))
        assert cut.unique_consecutive(return_inverse=True)[0][0] == 0  # numbered by first appearance


@every_criterion
def test_blocks_of_pairs_give_the_same_tree(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(50)
    expected = hierarchical_labels(x, 4, covariance=covariance, seed=0)
    monkeypatch.setattr(hierarchical, "_LARGEST_TABLE", 600)  # four rows of pairs at a time
    assert torch.equal(hierarchical_labels(x, 4, covariance=covariance, seed=0), expected)


@every_criterion
def test_units_shifts_and_the_order_of_rows_do_not_matter(covariance: str) -> None:
    x = rows(50)
    expected = hierarchical_labels(x, 4, covariance=covariance, seed=0).numpy()
    other = x * torch.tensor([1e6, 1.0, 1e-6]) + 1e3
    assert same_partition(hierarchical_labels(other, 4, covariance=covariance, seed=0).numpy(), expected)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = hierarchical_labels(x[order], 4, covariance=covariance, seed=0)
    assert same_partition(shuffled.numpy(), expected[order.numpy()])


@every_criterion
def test_equal_rows_stay_together_and_count(covariance: str) -> None:
    x = rows(12).repeat(3, 1)
    labels = hierarchical_labels(x, 12, covariance=covariance, seed=0)
    assert torch.equal(labels, torch.arange(12).repeat(3))
    with pytest.raises(DataError, match=r"got 12 distinct rows for 13 components.*lower num_components"):
        hierarchical_labels(x, [2, 13], covariance=covariance, seed=0)


def test_an_unknown_covariance_is_named() -> None:
    with pytest.raises(MethodError, match="expected one of EII, VII, VVV for the tree, got 'EEE'"):
        hierarchical_labels(rows(), 3, covariance="EEE", seed=0)


@every_criterion
def test_constant_and_copied_columns_do_no_harm(covariance: str) -> None:
    x = rows(30, 2)
    wide = torch.cat([x, torch.full((30, 1), 7.0).double()], -1)
    expected = hierarchical_labels(x, 3, covariance=covariance, seed=0)
    assert torch.equal(hierarchical_labels(wide, 3, covariance=covariance, seed=0), expected)
    assert int(hierarchical_labels(torch.cat([x, 2 * x], -1), 3, covariance=covariance, seed=0).max()) == 2
    assert torch.equal(hierarchical_labels(torch.ones(4, 2), 1, covariance=covariance, seed=0), torch.zeros(4).long())


def test_many_rows_follow_a_tree_on_some_of_them() -> None:
    x = torch.cat([rows(200, 2, seed=s) * 0.1 + 5 * s for s in range(3)])
    truth = torch.arange(600) // 200
    labels = hierarchical_labels(x, 3, seed=0, max_rows=100)
    assert same_partition(labels.numpy(), truth.numpy())
    assert torch.equal(labels, hierarchical_labels(x, 3, seed=0, max_rows=100))
    state = torch.get_rng_state()
    hierarchical_labels(x, 3, seed=5, max_rows=100)
    assert torch.equal(state, torch.get_rng_state())


def test_many_columns_make_a_smaller_tree() -> None:
    """So that it takes as long: 2000 rows of up to 4 columns, a tenth of them of 40."""
    assert [hierarchical._affordable(size, 3) for size in (1, 4, 16, 40)] == [2000, 2000, 500, 200]
    assert hierarchical._affordable(400, 5) == 50
    assert hierarchical._affordable(400, 500) == 2000


def test_float32_rows_and_labels_on_their_device() -> None:
    labels = hierarchical_labels(rows(30).float(), 3, seed=0)
    assert labels.dtype == torch.long
    assert labels.device == torch.device("cpu")


# From labels to the published optimum of mclust (its vignette; iris: its help pages), see test_published_optima.py.
@pytest.mark.parametrize(
    ("load", "letters", "num_components", "published"),
    [
        (load_iris, "VEV", 2, -215.726),
        (load_iris, "VVV", 2, -214.355),
        (load_faithful, "EEE", 3, -1126.326),
        (load_diabetes_145, "VVV", 3, -2295.118),
    ],
)
@every_criterion
def test_it_is_a_start_from_which_em_reaches_a_published_optimum(load, letters, num_components, published, covariance):
    x, model = load().x, GaussianMixture(num_components, letters)
    labels = hierarchical_labels(x, num_components, covariance=covariance, seed=0)
    statistics = model.sufficient_statistics(x, torch.nn.functional.one_hot(labels).double())
    fit = infer(model, x, EM(objective="ml", init=model.maximise(statistics, None)), seed=0)
    assert fit.objective >= published - 5e-4  # it is given to three decimals

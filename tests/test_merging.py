"""Merging of components: the order by brute force, the laws of entropy, the elbow."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.special import entr

from probmix.errors import DataError
from probmix.merging import elbow, merge, merge_responsibilities
from probmix.models import GaussianMixture

R = torch.tensor(np.random.default_rng(0).dirichlet([0.3, 0.3, 0.3, 0.3, 0.3], 60))


def test_every_merger_is_the_best_of_all_pairs():
    merging = merge_responsibilities(R)
    for k in range(5, 1, -1):
        shares = merging.responsibilities(k).numpy()
        after = {}
        for i, j in combinations(range(k), 2):
            rest = np.delete(shares, [i, j], 1)
            after[i, j] = entr(np.column_stack([rest, shares[:, i] + shares[:, j]])).sum()
        best = min(after.values())
        np.testing.assert_allclose(float(merging.entropies[k - 2]), best, atol=1e-10)  # rounding of 60 rows


def test_laws():
    merging = merge_responsibilities(R)
    assert (merging.entropies.diff() >= 0).all()  # fewer clusters, less doubt
    assert abs(float(merging.entropies[0])) < 1e-12  # rounding of sums to one
    assert merging.groups(1) == ((0, 1, 2, 3, 4),)
    assert merging.groups(5) == ((0,), (1,), (2,), (3,), (4,))
    torch.testing.assert_close(merging.labels(5), R.argmax(-1))
    for k in range(1, 6):
        torch.testing.assert_close(merging.responsibilities(k).sum(-1), torch.ones(60, dtype=torch.float64))
        assert sorted(sum(merging.groups(k), ())) == [0, 1, 2, 3, 4]


def test_row_weights_count_rows():
    weights = torch.arange(60) % 3
    ours = merge_responsibilities(R, row_weights=weights)
    theirs = merge_responsibilities(R.repeat_interleave(weights, 0))
    assert ours.order == theirs.order
    torch.testing.assert_close(ours.entropies, theirs.entropies)


def test_two_halves_of_a_cluster_become_one():
    """Components 0 and 2 lie on each other, 1 and 3 far from them and from each other."""
    loc = torch.tensor([[0.0], [50.0], [0.5], [-50.0]], dtype=torch.float64)
    sites = {"weights": torch.full((4,), 0.25, dtype=torch.float64), "loc": loc, "var": torch.ones(4).double()}
    model = GaussianMixture(4, "spherical")
    x, assignment = model.sample(400, sites, seed=0, return_assignments=True)
    merging = merge(model, x, sites)
    assert merging.order[0] == ((0,), (2,))
    assert merging.elbow == 3
    truth = torch.tensor([0, 1, 0, 2])[assignment]
    assert torch.equal(merging.labels(3), truth)


@pytest.mark.parametrize(
    ("entropies", "expected"),
    [([0.0, 1.0, 2.0, 13.0, 24.0], 3), ([0.0, 10.0, 11.0, 12.0, 13.0], 2), ([0.0, 0.0, 0.0, 0.0, 9.0], 4)],
)
def test_the_elbow_is_where_two_exact_lines_meet(entropies, expected):
    assert elbow(entropies) == expected


def test_three_components_have_no_elbow():
    assert merge_responsibilities(R[:, :3] / R[:, :3].sum(1, keepdim=True)).elbow is None
    with pytest.raises(DataError, match="4 entropies or more, got 3"):
        elbow([0.0, 1.0, 2.0])


def test_errors():
    with pytest.raises(DataError, match="expected 1 to 5 clusters, got 6"):
        merge_responsibilities(R).labels(6)
    with pytest.raises(DataError, match=r"got the shape \(60,\)"):
        merge_responsibilities(R[:, 0])
    model, batch = GaussianMixture(1, "spherical"), {"weights": torch.ones(2, 1)}
    with pytest.raises(DataError, match=r"weights of shape \(2, 1\)\. Pick one entry"):
        merge(model, R, batch)

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from probmix.positive_definite import LogCholeskyTransform, positive_definite_matrix, safe_cholesky

SIZES = [1, 2, 3, 5]


def free_vectors(size: int, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, size * (size + 1) // 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_the_map_goes_to_positive_definite_matrices_and_back(size: int) -> None:
    z = free_vectors(size)
    transform = LogCholeskyTransform()
    matrix = transform(z)
    assert bool(positive_definite_matrix.check(matrix).all())
    assert (torch.linalg.eigvalsh(matrix) > 0).all()
    # Two Cholesky passes of matrices with a condition number below 1e4: 1e4 units in the last place.
    torch.testing.assert_close(LogCholeskyTransform().inv(matrix), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_the_jacobian_is_that_of_the_free_entries(size: int) -> None:
    z = free_vectors(size)
    transform = LogCholeskyTransform()
    row, column = torch.tril_indices(size, size)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda vector: transform(vector)[row, column]))(z)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, transform(z)), expected, rtol=1e-12, atol=1e-12)


def test_shapes_with_and_without_a_batch() -> None:
    transform = LogCholeskyTransform()
    for batch in [(), (4,), (2, 3)]:
        z = torch.zeros(*batch, 6)
        assert transform(z).shape == (*batch, 3, 3) == transform.forward_shape(z.shape)
        assert transform.inv(transform(z)).shape == (*batch, 6) == transform.inverse_shape(transform(z).shape)
        assert transform.log_abs_det_jacobian(z, transform(z)).shape == batch


def test_the_registries_know_our_constraint_and_keep_theirs() -> None:
    for registry in (biject_to, transform_to):
        assert isinstance(registry(positive_definite_matrix), LogCholeskyTransform)
    assert not isinstance(transform_to(constraints.positive_definite), LogCholeskyTransform)


def test_the_check_does_not_depend_on_units() -> None:
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    asymmetric = torch.tensor([[2.0, 0.5], [0.4, 1.0]], dtype=torch.float64)
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    matrices = torch.stack([good, asymmetric, indefinite, torch.full_like(good, torch.nan)])
    for unit in (1e-12, 1.0, 1e12):
        assert positive_definite_matrix.check(matrices * unit).tolist() == [True, False, False, False]


def test_one_bad_matrix_leaves_the_others_of_its_batch_alone() -> None:
    batch = torch.stack([torch.eye(2) * 4, -torch.eye(2)])
    tril = safe_cholesky(batch)
    torch.testing.assert_close(tril[0], torch.eye(2) * 2)
    assert tril[1].isnan().all()


def test_it_can_be_batched_and_differentiated_by_torch() -> None:
    z = free_vectors(3)
    transform = LogCholeskyTransform()

    def loss(vector: Tensor) -> Tensor:
        return transform.inv(2 * transform(vector)).sum()

    value = torch.func.vmap(loss)(z)
    gradient = torch.func.vmap(torch.func.grad(loss))(z)
    torch.testing.assert_close(value, torch.stack([loss(vector) for vector in z]))
    # Doubling a matrix adds log(2)/2 to the log diagonal and scales the rest by sqrt(2): a gradient of 1 and sqrt(2).
    expected = torch.tensor([1.0, 2**0.5, 1.0, 2**0.5, 2**0.5, 1.0], dtype=torch.float64).expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_wrong_lengths_and_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"D\(D\+1\)/2 entries .*got 4: pass the lower triangle"):
        LogCholeskyTransform()(torch.zeros(4))
    with pytest.raises(ValueError, match=r"square matrices .*got shape \(2, 3\)"):
        LogCholeskyTransform().inverse_shape(torch.Size([2, 3]))

"""The fused log joint of a Gaussian mixture: against its closed form, its program as traced, and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor
from torch.func import grad_and_value, hessian, vmap

from probmix.arguments import Arguments
from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.gaussian_family import FAMILIES
from probmix.isolation import isolated, unvalidated
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture
from probmix.quadratic import mixture_log_likelihood
from probmix.typing import FusedLogJoint

SHAPES = list(FAMILIES)
K, D, N, CHAINS = 3, 2, 200, 4
EPS = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


class Case(NamedTuple):
    """A model, data, and points that no component is empty at, so that every coordinate has a gradient."""

    model: GaussianMixture
    x: Tensor
    density: LogDensity  # of the program as written: it is hidden that it has a fused method
    z: Tensor

    @property
    def sites(self) -> dict[str, Tensor]:
        return self.density.constrain(self.z)


@cache
def case(model: GaussianMixture, num_features: int = D) -> Case:
    """Three groups far from the origin, in columns of unlike units; ``z`` is ``(CHAINS, dim)``."""
    noise = torch.Generator().manual_seed(1)
    group = torch.arange(N) % 3
    rows = torch.randn(N, 2, generator=noise) + 4 * torch.stack([group, -group], -1)
    x = (1000 + rows * torch.tensor([1.0, 20.0]))[:, :num_features].contiguous()
    cov = x.mT.cov().reshape(num_features, num_features)
    var = cov.diagonal()
    shapes = {
        "full": cov.expand(K, -1, -1),
        "tied": cov,
        "diagonal": var.expand(K, -1),
        "spherical": var.mean().expand(K),
        "EEI": var,
        "EII": var.mean(),
    }
    sites = {"weights": torch.full((K,), 1 / K), "loc": x[:K]}
    sites[model.family.covariance.site] = shapes[model.covariance]
    density = LogDensity(lambda rows: model(rows), Arguments.of(x))
    z = density.unconstrain(sites) + 0.3 * torch.randn(CHAINS, density.dim, generator=noise)
    return Case(model, x, density, z)


def fused_value(case: Case) -> Callable[[Tensor], Tensor]:
    def value(z: Tensor) -> Tensor:
        pairs = {site.name: site.constrain(z) for site in case.density.latents}
        log_joint = case.model.fused_log_joint(case.x, {name: site for name, (site, _) in pairs.items()})
        return log_joint + sum(log_jacobian for _, log_jacobian in pairs.values())

    return value


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """1e-10 of the largest entry: both sum terms of that size in float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * theirs.abs().max().item())


MODELS = [GaussianMixture(K, covariance) for covariance in SHAPES]
MODELS += [
    GaussianMixture(K, "full", 2.0, NormalInverseWishart(torch.ones(D), 0.3, 5.0, torch.eye(D) + 0.2)),
    GaussianMixture(K, "tied", 0.7, NormalInverseWishart(torch.ones(D), 0.3, 5.0, torch.eye(D) + 0.2)),
    GaussianMixture(K, "diagonal", 2.0, NormalInverseGamma(torch.ones(D), 0.3, 5.0, torch.ones(D))),
]
IDS = [*SHAPES, "full, own prior", "tied, own prior", "diagonal, own prior"]


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_value_and_gradient_are_those_of_the_traced_program(model):
    """The program knows nothing of features: Pyro enumerates the assignments. One vector, and a batch through vmap."""
    known = case(model)
    function, reference = grad_and_value(fused_value(known)), grad_and_value(known.density.value)
    with unvalidated(known.x.dtype, known.x.device):
        gradient, value = vmap(reference)(known.z)
        ours_gradient, ours = vmap(function)(known.z)
        one_gradient, one = function(known.z[0])
    assert_close(ours, value)
    assert_close(ours_gradient, gradient)
    assert_close(one, value[0])
    assert_close(one_gradient, gradient[0])


@pytest.mark.parametrize("covariance", SHAPES)
def test_hessian_is_that_of_the_traced_program(covariance):
    known = case(GaussianMixture(K, covariance))
    with unvalidated(known.x.dtype, known.x.device):
        ours, theirs = (hessian(f)(known.z[0]) for f in (fused_value(known), known.density.value))
    assert_close(ours, theirs)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_it_is_the_closed_form_and_takes_batches_as_they_are(model):
    _, x, density, z = case(model)
    sites = density.constrain(z.reshape(2, CHAINS // 2, -1))
    assert_close(model.fused_log_joint(x, sites), model.log_joint(x, sites))


@pytest.mark.parametrize("covariance", SHAPES)
def test_every_chain_may_have_a_data_set_of_its_own(covariance):
    known = case(GaussianMixture(K, covariance))
    x = torch.stack([known.x, known.x + 1, 2 * known.x, known.x.flip(0)])
    assert_close(*(vmap(f)(x, known.sites) for f in (known.model.fused_log_joint, known.model.log_joint)))


@pytest.mark.parametrize(
    ("covariance", "theirs"), [("full", "full"), ("tied", "tied"), ("diagonal", "diag"), ("spherical", "spherical")]
)
def test_likelihood_is_scikit_learns(covariance, theirs):
    model, x, *_ = case(GaussianMixture(K, covariance))
    reference = Reference(K, covariance_type=theirs, random_state=0)
    reference.fit(x.numpy())
    sites = {"weights": torch.tensor(reference.weights_), "loc": torch.tensor(reference.means_)}
    sites[model.family.covariance.site] = torch.tensor(reference.covariances_)
    likelihood = model.fused_log_joint(x, sites) - model.log_prior(sites, model.prior(x))
    assert likelihood.item() == pytest.approx(reference.score(x.numpy()) * N, rel=1e-10)


def test_the_comparison_can_fail():
    """Control: means that are off by a millionth of the spread of the data."""
    known = case(MODELS[0])
    off = {**known.sites, "loc": known.sites["loc"] + 1e-6 * known.x.std(0)}
    with pytest.raises(AssertionError):
        assert_close(known.model.fused_log_joint(known.x, off), known.model.log_joint(known.x, known.sites))


def test_data_of_one_column():
    known = case(GaussianMixture(K), 1)
    column = known.x[:, 0]
    assert_close(known.model.fused_log_joint(column, known.sites), known.model.log_joint(known.x, known.sites))


def test_float32_data_lose_nothing_on_the_way():
    """The sum is kept in float64: what is left is the rounding of the result, 6e-8 of it."""
    known = case(MODELS[0])
    x, narrow = known.x.float(), {name: value.float() for name, value in known.sites.items()}
    ours = known.model.fused_log_joint(x, narrow)
    exact = known.model.log_joint(x.double(), {name: value.double() for name, value in narrow.items()})
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("covariance", SHAPES)
def test_a_site_off_its_support_spoils_its_own_entry_alone(covariance):
    known = case(GaussianMixture(K, covariance))
    sites, name = known.sites, known.model.family.covariance.site
    sites[name] = sites[name] * torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(-1, *(1,) * (sites[name].ndim - 1))
    assert known.model.fused_log_joint(known.x, sites).isfinite().tolist() == [True, False, True, True]


def two_clusters(separation: float) -> tuple[Tensor, dict[str, Tensor]]:
    loc = torch.tensor([[0.0], [separation]])
    x = loc[torch.arange(N) % 2] + torch.randn(N, 1)
    return x, {"weights": torch.tensor([0.4, 0.6]), "loc": loc + 0.05, "var": torch.full((2, 1), 1.1)}


def row_errors(separation: float, centre: Tensor | None = None) -> Tensor:
    """Error of the log density of each row, ``(N,)``: every row is a data set of its own."""
    model, (x, sites) = GaussianMixture(2, "diagonal"), two_clusters(separation)
    centre = x.mean(0) if centre is None else centre
    coefficients = model.family.coefficients(model.family.natural(sites, centre), sites["weights"].log())
    return (mixture_log_likelihood(coefficients, (x - centre)[:, :, None], "diagonal") - model.log_prob(x, sites)).abs()


@pytest.mark.parametrize("separation", [1e3, 1e4, 1e5, 1e6])
def test_tight_clusters_far_apart_cost_what_is_stated(separation):
    """``eps s^2`` at s standard deviations from the centre, here half of the separation; seen: a third of it."""
    stated = EPS * (separation / 2) ** 2 / 1.1
    assert row_errors(separation).max() < stated + 1e-12
    assert row_errors(separation).max() > stated / 100  # and the statement is not an empty one


def test_where_it_would_cost_too_much_the_value_is_nan():
    """0.001 nats in the terms ``s^2 / 2``: three million standard deviations from the centre."""
    limit = 2 * math.sqrt(2 * 1.1e-3 / EPS)
    assert row_errors(0.9 * limit).isfinite().all()
    assert row_errors(1.1 * limit).isnan().all()


def test_data_far_from_the_origin_cost_nothing():
    """They are centred; the control, about the origin, loses six digits."""
    x, sites = two_clusters(4.0)
    model, shift = GaussianMixture(2, "diagonal"), 2.0**20  # an exact shift
    away = {**sites, "loc": sites["loc"] + shift}
    far = ((x * 2**20).round() / 2**20) + shift
    ours = model.fused_log_joint(far, away)
    torch.testing.assert_close(ours, model.log_joint(far, away), rtol=1e-10, atol=0)
    centre = torch.zeros(1)
    coefficients = model.family.coefficients(model.family.natural(away, centre), sites["weights"].log())
    uncentred = mixture_log_likelihood(coefficients, far.mT.contiguous(), "diagonal")
    assert (uncentred - model.log_prob(far, away).sum()).abs() > 1e-4


def test_who_has_one():
    assert isinstance(MODELS[0], FusedLogJoint)
    assert not isinstance(lambda x: None, FusedLogJoint)

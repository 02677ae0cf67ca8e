"""What every method of relabelling must do, and what the front door says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import arviz as az
import pytest
import torch
from relabel_cases import (
    CHAINS,
    DRAWS,
    K,
    Normals,
    Result,
    mixture,
    random_permutations,
    refused,
    switched,
)
from torch import Tensor

from probmix.models.gaussian_mixture import GaussianMixture
from probmix.relabel import (
    ECR,
    Order,
    Pivot,
    Stephens,
    count_switches,
    permutations_of,
    permute_sites,
    relabel,
)

METHODS = [
    pytest.param(Stephens(), id="stephens"),
    pytest.param(Stephens(max_rows=0), id="stephens-recomputed"),
    pytest.param(ECR(), id="ecr"),
    pytest.param(Pivot(), id="pivot"),
    pytest.param(Pivot(sites=("loc",)), id="pivot-loc"),
    pytest.param(Order(), id="order"),
]


@pytest.mark.parametrize("method", METHODS)
def test_planted_permutations_are_recovered_up_to_one(method: Any) -> None:
    truth, planted = mixture(8.0), random_permutations()
    result = switched(truth, planted)
    found = permutations_of(result, method)
    # relabelled[k] = switched[found[k]] = truth[planted[found[k]]]
    net = planted.gather(-1, found).reshape(-1, K)
    assert len(net.unique(dim=0)) == 1
    relabelled = relabel(result, method).draws
    for name in ("weights", "loc", "cov"):
        assert torch.equal(relabelled[name], truth.draws[name].index_select(2, net[0]))
    for name in ("pooled_cov", "concentration"):
        assert torch.equal(relabelled[name], truth.draws[name])


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_never_switched_stay(method: Any) -> None:
    result = mixture(8.0)
    assert torch.equal(permutations_of(result, method), torch.arange(K).expand(CHAINS, DRAWS, K))


@pytest.mark.parametrize("method", METHODS)
def test_relabelling_twice_is_relabelling_once(method: Any) -> None:
    once = relabel(switched(mixture(8.0), random_permutations()), method)
    assert torch.equal(permutations_of(once, method), torch.arange(K).expand(CHAINS, DRAWS, K))


@pytest.mark.parametrize("wanted", list(itertools.permutations(range(K))), ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_reference_settles_the_last_permutation(method: Any, wanted: tuple[int, ...]) -> None:
    truth = switched(mixture(8.0), torch.tensor(wanted).expand(CHAINS, DRAWS, K))
    reference = {name: truth.draws[name].mean((0, 1)).float() for name in ("weights", "loc", "cov")}
    relabelled = relabel(switched(truth, random_permutations()), method, reference=reference)
    assert all(torch.equal(relabelled.draws[name], truth.draws[name]) for name in truth.draws)


@pytest.mark.parametrize("method", METHODS)
def test_density_does_not_notice(method: Any) -> None:
    result = switched(mixture(1.0), random_permutations())
    relabelled = relabel(result, method)
    assert not torch.equal(relabelled.draws["loc"], result.draws["loc"])
    density = result.program.log_joint(result.args[0], relabelled.draws)
    # Only the order of summation over 3 components changes: a few units in the last place of 60 added terms.
    torch.testing.assert_close(density, result.sample_stats["lp"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_everything_but_the_draws_is_kept(method: Any) -> None:
    result = switched(mixture(8.0), random_permutations())
    before = {name: value.clone() for name, value in result.draws.items()}
    relabelled = relabel(result, method)
    assert type(relabelled) is Result
    assert (relabelled.note, relabelled.program, relabelled.args) == ("kept", result.program, result.args)
    assert relabelled.sample_stats is result.sample_stats
    assert all(torch.equal(result.draws[name], before[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_stays_single(method: Any) -> None:
    truth = mixture(8.0)
    single = replace(switched(truth, random_permutations()), args=tuple(x.float() for x in truth.args), sample_stats={})
    single = replace(single, draws={name: value.float() for name, value in single.draws.items()})
    reference = {"loc": truth.draws["loc"].mean((0, 1))}
    relabelled = relabel(single, method, reference=reference)
    assert relabelled.draws["loc"].dtype == torch.float32
    assert torch.equal(relabelled.draws["loc"], truth.draws["loc"].float())


@pytest.mark.parametrize("method", METHODS)
def test_rhat_is_repaired_where_chains_disagree(method: Any) -> None:
    planted = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])[:, None].expand(CHAINS, DRAWS, K)
    result = switched(mixture(8.0), planted)
    before = [float(az.rhat(result.draws["loc"][:, :, k, 0].numpy())) for k in range(K)]
    after = [float(az.rhat(relabel(result, method).draws["loc"][:, :, k, 0].numpy())) for k in range(K)]
    # Chains 8 sd apart against 0.15 sd of noise: far above any threshold. Independent draws: r-hat - 1 is of the order
    # of 1 / draws = 0.025, and 1.1 is four times that.
    assert min(before) > 2
    assert max(after) < 1.1
    assert count_switches(permutations_of(result, method)) == pytest.approx((0, 2 / 3))


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
@pytest.mark.parametrize("method", METHODS)
def test_every_covariance_of_the_gaussian_mixture(method: Any, covariance: Any) -> None:
    cases = mixture(8.0)
    var = cases.draws["cov"].diagonal(dim1=-2, dim2=-1)
    spread = {
        "full": {"cov": cases.draws["cov"]},
        "tied": {"cov": cases.draws["pooled_cov"]},
        "diagonal": {"var": var},
        "spherical": {"var": var.mean(-1)},
    }[covariance]
    draws = {"weights": cases.draws["weights"], "loc": cases.draws["loc"], **spread}
    model, planted = GaussianMixture(num_components=K, covariance=covariance), random_permutations()
    mixed = permute_sites(draws, planted, model.dims)
    result = Result(mixed, model, cases.args, {"lp": model.log_joint(cases.args[0], mixed)})
    relabelled = relabel(result, method, reference={"loc": draws["loc"].mean((0, 1))}).draws
    assert all(torch.equal(relabelled[name], draws[name]) for name in draws)


def test_plain_program_gives_dims_and_responsibilities_by_hand() -> None:
    truth = mixture(8.0)
    plain = replace(switched(truth, random_permutations()), program=print)
    for method in (
        Stephens(responsibilities=truth.program.responsibilities),
        ECR(responsibilities=truth.program.responsibilities),
        Pivot(),
        Order(),
    ):
        reference = {"loc": truth.draws["loc"][0, 0]}
        relabelled = relabel(plain, method, dims=truth.program.dims, reference=reference)
        assert torch.equal(relabelled.draws["cov"], truth.draws["cov"])


def test_a_single_component_has_a_single_labelling() -> None:
    result = Result({"loc": torch.randn(2, 5, 1)}, None, (torch.zeros(3),), {"lp": torch.zeros(2, 5)})

    def alone(x: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        return torch.ones(len(sites["loc"]), len(x), 1)

    for method in (Stephens(responsibilities=alone), ECR(responsibilities=alone), Pivot(), Order()):
        found = permutations_of(result, method, dims={"loc": ("component",)})
        assert found.tolist() == torch.zeros(2, 5, 1).tolist()


def test_draw_of_highest_log_joint_keeps_its_labels() -> None:
    result = switched(mixture(8.0), random_permutations())
    best = divmod(int(result.sample_stats["lp"].argmax()), DRAWS)
    for method in (Pivot(), ECR(), Stephens()):
        assert permutations_of(result, method)[best].tolist() == [0, 1, 2]
        # Without recorded densities the program's own are used, and they say the same.
        unrecorded = replace(result, sample_stats={})
        assert torch.equal(permutations_of(unrecorded, method), permutations_of(result, method))


def test_errors_about_missing_parts_name_what_works_without() -> None:
    dims = Normals().dims
    for name, method in (("Stephens", Stephens()), ("ECR", ECR())):
        text = refused(method, dims, program=print)
        assert f"{name} needs the responsibilities" in text
        assert f"Pass {name}(responsibilities=...), or use Pivot() or Order(), which work without" in text
        assert f"{name} needs the data x" in refused(method, args=())
    given = {"dims": dims, "program": print, "sample_stats": {}}
    text = refused(Pivot(), **given)
    assert "no 'lp' and the program has no 'log_joint'. Pass Pivot(pivot=sites)" in text
    text = refused(ECR(responsibilities=Normals().responsibilities), **given)
    assert "no 'lp' and the program no 'log_joint'. Pass ECR(pivot=allocation)" in text

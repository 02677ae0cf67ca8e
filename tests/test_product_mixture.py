"""Mixtures of mixed tables: against the mixtures of each family alone, and the Pyro program."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceTreeEvaluator
from torch import Tensor

from probmix.column_priors import GammaPrior
from probmix.datasets import load_iris
from probmix.errors import DataError, ProgramError
from probmix.evidence import exact_log_evidence
from probmix.inference import EM, infer
from probmix.inference.gibbs import Gibbs
from probmix.inference.vb import VB
from probmix.log_density import LogDensity
from probmix.models.bernoulli_mixture import BernoulliMixture
from probmix.models.categorical_mixture import CategoricalMixture
from probmix.models.exponential_mixture import ExponentialMixture
from probmix.models.gaussian_mixture import GaussianMixture
from probmix.models.poisson_mixture import PoissonMixture
from probmix.models.product_mixture import ProductMixture
from probmix.product_family import ProductPrior


def make_frame(num: int = 200) -> tuple[pd.DataFrame, np.ndarray]:
    """Two groups, of which every column tells a little; and the group of each row."""
    rng = np.random.default_rng(0)
    group = rng.random(num) < 0.4
    letters = [rng.choice(list("abc"), num, p=p) for p in ([0.7, 0.2, 0.1], [0.1, 0.3, 0.6])]
    frame = pd.DataFrame(
        {
            "colour": np.where(group, *letters),
            "size": rng.normal(size=num) + 2 * group,
            "yes": rng.random(num) < np.where(group, 0.8, 0.2),
            "visits": rng.poisson(np.where(group, 8, 3)),
            "wait": rng.exponential(np.where(group, 5.0, 1.0)),
            "height": rng.normal(size=num),
            "kind": rng.choice(["x", "y"], num),
        }
    )
    return frame, group


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return make_frame()[0]


@pytest.fixture(scope="module")
def model(frame) -> ProductMixture:
    return ProductMixture.from_frame(frame, 2, families={"wait": "exponential"})


@pytest.fixture(scope="module")
def x(model, frame) -> Tensor:
    return model.encode(frame)


@pytest.fixture(scope="module")
def sites(model, x) -> dict[str, Tensor]:
    return infer(model, x, EM(restarts=3), seed=0).sites()


ALONE = {
    "gaussian": (GaussianMixture(2, "diagonal"), slice(0, 2)),
    "poisson": (PoissonMixture(2), slice(2, 3)),
    "bernoulli": (BernoulliMixture(2), slice(3, 4)),
    "categorical": (CategoricalMixture(2, num_levels=(3, 2)), slice(4, 6)),
    "exponential": (ExponentialMixture(2), slice(6, 7)),
}


def of_part(name: str, sites: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {site.removeprefix(f"{name}_"): value for site, value in sites.items() if site.startswith(f"{name}_")}
    return {"weights": sites["weights"], **own}


def test_the_rows_have_the_columns_in_groups(model, frame, x):
    assert model.feature_names == ("size", "height", "visits", "yes", "colour", "kind", "wait")
    np.testing.assert_array_equal(x[:, 2], frame["visits"])
    pd.testing.assert_frame_equal(model.decode(x).astype(object), frame.astype(object), check_dtype=False)
    drawn = model.decode(model.sample(50, infer(model, x, EM(restarts=1), seed=0).sites(), seed=0))
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["colour"]) <= {"a", "b", "c"}
    assert (drawn["visits"] >= 0).all()


def test_the_log_density_is_the_sum_of_the_parts(model, x, sites):
    parts = [part.log_prob_components(x[:, columns], of_part(name, sites)) for name, (part, columns) in ALONE.items()]
    extra = (len(parts) - 1) * sites["weights"].log()  # each part has the weights
    torch.testing.assert_close(model.log_prob_components(x, sites), sum(parts) - extra, rtol=1e-10, atol=1e-10)
    assert model.num_parameters(7) == 1 + 2 * (2 * 2 + 1 + 1 + 2 + 1 + 1)


def test_the_pyro_program_has_the_log_joint_of_the_closed_form(model, x, sites):
    program = poutine.condition(poutine.enum(model, first_available_dim=-2), sites)
    trace = poutine.trace(program).get_trace(x)
    traced = TraceTreeEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=1).log_prob(trace)
    # Sums of 200 terms in double precision: agreement to 1e-10 leaves a factor of 1e3 over rounding.
    torch.testing.assert_close(model.log_joint(x, sites), traced, rtol=1e-10, atol=0)
    values = {name: site["value"].shape for name, site in trace.nodes.items() if name in model.dims}
    assert values == {name: value.shape for name, value in sites.items()}


def test_the_gradient_is_finite_and_that_of_the_program(model, x, sites):
    arguments = LogDensity.trace(model, x).arguments
    z = LogDensity.trace(model, x).unconstrain(sites) + 0.1
    fused, plain = (LogDensity(p, arguments).value_and_grad(z)[1] for p in (model, lambda rows: model(rows)))
    assert fused.isfinite().all()
    torch.testing.assert_close(fused, plain, rtol=1e-8, atol=1e-8)


def test_a_table_of_numbers_is_the_gaussian_mixture():
    iris = load_iris().x
    frame = pd.DataFrame(iris.numpy(), columns=list("abcd"))
    mixed = ProductMixture.from_frame(frame, 3)
    for method in (EM(restarts=3), VB(restarts=3)):
        one = infer(mixed, mixed.encode(frame), method, seed=0).sites()
        two = infer(GaussianMixture(3, "diagonal"), iris.double(), method, seed=0).sites()
        torch.testing.assert_close(one["gaussian_loc"], two["loc"], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(one["gaussian_var"], two["var"], rtol=1e-6, atol=1e-8)


def test_all_columns_together_find_the_groups(model, x, sites):
    group = torch.as_tensor(make_frame()[1])
    agreement = float((model.labels(x, sites).bool() == group).double().mean())
    # The Bayes error of this mixture, counted on 10^5 rows, is 2.4 %; 8 % is five binomial standard deviations more.
    assert max(agreement, 1 - agreement) > 0.92
    assert max(agreement, 1 - agreement) < 1.0


def test_variational_bayes_and_gibbs_agree(model, x):
    vb = infer(model, x, VB(restarts=3), seed=0)
    gibbs = infer(model, x, Gibbs(chains=2, warmup=100, draws=400), seed=0, throw=False)
    for name in ("poisson_rate", "categorical_probs"):
        one = vb.sites()[name][vb.sites()["weights"].argsort()]
        order = gibbs.draws["weights"].argsort(-1)  # the groups are far apart: 40 and 60 %
        index = order.reshape(*order.shape, *[1] * (one.ndim - 1)).expand_as(gibbs.draws[name])
        draws = gibbs.draws[name].gather(2, index).flatten(0, 1)
        # Means of two approximations of one posterior: apart by a fraction of its standard deviation.
        spread = draws.std(0) + 1e-12
        assert ((one - draws.mean(0)).abs() < 0.5 * spread).all()


def test_the_evidence_of_one_component_is_the_sum_of_the_parts(frame):
    one = ProductMixture.from_frame(frame, 1, families={"wait": "exponential"})
    x = one.encode(frame)
    alone = {
        name: type(part)(1, **({"covariance": "diagonal"} if name == "gaussian" else {}))
        if name != "categorical"
        else CategoricalMixture(1, num_levels=(3, 2))
        for name, (part, _) in ALONE.items()
    }
    parts = [exact_log_evidence(alone[name], x[:, columns].contiguous()) for name, (_, columns) in ALONE.items()]
    torch.testing.assert_close(exact_log_evidence(one, x), sum(parts), rtol=1e-10, atol=0)


def test_axes_are_named_after_their_part(model):
    assert model.dims["gaussian_loc"] == ("component", "gaussian_feature")
    assert model.dims["categorical_probs"] == ("component", "categorical_feature", "categorical_level")


def test_a_prior_for_each_part_is_used(frame):
    counts = frame[["visits"]]
    strong = ProductPrior((GammaPrior(torch.tensor([1e6]), 1e6),))
    model = ProductMixture.from_frame(counts, 1, component_prior=strong)
    fit = infer(model, model.encode(counts), EM(restarts=1), seed=0).sites()
    assert float(fit["poisson_rate"]) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ProgramError, match=r"for each of \['gaussian', 'poisson'\], got 1"):
        ProductMixture.from_frame(frame[["size", "visits"]], 1, component_prior=strong)


def test_refusals_name_the_part(model, x):
    wrong = x.clone()
    wrong[3, 2] = 0.5
    with pytest.raises(DataError, match=r"in the poisson columns: expected counts.* 1 of 200 .* at index 3"):
        model.observe(wrong)
    with pytest.raises(DataError, match="expected 7 columns, as the model was made for, got 2: encode the table"):
        model.observe(x[:, :2])
    with pytest.raises(ProgramError, match="columns: expected one or more, got none"):
        ProductMixture(2, ())

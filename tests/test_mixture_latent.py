"""The mixture prior of latent vectors: its density and draws agree, gradients are right, and what it says of itself."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstwobign, multivariate_normal

from probmix.datasets import load_iris
from probmix.errors import DataError, ProgramError
from probmix.inference import EM, infer
from probmix.models import GaussianMixture, MixtureLatent

KINDS = ("spherical", "diagonal", "full")
FALSE_ALARM = 1e-6

each_kind = pytest.mark.parametrize("kind", KINDS)


def latent(kind: str = "full", num: int = 3, dim: int = 2, **settings: object) -> MixtureLatent:
    """A mixture whose components differ, in float64."""
    made = MixtureLatent(num, dim, dynamic=True, covariance=kind, learn_weights=True, **settings).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.root.add_(0.3 * torch.rand(made.root.shape, generator=generator, dtype=torch.float64))
        made.logits.copy_(torch.linspace(0.0, 1.0, num))
    return made


# --- density --------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_the_density_is_that_of_scipy(kind, temperature):
    mixture = latent(kind)
    z = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cov = (mixture.tril @ mixture.tril.mT).detach().numpy()
    expected = sum(
        float(weight.detach())
        * multivariate_normal(mixture.loc[k].detach().numpy(), temperature * cov[k]).pdf(z.numpy())
        for k, weight in enumerate(mixture.weights)
    )
    found = mixture.log_prob(z, temperature=temperature).exp()
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=1e-9, atol=0)
    law = mixture.distribution(temperature=temperature)
    torch.testing.assert_close(law.log_prob(z).exp(), found, rtol=1e-9, atol=0)


@each_kind
def test_the_floor_holds_for_every_eigenvalue(kind):
    mixture = latent(kind, floor_std=0.05)
    with torch.no_grad():
        mixture.root.zero_()
    values = torch.linalg.eigvalsh(mixture.tril @ mixture.tril.mT)
    torch.testing.assert_close(values, torch.full_like(values, 0.05**2))
    assert bool(mixture.separation().collapsed.all())
    assert "3 collapsed to the floor" in str(mixture.separation())


@each_kind
def test_the_divergence_is_the_mean_log_ratio_of_draws(kind):
    """Null: the closed form is the mean. 20,000 draws, 12 numbers, z-scores below 5.7: a false alarm in 10^7."""
    mixture, num = latent(kind), 20_000
    loc, std = (
        torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 0.0], [-1.0, 2.0]]).double(),
        torch.rand(4, 2).double() + 0.1,
    )
    q = torch.distributions.Independent(torch.distributions.Normal(loc, std), 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = q.sample((num,))
    ratios = q.log_prob(z)[..., None] - (mixture.log_prob_components(z) - mixture.weights.log())
    score = (ratios.mean(0) - mixture.divergence(loc, std)) / (ratios.std(0) / num**0.5)
    assert float(score.detach().abs().max()) < 5.7
    wrong = (ratios.mean(0) - 1.1 * mixture.divergence(loc, std)) / (ratios.std(0) / num**0.5)
    assert float(wrong.detach().abs().max()) > 5.7


# --- draws ----------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_draws_have_the_law_of_their_component(kind, temperature):
    """Null: squared Mahalanobis distances are chi-squared with 2 degrees of freedom (Kolmogorov-Smirnov).

    The limit is the quantile of Kolmogorov's distribution at one false alarm in a million; three components each.
    """
    mixture, num = latent(kind), 5000
    for k in range(3):
        z, component = mixture.sample(num, seed=k, component=k, temperature=temperature)
        assert bool((component == k).all())
        whitened = torch.linalg.solve_triangular(mixture.tril[k], (z - mixture.loc[k]).T, upper=False)
        uniform = 1 - torch.exp(-0.5 * whitened.square().sum(0) / temperature)

        def distance(values):
            ordered, steps = values.sort().values, torch.arange(1, num + 1) / num
            return float((ordered - steps).abs().max()) * num**0.5

        limit = kstwobign.isf(FALSE_ALARM)
        assert distance(uniform.detach()) < limit
        wrong = 1 - torch.exp(-0.5 * whitened.square().sum(0) / (1.2 * temperature))
        assert distance(wrong.detach()) > limit


@pytest.mark.parametrize("learn_weights", [False, True])
def test_components_are_stratified(learn_weights):
    mixture = MixtureLatent(7, 2, learn_weights=learn_weights)
    for seed in range(20):
        counts = torch.bincount(mixture.sample(24, seed=seed).component, minlength=7)
        assert set(counts.tolist()) <= {3, 4}


def test_which_component_has_one_more_is_random_and_their_order_too():
    mixture = MixtureLatent(3, 1)
    draws = [mixture.sample(4, seed=seed).component for seed in range(30)]
    assert len({int(torch.bincount(component, minlength=3).argmax()) for component in draws}) == 3
    assert len({tuple(component.tolist()) for component in draws}) > 10


def test_draws_of_one_component_do_not_stand_together():
    """In a batch that is cut in two, both halves should have all components: of 40 draws, 20 of each, 5 or more.

    By chance a half of 20 has fewer than 5 of one with a probability of 0.0007 (hypergeometric); five seeds.
    """
    for seed in range(5):
        half = MixtureLatent(2, 1).sample(40, seed=seed).component[:20]
        assert int(torch.bincount(half, minlength=2).min()) >= 5


def test_stratified_draws_follow_learnt_weights():
    mixture = latent("diagonal")
    counts = torch.bincount(mixture.sample(1000, seed=0).component, minlength=3)
    assert float((counts / 1000 - mixture.weights.detach()).abs().max()) <= 1e-3 + 1e-9  # to within one draw


@each_kind
def test_gradients_of_draws_are_those_of_the_reparameterisation(kind):
    mixture = latent(kind)

    def mean_square(*values):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            names = dict(zip(("loc", "root"), values, strict=True))
            draws = torch.func.functional_call(_Draws(mixture), {f"mixture.{n}": v for n, v in names.items()}, (6,))
        return draws.square().mean()

    assert torch.autograd.gradcheck(mean_square, (mixture.loc, mixture.root))


class _Draws(torch.nn.Module):
    def __init__(self, mixture: MixtureLatent) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, num: int) -> torch.Tensor:
        component = torch.arange(num) % self.mixture.num_components
        return self.mixture.rsample(num, component=component).z


def test_a_static_mixture_does_not_learn():
    assert not any(p.requires_grad for p in MixtureLatent(3, 2).parameters())
    assert {n for n, p in MixtureLatent(3, 2, dynamic=True).named_parameters() if p.requires_grad} == {"loc", "root"}


def test_the_same_seed_gives_the_same_draws_and_leaves_the_callers_state_alone():
    mixture, before = MixtureLatent(3, 2), torch.random.get_rng_state()
    torch.testing.assert_close(mixture.sample(5, seed=3), mixture.sample(5, seed=3), rtol=0, atol=0)
    assert not torch.equal(mixture.sample(5, seed=3).z, mixture.sample(5, seed=4).z)
    assert torch.equal(before, torch.random.get_rng_state())


def test_making_one_is_not_random():
    assert torch.equal(MixtureLatent(5, 3).loc, MixtureLatent(5, 3).loc)


def test_temperature_zero_is_the_locations():
    mixture = MixtureLatent(3, 2)
    draws = mixture.sample(6, seed=0, temperature=0.0)
    torch.testing.assert_close(draws.z, mixture.loc[draws.component], rtol=0, atol=0)


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_separation_of_the_papers_setting_depends_on_what_its_letter_means():
    """K = 10, c = 0.1, d = 100: as a variance 0.15 makes the components overlap, as a standard deviation it does not.

    Distances between uniform means are sqrt(2 d c^2 / 3) = 0.82 on average, so 2.1 and 5.4 standard deviations.
    """
    loc = 0.1 * (2 * torch.rand(10, 100, generator=torch.Generator().manual_seed(0)) - 1)
    as_variance = MixtureLatent(10, 100, loc=loc, component_std=0.15**0.5).separation()
    as_deviation = MixtureLatent(10, 100, loc=loc, component_std=0.15).separation()
    pairs = torch.triu_indices(10, 10, 1)
    assert abs(float(as_variance.distance[*pairs].mean()) - 2.1) < 0.1
    assert abs(float(as_deviation.distance[*pairs].mean()) - 5.4) < 0.2
    assert float(as_variance.error) > 0.15 > 0.02 > float(as_deviation.error)


def test_the_error_is_that_of_the_best_rule():
    """Null: as many draws of two equal components are on the wrong side as the normal distribution says.

    100,000 draws; 5 standard errors, a false alarm in two million.
    """
    mixture = MixtureLatent(2, 1, loc=torch.tensor([[-1.0], [1.0]]), component_std=1.0)
    z, component = mixture.sample(100_000, seed=0)
    wrong = float((mixture.responsibilities(z).argmax(-1) != component).double().mean())
    expected = float(mixture.separation().error)
    assert abs(expected - 0.5 * math.erfc(1 / 2**0.5)) < 1e-6
    assert abs(wrong - expected) < 5 * (expected * (1 - expected) / 100_000) ** 0.5


def test_merged_components_are_named():
    found = MixtureLatent(3, 1, loc=torch.tensor([[0.0], [0.1], [5.0]]), component_std=0.5).separation()
    assert found.merged.tolist() == [True, True, False]
    assert "nearest components 0.2 standard deviations apart" in str(found)
    assert "2 have merged" in str(found)


def test_a_component_far_wider_than_the_others_is_named():
    mixture = MixtureLatent(5, 2)
    with torch.no_grad():
        mixture.root[3] *= 10
    found = mixture.separation()
    assert found.wide.tolist() == [False, False, False, True, False]
    assert "1 far wider than the others: drawn over more than one mode" in str(found)


def test_one_component_is_the_normal_distribution():
    mixture = MixtureLatent(1, 3, component_std=1.0)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert str(mixture.separation()) == "one component; none collapsed"


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical", "EEI", "EII", "VEI", "EEV", "EVE"])
def test_it_takes_the_place_of_a_fitted_mixture(covariance):
    x = load_iris().x
    em = infer(GaussianMixture(2, covariance), x, EM(), seed=0, throw=False)
    mixture = MixtureLatent.from_sites(em.sites(), floor_std=1e-4)
    ours, theirs = mixture.log_prob(x), GaussianMixture(2, covariance).log_prob(x, em.sites())
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=1e-9)
    assert mixture.loc.requires_grad
    wider = MixtureLatent.from_sites(em.sites(), floor_std=1e-4, added_var=torch.arange(4.0).double())
    cov, before = (each.tril @ each.tril.mT for each in (wider, mixture))
    torch.testing.assert_close(cov - before, torch.diag(torch.arange(4.0)).double().expand(2, 4, 4), rtol=0, atol=1e-9)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, "num_components: expected a whole number of at least 1, got 0"),
        ({"dim": 2.0}, "dim: expected a whole number of at least 1, got 2.0"),
        ({"covariance": "tied"}, 'covariance: expected "spherical", "diagonal" or "full", got \'tied\''),
        (
            {"component_std": 0.001},
            "component_std: expected a number above floor_std=0.01, which is positive, got 0.0",
        ),
        ({"loc_range": -1.0}, "loc_range: expected a positive number, got -1.0"),
        ({"loc": torch.zeros(2, 2)}, r"loc: expected locations of shape \(3, 2\), got \(2, 2\)"),
        ({"labels": [0, 1]}, "labels: expected a class, a whole number from 0, for each of 3 components"),
        ({"labels": [0, 0, 3]}, "map onto the classes 0 to 3, but no component has class 1, 2. Give every class"),
        ({"labels": [0, -1, 1]}, "labels: expected a class, a whole number from 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        MixtureLatent(**{"num_components": 3, "dim": 2, **settings})


def test_components_that_there_are_not_are_refused():
    with pytest.raises(DataError, match="component: expected one number, or 5, from 0 to 2, got 3"):
        MixtureLatent(3, 2).sample(5, seed=0, component=3)
    with pytest.raises(DataError, match=r"or 5, from 0 to 2, got \[4\]"):
        MixtureLatent(3, 2).sample(5, seed=0, component=torch.zeros(4, dtype=torch.long))


def test_a_negative_temperature_is_refused():
    with pytest.raises(DataError, match=r"temperature: expected a number of at least 0, got -1.0. 1 is that of"):
        MixtureLatent(3, 2).sample(5, seed=0, temperature=-1.0)


def test_sites_of_another_model_are_refused():
    with pytest.raises(ProgramError, match=r"weights, loc and cov or var of a GaussianMixture, got \['rate'\]"):
        MixtureLatent.from_sites({"rate": torch.ones(3)})


@pytest.mark.parametrize("learn_weights", [True, False])
def test_components_have_their_share_of_the_draws_whether_weights_are_learnt_or_not(learn_weights):
    """Stratified: to within one. Negative control: the weights the other way round."""
    weights = torch.tensor([0.7, 0.2, 0.1])
    sites = {"weights": weights, "loc": torch.eye(3), "var": torch.ones(3, 3)}
    latent = MixtureLatent.from_sites(sites, learn_weights=learn_weights)
    for seed in range(20):
        count = latent.sample(1000, seed=seed).component.bincount(minlength=3)
        assert ((count - 1000 * weights).abs() <= 1).all()
        assert ((count - 1000 * weights.flip(0)).abs() > 1).any()


def test_draws_of_a_seed_come_in_random_order_and_those_of_training_in_order():
    latent = MixtureLatent(4, 2)
    component = latent.sample(100, seed=0).component
    assert 50 < int(component.diff().ne(0).sum()) < 95  # 75 expected, standard deviation 4.3; in order it is 3
    assert (latent.rsample(100).component.diff() >= 0).all()


def test_variances_that_may_be_of_components_or_of_axes_are_refused():
    sites = {"weights": torch.full((2,), 0.5), "loc": torch.eye(2), "var": torch.ones(2)}
    with pytest.raises(ProgramError, match=r"expected shape \(2, 2\), as \(2,\) may be one for each component or one"):
        MixtureLatent.from_sites(sites)

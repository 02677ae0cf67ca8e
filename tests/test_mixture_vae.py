"""Autoencoders with a mixture prior: the bound, exact likelihoods of linear decoders, fits, labels, and refusals."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from digits import shuffled_digits
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from probmix.collapse import Collapse
from probmix.errors import DataError, MethodError, ProgramError
from probmix.inference import EM, SVI, Laplace, infer
from probmix.models import GaussianMixture, MixtureLatent, MixtureVAE
from probmix.posterior import AbstractPosterior
from probmix.status import FitWarning

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")


def three_groups(num: int = 300, columns: int = 5, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows of a plane through five columns, in three groups; and which group."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(num) % 3
    centre = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]], dtype=torch.float64)[group]
    z = centre + 0.5 * torch.randn(num, 2, generator=generator, dtype=torch.float64)
    plane = torch.randn(2, columns, generator=generator, dtype=torch.float64)
    return z @ plane + noise * torch.randn(num, columns, generator=generator, dtype=torch.float64), group


def linear(num_components: int, **settings: object) -> MixtureVAE:
    """A model whose likelihood is exact: a decoder without hidden layers."""
    prior = MixtureLatent(num_components, 2, dynamic=num_components > 1, component_std=1.0, loc_range=2.0)
    torch.manual_seed(0)
    return MixtureVAE(prior, nn.Linear(5, 4), nn.Linear(2, 5), likelihood="normal", **settings)


def exact_log_likelihood(vae: MixtureVAE, x: Tensor) -> Tensor:
    """A mixture of normals with covariance W Sigma W' + noise."""
    w, b = vae.decoder.weight, vae.decoder.bias
    cov = w @ (vae.latent.tril @ vae.latent.tril.mT) @ w.mT + vae.likelihood.noise_std**2 * torch.eye(len(w)).to(w)
    law = dist.MultivariateNormal(vae.latent.loc @ w.mT + b, cov)
    return (law.log_prob(x[:, None]) + vae.latent.weights.log()).logsumexp(-1).detach()


def cross_table(found: Tensor, group: Tensor) -> Tensor:
    return torch.zeros(3, 3).index_put((found, group), torch.ones(len(group)), accumulate=True)


@pytest.fixture(scope="module")
def fitted() -> AbstractPosterior:
    x, _ = three_groups()
    return infer(linear(3), x, SVI(batch_size=100, max_steps=1500, learning_rate=0.01), seed=0, throw=False)


# --- the bound ------------------------------------------------------------------------------------------------------


def test_one_component_is_the_usual_autoencoder():
    """The bound by hand, with the divergence in closed form, from the same draws: equal to rounding."""
    x = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vae = MixtureVAE(MixtureLatent(1, 2, component_std=1.0), width=8).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parameters = vae.first_parameters(x)
        torch.manual_seed(1)
        ours = vae.elbo(parameters, x, num_rows=60, num_particles=4)
        torch.manual_seed(1)
        loc, log_std = vae.encoder(x).chunk(2, -1)
        z = loc + log_std.exp() * torch.randn(4, 20, 2, dtype=torch.float64)
    logits = vae.decoder(z)
    log_prob = (x * logits - nn.functional.softplus(logits)).sum(-1)
    kl = kl_divergence(Normal(loc, log_std.exp()), Normal(0.0, vae.latent.std)).sum(-1)  # 1, but for rounding
    assert torch.allclose(ours, 3 * (log_prob - kl).sum(-1), rtol=1e-12)


def test_weights_are_those_of_training_only(fitted):
    x = three_groups()[0]
    parameters = dict(fitted.program.named_parameters())
    values = []
    for settings, training in (({}, False), ({"divergence_weight": 0.25}, False), ({"divergence_weight": 0.25}, True)):
        vae = copy.deepcopy(fitted.program).train(training)
        vae.divergence_weight = settings.get("divergence_weight", 1.0)
        torch.manual_seed(0)
        values.append(vae.elbo(parameters, x, num_rows=300, num_particles=2).detach())
    assert torch.equal(values[0], values[1])
    assert (values[2] > values[0]).all()


def test_importance_sampling_finds_the_exact_likelihood(fitted):
    """Estimates of p(x) have mean p(x): 60 rows of 1,000 draws, 4.5 standard errors of the mean of their ratios.

    False alarm 7e-6, given normal means; the control has a noise of twice the size.
    """
    x, vae = three_groups()[0][:60], fitted.program
    log_ratio = torch.stack([vae.log_likelihood(x, draws=50, seed=seed) for seed in range(20)])
    ratios = (log_ratio - exact_log_likelihood(vae, x)).exp().flatten()
    score = (ratios.mean() - 1) / (ratios.std() / math.sqrt(len(ratios)))
    assert abs(float(score)) < 4.5
    other = copy.deepcopy(vae)
    other.likelihood.log_noise_std.data += math.log(2.0)
    wrong = (log_ratio - exact_log_likelihood(other, x)).exp().flatten()
    assert abs(float((wrong.mean() - 1) / (wrong.std() / math.sqrt(len(wrong))))) > 6


def test_bound_below_importance_sampling_below_exact(fitted):
    """In the mean over 300 rows, each by four standard errors: false alarms 3e-5, if they were equal."""
    x, vae = three_groups()[0], fitted.program
    exact = exact_log_likelihood(vae, x)
    five = torch.stack([vae.log_likelihood(x, draws=5, seed=seed) for seed in range(20)]).mean(0)
    many = torch.stack([vae.log_likelihood(x, draws=500, seed=seed) for seed in range(4)]).mean(0)
    one = torch.stack([vae.log_likelihood(x, draws=1, seed=seed) for seed in range(200)])
    elbo, error = fitted.elbo
    assert abs(elbo - float(one.mean(0).sum())) < 4.5 * (math.sqrt(300 * float(one.var(0).mean()) / 200) + error)
    assert elbo / 300 < five.mean() < many.mean()
    assert many.mean() < exact.mean() + 0.01
    assert many.mean() > exact.mean() - 0.02  # the encoder is linear, and the posterior within a group nearly normal


def test_finds_the_groups(fitted):
    x, group = three_groups()
    r = fitted.program.responsibilities(x)
    assert torch.allclose(r.sum(-1), torch.ones(300).double())
    assert torch.equal(r, fitted.program.responsibilities(x))
    assert (r >= 0).all()
    table = cross_table(fitted.program.predict(x), group)
    assert table.amax(0).sum() == 300  # groups are 14 standard deviations apart
    assert len(table.argmax(0).unique()) == 3


def test_responsibilities_are_a_mean_over_the_codes():
    """A code in the middle between two components, less sure than they are wide: the mean has p = 1/2 in any case.

    A code to one side has :math:`E \\, sigmoid(2 m z / v)`, here by 200,000 draws; the mean code alone gives another p.
    """
    prior = MixtureLatent(2, 1, loc=torch.tensor([[-1.0], [1.0]]), component_std=0.5)
    encoder = nn.Linear(1, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0], [0.0]]))
        encoder.bias.copy_(torch.tensor([0.0, math.log(0.8)]))
    vae = MixtureVAE(prior, encoder, likelihood="normal", width=4)
    x = torch.tensor([[0.0], [0.5]])
    vae.first_parameters(x)
    r = vae.responsibilities(x)[:, 1]
    z = x[:, 0] + 0.8 * torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.sigmoid(2 * z / 0.25).mean(0)
    assert (r - expected).abs().max() < 0.02  # 32 points of a step that is 0.3 wide
    assert torch.sigmoid(torch.tensor(2 * 0.5 / 0.25)) - expected[1] > 0.1


# --- fits -----------------------------------------------------------------------------------------------------------


def short(**settings: object) -> SVI:
    return SVI(**{"batch_size": 100, "max_steps": 30, **settings})


def small(**settings: object) -> MixtureVAE:
    return MixtureVAE(MixtureLatent(3, 2, dynamic=True), **{"likelihood": "normal", "width": 8, **settings})


def state(fit: AbstractPosterior) -> dict[str, Tensor]:
    return fit.program.state_dict()


def test_two_fits_in_a_row_are_two_fits_apart():
    x = three_groups()[0]
    fits = [infer(small(), x, short(), seed=seed, throw=False) for seed in (0, 0, 1)]
    assert all(torch.equal(value, state(fits[1])[name]) for name, value in state(fits[0]).items())
    assert torch.equal(fits[0].history["elbo"], fits[1].history["elbo"])
    assert fits[0].elbo == fits[1].elbo
    assert not torch.equal(fits[0].history["elbo"], fits[2].history["elbo"])


def test_the_callers_model_and_random_state_stay_as_they_are():
    x, vae = three_groups()[0], linear(3)
    before, random = copy.deepcopy(vae.state_dict()), torch.random.get_rng_state()
    fit = infer(vae, x, short(), seed=0, throw=False)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert vae.shape is None
    assert vae.training
    assert not fit.program.training
    assert fit.program.decoder.weight.dtype == torch.float64  # that of the data
    default = small()
    infer(default, x, short(), seed=0, throw=False)
    assert default.encoder is None
    assert default.decoder is None


def test_making_a_model_takes_nothing_from_the_random_state():
    before = torch.random.get_rng_state()
    small()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fitting_again_goes_on(fitted):
    again = infer(fitted.program, three_groups()[0], short(max_steps=1, learning_rate=1e-6), seed=1, throw=False)
    assert torch.allclose(again.program.decoder.weight, fitted.program.decoder.weight, atol=1e-5)
    assert abs(again.elbo[0] - fitted.elbo[0]) < 6 * math.hypot(again.elbo[1], fitted.elbo[1]) + 0.1


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_the_variance_of_codes_is_added_to_that_of_their_means(covariance):
    """For one component the prior then has the mean and the variances of all draws of the codes, in closed form."""
    x = three_groups()[0]
    vae = infer(small(), x, short(max_steps=2), seed=0, throw=False).program
    codes = vae.encode(x)
    sites = infer(GaussianMixture(1, covariance=covariance), codes.loc, EM(objective="ml"), seed=0).sites()
    wide, narrow = vae.with_prior(sites, codes).latent, vae.with_prior(sites).latent
    var = codes.loc.var(0, correction=0)
    var = var.mean().expand(2) if covariance == "spherical" else var
    assert torch.allclose(wide.std.square()[0], var + codes.std.square().mean(0), rtol=1e-5)
    assert torch.allclose(narrow.std.square()[0], var.clamp_min(1.1e-4), rtol=1e-5)  # 1.1 floor variances, at least


def test_frozen_networks_stay():
    vae = linear(3)
    vae.decoder.requires_grad_(False)
    fit = infer(vae, three_groups()[0], short(), seed=0, throw=False)
    assert torch.equal(fit.program.decoder.weight, vae.decoder.weight.double())
    assert not torch.equal(fit.program.encoder.weight, vae.encoder.weight.double())
    assert not fit.program.decoder.weight.requires_grad


def test_a_prior_that_is_not_dynamic_stays():
    vae = MixtureVAE(MixtureLatent(3, 2), likelihood="normal", width=8)
    fit = infer(vae, three_groups()[0], short(), seed=0, throw=False)
    assert torch.equal(fit.program.latent.loc, vae.latent.loc.double())


def test_running_statistics_are_fitted_and_kept():
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    x = three_groups()[0]
    fit = infer(small(encoder=encoder), x, short(), seed=0, throw=False)
    assert fit.program.encoder[1].num_batches_tracked == 30
    assert encoder[1].num_batches_tracked == 0
    assert torch.allclose(fit.program.encode(x).loc[:7], fit.program.encode(x[:7]).loc)  # not those of the batch
    assert torch.equal(fit.guide.parameters["encoder.1.running_mean"], fit.program.encoder[1].running_mean)


def test_an_interrupted_fit_is_kept(monkeypatch):
    calls: list[int] = []
    original = MixtureVAE.elbo

    def elbo(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MixtureVAE, "elbo", elbo)
    x = three_groups()[0]
    with pytest.warns(FitWarning, match="stopped by the user after 5"):
        fit = infer(small(), x, short(), seed=0)
    assert fit.status.state == "interrupted"
    assert fit.program.responsibilities(x).isfinite().all()


def test_prior_from_an_em_fit_of_the_codes_keeps_the_clusters():
    """Joint training from there finds the groups, each with a third of the rows."""
    x, group = three_groups()
    alone = infer(linear(1), x, short(max_steps=600, learning_rate=0.02), seed=0, throw=False)
    codes = alone.program.encode(x)
    em = infer(GaussianMixture(3), codes.loc, EM(restarts=5), seed=0)
    with_em = alone.program.with_prior(em.sites(), codes, learn_weights=True)
    joint = infer(with_em, x, short(max_steps=300, learning_rate=0.01), seed=0, throw=False)
    assert joint.elbo[0] > alone.elbo[0] + 100
    found = joint.program.collapse(x)
    assert found.used.all()
    assert torch.allclose(found.use, torch.full((3,), 1 / 3).double(), atol=0.02)
    assert cross_table(joint.program.predict(x), group).amax(0).sum() >= 297
    assert alone.program.latent.num_components == 1
    with pytest.raises(ProgramError, match="expected one of vectors of length 2, in one part, got length 3"):
        alone.program.with_prior(MixtureLatent(2, 3))


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Small digits: 1,200 rows of which 100 have labels, and 597 rows for the test."""
    x, y = shuffled_digits()
    return x[:1200], y[:1200].where(torch.arange(1200) < 100, -1), x[1200:], y[1200:]


@pytest.fixture(scope="module")
def of_digits(digits) -> AbstractPosterior:
    x, y, *_ = digits
    prior = MixtureLatent(10, 8, dynamic=True, component_std=0.5, labels=range(10))
    return infer(MixtureVAE(prior, width=128), (x, y), SVI(batch_size=100, max_steps=800), seed=0, throw=False)


def test_few_labels_are_enough_for_digits(digits, of_digits):
    """Above 0.88 with 100 labels of 1,200 rows; 597 test rows, standard error 0.013. Chance is 0.1."""
    *_, x_test, y_test = digits
    vae = of_digits.program
    accuracy = float((vae.predict(x_test) == y_test).double().mean())
    assert accuracy > 0.88
    probabilities = vae.class_probabilities(x_test)
    assert torch.allclose(probabilities.sum(-1), torch.ones(597))
    assert torch.equal(probabilities, vae.responsibilities(x_test))  # a component for each class
    drawn = vae.sample(50, seed=0, component=3)
    assert float((vae.predict(drawn.x) == 3).double().mean()) > 0.8


def test_classification_is_a_mean_over_labelled_rows():
    """What ``class_weight`` adds to the bound, for codes without noise, against that mean by hand.

    With labels for 30 of 300 rows the mean is over other labelled rows at each call: 200 calls of 100 rows, 4.5
    standard errors: false alarm 7e-6. The control is the mean over all rows of their likeliest class.
    """
    x, group = three_groups()
    prior = MixtureLatent(3, 2, labels=range(3), component_std=2.0)
    torch.manual_seed(0)
    vae = MixtureVAE(prior, nn.Linear(5, 4), likelihood="normal", width=8).double()
    with torch.no_grad():
        vae.encoder.weight[2:], vae.encoder.bias[2:] = 0.0, -9.0
    some = group.where(torch.arange(300) < 30, -1)
    log_prob = prior.log_prob_components(vae.encoder(x)[:, :2]).log_softmax(-1).detach()
    for y, rows in ((group, slice(0, 300)), (some, slice(0, 30))):
        parameters = vae.first_parameters(x, y)
        added = []
        for seed in range(200):
            values = []
            for vae.class_weight in (0.5, 0.0):
                torch.manual_seed(seed)
                values.append(vae.elbo(parameters, x[:100], y[:100], num_rows=300, num_particles=1))
            added.append(float((values[0] - values[1]).detach()))
        expected = 0.5 * 300 * float(log_prob[rows].gather(-1, group[rows, None])[:100].mean())
        error = np.std(added) / math.sqrt(200) + 1e-2  # the codes are not quite without noise
        assert abs(np.mean(added) - expected) < 4.5 * error
        assert abs(np.mean(added) - 0.5 * 300 * float(log_prob.amax(-1).mean())) > 6 * error


def test_labels_that_are_all_unknown_are_none():
    x = three_groups()[0]
    vae = small()
    vae.latent = MixtureLatent(3, 2, dynamic=True, labels=[0, 1, 1])
    without = infer(vae, x, short(), seed=0, throw=False)
    unknown = infer(vae, (x, torch.full((300,), -1)), short(), seed=0, throw=False)
    assert torch.allclose(without.history["elbo"], unknown.history["elbo"], rtol=1e-10)
    assert unknown.program.class_probabilities(x).shape == (300, 2)


# --- the program ----------------------------------------------------------------------------------------------------


def test_log_joint_of_the_program(digits, of_digits):
    x, y = (table[98:103] for table in digits[:2])
    program = of_digits.program
    fit = infer(program, (x, y), short(max_steps=1, learning_rate=1e-9), seed=0, throw=False)
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_joint = program.latent.log_prob_components(z)
        pixels = dist.Bernoulli(logits=program.decoder(z), validate_args=False).log_prob(x).sum()
    known = y >= 0
    expected = pixels + log_joint[known, y[known]].sum() + log_joint[~known].logsumexp(-1).sum()
    assert known.tolist() == [True, True, False, False, False]
    assert torch.allclose(fit.log_density.log_joint({"z": z}), expected, rtol=1e-4)


def test_other_methods_take_held_out_rows():
    """One component and a linear decoder: the posterior is normal, and Laplace's method finds it."""
    x = three_groups()[0]
    vae = infer(linear(1), x, short(max_steps=300, learning_rate=0.01), seed=0, throw=False).program
    fit = infer(vae, x[:4], Laplace(), seed=0)
    w, var = vae.decoder.weight, vae.likelihood.noise_std**2
    precision = torch.eye(2) + w.mT @ w / var
    loc = torch.linalg.solve(precision, (w.mT @ (x[:4] - vae.decoder.bias).mT) / var).mT
    assert torch.allclose(fit.sites()["z"], loc.detach(), atol=1e-4)
    assert abs(fit.log_evidence - float(exact_log_likelihood(vae, x[:4]).sum())) < 1e-3
    assert vae.decoder.weight.requires_grad


# --- data -----------------------------------------------------------------------------------------------------------


def test_new_data(of_digits):
    vae = of_digits.program
    one, two = (vae.sample(20, seed=0, temperature=temperature) for temperature in (1.0, 0.0))
    assert torch.allclose(two.z, vae.latent.loc[two.component].detach())
    assert torch.equal(one.x, vae.generate(one.z))
    assert torch.equal(one.x, vae.sample(20, seed=0).x)
    noisy = vae.sample(20, seed=0, noise=True)
    assert torch.equal(noisy.z, one.z)
    assert set(noisy.x.unique().tolist()) == {0.0, 1.0}
    assert vae.sample(6, seed=0, component=torch.arange(6)).component.tolist() == [0, 1, 2, 3, 4, 5]


def test_images_of_any_size_with_default_networks():
    x = torch.rand(30, 2, 9, 10, generator=torch.Generator().manual_seed(0))
    fit = infer(MixtureVAE(MixtureLatent(2, 3), width=16), x, short(batch_size=10, max_steps=3), seed=0, throw=False)
    assert fit.program.generate(torch.zeros(4, 3)).shape == (4, 2, 9, 10)
    assert fit.program.sample(4, seed=0, noise=True).x.shape == (4, 2, 9, 10)
    assert fit.program.log_likelihood(x, draws=3, seed=0).shape == (30,)


# --- what has become of it ------------------------------------------------------------------------------------------


def test_collapse_is_seen(fitted):
    x = three_groups()[0]
    found = fitted.program.collapse(x)
    assert found.active.all()
    codes = fitted.program.encode(x)
    assert torch.allclose(found.use, fitted.program.responsibilities(x).mean(0))
    assert torch.allclose(found.divergence.sum(), (found.use * found.component_divergence).sum())
    assert torch.allclose(found.spread, codes.loc.var(0) / fitted.program.latent.distribution().variance)
    assert str(found) == "2 of 2 axes are active; 3 of 3 components are used"
    heavy = infer(small(divergence_weight=100.0), x, short(max_steps=300, learning_rate=0.01), seed=0, throw=False)
    gone = heavy.program.collapse(x)
    assert not gone.active.any()
    assert "posterior collapse" in str(gone)
    assert "Lower divergence_weight" in str(gone)


def test_what_collapse_says():
    no, yes = torch.tensor([False, False, False]), torch.tensor([True, False, False])
    half = torch.full((3,), 0.5)
    text = str(Collapse(half, half, yes, torch.tensor([0.97, 0.03, 0.0]), half, no))
    assert "1 of 3 axes are active, the others are idle: a smaller dim" in text
    assert "1 of 3 components are used (not 1, 2): start the prior from an EM fit of the codes" in text
    assert "2 have merged" in str(Collapse(half, half, ~no, half, half, torch.tensor([True, True, False])))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width: expected a whole number of at least 1, got 0"),
        ({"class_weight": -1.0}, "class_weight: expected a number of at least 0, got -1.0"),
        ({"divergence_weight": math.inf}, "divergence_weight: expected a number of at least 0, got inf"),
        ({"likelihood": "poisson"}, 'likelihood: expected "bernoulli" or "normal"'),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        MixtureVAE(MixtureLatent(2, 2), **settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((3, 4), 128.0), "x: expected values from 0 to 1.*got 128 in row 0. Divide by 255"),
        ((torch.zeros(3, 4), torch.zeros(3)), r"expected x or \(x, y\), got 1 tables of labels and 0 priors with"),
        (torch.zeros(3, 2, 2), r"observations of shape \(d,\) or \(channels, height, width\).*got \(2, 2\)"),
    ],
)
def test_data_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        infer(MixtureVAE(MixtureLatent(2, 2)), data, SVI(), seed=0)


def test_labels_are_refused():
    vae = MixtureVAE(MixtureLatent(2, 2, labels=[0, 1]))
    with pytest.raises(DataError, match="y: expected labels 0 to 1, or -1 where there is none, got 2 in row 1"):
        infer(vae, (torch.zeros(3, 4), torch.tensor([0, 2, -1])), SVI(), seed=0)


def test_wrong_networks_are_refused_at_the_start():
    vae = MixtureVAE(MixtureLatent(2, 2), decoder=nn.Linear(2, 7))
    with pytest.raises(ProgramError, match=r"decoder: expected an output of shape \(2, 4\).*got \(2, 7\)"):
        infer(vae, torch.zeros(3, 4), SVI(), seed=0)


def test_what_a_model_cannot_do_before_a_fit(fitted):
    for call in (small().encode, small(), small().responsibilities):
        with pytest.raises(ProgramError, match=r"expected a fitted model.*take fit.program"):
            call(torch.zeros(3, 5))
    with pytest.raises(DataError, match=r"x: expected rows of shape \(5,\), as in the fit, got \(3, 4\)"):
        fitted.program.encode(torch.zeros(3, 4))
    with pytest.raises(DataError, match=r"x: expected rows of shape \(5,\), as in the fit before, got \(4,\)"):
        infer(fitted.program, torch.zeros(3, 4), SVI(), seed=0)
    with pytest.raises(ProgramError, match="expected a prior with labels, got none"):
        fitted.program.class_probabilities(torch.zeros(3, 5))
    with pytest.raises(MethodError, match="restarts: expected 1, as the model says where its family starts"):
        infer(small(), torch.zeros(3, 5), SVI(restarts=2), seed=0)

"""The guide of an autoencoder: codes as sites, saved and loaded, and in ArviZ."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from probmix.amortised_guide import AmortisedGuide
from probmix.arguments import Arguments
from probmix.errors import ProgramError
from probmix.inference import SVI, infer
from probmix.models import MixtureLatent, MixtureVAE
from probmix.posterior import load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

X = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()
Y = torch.arange(20) % 3 - 1


def model(**settings: object) -> MixtureVAE:
    prior = MixtureLatent(2, 2, dynamic=True, learn_weights=True, labels=[0, 1])
    return MixtureVAE(prior, **{"width": 8, **settings})


@pytest.fixture(scope="module")
def fit():
    return infer(model(), (X, Y), SVI(batch_size=10, max_steps=40, num_draws=30), seed=0, throw=False)


def test_sites_are_codes(fit):
    codes = fit.program.encode(X)
    assert torch.equal(fit.sites()["z"], codes.loc)
    draws = fit.sample(4000, seed=0)["z"]
    # 40 coordinates, 4.5 standard errors each: false alarm 3e-4
    assert ((draws.mean(0) - codes.loc).abs() < 4.5 * codes.std / math.sqrt(4000)).all()
    assert ((draws.std(0) / codes.std - 1).abs() < 4.5 / math.sqrt(8000)).all()
    assert torch.equal(draws, fit.sample(4000, seed=0)["z"])


def test_sites_have_names_and_lengths():
    guide = AmortisedGuide(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3), {}, (4,), {"z1": 1, "z2": 2})
    assert guide.centre(None, Arguments())["z2"].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert guide.sample(7, None, Arguments())["z1"].shape == (7, 2, 1)


def test_log_ratios_have_the_elbo_as_their_mean(fit):
    """4.5 standard errors of 500 draws and of the fit's own estimate: false alarm 7e-6."""
    torch.manual_seed(0)
    ratios = fit.guide.log_ratios(500, fit.log_density, fit.arguments)
    assert abs(float(ratios.mean()) - fit.elbo[0]) < 4.5 * math.hypot(float(ratios.std()) / math.sqrt(500), fit.elbo[1])


def test_saved_and_loaded_bit_for_bit(tmp_path, fit):
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=model())
    assert torch.equal(again.sites()["z"], fit.sites()["z"])
    for name, value in fit.program.state_dict().items():
        assert torch.equal(again.program.state_dict()[name], value)
    assert torch.equal(again.program.responsibilities(X), fit.program.responsibilities(X))
    assert torch.equal(again.program.sample(5, seed=0).x, fit.program.sample(5, seed=0).x)
    assert again.elbo == fit.elbo
    z = fit.sample(3, seed=0)
    assert torch.equal(again.log_density.log_joint(z), fit.log_density.log_joint(z))


def test_loading_asks_for_the_program_and_checks_it(tmp_path, fit):
    fit.save(tmp_path / "fit")
    with pytest.raises(ProgramError, match=r"the fit used a MixtureVAE, .*program=MixtureVAE\(\.\.\.\)"):
        load_posterior(tmp_path / "fit")
    with pytest.raises(ProgramError, match=r"expected the networks and the prior of the fit, got others"):
        load_posterior(tmp_path / "fit", program=model(width=9))


def test_networks_of_ones_own_are_saved(tmp_path):
    def own() -> MixtureVAE:
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
        return model(encoder=encoder, likelihood="normal")

    fit = infer(own(), (X, Y), SVI(batch_size=10, max_steps=5), seed=0, throw=False)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=own())
    assert torch.equal(again.program.encode(X).std, fit.program.encode(X).std)
    assert again.program.likelihood.noise_std == fit.program.likelihood.noise_std


def test_goes_to_arviz(fit):
    result = fit.to_arviz(predictive_draws=10, prior_draws=10)
    assert result["posterior"]["z"].shape == (1, 30, 20, 2)
    assert result["log_likelihood"]["x"].shape == (1, 30, 20)
    assert result["posterior_predictive"]["x"].shape == (1, 10, 20, 6)
    assert result["prior"]["z"].shape == (1, 10, 20, 2)
    assert math.isnan(fit.pareto_k)

"""Three honest kinds of answer: what each gives, refuses, saves and hands to ArviZ."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups, zero_inflated
from safetensors import safe_open

from probmix.arviz import from_netcdf, to_netcdf
from probmix.datasets import load_faithful
from probmix.errors import DataError, MethodError, ProgramError
from probmix.inference import EM, MAP, NUTS, SVI, infer
from probmix.models import GaussianMixture
from probmix.posterior import load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")

METHODS = {
    "EM": EM(restarts=3),
    "MAP": MAP(restarts=1),
    "SVI": SVI(max_steps=100),
    "NUTS": NUTS(chains=2, warmup=30, draws=20),
}


@pytest.fixture(scope="module")
def fits():
    frame = load_faithful().frame().iloc[:60]
    return {name: infer(GaussianMixture(2), frame, method, seed=0, throw=False) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_sites_are_one_value_in_the_support(fits, name):
    sites = fits[name].sites()
    assert {n: v.shape for n, v in sites.items()} == {"weights": (2,), "loc": (2, 2), "cov": (2, 2, 2)}
    assert float(sites["weights"].sum()) == pytest.approx(1.0)
    assert (torch.linalg.eigvalsh(sites["cov"]) > 0).all()
    assert not any(v.requires_grad for v in sites.values())


@pytest.mark.parametrize("name", ["SVI", "NUTS"])
def test_sample_is_seeded_and_shaped(fits, name):
    one, same, other = (fits[name].sample(7, seed=s)["loc"] for s in (1, 1, 2))
    assert one.shape == (7, 2, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["EM", "MAP"])
def test_a_point_cannot_be_sampled(fits, name):
    with pytest.raises(MethodError, match=rf"the single point of {name}\(\). Fit with SVI\(\) or NUTS\(\)"):
        fits[name].sample(3, seed=0)


def test_best_draw_is_the_one_of_highest_density(fits):
    fit = fits["NUTS"]
    chain, draw = np.unravel_index(int(fit.sample_stats["lp"].argmax()), (2, 20))
    torch.testing.assert_close(fit.sites()["loc"], fit.draws["loc"][chain, draw])


def test_groups_of_draws(fits):
    result = fits["NUTS"].to_arviz(predictive_draws=8, prior_draws=30)
    assert dict(result["posterior"].sizes) == {"chain": 2, "draw": 20, "component": 2, "feature": 2, "feature_bis": 2}
    assert list(result["posterior"]["feature"].values) == ["eruptions", "waiting"]
    assert result["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert result["log_likelihood"]["x"].shape == (2, 20, 60)
    assert result["posterior_predictive"]["x"].shape == (2, 4, 60, 2)
    assert result["prior"]["loc"].shape == (1, 30, 2, 2)
    assert result["prior_predictive"]["x"].shape == (1, 30, 60, 2)
    assert result["observed_data"]["x"].dims == ("data", "feature")
    assert {"energy", "diverging", "acceptance_rate", "step_size", "lp"} <= set(result["sample_stats"])
    assert np.isfinite(az.bfmi(result)).all()


def test_log_likelihood_is_the_mixtures(fits):
    """The closed form is another road to the same number: assignments summed out by the model, not by the tracer."""
    fit = fits["NUTS"]
    x = fit.arguments.args[0]
    ours = fit.to_arviz(predictive_draws=0, prior_draws=0)["log_likelihood"]["x"].values
    np.testing.assert_allclose(ours, fit.program.log_prob(x, fit.draws).numpy(), rtol=1e-10)


def test_a_guide_is_one_chain_and_has_no_rhat(fits):
    result = fits["SVI"].to_arviz(predictive_draws=0, prior_draws=0)
    assert dict(result["posterior"].sizes)["chain"] == 1
    assert np.isnan(az.rhat(result)["loc"].values).all()
    assert result["posterior"].attrs["kind"] == "guide"
    assert "sample_stats" not in result
    assert np.isfinite(az.loo(result).elpd_loo)


@pytest.mark.parametrize("name", ["EM", "MAP"])
def test_a_point_is_never_passed_off_as_a_posterior(fits, name):
    result = fits[name].to_arviz()
    assert "posterior" not in result
    assert "log_likelihood" not in result
    assert result["point_estimate"]["loc"].dims == ("component", "feature")
    with pytest.raises(Exception, match=r"log_likelihood|log likelihood"):
        az.loo(result)


def test_predictive_draws_follow_the_model(fits):
    """Means of replicated data sets around the observed mean: 5 standard errors of 40 replicates (false alarm 1e-6)."""
    fit = fits["NUTS"]
    replicated = fit.to_arviz(prior_draws=0, log_likelihood=False)["posterior_predictive"]["x"].values.reshape(
        -1, 60, 2
    )
    means, observed = replicated.mean(1), fit.arguments.args[0].mean(0).numpy()
    assert (np.abs(means.mean(0) - observed) < 5 * means.std(0) / np.sqrt(len(means)) + 0.5 * means.std(0)).all()
    assert (np.abs(means.std(0) / replicated.std((0, 1)) - np.sqrt(2 / 60)) < 0.12).all()  # posterior plus sampling


def test_the_same_call_gives_the_same_groups(fits):
    one, other = (fits["NUTS"].to_arviz(predictive_draws=4, prior_draws=4) for _ in range(2))
    np.testing.assert_array_equal(one["posterior_predictive"]["x"], other["posterior_predictive"]["x"])
    np.testing.assert_array_equal(one["prior"]["loc"], other["prior"]["loc"])


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_is_the_same(fits, name, tmp_path):
    fit = fits[name]
    fit.save(tmp_path / "fit.safetensors")
    again = load_posterior(tmp_path / "fit.safetensors")
    assert type(again) is type(fit)
    assert (again.program, again.method, again.seed, again.status) == (fit.program, fit.method, fit.seed, fit.status)
    assert again.arguments.feature_names == ("eruptions", "waiting")
    for site, value in fit.sites().items():
        assert torch.equal(again.sites()[site], value)
    one, other = (p.to_arviz(predictive_draws=4, prior_draws=4) for p in (fit, again))
    for group in ("observed_data", "posterior", "log_likelihood", "posterior_predictive"):
        assert (group in one) == (group in other)
        if group in one:
            for variable in one[group]:
                np.testing.assert_array_equal(one[group][variable], other[group][variable])


def test_files_hold_no_pickle_and_no_code(fits, tmp_path):
    fits["NUTS"].save(tmp_path / "fit.safetensors")
    with safe_open(str(tmp_path / "fit.safetensors"), framework="pt") as file:
        assert set(file.metadata()) == {"probmix"}
    raw = (tmp_path / "fit.safetensors").read_bytes()
    assert b"\x80\x04" not in raw[:8]
    forged = raw.replace(b"probmix.status:Status", b"probmixxstatus:Status")
    (tmp_path / "forged.safetensors").write_bytes(forged)
    with pytest.raises(DataError, match="expected a dataclass of probmix in the file, got 'probmixxstatus:Status'"):
        load_posterior(tmp_path / "forged.safetensors")


def test_netcdf_round_trip(fits, tmp_path):
    result = fits["SVI"].to_arviz(predictive_draws=4, prior_draws=4)
    to_netcdf(result, tmp_path / "fit.nc")
    again = from_netcdf(tmp_path / "fit.nc")
    np.testing.assert_array_equal(again["posterior"]["loc"], result["posterior"]["loc"])


def test_your_own_program_is_asked_for_by_name(tmp_path):
    fit = infer(gamma_poisson, COUNTS, MAP(restarts=1), seed=0)
    fit.save(tmp_path / "fit")
    with pytest.raises(ProgramError, match=r"your own program 'gamma_poisson'.*program=gamma_poisson\)"):
        load_posterior(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=gamma_poisson)
    assert again.objective == fit.objective
    assert "prior" in again.to_arviz(prior_draws=3)


def test_your_own_guide_is_asked_for(tmp_path):
    def guide(x):
        pyro.sample("rate", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 0.3))

    fit = infer(gamma_poisson, COUNTS, SVI(guide=guide, max_steps=20), seed=0, throw=False)
    fit.save(tmp_path / "fit")
    with pytest.raises(ProgramError, match=r"guide of your own.*guide="):
        load_posterior(tmp_path / "fit", program=gamma_poisson)
    again = load_posterior(tmp_path / "fit", program=gamma_poisson, guide=guide)
    assert torch.equal(again.sample(5, seed=0)["rate"], fit.sample(5, seed=0)["rate"])


def test_paths_that_do_not_work_are_explained(fits, tmp_path):
    with pytest.raises(DataError, match=r"found no file .*nothing.*Check the path"):
        load_posterior(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match=r"expected a file written by posterior.save"):
        load_posterior(tmp_path / "text")
    with pytest.raises(DataError, match="expected a writable file, cannot write"):
        fits["EM"].save(tmp_path / "no such folder" / "fit")


def test_discrete_sites_of_a_plain_program_reach_loo():
    """What ArviZ's own converter drops for such programs."""
    fit = infer(zero_inflated, COUNTS, NUTS(chains=2, warmup=50, draws=50), seed=0)
    result = fit.to_arviz(predictive_draws=20)
    assert result["log_likelihood"]["x"].shape == (2, 50, 10)
    gate, rate = (fit.draws[n][..., None].numpy() for n in ("gate", "rate"))
    poisson = torch.distributions.Poisson
    on = poisson(torch.from_numpy(rate) + 1e-9).log_prob(COUNTS).numpy() + np.log1p(-gate)
    off = poisson(torch.tensor(1e-9).double()).log_prob(COUNTS).numpy() + np.log(gate)
    np.testing.assert_allclose(result["log_likelihood"]["x"].values, np.logaddexp(on, off), rtol=1e-10)
    assert np.isfinite(az.loo(result).elpd_loo)


def test_dims_and_coords_of_the_caller_win():
    fit = infer(one_dimensional(), two_groups(30), NUTS(chains=1, warmup=10, draws=5), seed=0)
    result = fit.to_arviz(
        predictive_draws=0, prior_draws=0, dims={"var": ("cluster",)}, coords={"cluster": ["left", "right"]}
    )
    assert list(result["posterior"]["var"]["cluster"].values) == ["left", "right"]

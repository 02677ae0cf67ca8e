from __future__ import annotations

import pytest

from probmix import demo
from probmix.arviz import from_netcdf
from probmix.demo import run_demo, write_demo
from probmix.inference import NUTS, SVI
from probmix.posterior import load_posterior
from probmix.report_table import build_table, to_text
from probmix.status import Status

QUICK = {"seed": 0, "svi": SVI(window=2, tolerance=1e9), "nuts": NUTS(chains=2, warmup=5, draws=15, max_tree_depth=3)}
FITS = [f"{name}.{suffix}" for name in ("em", "svi", "nuts") for suffix in ("safetensors", "nc")]
PICTURES = ["density.png", "responsibilities.png", "components.png", "predictive.png"]


@pytest.fixture(scope="module")
def quick():
    return run_demo(**QUICK)


def test_quick_demo_writes_every_fit_the_table_and_the_pictures(quick, tmp_path):
    files = write_demo(quick, tmp_path)
    assert sorted(file.name for file in files) == sorted([*FITS, *PICTURES, "table.txt"])
    assert sorted(files) == sorted(tmp_path.iterdir())
    text = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert text.startswith(to_text(build_table(quick)))


def test_saved_fits_are_those_of_the_table(quick, tmp_path):
    write_demo(quick, tmp_path)
    for name, reading in quick.items():
        kept = load_posterior(tmp_path / f"{name.lower()}.safetensors")
        assert kept.kind == reading.posterior.kind
        assert kept.status == reading.posterior.status
    assert (load_posterior(tmp_path / "nuts.safetensors").draws["loc"] == quick["NUTS"].posterior.draws["loc"]).all()
    netcdf = from_netcdf(tmp_path / "nuts.nc")["posterior"]["loc"].values
    assert (netcdf == quick["NUTS"].matched.draws["loc"].numpy()).all()


def test_all_three_number_the_components_alike(quick):
    waiting = {name: [reading.estimates[f"loc[{k}, waiting]"].mean for k in (0, 1)] for name, reading in quick.items()}
    # The components are 25 minutes apart, the posterior's standard deviation is half a minute.
    assert waiting["SVI"] == pytest.approx(waiting["EM"], abs=5)
    assert waiting["NUTS"] == pytest.approx(waiting["EM"], abs=5)


def test_same_seed_same_numbers(quick):
    again = run_demo(**QUICK)
    assert again["NUTS"].estimates == quick["NUTS"].estimates
    assert again["SVI"].estimates == quick["SVI"].estimates


def test_ctrl_c_in_a_fit_ends_the_demo(monkeypatch):
    fitted = demo.infer

    def stopped(*args, **kwargs):
        posterior = fitted(*args, **kwargs)
        object.__setattr__(posterior, "status", Status("interrupted", "by the user"))
        return posterior

    monkeypatch.setattr(demo, "infer", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_demo(seed=0)


@pytest.mark.slow
def test_the_demo_as_users_run_it():
    readings = run_demo(seed=0)
    draws = readings["NUTS"].estimates
    # What the lines under the table call good. Over two seeds the worst of the twelve r-hats was 1.008 and 1.006.
    assert max(e.rhat for e in draws.values()) < 1.01
    assert min(e.ess for e in draws.values()) > 400
    assert max(e.rhat_as_drawn for e in draws.values()) > 1.1, "the chains should start apart"
    for name, exact in draws.items():
        # Monte-Carlo errors are below 0.05 sd each (400 independent draws); the guide itself is off by up to 0.3 sd.
        assert abs(readings["SVI"].estimates[name].mean - exact.mean) < 0.5 * exact.std, name
        assert abs(readings["EM"].estimates[name].mean - exact.mean) < exact.std, name
    scores = [readings[name].score for name in ("SVI", "NUTS")]
    assert abs(scores[0].elpd_loo - scores[1].elpd_loo) < 2
    assert max(score.worst_pareto_k for score in scores) < 0.7
    assert max(map(len, to_text(build_table(readings)).splitlines())) <= 110

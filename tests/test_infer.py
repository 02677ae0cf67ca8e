"""The front door: no memory between fits, no trace left behind, clear refusals, Ctrl-C."""

from __future__ import annotations

import random
from importlib import import_module

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import COUNTS, gamma_poisson, one_dimensional, two_groups

from probmix.datasets import load_faithful
from probmix.errors import DataError, MethodError
from probmix.inference import EM, MAP, NUTS, SVI, infer
from probmix.models import GaussianMixture
from probmix.status import FitWarning

METHODS = {
    "EM": EM(restarts=3),
    "MAP": MAP(restarts=2, max_steps=3),
    "SVI": SVI(max_steps=60),
    "NUTS": NUTS(chains=2, warmup=15, draws=10),
}


def fitted(method, seed=0):
    return infer(one_dimensional(), two_groups(30), method, seed=seed, throw=False)


def content(posterior):
    draws = posterior.draws if posterior.kind == "draws" else posterior.sites()
    return {**draws, **{f"history {n}": v for n, v in posterior.history.items()}}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].nan_to_num(7.0), other[name].nan_to_num(7.0)), name


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_two_fits_in_a_row_equal_two_fits_apart(method):
    """Bit for bit: the second fit knows nothing of the first, nor of another method in between."""
    first = content(fitted(method))
    pyro.param("AutoMultivariateNormal.loc", torch.full((3,), 99.0))  # what a leak would pick up
    fitted(SVI(max_steps=5), seed=1)
    torch.randn(13)
    assert_same_bits(first, content(fitted(method)))
    pyro.clear_param_store()


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("method", [METHODS["SVI"], METHODS["NUTS"]], ids=["SVI", "NUTS"])
def test_another_seed_gives_other_bits(method):
    """The control of the test above. (EM and MAP end in the same optimum from any start.)"""
    one, other = content(fitted(method)), content(fitted(method, seed=1))
    assert any(not torch.equal(one[n], other[n]) for n in one if one[n].shape == other[n].shape)


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("validate", [True, False])
def test_the_callers_state_is_untouched(method, validate):
    torch.distributions.Distribution.set_default_validate_args(validate)
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one)
    fit = fitted(method)
    fit.to_arviz(predictive_draws=4, prior_draws=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert torch.distributions.Distribution._validate_args == validate
    assert list(pyro.get_param_store()) == ["mine"]
    assert torch.get_default_dtype() == torch.float32
    torch.distributions.Distribution.set_default_validate_args(True)
    pyro.clear_param_store()


def test_the_state_comes_back_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(MethodError):
        infer(gamma_poisson, COUNTS, EM(), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_arrays_frames_tuples_and_mappings_are_the_same_data():
    data = load_faithful()
    model = GaussianMixture(2)
    fits = [
        infer(model, x, EM(), seed=0).objective
        for x in (data.x, data.x.numpy(), data.frame(), (data.x,), {"x": data.x})
    ]
    assert fits == pytest.approx([fits[0]] * len(fits), rel=1e-13)


def test_column_names_become_coordinates():
    fit = infer(GaussianMixture(2), load_faithful().frame(), EM(), seed=0)
    point = fit.to_arviz(prior_draws=0)["point_estimate"]
    assert list(point["feature"].values) == ["eruptions", "waiting"]
    assert point["cov"].dims[0] == "component"


def test_dtype_of_a_plain_program_follows_its_data():
    """Normal(0., 1.) makes float32 parameters by default; inside a fit they take the data's dtype."""
    for dtype in (torch.float32, torch.float64):
        fit = infer(gamma_poisson, COUNTS.to(dtype), MAP(restarts=1), seed=0)
        assert fit.sites()["rate"].dtype == dtype


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
def test_a_module_is_not_changed_by_its_fit():
    class Program(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = pyro.nn.PyroParam(torch.tensor(1.0))

        def forward(self, x):
            loc = pyro.sample("loc", dist.Normal(self.shift, 1.0))
            with pyro.plate("row", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    program = Program()
    fit = infer(program, torch.tensor([5.0, 6.0]), SVI(max_steps=100), seed=0, throw=False)
    assert float(program.shift.detach()) == 1.0
    assert float(fit.params["shift"]) > 1.1
    assert fit.sample(3, seed=0)["loc"].shape == (3,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([[1.0], [torch.nan], [torch.inf], [2.0]]), "2.*1"),
        (torch.arange(6).reshape(3, 2), r"x.double\(\)|double"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\)"),
        (torch.tensor([[1.0, 2.0]]), "1"),
        (torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]]), "1 of 2 constant, the first at index 1"),
        (np.array([["a", "b"]]), "expected numbers, got an array of dtype"),
        (pd.DataFrame({"a": [1.0, 2.0], "kind": ["x", "y"]}), r"text or objects in \['kind'\].*\['a'\]"),
        ((torch.zeros(3), torch.zeros(3)), "takes one table of data.*got 2 arguments"),
        ("measurements.csv", "takes one table of data.*str"),
    ],
    ids=["nan", "integers", "three axes", "too few", "constant", "strings", "text column", "two", "path"],
)
def test_bad_data_are_refused_before_the_fit(data, message):
    with pytest.raises(DataError, match=message):
        infer(GaussianMixture(2), data, EM(), seed=0)


@pytest.mark.parametrize(
    ("program", "method", "seed", "message"),
    [
        (GaussianMixture, EM(), 0, "got 'GaussianMixture'.*not the class itself"),
        (None, EM(), 0, "expected a program.*got 'NoneType'"),
        (gamma_poisson, EM, 0, "got EM. Write the brackets"),
        (gamma_poisson, "nuts", 0, "expected a method object such as EM.*got 'nuts'"),
        (gamma_poisson, MAP(), None, "whole-number seed.*got None. Write seed=0"),
        (gamma_poisson, MAP(), -1, "got -1"),
        (gamma_poisson, MAP(), True, "got True"),
    ],
)
def test_wrong_arguments_are_explained(program, method, seed, message):
    with pytest.raises(MethodError, match=message):
        infer(program, COUNTS, method, seed=seed)


@pytest.mark.parametrize(
    ("method", "done"),  # SVI takes a window of gradient steps at once
    [(SVI(window=20), 20), (EM(tolerance=1e-14), 1), (MAP(restarts=16, init="random"), 1)],
    ids=["SVI", "EM", "MAP"],
)
def test_ctrl_c_keeps_what_there_is(monkeypatch, method, done):
    step, calls = type(method).step, []

    def interrupted(self, problem, state):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return step(self, problem, state)

    monkeypatch.setattr(type(method), "step", interrupted)
    with pytest.warns(FitWarning, match=f"interrupted: stopped by the user after {done} of at most"):
        fit = infer(one_dimensional(), two_groups(30), method, seed=0)
    assert fit.status.state == "interrupted"
    assert not fit.status.ok
    assert fit.sites()["loc"].shape == (2, 1)
    assert fit.history[next(iter(fit.history))].shape[-1] >= 1


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    infer(gamma_poisson, COUNTS, MAP(restarts=1), seed=0, progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_progress_shows_figures_on_a_terminal(monkeypatch, capsys, method):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    module = import_module("probmix.inference.infer")  # the attribute of that name is the function
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_FIGURES", 0.0)
    shown = []
    monkeypatch.setattr(module.tqdm, "set_postfix", lambda self, figures, **_: shown.append(figures))
    infer(one_dimensional(), two_groups(30), method, seed=0, progress=True, throw=False)
    expected = {"EM": "objective", "MAP": "objective", "SVI": "ELBO", "NUTS": "divergent"}[type(method).__name__]
    assert expected in shown[-1]
    assert all(isinstance(value, str) for value in shown[-1].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_everything_runs_on_the_datas_device(method):
    fit = infer(one_dimensional(), two_groups(30).cuda(), method, seed=0, throw=False)
    assert {v.device.type for v in fit.sites().values()} == {"cuda"}
    fit.to_arviz(predictive_draws=4, prior_draws=4)

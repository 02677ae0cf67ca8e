from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from probmix import __version__, cli
from probmix.arviz import from_netcdf
from probmix.cli import app, main
from probmix.datasets import load_faithful
from probmix.inference import EM, NUTS, VB, Gibbs, infer
from probmix.models import GaussianMixture
from probmix.posterior import load_posterior

TINY = ("--method", "nuts", "--chains", "2", "--warmup", "3", "--draws", "13")


def run(*words: object):
    """Return exit code, standard output and the error lines of a command."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "geyser.csv"
    load_faithful().frame().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def results(table, tmp_path_factory) -> Path:
    """Folders one, two (draws of mixtures of one and two components) and point."""
    parent = tmp_path_factory.mktemp("results")
    for name, components in {"one": 1, "two": 2}.items():
        options = ("--components", components, "--columns", "waiting", "--quiet", "--out", parent / name)
        assert run("fit", table, *options, *TINY) == (0, "", "")
    assert run("fit", table, "--components", 2, "--method", "em", "--quiet", "--out", parent / "point") == (0, "", "")
    return parent


@pytest.fixture
def no_fit(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the fit began")

    monkeypatch.setattr(cli, "infer", fail)
    monkeypatch.setattr(cli, "run_demo", fail)


def refused(*words: object) -> str:
    """Return the one line with which a command is refused."""
    code, out, line = run(*words)
    assert (code, out) == (2, "")
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line.removeprefix("error: ").rstrip("\n")


# --- fit ------------------------------------------------------------------------------------------------------------


def test_fit_prints_the_table_and_writes_the_result(table, tmp_path):
    code, out, errors = run("fit", table, "--components", 2, "--method", "em", "--seed", 3, "--out", tmp_path / "new")
    same = infer(GaussianMixture(2), load_faithful().frame(), EM(), seed=3)
    assert (code, errors) == (0, "")
    assert f"{same.objective:.3f}" in out
    assert "cov[1, eruptions, waiting]" in out
    names = ["posterior.safetensors", "posterior.nc", "table.txt", "density.png", "responsibilities.png", "history.png"]
    assert f"written to {tmp_path / 'new'}: {', '.join(names)}" in out
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(names)
    assert load_posterior(tmp_path / "new" / "posterior.safetensors").objective == same.objective


def test_settings_reach_the_method_the_model_and_the_data(table, tmp_path, monkeypatch):
    calls = []

    def watched(model, data, method, **options):
        calls.append((model, data, method, options["seed"]))
        return infer(model, data, EM(), **options)

    monkeypatch.setattr(cli, "infer", watched)
    options = ("--chains", 3, "--warmup", 7, "--draws", 9, "--target-accept", 0.9, "--covariance", "tied", "--seed", 5)
    run("fit", table, "--columns", "waiting", "--components", 3, *options, "--quiet", "--out", tmp_path / "new")
    ((model, data, method, seed),) = calls
    assert model == GaussianMixture(3, covariance="tied")
    assert data.columns.tolist() == ["waiting"]
    assert method == NUTS(chains=3, warmup=7, draws=9, target_accept=0.9)
    assert seed == 5


def test_draws_are_kept_raw_and_matched_for_arviz(results):
    raw = load_posterior(results / "two" / "posterior.safetensors")
    matched = from_netcdf(results / "two" / "posterior.nc")["posterior"]
    assert "matched" in matched.attrs["labels"]
    # The same numbers in every draw, whatever their order.
    np.testing.assert_array_equal(np.sort(matched["loc"], axis=2), np.sort(raw.draws["loc"].numpy(), axis=2))


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".npz", ".tsv"])
def test_every_kind_of_file_is_fitted(suffix, tmp_path):
    frame = load_faithful().frame()[["waiting"]]
    path = tmp_path / f"data{suffix}"
    writers = {
        ".parquet": frame.to_parquet,
        ".npy": lambda p: np.save(p, frame.to_numpy()),
        ".npz": lambda p: np.savez(p, waiting=frame["waiting"].to_numpy()),
        ".tsv": lambda p: frame.to_csv(p, sep="\t", index=False),
    }
    writers[suffix](path)
    code, out, _ = run("fit", path, "--components", 1, "--method", "em", "--out", tmp_path / "new")
    assert code == 0
    assert f"{frame['waiting'].mean():.2f}" in out  # one component: its mean is that of the data, nearly


def test_a_result_is_replaced_only_by_force(table, tmp_path):
    words = ("fit", table, "--components", 1, "--method", "em", "--quiet", "--out", tmp_path)
    run(*words)
    (tmp_path / "components.png").touch()  # a picture that EM does not make
    before = (tmp_path / "posterior.safetensors").read_bytes()
    assert "found posterior.safetensors, posterior.nc. Choose another --out, or add --force" in refused(*words)
    assert (tmp_path / "posterior.safetensors").read_bytes() == before
    assert run(*words, "--force", "--columns", "waiting")[0] == 0
    assert (tmp_path / "posterior.safetensors").read_bytes() != before
    assert not (tmp_path / "components.png").exists()


def test_ctrl_c_keeps_what_there_is(table, tmp_path, monkeypatch):
    step, done = EM.step, []

    def interrupting(self, problem, state):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return step(self, problem, state)

    monkeypatch.setattr(EM, "step", interrupting)
    code, out, errors = run("fit", table, "--components", 2, "--method", "em", "--out", tmp_path)
    assert code == 130
    assert errors.startswith("warning: EM interrupted: stopped by the user after 2 of at most 2000 steps")
    assert errors.count("\n") == 1
    assert "interrupted" in out
    assert load_posterior(tmp_path / "posterior.safetensors").status.state == "interrupted"


def test_a_fit_that_stops_early_warns_in_one_line_even_when_quiet(table, tmp_path, monkeypatch):
    def short(model, data, method, **options):
        return infer(model, data, EM(max_steps=1), **options)

    monkeypatch.setattr(cli, "infer", short)
    code, out, errors = run("fit", table, "--components", 2, "--method", "em", "--quiet", "--out", tmp_path)
    assert (code, out) == (0, "")
    assert re.fullmatch(r"warning: EM max_steps: EM\(\) stopped after 1 steps.*Raise max_steps.*\n", errors)


# --- bad input: one line, nothing written, found before the fit -------------------------------------------------------


def test_fit_by_the_conjugate_methods(table, tmp_path):
    """The same answers as from Python; each table shows what its method has and not what it lacks."""
    common = ("--components", 2, "--covariance", "diagonal", "--seed", 3)
    code, out, _ = run("fit", table, *common, "--method", "vb", "--restarts", 3, "--out", tmp_path / "vb")
    bound = infer(GaussianMixture(2, "diagonal"), load_faithful().frame(), VB(restarts=3), seed=3)
    assert code == 0
    assert f"{bound.elbo[0]:.2f} ± 0.00" in out
    chains = ("--chains", 2, "--warmup", 5, "--draws", 20)
    code, out, _ = run("fit", table, *common, "--method", "gibbs", *chains, "--out", tmp_path / "gibbs")
    draws = infer(GaussianMixture(2, "diagonal"), load_faithful().frame(), Gibbs(2, 5, 20), seed=3).draws
    assert code == 0
    assert "divergences" not in out
    assert (load_posterior(tmp_path / "gibbs" / "posterior.safetensors").draws["var"] == draws["var"]).all()
    code, out, _ = run("compare", tmp_path / "vb", tmp_path / "gibbs")
    assert code == 0
    assert "gibbs" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "eruptoins,waiting"), "no column 'eruptoins'. Did you mean eruptions?"),
        (
            ("--method", "nuts", "--restarts", "5"),
            "--restarts is a setting of --method em or map or laplace or svi or vb, got --method nuts",
        ),
        (
            ("--method", "em", "--chains", "2"),
            "--chains is a setting of --method nuts or chees or gibbs, got --method em. Leave --chains out",
        ),
        (("--method", "svi", "--target-accept", ".9"), "--target-accept is a setting of --method nuts or chees"),
        (("--method", "gibbs", "--restarts", "5"), "em or map or laplace or svi or vb, got --method gibbs"),
        (("--chains", "0"), "chains: expected at least 1, got 0"),
        (("--components", "0"), "num_components: expected 1 or more, got 0"),
        (("--components", "300"), "300"),
    ],
)
@pytest.mark.usefixtures("no_fit")
def test_bad_options_are_refused_before_the_fit(table, tmp_path, options, message):
    given = options if "--components" in options else ("--components", "2", *options)
    assert message in refused("fit", table, *given, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, np.nan, 2.0, 4.0]}, "1 of 4 rows hold missing or infinite values, the first is row 2"),
        ({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]}, "column 'b' holds 'x' in row 1"),
        ({"a": [1.0, 1.0, 1.0, 1.0]}, "constant"),
        ({"a": []}, "expected at least one row"),
    ],
)
@pytest.mark.usefixtures("no_fit")
def test_bad_data_are_refused_before_the_fit(tmp_path, columns, message):
    path = tmp_path / "bad.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    assert message in refused("fit", path, "--components", "2", "--out", tmp_path / "new")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("no_fit")
def test_a_missing_file_is_named_with_the_nearest(table, tmp_path):
    wrong = table.with_name("gyeser.csv")
    message = refused("fit", wrong, "--components", "2", "--out", tmp_path / "new")
    assert message == f"{wrong}: file not found. Did you mean {table}?"


@pytest.mark.parametrize("command", ["fit", "demo"])
@pytest.mark.usefixtures("no_fit")
def test_an_unwritable_folder_is_found_before_the_fit(table, tmp_path, command):
    (tmp_path / "file").touch()
    words = (command, table, "--components", "2") if command == "fit" else (command,)
    message = refused(*words, "--out", tmp_path / "file")
    assert message == f"{tmp_path / 'file'}: expected a folder for results, found a file. Choose another output folder."
    assert "cannot write results there" in refused(*words, "--out", tmp_path / "file" / "below")


# --- compare, report --------------------------------------------------------------------------------------------------


def test_compare_ranks_two_components_above_one(results):
    code, out, errors = run("compare", results / "one", results / "two")
    assert (code, errors) == (0, "")
    rows = [line.split()[0] for line in out.splitlines() if re.match(r"(one|two) ", line)]
    assert rows == ["two", "one"]
    assert run("compare", results / "one" / "posterior.nc", results / "two")[0] == 0


def test_compare_refuses_a_point_and_says_what_to_fit(results):
    message = refused("compare", results / "two", results / "point")
    assert message.startswith("point is a single point")
    assert message.endswith("Fit the same data with --method svi or --method nuts and compare those.")


def test_compare_refuses_other_data(results, table, tmp_path):
    frame = load_faithful().frame()
    frame[:100].to_csv(tmp_path / "short.csv", index=False)
    words = ("--components", 1, "--columns", "waiting", "--quiet", "--out", tmp_path / "short")
    assert run("fit", tmp_path / "short.csv", *words, *TINY)[0] == 0
    message = refused("compare", results / "one", tmp_path / "short")
    assert message == (
        "expected results of the same data, got 272 rows in one and 100 in short. Fit both to the same rows."
    )


def test_select_prints_the_table_and_writes_what_it_rests_on(table, tmp_path):
    """Old Faithful: mclust prints -2322.192 as the BIC of VVV with two components."""
    options = ("--components", "1-3", "--covariance", "full", "--covariance", "EEI", "--out", tmp_path / "chosen")
    code, out, _ = run("select", table, *options)
    assert code == 0
    assert "best: full, 2 components, bic 2322.19" in out
    written = pd.read_csv(tmp_path / "chosen" / "selection.csv")
    assert written.groupby("covariance").num_components.apply(list).to_dict() == {"EEI": [1, 2, 3], "full": [1, 2, 3]}
    assert (tmp_path / "chosen" / "selection.txt").read_text().strip() in out
    assert (tmp_path / "chosen" / "selection.png").stat().st_size > 5_000


def test_select_takes_lists_and_refuses_other_words(table, tmp_path):
    options = ("--covariance", "EII", "--quiet", "--out", tmp_path)
    assert run("select", table, "--components", "2,1", *options) == (0, "", "")
    assert pd.read_csv(tmp_path / "selection.csv").num_components.tolist() == [2, 1]
    assert "expected numbers such as 1-9 or 2,3,5, got 'two'" in refused("select", table, "--components", "two")


def test_report_makes_the_same_table_again(results, tmp_path):
    code, out, errors = run("report", results / "two", "--out", tmp_path / "again")
    assert (code, errors) == (0, "")
    table = (results / "two" / "table.txt").read_text(encoding="utf-8")
    assert out.startswith(table)
    assert (tmp_path / "again" / "table.txt").read_text(encoding="utf-8") == table
    pictures = {"density.png", "responsibilities.png", "components.png", "predictive.png"}
    assert {file.name for file in (tmp_path / "again").iterdir()} == {"table.txt", *pictures}


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_that_is_no_result_is_explained(results, command):
    others = (results / "two",) if command == "compare" else ()
    message = refused(command, results / "twoo", *others)
    assert message == f"{results / 'twoo'}: no such folder. Did you mean {results / 'two'}?"


# --- the program itself -----------------------------------------------------------------------------------------------


def test_demo_writes_to_the_folder_and_prints_the_table(tmp_path, monkeypatch, results):
    from_fit = {"NUTS": cli.Reading.of(load_posterior(results / "two" / "posterior.safetensors"))}
    seeds = []

    def quick(*, seed, progress):
        seeds.append(seed)
        return from_fit

    monkeypatch.setattr(cli, "run_demo", quick)
    code, out, errors = run("demo", "--out", tmp_path / "demo", "--seed", 4)
    assert (code, errors, seeds) == (0, "", [4])
    assert "weights[0]" in out
    assert (tmp_path / "demo" / "nuts.nc").exists()


def test_ctrl_c_outside_a_fit_ends_in_one_line(tmp_path, monkeypatch):
    def stopped(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", stopped)
    assert run("demo", "--out", tmp_path) == (130, "", "interrupted\n")


def test_version():
    assert run("--version") == (0, f"probmix {__version__}\n", "")


def test_help_names_every_command_and_what_is_written():
    assert all(command in run("--help")[1] for command in ("demo", "fit", "compare", "report"))
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", run("fit", "--help")[1]).split())
    assert "posterior.safetensors, the fit as it was made" in words
    assert "its draws with component labels matched across chains" in words


def test_main_returns_the_exit_code(capsys):
    assert main(["--version"]) == 0
    assert main(["report", "no-such-folder"]) == 2
    assert "error: no-such-folder: no such folder" in capsys.readouterr().err


def test_python_dash_m_is_the_same_program():
    run = subprocess.run([sys.executable, "-m", "probmix", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"probmix {__version__}\n")

"""The table, the lines under it and the pictures: what a reader sees of a fit."""

from __future__ import annotations

import dataclasses
import io
import re

import arviz as az
import matplotlib.image
import pandas as pd
import pytest
import report_cases as cases
import torch
from rich.console import Console

from probmix.inference import SVI, infer
from probmix.reading import Reading
from probmix.report import print_comparison, print_report, write_report
from probmix.report_notes import comparison_notes, notes
from probmix.report_table import build_comparison, build_table, number, plus_minus, to_text
from probmix.status import Status


@pytest.fixture(scope="module")
def readings():
    """EM, a guide stopped after a few steps, and draws of which one chain has switched labels."""
    point = cases.point()
    with pytest.warns(match="max_steps"):
        guide = infer(point.program, cases.load_faithful().frame(), SVI(max_steps=3, init=point.sites()), seed=0)
    draws = cases.with_switched_chain(cases.draws())
    return {
        "EM": Reading.of(point),
        "SVI": Reading.of(guide),
        "NUTS": Reading.of(draws, reference=point.sites()),
    }


def rows(text: str) -> dict[str, list[str]]:
    """Label -> cells of every line of a table; cells are two blanks or more apart."""
    split = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {label: cells for label, *cells in split}


def test_one_table_compares_the_fits(readings):
    table = rows(to_text(build_table(readings)))
    assert table["parameter"] == ["best point", "mean ± sd", "mean ± sd", "as drawn", "matched", "ESS"]
    point, guide, draws = (reading.estimates["loc[1, waiting]"] for reading in readings.values())
    assert table["loc[1, waiting]"] == [
        f"{point.mean:.2f}",
        f"{guide.mean:.2f} ± {guide.std:.2f}",
        f"{draws.mean:.2f} ± {draws.std:.2f}",
        f"{draws.rhat_as_drawn:.2f}",
        f"{draws.rhat:.3f}",
        f"{draws.ess:.0f}",
    ]


def test_below_the_parameters_stand_the_figures_of_the_fits(readings):
    table = rows(to_text(build_table(readings)))
    em, svi, nuts = (reading.posterior for reading in readings.values())
    loo = [az.loo(tree, pointwise=True) for tree in (svi.to_arviz(), nuts.to_arviz())]
    assert table["log joint density"] == [f"{em.objective:.3f}", "-", "-"]
    assert table["ELBO ± s.e."] == ["-", f"{svi.elbo[0]:.2f} ± {svi.elbo[1]:.2f}", "-"]
    assert table["elpd_loo ± s.e."] == ["-", *(f"{one.elpd_loo:.1f} ± {one.se:.1f}" for one in loo)]
    assert table["largest Pareto k"][:2] == ["-", f"{loo[0].pareto_k.max().item():.2f}"]
    assert table["divergences"] == ["-", "-", "0 of 400"]
    assert table["seconds"][2] == "12.3"
    assert table["status"] == ["converged", "max_steps", "complete"]


def test_a_single_fit_has_intervals_and_only_its_own_figures(readings):
    table = rows(to_text(build_table({"NUTS": readings["NUTS"]})))
    estimate = readings["NUTS"].estimates["loc[0, waiting]"]
    assert table["parameter"] == ["mean ± sd", "2.5 %", "97.5 %", "as drawn", "matched", "ESS"]
    assert table["loc[0, waiting]"][1:3] == [f"{estimate.low:.2f}", f"{estimate.high:.2f}"]
    assert "ELBO ± s.e." not in table
    assert "log joint density" not in table


def test_nothing_is_coloured_or_cut_short_where_there_is_no_terminal(readings, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_report(readings)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) >= 100
    assert all(name in text for name in readings["EM"].estimates)
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def test_a_narrow_terminal_folds_and_cuts_nothing(readings):
    stream = io.StringIO()
    Console(file=stream, width=70, force_terminal=True, color_system=None).print(build_table(readings))
    assert "…" not in stream.getvalue()


def test_a_terminal_gets_bold_headings_and_every_line(readings, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    print_report(readings)
    text = capsys.readouterr().out
    assert "\x1b[1m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(row in plain for row in to_text(build_table(readings)).splitlines()[3:5])
    assert " ".join(notes(readings)).split() == plain[plain.index("± is one") :].split()


def test_names_in_square_brackets_are_text(readings):
    odd = dataclasses.replace(readings["EM"])
    odd.__dict__["estimates"] = {"rate[bold]": readings["EM"].estimates["weights[0]"]}
    assert "rate[bold]" in to_text(build_table({"EM": odd}))


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (79.9923, 0.4689, "79.99 ± 0.47"),
        (2.03621, 0.0291, "2.036 ± 0.029"),
        (-1141.39, 16.97, "-1141 ± 17"),
        (120345.0, 4567.0, "120345 ± 4567"),
        (3.2e-9, 4.5e-10, "3.2e-09 ± 4.5e-10"),
        (0.25, 0.0999, "0.250 ± 0.100"),
        (1.0, 0.0, "1 ± 0"),
        (float("nan"), 1.0, "- ± 1.0"),
    ],
)
def test_a_spread_has_two_digits_and_its_mean_as_many(value, std, text):
    assert plus_minus(value, std) == text


def test_a_quantile_is_as_fine_as_the_spread():
    assert number(54.5934, 0.1312) == "54.59"


# --- the lines under the table --------------------------------------------------------------------------------------


def said(readings) -> str:
    return "\n".join(notes(readings))


def test_the_columns_are_explained(readings):
    text = said(readings)
    assert "± is one posterior standard deviation. Labels of draws are matched" in text
    assert "Components have the same numbers in all columns" in text
    assert "EM gives the single most probable point" in text
    assert "same numbers in all columns" not in said({"NUTS": readings["NUTS"]})


def test_r_hat_notes_tell_labels_from_chains_that_disagree():
    straight = cases.draws(num=2000)  # so many that the r-hat of independent draws is below 1.002
    assert "below 1.01 they agree, as these do" in said({"NUTS": Reading.of(straight)})
    switched = Reading.of(cases.with_switched_chain(straight))
    worst = max(estimate.rhat_as_drawn for estimate in switched.estimates.values())
    assert f"As drawn it reaches {worst:.2f} only because each chain numbers" in said({"NUTS": switched})
    moved = {**straight.draws, "loc": straight.draws["loc"].clone()}
    moved["loc"][0] += torch.tensor([0.0, 1.0])  # two standard deviations, one chain only
    text = said({"NUTS": Reading.of(dataclasses.replace(straight, draws=moved))})
    assert "with the labels matched: run longer" in text


def test_few_draws_are_named():
    few = Reading.of(cases.draws(num=40))
    fewest = min(e.ess for e in few.estimates.values())
    assert f"400 or more are wanted, the fewest here are {fewest:.0f}." in said({"NUTS": few})
    assert "it takes two or more, of four draws or more" in said({"NUTS": Reading.of(cases.draws(chains=1))})


def test_a_fit_that_did_not_end_well_says_what_to_do(readings):
    assert "SVI max_steps: SVI() stopped after 3 steps with its ELBO still rising. Raise max_steps" in said(readings)
    draws = cases.draws()
    stats = {**draws.sample_stats, "diverging": torch.ones(4, 100, dtype=torch.bool)}
    bad = dataclasses.replace(draws, sample_stats=stats, status=Status("complete", "400 divergent. Raise it."))
    assert "NUTS complete: 400 divergent. Raise it." in said({"NUTS": Reading.of(bad)})


def test_comparison_is_written_with_its_doubts(capsys):
    names = ["elpd_loo", "se", "elpd_diff", "dse", "weight", "p_loo", "worst_pareto_k"]
    values = [[-10.0, 2.0, 0.0, 0.0, 0.9, 3.1, 0.8], [-14.26, 2.1, 4.26, 1.5, 0.1, 2.0, 0.3]]
    comparison = pd.DataFrame(values, columns=names, index=["two", "one"])
    table = rows(to_text(build_comparison(comparison)))
    assert table["two"] == ["-10.0 ± 2.0", "-", "0.90", "3.1", "0.80"]
    assert table["one"] == ["-14.3 ± 2.1", "4.3 ± 1.5", "0.10", "2.0", "0.30"]
    assert "Not to be trusted for two: Pareto k is above 0.7" in comparison_notes(comparison)[-1]
    assert len(comparison_notes(comparison.loc[["one"]])) == 2
    print_comparison(comparison)
    assert "Not to be trusted for two" in capsys.readouterr().out


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("EM", ["density", "responsibilities", "history"]),
        ("SVI", ["density", "responsibilities", "history", "predictive"]),
        ("NUTS", ["density", "responsibilities", "components", "predictive"]),
    ],
)
def test_each_kind_of_answer_has_its_pictures(readings, tmp_path, name, pictures):
    files = write_report({name: readings[name]}, tmp_path)
    assert [file.name for file in files] == ["table.txt", *(f"{picture}.png" for picture in pictures)]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for file in files[1:]:
        image = matplotlib.image.imread(file)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.02  # not blank


def test_the_table_on_file_is_the_one_on_the_screen(readings, tmp_path, capsys):
    write_report({"EM": readings["EM"]}, tmp_path)
    print_report({"EM": readings["EM"]})
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == capsys.readouterr().out

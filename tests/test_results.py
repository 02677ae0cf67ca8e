from __future__ import annotations

import pytest
import report_cases as cases

from probmix.errors import DataError
from probmix.posterior import load_posterior
from probmix.results import clear, find_file, open_trees, refuse_overwriting, save_posterior, save_tree


@pytest.fixture(scope="module")
def point():
    return cases.point()


@pytest.fixture
def folder(point, tmp_path):
    save_posterior(point, tmp_path)
    save_tree(point.to_arviz(), tmp_path)
    return tmp_path


def test_what_was_saved_is_found_by_folder_and_by_file(folder, point):
    kept = find_file(folder, ".safetensors")
    assert find_file(kept, ".safetensors") == kept == folder / "posterior.safetensors"
    assert load_posterior(kept).objective == point.objective
    assert list(open_trees([folder])) == [folder.name]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("resutl", "resutl: no such folder. Did you mean .*result[?]"),
        ("nowhere/at/all", "no such folder. Check the path"),
        ("empty", "empty: expected a result, found no posterior.nc there. Name a folder that probmix fit wrote"),
        ("demo", "found no posterior.nc there. Name one of its files: .*em.nc, .*svi.nc"),
        ("empty.txt", "expected a folder, or a file that ends in .nc"),
    ],
)
def test_a_result_that_is_not_there_is_explained(tmp_path, place, message):
    for name in ("result", "empty", "demo"):
        (tmp_path / name).mkdir()
    for name in ("demo/em.nc", "demo/svi.nc", "empty.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        find_file(tmp_path / place, ".nc")


def test_a_file_that_is_no_netcdf_is_named(tmp_path):
    (tmp_path / "posterior.nc").write_text("hello")
    with pytest.raises(DataError, match=r"posterior\.nc: cannot be read as NetCDF"):
        open_trees([tmp_path])


def test_results_of_one_name_are_told_apart_by_their_paths(point, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "fit").mkdir(parents=True)
        save_tree(point.to_arviz(), tmp_path / parent / "fit")
    places = [tmp_path / parent / "fit" for parent in ("a", "b")]
    assert list(open_trees(places)) == [str(place) for place in places]
    with pytest.raises(DataError, match="expected each result once"):
        open_trees([places[0], places[0] / "posterior.nc"])


def test_a_result_is_not_overwritten_unasked(folder, tmp_path_factory):
    with pytest.raises(
        DataError, match=r"found posterior.safetensors, posterior.nc. Choose another --out, or add --force"
    ):
        refuse_overwriting(folder)
    refuse_overwriting(tmp_path_factory.mktemp("new"))


def test_clearing_takes_the_files_of_a_result_and_no_others(folder):
    for name in ("components.png", "table.txt", "mine.png", "notes.txt"):
        (folder / name).touch()
    clear(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["mine.png", "notes.txt"]


def test_clearing_leaves_a_folder_without_a_result_alone(tmp_path):
    (tmp_path / "density.png").touch()
    clear(tmp_path)
    assert (tmp_path / "density.png").exists()

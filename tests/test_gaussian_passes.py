"""Passes of Gaussian families: the quick ways against the general one, and where rounding decides between them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from probmix import gaussian_passes
from probmix.family import AbstractConjugateFamily
from probmix.gaussian_family import FAMILIES
from probmix.gaussian_passes import dtype_of_features
from probmix.isolation import isolated
from probmix.quadratic_pass import feature_sums
from probmix.table import Table

K, D, N = 3, 2, 150
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
SHAPES = list(FAMILIES)


@pytest.fixture(autouse=True)
def _seeded():
    with isolated(0, dtype=torch.float64, device=torch.device("cpu")):
        yield


@pytest.fixture(params=["in features", "centred"])
def way(request, monkeypatch) -> str:
    """Few rows are enough for the pass in features, or no number of rows is."""
    monkeypatch.setattr(gaussian_passes, "_FEW", 0 if request.param == "in features" else 10**9)
    return request.param


def sites_of(covariance: str, x: Tensor, restarts: int = 2) -> dict[str, Tensor]:
    """Sites of restarts that differ, ``(restarts, ...)``."""
    family = FAMILIES[covariance]
    shares = torch.rand(restarts, len(x), K)
    return family.maximum_likelihood(family.sufficient_statistics(x, shares / shares.sum(-1, keepdim=True)))


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    centres = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-2.0, 4.0]])
    return (centres[torch.arange(N) % 3] + torch.randn(N, D) + 100).to(dtype)


def assert_same(ours, theirs, rtol: float = 1e-10) -> None:
    """1e-10: both sum a hundred terms in float64; the features are a few standard deviations from their mean."""
    torch.testing.assert_close(ours.log_likelihood, theirs.log_likelihood, rtol=rtol, atol=0)
    for name in ("count", "mean", "scatter"):
        one, other = getattr(ours.statistics, name), getattr(theirs.statistics, name)
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", SHAPES)
def test_expectation_is_that_of_log_prob_and_statistics(way, covariance, weighted):
    family, x = FAMILIES[covariance], data()
    weights = torch.rand(N) + 0.1 if weighted else None
    log_weights, sites = torch.rand(2, K).log_softmax(-1), sites_of(covariance, x)
    ours = family.expectation(Table(x, weights, family.prepare(x)), log_weights, sites)
    assert_same(ours, AbstractConjugateFamily.expectation(family, Table(x, weights), log_weights, sites))


@pytest.mark.parametrize("covariance", SHAPES)
def test_blurred_responsibilities(way, covariance):
    family, x = FAMILIES[covariance], data()
    log_weights, sites = torch.rand(2, K).log_softmax(-1), sites_of(covariance, x)
    ours = family.expectation(Table(x, None, family.prepare(x), power=0.3), log_weights, sites)
    assert_same(ours, AbstractConjugateFamily.expectation(family, Table(x, power=0.3), log_weights, sites))
    plain = family.expectation(Table(x, None, family.prepare(x)), log_weights, sites)
    assert (plain.statistics.count - ours.statistics.count).abs().max() > 0.01  # the power does something
    torch.testing.assert_close(plain.log_likelihood, ours.log_likelihood)


@pytest.mark.parametrize("covariance", SHAPES)
def test_variational_expectation_is_that_of_expected_log_prob(way, covariance):
    family, x = FAMILIES[covariance], data()
    shares = torch.rand(2, N, K).softmax(-1)
    posterior = family.posterior(family.default_prior(x, K), family.sufficient_statistics(x, shares))
    log_weights = torch.rand(2, K).log_softmax(-1)
    ours = family.variational_expectation(Table(x, None, family.prepare(x)), log_weights, posterior)
    theirs = AbstractConjugateFamily.variational_expectation(family, Table(x), log_weights, posterior)
    assert_same(ours, theirs)


@pytest.mark.parametrize("covariance", SHAPES)
def test_drawn_assignments_average_to_the_responsibilities(way, covariance):
    """Null: the mean of 400 drawn counts is the expected one; 6 standard errors of a count: false alarm 1e-7 in all."""
    family, x = FAMILIES[covariance], data()
    log_weights, sites = torch.rand(400, K).log_softmax(-1)[:1].expand(400, K), sites_of(covariance, x, restarts=1)
    many = {name: value.expand(400, *value.shape[1:]) for name, value in sites.items()}
    table = Table(x, None, family.prepare(x))
    drawn = family.drawn(table, log_weights, many).statistics.count
    expected = family.expectation(table, log_weights[:1], sites).statistics.count[0]
    assert (drawn == drawn.round()).all()
    assert (drawn.sum(-1) == N).all()
    error = (N / 4 / 400) ** 0.5  # the variance of a sum of N indicators is N / 4 at most
    assert (drawn.mean(0) - expected).abs().max() < 6 * error
    assert (drawn.mean(0) - expected.flip(-1)).abs().max() > 6 * error  # the control: other counts


@pytest.mark.parametrize("covariance", SHAPES)
def test_a_weight_is_so_many_copies(way, covariance):
    family, x = FAMILIES[covariance], data()
    weights = torch.arange(N) % 3
    log_weights, sites = torch.rand(2, K).log_softmax(-1), sites_of(covariance, x)
    copies = x.repeat_interleave(weights, 0)
    ours = family.expectation(Table(x, weights.to(x), family.prepare(x)), log_weights, sites)
    assert_same(ours, family.expectation(Table(copies, None, family.prepare(copies)), log_weights, sites))


# -- which dtype, decided by the data --------------------------------------------------------------------------------


class Far(NamedTuple):
    """Two unit clusters, a table of them and sites at the truth."""

    table: Table
    sites: dict[str, Tensor]
    log_weights: Tensor


def two_clusters(separation: float, dtype: torch.dtype, rows: int = 20_000) -> Far:
    """Every other row is ``separation`` standard deviations away; all are 1,000 from the origin."""
    x = torch.randn(rows, 2) + 1000
    x[::2, 0] += separation
    x = x.to(dtype)
    loc = torch.stack([x[::2].double().mean(0), x[1::2].double().mean(0)]).to(dtype)
    sites = {"loc": loc, "var": torch.ones(2, 2, dtype=dtype)}
    return Far(Table(x, None, FAMILIES["diagonal"].prepare(x)), sites, torch.zeros(2, dtype=dtype))


def used_dtypes(monkeypatch) -> list[torch.dtype]:
    """Dtypes of the passes in features, as they happen."""
    used: list[torch.dtype] = []

    def watched(coefficients: Tensor, *settings):
        used.append(coefficients.dtype)
        return feature_sums(coefficients, *settings)

    monkeypatch.setattr(gaussian_passes, "feature_sums", watched)
    return used


def error_of_scatter(far: Far) -> float:
    """Largest relative error against each cluster's own deviations, in float64."""
    found = FAMILIES["diagonal"].expectation(far.table, far.log_weights, far.sites).statistics.scatter.double()
    clusters = [far.table.x[i::2].double() for i in (0, 1)]
    exact = torch.stack([(cluster - cluster.mean(0)).square().sum(0) for cluster in clusters])
    return float((found / exact - 1).abs().max())


@pytest.mark.parametrize("far_factor", [0.9, 1.1])
def test_float32_is_used_up_to_nine_standard_deviations(monkeypatch, far_factor):
    """eps s^2 = 1e-5 is at s = 9.2; on either side the scatter keeps the digits that are promised, 2e-4."""
    far = two_clusters(2 * 9.16 * far_factor, torch.float32)
    used = used_dtypes(monkeypatch)
    assert error_of_scatter(far) < 2e-4
    assert used == [torch.float32 if far_factor < 1 else torch.float64]


def test_beyond_that_float32_would_lose_digits(monkeypatch):
    """The control: clusters 300 standard deviations apart, in float32 all the same, and as it is."""
    far = two_clusters(300.0, torch.float32)
    assert error_of_scatter(far) < 1e-6  # float64, of the result rounded to float32
    monkeypatch.setattr(gaussian_passes, "dtype_of_features", lambda *_: torch.float32)
    monkeypatch.setattr(gaussian_passes, "_intact", lambda *_: True)
    assert error_of_scatter(far) > 1e-3


@pytest.mark.parametrize("far_factor", [0.9, 1.1])
def test_features_are_used_up_to_three_million_standard_deviations(monkeypatch, far_factor):
    limit = 2 * (2e-3 / EPS64) ** 0.5  # half of it squared, over 2, times eps is 0.001 nats
    far = two_clusters(limit * far_factor, torch.float64, rows=5000)
    used = used_dtypes(monkeypatch)
    error = error_of_scatter(far)
    assert used == ([torch.float64] if far_factor < 1 else [])
    if far_factor < 1:
        assert 1e-6 < error < 0.1  # up to 20 eps s^2, and by far more than about the means: the limit is no empty one
    else:
        assert error < 1e-8


def test_a_component_that_narrows_in_one_step_keeps_its_variance(monkeypatch):
    """Sites as wide as the gap allow float32, but the scatter that comes of them does not: the pass is made again."""
    far = two_clusters(3000.0, torch.float32)
    far.sites["var"][:, 0] = 1e5  # a gap of nine standard deviations: every row still knows where it belongs
    used = used_dtypes(monkeypatch)
    assert error_of_scatter(far) < 1e-4
    assert used == [torch.float32, torch.float64]
    monkeypatch.setattr(gaussian_passes, "_intact", lambda *_: True)
    assert error_of_scatter(far) > 0.01  # the control: made once


@pytest.mark.parametrize(
    ("terms", "shift", "expected"),
    [
        (1e-2 / EPS32 * 0.9, 0.0, torch.float32),
        (1e-2 / EPS32 * 1.1, 0.0, torch.float64),
        (0.0, 1e-5 / EPS32 * 0.9, torch.float32),
        (0.0, 1e-5 / EPS32 * 1.1, torch.float64),
        (1e-3 / EPS64 * 0.9, 0.0, torch.float64),
        (1e-3 / EPS64 * 1.1, 0.0, None),
        (float("nan"), 0.0, None),
    ],
)
def test_thresholds(terms, shift, expected):
    assert dtype_of_features(torch.tensor(terms), torch.tensor(shift), torch.float32, torch.float64) == expected


def test_rows_are_centred_in_blocks(monkeypatch):
    x = data(torch.float32)
    whole = FAMILIES["full"].prepare(x)
    monkeypatch.setattr(gaussian_passes, "_BLOCK", 14)
    blocks = FAMILIES["full"].prepare(x)
    torch.testing.assert_close(blocks.rows.columns, whole.rows.columns, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole.centre, x.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.rows.columns, (x.double() - x.double().mean(0)).mT.float())


PEAK = """
import re, torch
from pathlib import Path
from probmix.models import GaussianMixture
torch.set_num_threads(1)
def read(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def run(rows):
    x = torch.randn(rows, 4, dtype=torch.float64)
    model = GaussianMixture({components}, "{covariance}")
    shares = torch.ones(1000, {components}, dtype=torch.float64) / {components}
    sites = model.maximise(model.sufficient_statistics(x[:1000], shares), None)
    sites["loc"] = sites["loc"] + torch.randn_like(sites["loc"])
    table = model.table(x)
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    model.expectation(table, sites)
    return read("VmHWM") - before
run(100_000)
print(run({rows}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read the Linux way")
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_memory_of_a_pass_grows_neither_with_rows_nor_with_components(covariance):
    """A chunk is 4 MiB, with its shares in twice the memory at most; a table of n x K would be 512 MB here."""
    for rows, components in ((200_000, 4), (1_000_000, 64)):
        code = PEAK.format(rows=rows, components=components, covariance=covariance)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(run.stdout) < 16 * 1024  # kB

"""Gaussian components that share volume, shape or orientation: the family, and EM with it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.optimize
import torch
from constrained_cases import ALL, K, from_free
from torch import Tensor

from probmix.conjugate import NormalInverseGamma, NormalInverseWishart
from probmix.constrained_family import CONSTRAINED_FAMILIES
from probmix.errors import MethodError, ProgramError
from probmix.inference import EM, MAP, Gibbs, infer
from probmix.models import GaussianMixture
from probmix.parsimonious import num_spread_parameters

every_constraint = pytest.mark.parametrize("letters", list(CONSTRAINED_FAMILIES))
every_covariance = pytest.mark.parametrize("letters", ALL)
LONG = {"VVV": "full", "EEE": "tied", "VVI": "diagonal", "VII": "spherical"}


@cache
def groups(size: int = 3) -> Tensor:
    """Three groups of unlike size, shape and direction, 60 rows each, that overlap a little."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, 60, size, generator=generator, dtype=torch.float64)
    roots = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    centres = torch.tensor([[0.0], [4.0], [9.0]]) * torch.tensor([1.0, -1.0, 0.5])[:size]
    return (noise @ roots * torch.tensor([0.5, 1.0, 2.0])[:, None, None] + centres[:, None, :]).flatten(0, 1)


def shares(x: Tensor, seed: int = 4) -> Tensor:
    return torch.randn(len(x), K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def own_prior(letters: str, size: int = 3) -> NormalInverseWishart | NormalInverseGamma:
    loc = torch.arange(1.0, size + 1, dtype=torch.float64)
    if letters.endswith("I"):
        return NormalInverseGamma(loc, 0.7, 2.5, loc + 0.5)
    return NormalInverseWishart(loc, 0.7, size + 1.5, torch.eye(size, dtype=torch.float64) + 0.4)


def matrices(letters: str, sites: dict[str, Tensor]) -> Tensor:
    """Covariance of each component, whatever the shape of the site."""
    size = sites["loc"].shape[-1]
    if letters in ("EII", "VII"):
        var = sites["var"] if letters == "VII" else sites["var"][..., None].expand(sites["loc"].shape[:-1])
        return var[..., None, None] * torch.eye(size, dtype=torch.float64)
    if letters.endswith("I"):
        var = sites["var"] if letters[0] + letters[1] != "EE" else sites["var"][..., None, :].expand_as(sites["loc"])
        return torch.diag_embed(var)
    return sites["cov"] if letters != "EEE" else sites["cov"][..., None, :, :].expand(*sites["loc"].shape, size)


# --- the M-step under a prior ----------------------------------------------------------------------------------------


@every_constraint
def test_the_penalised_maximum_is_where_an_optimiser_ends(letters: str) -> None:
    """BFGS over means and free numbers of the covariances, on the expected log joint itself.

    It stops at about 1e-7 on sums of a thousand; a common orientation may have a second optimum, so it starts near.
    """
    x = groups()
    family, prior, responsibilities = CONSTRAINED_FAMILIES[letters], own_prior(letters), shares(x)
    site = family.covariance.site
    statistics = family.sufficient_statistics(x, responsibilities)
    sites = None
    for _ in range(60):
        sites = family.maximise(statistics, prior, sites)

    def value(loc: Tensor, spread: Tensor) -> Tensor:
        current = {"loc": loc, site: spread}
        return (responsibilities * family.log_prob(x, current)).sum() + family.log_prior(current, prior)

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.tensor(free, requires_grad=True)
        cov = from_free(letters, z[3 * K :], 3)
        result = -value(z[: 3 * K].reshape(K, 3), cov.diagonal(dim1=-2, dim2=-1) if site == "var" else cov)
        return result.item(), torch.autograd.grad(result, z)[0].numpy()

    starts = np.random.default_rng(1).normal(size=(3, num_spread_parameters(letters, K, 3)))
    starts = [np.concatenate([sites["loc"].numpy().ravel(), start]) for start in starts]
    runs = [scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8}) for start in starts]
    assert value(sites["loc"], sites[site]).item() == pytest.approx(-min(run.fun for run in runs), abs=1e-6)


@every_constraint
def test_a_batch_of_restarts_is_a_loop(letters: str) -> None:
    x, family, prior = groups(), CONSTRAINED_FAMILIES[letters], own_prior(letters)
    responsibilities = torch.stack([shares(x, seed) for seed in range(4)])
    together = family.maximise(family.sufficient_statistics(x, responsibilities), prior)
    for i in range(4):
        alone = family.maximise(family.sufficient_statistics(x, responsibilities[i]), prior)
        for name, part in alone.items():
            torch.testing.assert_close(together[name][i], part, rtol=1e-10, atol=1e-10)


# --- EM --------------------------------------------------------------------------------------------------------------


def largest_fall(history: Tensor) -> float:
    gains = history[:, 1:] - history[:, :-1]
    return -gains[~gains.isnan()].min().item()


@every_covariance
@pytest.mark.parametrize("objective", ["ml", "map"])
def test_the_objective_never_falls(letters: str, objective: str) -> None:
    """Rounding of a sum of 180 log densities: 1e-9 is a thousand times that. Restarts that collapse are dropped."""
    fit = infer(GaussianMixture(K, letters), groups(), EM(restarts=6, objective=objective, init="random"), seed=1)
    assert fit.history["objective"].shape[1] > 5
    assert largest_fall(fit.history["objective"]) < 1e-9


def fitted(letters: str, x: Tensor, init: str | dict[str, Tensor] = "kmeans++") -> tuple[float, dict[str, Tensor]]:
    fit = infer(GaussianMixture(K, letters), x, EM(restarts=5, objective="ml", init=init, tolerance=1e-9), seed=0)
    return fit.objective, fit.sites()


def start(letters: str, narrow: str, sites: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sites of a narrower covariance, in the shape of a wider one."""
    cov = matrices(narrow, sites)
    shapes = {
        "EII": lambda: {"var": cov[0, 0, 0]},
        "VII": lambda: {"var": cov[:, 0, 0]},
        "EEI": lambda: {"var": cov[0].diagonal()},
        "EEE": lambda: {"cov": cov[0]},
    }
    along = {"var": cov.diagonal(dim1=-2, dim2=-1)} if letters.endswith("I") else {"cov": cov}
    return {"weights": sites["weights"], "loc": sites["loc"], **shapes.get(letters, lambda: along)()}


def test_more_freedom_never_ends_below_where_it_started() -> None:
    """Every covariance with one letter freer than another's: EM of it, from the optimum of the narrower one."""
    freer = {("I", "E"), ("E", "V")}
    changes = {(a, b): [(i, j) for i, j in zip(a, b, strict=True) if i != j] for a in ALL for b in ALL}
    pairs = [pair for pair, change in changes.items() if len(change) == 1 and change[0] in freer]
    assert len(pairs) == 23
    reached = {letters: fitted(letters, groups()) for letters in ALL}
    for narrow, wide in pairs:
        log_likelihood, sites = reached[narrow]
        assert fitted(wide, groups(), start(wide, narrow, sites))[0] >= log_likelihood - 1e-8, (narrow, wide)


@pytest.mark.parametrize("letters", [letters for letters in ALL if letters[2] != "I" or letters[1] == "I"])
def test_rotating_and_shifting_the_data_rotates_and_shifts_the_fit(letters: str) -> None:
    """Steps end within 1e-9 nats of the optimum: parameters agree to the root of that."""
    x = groups()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)).Q
    labels = torch.nn.functional.one_hot(torch.arange(len(x)) // 60).double()
    model = GaussianMixture(K, letters)
    fits = []
    for rows in (x, x @ turn.mT + 100):
        begin = model.maximise(model.sufficient_statistics(rows, labels), None)
        fits.append(fitted(letters, rows, begin))
    (first, sites), (second, turned) = fits
    assert second == pytest.approx(first, abs=1e-7)
    torch.testing.assert_close(turned["loc"], sites["loc"] @ turn.mT + 100, rtol=1e-4, atol=1e-4)
    cov = turn @ matrices(letters, sites) @ turn.mT
    torch.testing.assert_close(matrices(letters, turned), cov, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("letters", ["VEI", "EVI", "EEI"])
def test_a_rotation_does_change_a_fit_along_the_axes(letters: str) -> None:
    """The control."""
    x, c, s = groups(2), 0.8, 0.6
    turned = x @ torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    assert abs(fitted(letters, x)[0] - fitted(letters, turned)[0]) > 1.0


@every_constraint
def test_permuting_the_start_permutes_the_fit(letters: str) -> None:
    _, sites = fitted(letters, groups())
    order = torch.tensor([2, 0, 1])
    _, again = fitted(letters, groups(), {name: value[order] for name, value in sites.items()})
    for name, value in sites.items():
        torch.testing.assert_close(again[name], value[order], rtol=1e-4, atol=1e-4)


@every_covariance
def test_one_column_knows_equal_and_varying_variances_alone(letters: str) -> None:
    x = groups()[:, :1]
    reference, _ = fitted({"E": "EII", "V": "VII"}[letters[0]], x)
    assert fitted(letters, x)[0] == pytest.approx(reference, abs=1e-6)


def test_the_letters_and_the_long_names_are_the_same_families() -> None:
    for letters, name in LONG.items():
        assert GaussianMixture(2, letters).family is GaussianMixture(2, name).family
        one, other = (infer(GaussianMixture(2, c), groups(), EM(restarts=2), seed=0) for c in (letters, name))
        assert one.objective == other.objective


@every_covariance
def test_the_number_of_parameters_is_that_of_the_letters(letters: str) -> None:
    """Of the conjugate six their own count, which was written without letters."""
    expected = 2 + 3 * 4 + num_spread_parameters(letters, 3, 4)
    assert GaussianMixture(3, letters).num_parameters(4) == expected


@every_covariance
def test_rows_drawn_from_the_fit_have_its_covariances(letters: str) -> None:
    """Null: each of at most 18 entries of a covariance of 20,000 draws is within 6 standard errors: 4e-8."""
    model = GaussianMixture(K, letters)
    _, sites = fitted(letters, groups())
    rows, assignment = model.sample(60_000, sites, seed=3, return_assignments=True)
    for k, cov in enumerate(matrices(letters, sites)):
        mine = rows[assignment == k] - sites["loc"][k]
        error = (cov.square() + cov.diagonal() * cov.diagonal()[:, None]).sqrt() / len(mine) ** 0.5
        assert ((mine.mT @ mine / len(mine) - cov).abs() < 6 * error).all()
        assert not ((1.2 * mine.mT @ mine / len(mine) - cov).abs() < 6 * error).all()  # the control


# --- what cannot be done ---------------------------------------------------------------------------------------------


@every_constraint
def test_there_is_no_program_and_no_conjugate_prior(letters: str) -> None:
    model = GaussianMixture(2, letters)
    assert not model.conjugate
    with pytest.raises(ProgramError, match=f"covariance='{letters}'.*full, tied, diagonal, spherical, EEI, EII.*EM()"):
        infer(model, groups(), MAP(), seed=0)


def test_other_errors_say_the_letters_too() -> None:
    with pytest.raises(
        ProgramError, match="expected NormalInverseWishart for covariance='VEV', got NormalInverseGamma"
    ):
        GaussianMixture(2, "VEV", component_prior=own_prior("VEI"))
    with pytest.raises(ProgramError, match=r"expected one of full, .*VVV, got 'VEX'"):
        GaussianMixture(2, "VEX")
    with pytest.raises((ProgramError, MethodError), match="conjugate prior"):
        GaussianMixture(2, "VEV").posterior(None, None)


@every_constraint
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_components_than_distinct_rows_is_reported_and_never_nan(letters: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], dtype=dtype).repeat(5, 1)
    model = GaussianMixture(6, letters)
    statistics = model.sufficient_statistics(x, torch.nn.functional.one_hot(torch.arange(20) % 4, 6).to(dtype))
    sites = None
    for _ in range(3):
        sites = model.maximise(statistics, None, sites)
        assert all(value.isfinite().all() for value in sites.values())
    fit = infer(model, x, EM(restarts=4, objective="ml", max_steps=50), seed=0, throw=False)
    assert all(value.isfinite().all() for value in fit.sites().values())
    penalised = infer(model, x, EM(restarts=4, max_steps=50), seed=0, throw=False)
    assert all(value.isfinite().all() for value in penalised.sites().values())
    assert not model.singular_components(penalised.sites()).any()


@every_constraint
def test_float32_data_stay_float32(letters: str) -> None:
    """Log-likelihoods near -1000 from rows rounded at 1e-7: together at most 1e-2."""
    wide, sites = fitted(letters, groups())
    narrow = infer(
        GaussianMixture(K, letters),
        groups().float(),
        EM(objective="ml", init={name: value.float() for name, value in sites.items()}, max_steps=20),
        seed=0,
        throw=False,
    )
    assert all(value.dtype == torch.float32 for value in narrow.sites().values())
    assert narrow.objective == pytest.approx(wide, abs=1e-2)


def test_the_refusals_name_only_what_works() -> None:
    with pytest.raises(MethodError, match=r"Gibbs\(\) needs components with a conjugate prior.*does without\.$"):
        infer(GaussianMixture(2, "VEV"), groups(), Gibbs(), seed=0)
    with pytest.raises(ProgramError, match=r"fit it with EM\(\), or choose one of those$"):
        infer(GaussianMixture(2, "VEV"), groups(), MAP(), seed=0)

"""Latent vectors of independent parts: densities, draws, and two known factors that each part keeps to itself."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from probmix.errors import DataError, ProgramError
from probmix.inference import SVI, infer
from probmix.models import ARDLatent, FactoredLatent, MixtureLatent, MixtureVAE
from probmix.posterior import load_posterior

pytestmark = pytest.mark.filterwarnings("ignore::probmix.status.FitWarning")


def notes(num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that two independent factors make together, as an instrument and a pitch make a spectrum."""
    generator = torch.Generator().manual_seed(0)
    timbre = torch.randint(3, (num,), generator=generator)
    pitch = torch.randint(4, (num,), generator=generator)
    shapes = 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    shifts = 2 * torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    noise = 0.3 * torch.randn(num, 12, generator=generator)
    return torch.tanh(shapes[timbre] + shifts[pitch]) + noise, timbre, pitch


def two_parts(**settings: object) -> MixtureVAE:
    parts = [
        MixtureLatent(3, 2, dynamic=True, component_std=0.3, labels=range(3)),
        MixtureLatent(4, 3, dynamic=True, component_std=0.3, labels=range(4)),
    ]
    return MixtureVAE(parts, **{"likelihood": "normal", "width": 64, **settings})


@pytest.fixture(scope="module")
def fit():
    x, timbre, pitch = notes(1500)
    return infer(two_parts(), (x, timbre, pitch), SVI(batch_size=100, max_steps=1000), seed=0, throw=False)


def accuracy(z: Tensor, labels: Tensor) -> float:
    """Of a classifier that sees half of the rows, on the other half."""
    half = len(z) // 2
    return LogisticRegression(max_iter=1000).fit(z[:half], labels[:half]).score(z[half:], labels[half:])


def test_each_part_carries_its_own_factor_only(fit):
    """Classifiers on the right part are nearly always right; on the wrong one they are near chance, 1/3 and 1/4.

    500 test rows: standard errors 0.02. The whole code tells both; so would parts without labels.
    """
    x, timbre, pitch = notes(1000)
    codes = fit.program.encode(x).loc
    of_timbre, of_pitch = fit.program.latent.split(codes)
    assert accuracy(of_timbre, timbre) > 0.95
    assert accuracy(of_pitch, pitch) > 0.95
    assert accuracy(of_timbre, pitch) < 0.25 + 0.12
    assert accuracy(of_pitch, timbre) < 1 / 3 + 0.12


def test_parts_of_two_rows_make_a_third(fit):
    """Timbre of one row, pitch of another: the model itself reads both off the new row, on fresh rows."""
    x, timbre, pitch = notes(400)
    new = fit.program.recombine(x[:200], x[200:])
    assert float((fit.program.predict(new, part=0) == timbre[:200]).double().mean()) > 0.9
    assert float((fit.program.predict(new, part=1) == pitch[200:]).double().mean()) > 0.9
    same = fit.program.recombine(x[:5], x[:5])
    assert torch.equal(same, fit.program.generate(fit.program.encode(x[:5]).loc))


def test_draws_of_a_component_of_each_part(fit):
    drawn = fit.program.sample(60, seed=0, component=(2, None))
    assert drawn.component.shape == (60, 2)
    assert (drawn.component[:, 0] == 2).all()
    assert len(drawn.component[:, 1].unique()) == 4
    assert float((fit.program.predict(drawn.x, part=0) == 2).double().mean()) > 0.9


def test_sites_of_the_parts_saved_and_loaded(tmp_path, fit):
    assert {name: value.shape[-1] for name, value in fit.sites().items()} == {"z1": 2, "z2": 3}
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=two_parts())
    assert torch.equal(again.sites()["z2"], fit.sites()["z2"])
    z = fit.sample(2, seed=0)
    assert torch.equal(again.log_density.log_joint(z), fit.log_density.log_joint(z))
    assert set(fit.log_density.observed) == {"x", "y1", "y2"}


def test_density_is_a_product():
    latent = FactoredLatent(MixtureLatent(3, 2), ARDLatent(4))
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    one, other = latent.split(z)
    assert torch.equal(latent.log_prob(z), latent.parts[0].log_prob(one) + latent.parts[1].log_prob(other))
    draws = [latent.sample(5, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0].z, draws[1].z)
    assert not torch.equal(draws[0].z, draws[2].z)


def test_parts_of_the_same_shape_are_drawn_independently():
    z = FactoredLatent(MixtureLatent(2, 2), MixtureLatent(2, 2)).sample(50, seed=0)
    assert not torch.equal(z.z[:, :2], z.z[:, 2:])
    assert not torch.equal(z.component[:, 0], z.component[:, 1])


def test_refusals(fit):
    with pytest.raises(ProgramError, match=r"expected two priors or more, .* got \['MixtureLatent'\]"):
        FactoredLatent(MixtureLatent(2, 2))
    with pytest.raises(DataError, match="component: expected one for each of 2 parts, got 1"):
        fit.program.sample(5, seed=0, component=(1,))
    with pytest.raises(DataError, match=r"expected 2 tables of as many rows.*got \[3\] rows"):
        fit.program.recombine(torch.zeros(3, 12))
    with pytest.raises(DataError, match=r"expected x or \(x, y1, y2\), got 1 tables of labels and 2 priors"):
        infer(two_parts(), (torch.zeros(3, 12), torch.zeros(3)), SVI(), seed=0)

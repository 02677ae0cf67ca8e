"""Adversarial training: what a step does, bits, resuming, what is kept when it goes wrong, and what it learns."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from probmix.arguments import Arguments
from probmix.errors import DataError, FitError, MethodError, ProgramError
from probmix.inference import EM, Adversarial, infer
from probmix.inference.adversarial_losses import LOSSES, slope_penalty
from probmix.inference.method import Problem
from probmix.models import GaussianMixture, MixtureGAN, MixtureLatent
from probmix.posterior import PointPosterior, load_posterior
from probmix.status import FitWarning

CENTRES = torch.tensor([[-2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
QUICK = Adversarial(steps=20, batch_size=32, log_every=5, learning_rate=1e-3)


def blobs(num: int = 600) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(num) % 3
    return CENTRES[label] + 0.1 * torch.randn(num, 2, generator=generator), label


def gan(**settings: object) -> MixtureGAN:
    latent = MixtureLatent(3, 2, dynamic=True, labels=range(3))
    return MixtureGAN(latent, **{"value_range": None, "width": 16, **settings})


def equal(one: PointPosterior, other: PointPosterior) -> bool:
    same = [torch.equal(one.point[name], other.point[name]) for name in one.point]
    return all([*same, *(torch.equal(one.history[name], other.history[name]) for name in one.history)])


# --- losses ---------------------------------------------------------------------------------------------------------


def test_the_non_saturating_loss_is_the_cross_entropy_of_real_and_generated():
    real, fake = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    ones, zeros = torch.ones(7), torch.zeros(7)
    game = LOSSES["non_saturating"]
    expected = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(game.discriminator(real, fake), expected)
    torch.testing.assert_close(game.generator(fake), binary_cross_entropy_with_logits(fake, ones))


def test_the_hinge_loss_ignores_what_is_clear():
    game = LOSSES["hinge"]
    assert float(game.discriminator(torch.tensor([1.5]), torch.tensor([-1.5]))) == 0
    assert float(game.discriminator(torch.tensor([0.5]), torch.tensor([-0.25]))) == 0.5 + 0.75


@pytest.mark.parametrize("target", [1.0, None])
def test_the_penalty_is_that_of_a_quadratic_score(target):
    """Of D(x) = |x|^2 / 2 the slope at x is x."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = x.norm(dim=-1)
    found = slope_penalty(lambda place: 0.5 * place.square().sum(-1), x, x, target)
    expected = 0.5 * norm.square().mean() if target is None else (norm - 1).square().mean()
    torch.testing.assert_close(found, expected)


def test_the_penalty_of_a_flat_score_has_a_finite_gradient():
    """The norm of a slope of zero has no derivative: a ReLU network that is dead at a row must not end the game."""
    weight = torch.zeros(3, requires_grad=True)
    slope_penalty(lambda place: torch.relu(place @ weight), torch.ones(2, 3), torch.ones(2, 3), 1.0).backward()
    assert bool(weight.grad.isfinite().all())


# --- a step ---------------------------------------------------------------------------------------------------------


def plain_loop(model: MixtureGAN, x: Tensor, method: Adversarial, seed: int) -> nn.Module:
    """Goodfellow et al. (2014), algorithm 1, as anybody would write it."""
    torch.manual_seed(seed)
    model = model.built_for(x)
    betas = (method.momentum, 0.999)
    g = torch.optim.Adam([*model.generator.parameters(), model.latent.loc, model.latent.root], 1e-3, betas=betas)
    d = torch.optim.Adam(model.discriminator.parameters(), 1e-3, betas=betas)
    ones, zeros = torch.ones(method.batch_size, 1), torch.zeros(method.batch_size, 1)
    for _ in range(method.steps):
        real = x[torch.randint(len(x), (method.batch_size,))]
        fake = model.generator(model.latent.rsample(method.batch_size).z).detach()
        scores = model.discriminator(fake), model.discriminator(real)
        loss = sum(binary_cross_entropy_with_logits(s, t) for s, t in zip(scores, (zeros, ones), strict=True))
        d.zero_grad()
        loss.backward()
        d.step()
        fake = model.generator(model.latent.rsample(method.batch_size).z)
        g.zero_grad()
        binary_cross_entropy_with_logits(model.discriminator(fake), ones).backward()
        g.step()
    return model


def test_the_game_is_the_textbooks():
    """Same draws, so the same parameters but for rounding, which 20 steps of Adam do not amplify beyond 1e-3."""
    x, method = blobs()[0], dataclasses.replace(QUICK, average=0.0)
    with torch.random.fork_rng():
        expected = plain_loop(gan(), x, method, seed=0)
    fit = infer(gan(), x, method, seed=0)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(fit.point[name], value, rtol=0, atol=1e-3)
    first = gan().built_for(x).state_dict()
    moved = max(float((fit.point[n] - first[n]).abs().max()) for n in first if n.startswith("generator"))
    assert moved > 0.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("supervision", [None, "each_class", "classes_and_fake"])
@pytest.mark.parametrize("recognise", [False, True])
def test_every_game_runs_and_logs(loss, supervision, recognise):
    x, y = blobs()
    method = dataclasses.replace(QUICK, loss=loss, steps=10)
    fit = infer(gan(supervision=supervision, recognise=recognise), x if supervision is None else (x, y), method, seed=0)
    assert fit.status.state == "complete"
    assert fit.history["discriminator_loss"].shape == (2,)
    assert fit.history["component_score"].shape == fit.history["component_usage"].shape == (2, 3)
    torch.testing.assert_close(fit.history["component_usage"].sum(-1), torch.ones(2))
    assert all(bool(values.isfinite().all()) for values in fit.history.values())
    assert float(fit.history["generator_gradient_norm"].min()) > 0
    assert fit.history["step"].tolist() == [5, 10]


def test_the_supervised_scores_are_the_cross_entropies_of_the_paper():
    """Of N + 1 classes: -log p of the own class for real data, of the last for generated, of f(k) for the generator."""
    model = gan(supervision="classes_and_fake")
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    label, game = torch.arange(6) % 3, LOSSES["non_saturating"]
    none, fake = torch.full((6,), -50.0), torch.full((6,), 3)
    of_real = game.discriminator(model.real_score(outputs, label), none)
    torch.testing.assert_close(of_real, cross_entropy(outputs, label))
    of_fake = game.discriminator(-none, model.fake_score(outputs, label))
    torch.testing.assert_close(of_fake, cross_entropy(outputs, fake))
    torch.testing.assert_close(game.generator(model.wanted_score(outputs, label)), cross_entropy(outputs, label))


def test_the_generator_step_leaves_no_gradient_in_the_discriminator():
    x = blobs()[0]
    method = dataclasses.replace(QUICK, steps=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = gan().built_for(x)
        state = method.start(Problem(model, Arguments.of(x), 0))
        method._train_generator(state.players)
    assert all(p.grad is None for p in state.players.model.discriminator.parameters())
    assert all(p.grad is not None for p in state.players.model.generator.parameters())


# --- bits -----------------------------------------------------------------------------------------------------------


def test_two_fits_in_a_row_are_two_fits_apart_and_the_model_is_left_alone():
    x, model = blobs()[0], gan()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    one, other = infer(model, x, QUICK, seed=0), infer(model, x, QUICK, seed=0)
    assert equal(one, other)
    assert not equal(one, infer(model, x, QUICK, seed=1))
    assert model.generator is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("settings", [{}, {"loss": "wasserstein"}, {"average": 0.0}])
def test_a_resumed_game_is_bit_for_bit_the_unbroken_one(tmp_path, settings):
    x = blobs()[0]
    method = dataclasses.replace(QUICK, **settings)
    whole = infer(gan(recognise=True), x, method, seed=0)
    kept = dataclasses.replace(method, checkpoint=tmp_path / "game", checkpoint_every=5)
    infer(gan(recognise=True), x, dataclasses.replace(kept, steps=10), seed=0)
    resumed = infer(gan(recognise=True), x, dataclasses.replace(kept, resume=True), seed=0)
    assert equal(whole, resumed)
    again = infer(gan(recognise=True), x, dataclasses.replace(kept, resume=True), seed=0)  # nothing is left to do
    assert equal(whole, again)


def test_a_fit_goes_on_from_a_fitted_model():
    x = blobs()[0]
    static = MixtureGAN(MixtureLatent(3, 2), value_range=None, width=16)
    first = infer(static, x, QUICK, seed=0)
    second = infer(first.program, x, dataclasses.replace(QUICK, steps=5), seed=1)
    assert not any(value.requires_grad for value in first.program.parameters())
    assert not torch.equal(first.point["generator.0.weight"], second.point["generator.0.weight"])
    assert torch.equal(first.point["latent.loc"], second.point["latent.loc"])  # what was constant stays so


def test_a_saved_fit_is_read_back_with_its_model(tmp_path):
    fit = infer(gan(), blobs()[0], QUICK, seed=0)
    fit.save(tmp_path / "fit")
    with pytest.raises(ProgramError, match=r"program=MixtureGAN\(\.\.\.\)"):
        load_posterior(tmp_path / "fit")
    with pytest.raises(
        MethodError, match=r"got the single point of Adversarial\(\).*fit.program.sample\(n, seed=...\)"
    ):
        fit.sample(3, seed=0)
    assert repr(fit).startswith("<PointPosterior of MixtureGAN by Adversarial(): complete: 20 steps.")
    again = load_posterior(tmp_path / "fit", program=gan())
    torch.testing.assert_close(again.program.sample(5, seed=0), fit.program.sample(5, seed=0), rtol=0, atol=0)
    assert fit.to_arviz()["point_estimate"]["latent.loc"].shape == (3, 2)


def test_it_runs_in_the_dtype_of_the_data():
    fit = infer(gan(), blobs()[0].double(), QUICK, seed=0)
    assert fit.program.sample(3, seed=0).x.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_the_device_of_the_data(tmp_path):
    method = dataclasses.replace(QUICK, checkpoint=tmp_path / "game", checkpoint_every=5)
    fit = infer(gan(), blobs()[0].cuda(), method, seed=0)
    resumed = infer(gan(), blobs()[0].cuda(), dataclasses.replace(method, steps=30, resume=True), seed=0)
    assert fit.program.sample(3, seed=0).x.is_cuda
    assert resumed.status.ok


# --- when it goes wrong ---------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """A generator that gives NaN from a call on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(2, 2), calls

    def forward(self, z: Tensor) -> Tensor:
        self.calls -= self.training
        return self.linear(z) * (math.nan if self.calls < 0 else 1.0)


def test_a_loss_that_is_not_a_number_ends_the_game_where_it_was_good():
    x = blobs()[0]
    network = Breaks(10_000)
    good = infer(gan(generator=network), x, dataclasses.replace(QUICK, steps=10), seed=0)
    first = infer(gan(generator=network), x, dataclasses.replace(QUICK, steps=5), seed=0)
    network.calls = 2 * 12 + 1  # two calls a step, and one of the check of shapes: step 13 is the first bad one
    with pytest.warns(FitWarning, match="the discriminator's loss was nan between steps 11 and 15"):
        fit = infer(gan(generator=network), x, QUICK, seed=0)
    assert fit.status.state == "interrupted"
    assert "put back to step 10. Lower learning_rate=, or add a gradient_penalty=" in fit.status.message
    for name in fit.point:
        torch.testing.assert_close(fit.point[name], good.point[name], rtol=0, atol=0)
    assert not torch.equal(fit.point["generator.linear.weight"], first.point["generator.linear.weight"])


def test_a_loss_that_was_never_a_number_is_a_failure():
    with pytest.raises(FitError, match="the discriminator's loss was nan between steps 1 and 5"):
        infer(gan(generator=Breaks(2)), blobs()[0], QUICK, seed=0)


class Interrupts(Breaks):
    """A generator during whose work the user presses Ctrl-C."""

    def forward(self, z: Tensor) -> Tensor:
        if self.training and self.calls == 0:
            raise KeyboardInterrupt
        return super().forward(z)


def test_ctrl_c_keeps_what_there_is_and_the_checkpoint_goes_on(tmp_path):
    x = blobs()[0]
    kept = dataclasses.replace(QUICK, checkpoint=tmp_path / "game", checkpoint_every=1000)
    torch.manual_seed(0)
    network = Interrupts(2 * 12 + 1)
    with pytest.warns(FitWarning, match="stopped by the user after 12 of at most 20 steps"):
        fit = infer(gan(generator=network), x, kept, seed=0)
    assert bool(fit.program.sample(5, seed=0).x.isfinite().all())
    network.calls = 10_000
    whole = infer(gan(generator=network), x, QUICK, seed=0)
    resumed = infer(gan(generator=network), x, dataclasses.replace(kept, resume=True), seed=0)
    assert equal(whole, resumed)


class Fails(Breaks):
    """A generator that ends the process, as a machine that is switched off would."""

    def forward(self, z: Tensor) -> Tensor:
        if self.training and self.calls == 0:
            raise SystemExit
        return super().forward(z)


def test_a_game_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path):
    x, network = blobs()[0], Fails(2 * 12 + 1)  # dies in step 13, after the checkpoint of step 10
    kept = dataclasses.replace(QUICK, checkpoint=tmp_path / "game", checkpoint_every=10)
    with pytest.raises(SystemExit):
        infer(gan(generator=network), x, kept, seed=0)
    network.calls = 10_000
    whole = infer(gan(generator=network), x, QUICK, seed=0)
    resumed = infer(gan(generator=network), x, dataclasses.replace(kept, resume=True), seed=0)
    assert equal(whole, resumed)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    x, path = blobs()[0], tmp_path / "game"
    kept = dataclasses.replace(QUICK, checkpoint=path, checkpoint_every=5)
    infer(gan(), x, kept, seed=0)
    with pytest.raises(MethodError, match=r"expected a new file, but .*game exists\. Go on from it by resume=True"):
        infer(gan(), x, kept, seed=0)
    on = dataclasses.replace(kept, resume=True)
    with pytest.raises(MethodError, match=r"got one with learning_rate=0\.001, not 0\.01; seed=0, not 1"):
        infer(gan(), x, dataclasses.replace(on, learning_rate=0.01), seed=1)
    with pytest.raises(MethodError, match="got one with rows=600, not 599"):
        infer(gan(), x[1:], on, seed=0)
    with pytest.raises(MethodError, match="expected the networks of this model, got others"):
        infer(gan(width=8), x, on, seed=0)
    with pytest.raises(MethodError, match="steps: expected at least the 20 of the checkpoint, got 10"):
        infer(gan(), x, dataclasses.replace(on, steps=10), seed=0)
    with pytest.raises(DataError, match="expected a checkpoint, found no file"):
        infer(gan(), x, dataclasses.replace(on, checkpoint=tmp_path / "none"), seed=0)


def test_a_broken_off_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    x, path = blobs()[0], tmp_path / "game"
    kept = dataclasses.replace(QUICK, checkpoint=path, checkpoint_every=5)
    infer(gan(), x, dataclasses.replace(kept, steps=10), seed=0)
    before = path.read_bytes()

    def breaks(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", breaks)
    with pytest.raises(DataError, match="no space left"):
        infer(gan(), x, dataclasses.replace(kept, resume=True), seed=0)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"loss": "dcgan"}, "loss: expected one of"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number, got 0.0"),
        ({"average": 1.0}, "average: expected from 0 to below 1, got 1.0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty: expected None or at least 0, got -1.0"),
        ({"checkpoint": "a", "checkpoint_every": 70}, "checkpoint_every: expected a multiple of log_every=100, got 70"),
        ({"resume": True}, "checkpoint: expected a file to resume from, got None"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        Adversarial(**settings)


def test_other_models_are_refused_and_told_what_to_use():
    with pytest.raises(MethodError, match=r"such as MixtureGAN, got GaussianMixture. Use SVI\(\) or NUTS\(\)"):
        infer(GaussianMixture(2), blobs()[0], Adversarial(), seed=0)
    with pytest.raises(MethodError, match="EM"):
        infer(gan(), blobs()[0], EM(), seed=0)


# --- what it learns -------------------------------------------------------------------------------------------------


def shares(model: MixtureGAN, component: int | None = None) -> Tensor:
    """Share of draws within five standard deviations of each of the three centres."""
    x = model.sample(600, seed=0, component=component).x
    return (torch.cdist(x, CENTRES) < 0.5).float().mean(0)


@pytest.fixture(scope="module")
def trained() -> PointPosterior:
    method = Adversarial(steps=1500, batch_size=64, learning_rate=2e-3, gradient_penalty=0.1)
    return infer(gan(recognise=True, width=32), blobs()[0], method, seed=0)


def test_it_covers_all_blobs_and_knows_its_components(trained):
    """A smoke test: a working game has all three blobs after 1,500 steps; new networks have none of it."""
    assert float(shares(trained.program).min()) > 0.2
    assert float(shares(trained.program).sum()) > 0.9
    draws = trained.program.sample(300, seed=1)
    known = trained.program.responsibilities(draws.x).argmax(-1)
    assert float((known == draws.component).float().mean()) > 0.95
    untrained = infer(gan(recognise=True, width=32), blobs()[0], Adversarial(steps=1), seed=0).program
    assert float(shares(untrained).sum()) < 0.9


@pytest.mark.parametrize("supervision", ["each_class", "classes_and_fake"])
def test_supervised_components_make_their_class(supervision):
    method = Adversarial(steps=800, batch_size=64, learning_rate=2e-3, gradient_penalty=0.1)
    fit = infer(gan(supervision=supervision, width=32), blobs(), method, seed=0)
    for k in range(3):
        own = shares(fit.program, component=k)
        assert float(own[k]) > 0.8
        assert float(own.sum() - own[k]) < 0.1

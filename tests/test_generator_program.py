"""Inference through a generator, against the closed form of a linear one: evidence, components, latent vectors."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from probmix.errors import DataError, MethodError, ProgramError
from probmix.importance_guide import ImportanceGuide
from probmix.inference import MAP, NUTS, SVI, Adversarial, ChEES, Inversion, infer
from probmix.log_density import LogDensity
from probmix.models import GaussianMixture, MixtureGAN, MixtureLatent, MixtureVAE, generator_program
from probmix.posterior import GuidePosterior, load_posterior

DIM, NOISE, KINDS = 2, 0.3, ("spherical", "full")


class Linear(nn.Module):
    """x = W z + b, of which everything is known in closed form."""

    def __init__(self, covariance: str = "full", shape: tuple[int, ...] = (5,)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        loc = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.5]], dtype=torch.float64)
        self.latent = MixtureLatent(3, DIM, covariance=covariance, loc=loc, component_std=0.5)
        self.shape = shape
        size = torch.Size(shape).numel()
        self.matrix = torch.randn(size, DIM, dtype=torch.float64, generator=generator)
        self.shift = torch.randn(size, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            self.latent.logits.copy_(torch.tensor([0.5, 0.2, 0.3]).log())
            if covariance == "full":
                self.latent.root.add_(0.2 * torch.randn(3, 2, 2, generator=generator, dtype=torch.float64))

    def generate(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.shift).unflatten(-1, self.shape)

    def log_joint_components(self, x: Tensor) -> Tensor:
        """``log p(x, k)`` by the marginal normal distributions of the numbers that are there, ``(n, K)``."""
        rows = []
        for row in x.flatten(1):
            known = row.isfinite()
            matrix, shift = self.matrix[known], self.shift[known]
            cov = matrix @ (self.latent.tril @ self.latent.tril.mT) @ matrix.T
            cov = cov + NOISE**2 * torch.eye(int(known.sum()), dtype=torch.float64)
            marginal = torch.distributions.MultivariateNormal(self.latent.loc @ matrix.T + shift, cov)
            rows.append(self.latent.weights.log() + marginal.log_prob(row[known]))
        return torch.stack(rows).detach()

    def draws(self, num: int, *, missing: bool = False) -> Tensor:
        z = self.latent.sample(num, seed=1).z
        generator = torch.Generator().manual_seed(2)
        x = self.generate(z).flatten(1)
        x = x + NOISE * torch.randn(x.shape, dtype=torch.float64, generator=generator)
        if missing:
            x = x.masked_fill(torch.rand(x.shape, generator=generator) < 0.4, torch.nan)
            x[:, 0] = x[:, 0].nan_to_num()
        return x.unflatten(1, self.shape)


@pytest.fixture(scope="module", params=[(kind, missing) for kind in KINDS for missing in (False, True)], ids=str)
def inverted(request) -> tuple[Linear, Tensor, GuidePosterior]:
    kind, missing = request.param
    model = Linear(kind)
    x = model.draws(40, missing=missing)
    return model, x, infer(generator_program(model, NOISE), x, Inversion(num_draws=2000, tolerance=1e-9), seed=0)


# --- inversion against the closed form ------------------------------------------------------------------------------


def test_the_evidence_of_every_row_is_exact(inverted):
    """Null: the mean ratio is the evidence. 40 rows, 5.5 standard errors: a false alarm in a million.

    The posterior is in the proposal with a share of at least 0.9 / 2, so no ratio is above 2 / 0.9.
    """
    model, x, fit = inverted
    exact = model.log_joint_components(x).logsumexp(-1)
    ratios = (fit.guide.log_ratios - exact).exp()
    assert float(ratios.max()) < 2 / 0.9 + 1e-6
    error = ratios.std(0) / len(ratios) ** 0.5 + 1e-6
    assert float(((ratios.mean(0) - 1) / error).abs().max()) < 5.5
    assert float(((1.05 * ratios.mean(0) - 1) / error).abs().max()) > 5.5
    assert abs(fit.log_evidence - float(exact.sum())) < 0.1
    assert fit.elbo[0] <= fit.log_evidence


def test_the_posterior_of_the_component_is_exact(inverted):
    """Null: the weighted mean of responsibilities is their posterior mean; 6 effective standard errors, 120 numbers."""
    model, x, fit = inverted
    exact = model.log_joint_components(x).softmax(-1)
    values = model.latent.responsibilities(fit.guide.draws).detach()
    found = fit.guide.mean(values)
    spread = fit.guide.mean((values - found).square()).sqrt()
    error = spread / fit.guide.effective_draws.sqrt()[:, None]
    assert float(((found - exact).abs() / (error + 1e-4)).max()) < 6
    torch.testing.assert_close(found.sum(-1), torch.ones(len(x), dtype=torch.float64))


def test_draws_are_those_of_the_posterior_and_weights_are_sound(inverted):
    _, _, fit = inverted
    assert float(fit.guide.pareto_k.max()) < 0.7
    assert float(fit.guide.effective_draws.min()) > 500
    draws = fit.sample(4000, seed=1)["z"]
    mean = fit.guide.mean(fit.guide.draws)
    error = draws.std(0) / 4000**0.5
    assert float(((draws.mean(0) - mean) / error).abs().max()) < 6
    assert "Pareto k above 0.7 in 0 of 40 rows" in fit.status.message


def test_the_mode_is_the_best_of_a_fine_search(inverted):
    model, x, fit = inverted
    program = generator_program(model, NOISE)
    grid = torch.cartesian_prod(*2 * [torch.linspace(-3, 3, 121, dtype=torch.float64)])

    def best_term(z: Tensor) -> Tensor:
        return program.log_likelihood_rows(x, model.generate(z)) + model.latent.log_prob_components(z).amax(-1)

    best = best_term(grid[:, None].expand(-1, len(x), -1)).amax(0)
    assert float((best - best_term(fit.sites()["z"])).max().detach()) < 1e-6


def test_starts_that_end_in_one_mode_do_not_count_it_twice():
    model = Linear()
    x = model.draws(10)
    one = infer(generator_program(model, NOISE), x, Inversion(restarts=1), seed=0)
    many = infer(generator_program(model, NOISE), x, Inversion(restarts=4), seed=0)
    exact = model.log_joint_components(x).logsumexp(-1)
    assert float((many.guide.log_evidence - exact).abs().max()) < 0.1  # counted four times: off by log 4 = 1.4
    assert one.guide.mode.shape == many.guide.mode.shape == (10, 2)


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
def test_the_program_and_the_rows_have_one_log_joint(missing):
    model = Linear()
    x = model.draws(6, missing=missing)
    program = generator_program(model, NOISE)
    density = LogDensity.trace(program, x)
    z = torch.randn(4, 6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = program.log_joint_rows(x, z).sum(-1)
    torch.testing.assert_close(density.log_joint({"z": z}), rows.detach())
    value, gradient = density.value_and_grad(density.unconstrain({"z": z}))
    torch.testing.assert_close(value, rows.detach())
    assert bool(gradient.isfinite().all())  # NaN in the data does not reach the gradient
    assert density.batching == "vmap"


@pytest.mark.parametrize("each_component", [False, True])
def test_guesses_are_the_nearest_of_many_draws(each_component):
    """The same draws, made again by their seed, and all distances over the numbers that are there."""
    model = Linear()
    x = model.draws(7, missing=True)
    component = (torch.arange(4098) % 3) if each_component else None
    with torch.random.fork_rng():
        torch.manual_seed(4)
        found = generator_program(model, NOISE).nearest(2, x, each_component=each_component)
        torch.manual_seed(4)
        pool = model.latent.rsample(4098, component=component).z
    distance = (model.generate(pool)[:, None] - x).square().nansum(-1)
    for row in range(7):
        if not each_component:
            expected = pool[distance[:, row].argsort()[:2]]
        else:
            best = [own[distance[own, row].argsort()[:2]] for own in torch.arange(4098).reshape(-1, 3).T]
            expected = pool[torch.stack(best, 1).flatten()]  # the nearest of every component, then the second ones
        torch.testing.assert_close(found[:, row], expected)


def test_modes_share_draws_by_their_evidence_not_their_height():
    """A wide component holds more than its height says; with the posterior's shares no ratio is above 2 / 0.9.

    One component is a tenth, the other five times as wide as the first of `Linear`: by height alone their shares would
    be off by the determinant of the posterior covariances, and ratios with them.
    """
    model = Linear("spherical")
    with torch.no_grad():
        model.latent.loc.mul_(0.1)
        model.latent.root.copy_(torch.tensor([[0.05], [2.5], [0.5]]).double())
        model.matrix.mul_(0.1)
    x = model.draws(20)
    fit = infer(generator_program(model, NOISE), x, Inversion(num_draws=2000, tolerance=1e-9), seed=0)
    ratios = (fit.guide.log_ratios - model.log_joint_components(x).logsumexp(-1)).exp()
    assert float(ratios.max()) < 2 / 0.9 + 1e-6


def test_chains_agree_with_the_closed_form_and_with_inversion():
    """Null: posterior means of z are equal; 8 numbers, 5 standard errors of the chains (ESS above 1,000)."""
    model = Linear("spherical")
    x = model.draws(4)
    program = generator_program(model, NOISE)
    start = infer(program, x, Inversion(), seed=0)
    fit = infer(program, x, ChEES(init=start.sample(8, seed=1)), seed=0)
    assert fit.status.ok
    draws = fit.draws["z"].flatten(0, 1)
    mean = start.guide.mean(start.guide.draws)
    assert float(((draws.mean(0) - mean) / (draws.std(0) / 1000**0.5 + 1e-9)).abs().max()) < 5
    tree = fit.to_arviz(prior_draws=0)
    assert tree["posterior"]["reconstruction"].shape == (64, 100, 4, 5)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "row", "latent")
    assert tree["posterior"]["responsibilities"].dims[-1] == "prior_component"


def test_map_starts_from_the_nearest_draws_and_finds_what_inversion_finds():
    model = Linear()
    x = model.draws(3)
    program = generator_program(model, NOISE)
    joint = infer(program, x, MAP(restarts=4), seed=0).sites()["z"]
    term = infer(program, x, Inversion(tolerance=1e-9), seed=0).sites()["z"]
    behind = program.log_joint_rows(x, joint) - program.log_joint_rows(x, term)
    assert -1e-6 < float(behind.min().detach()) <= float(behind.max().detach()) < 0.1  # of all terms, of the best one


def test_the_noise_can_have_a_prior():
    """Data of noise 0.3: its posterior is near there, wherever the prior is."""
    model = Linear()
    program = generator_program(model, dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64)))
    fit = infer(program, model.draws(40), NUTS(chains=2, warmup=150, draws=100), seed=0)
    noise = fit.draws["noise_std"]
    # 120 residual degrees of freedom: a standard error of 6 per cent; 5 of them
    assert abs(float(noise.mean()) - NOISE) < 0.3 * NOISE
    with pytest.raises(ProgramError, match="noise_std: expected a number, got a prior, under which rows are not indep"):
        infer(program, model.draws(4), Inversion(), seed=0)


def test_images_keep_their_shape_and_missing_pixels_are_filled_in():
    """What is missing is made up from what is there: the mean of draws beats the mean over all data."""
    model = Linear(shape=(1, 4, 4))
    x = model.draws(30)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True  # the lower half is missing
    fit = infer(generator_program(model, NOISE), x.masked_fill(~mask, torch.nan), Inversion(), seed=0)
    filled = model.generate(fit.sample(100, seed=1)["z"]).mean(0)
    assert filled.shape == x.shape
    error = (filled - x)[:, :, 2:].square().mean()
    assert float(error) < 2 * NOISE**2 < 0.5 * float((x - x.mean(0))[:, :, 2:].square().mean())


def test_a_convolutional_generator_in_float32_is_inverted_too():
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = infer(MixtureGAN(MixtureLatent(3, 2), width=16), x, Adversarial(steps=3), seed=0).program
    made = model.sample(6, seed=0)
    fit = infer(generator_program(model, 0.05), made.x, Inversion(), seed=0)
    error = (model.generate(fit.sites()["z"]) - made.x).square().mean().sqrt()
    assert float(error) < 0.01  # it can make these images, so it finds them
    assert fit.guide.draws.dtype == torch.float32


def test_an_autoencoder_is_inverted_too():
    """Its own images are found again, from which the encoder's codes are far."""
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    vae = MixtureVAE(MixtureLatent(3, 2, dynamic=True), width=16)
    trained = infer(vae, x, SVI(batch_size=20, max_steps=30), seed=0, throw=False).program
    made = trained.sample(8, seed=0)
    fit = infer(generator_program(trained, 0.01), made.x, Inversion(), seed=0)
    assert float((trained.generate(fit.sites()["z"]) - made.x).abs().max()) < 0.01
    assert float((trained.generate(trained.encode(made.x).loc) - made.x).abs().max()) > 0.01
    assert not fit.sites()["z"].requires_grad


def test_the_prior_must_be_one_mixture():
    vae = MixtureVAE([MixtureLatent(3, 2), MixtureLatent(2, 2)], width=16)
    with pytest.raises(ProgramError, match="expected a MixtureLatent as the prior, got FactoredLatent"):
        generator_program(vae, 0.1)


def test_a_fit_is_saved_and_read_back(tmp_path):
    model = Linear()
    fit = infer(generator_program(model, NOISE), model.draws(3), Inversion(num_draws=10), seed=0)
    fit.save(tmp_path / "fit")
    again = load_posterior(tmp_path / "fit", program=generator_program(model, NOISE))
    assert isinstance(again.guide, ImportanceGuide)
    torch.testing.assert_close(again.sample(5, seed=0), fit.sample(5, seed=0), rtol=0, atol=0)


def test_two_inversions_in_a_row_are_two_apart():
    model = Linear()
    x, program = model.draws(5), generator_program(model, NOISE)
    one, other = (infer(program, x, Inversion(), seed=3) for _ in range(2))
    torch.testing.assert_close(one.guide.draws, other.guide.draws, rtol=0, atol=0)


def test_rows_do_not_depend_on_each_other():
    """All rows take part in one batch, but each has its own searches: the modes of one are those of it alone."""
    model = Linear()
    x, program = model.draws(20), generator_program(model, NOISE)
    method = Inversion(tolerance=1e-9, max_steps=50)
    many, few = infer(program, x, method, seed=0), infer(program, x[:2], method, seed=0)
    torch.testing.assert_close(many.guide.mode[:2], few.guide.mode, atol=1e-5, rtol=0)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_inverted_are_refused():
    with pytest.raises(ProgramError, match="a trained model with a latent mixture and a generator, got MixtureG"):
        generator_program(MixtureGAN(MixtureLatent(3, 2)), 0.1)
    with pytest.raises(ProgramError, match=r"got GaussianMixture\. Pass fit.program of infer"):
        generator_program(GaussianMixture(2), 0.1)
    with pytest.raises(ProgramError, match="noise_std: expected a positive number, or a distribution, got 0"):
        generator_program(Linear(), 0)
    with pytest.raises(MethodError, match=r"inverts a trained generator, got GaussianMixture. Pass generator_program"):
        infer(GaussianMixture(2), torch.randn(20, 2), Inversion(), seed=0)


def test_data_that_the_generator_cannot_make_are_refused():
    program = generator_program(Linear(), NOISE)
    with pytest.raises(DataError, match=r"data of shape \(n, 5\), as the generator makes them, got \(3, 4\)"):
        infer(program, torch.zeros(3, 4), Inversion(), seed=0)
    with pytest.raises(DataError, match=r"but all of row 1 are NaN\. Drop it: its posterior is the prior"):
        infer(program, torch.tensor([[0.0] * 5, [torch.nan] * 5]), Inversion(), seed=0)
    with pytest.raises(DataError, match="or NaN where they are missing, got infinity"):
        infer(program, torch.full((1, 5), torch.inf), Inversion(), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "restarts: expected at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance: expected a positive number of nats, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        Inversion(**settings)

"""The model around a generator and its discriminator: shapes, sampling, the range of the data, every refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probmix.errors import DataError, ProgramError
from probmix.inference import Adversarial, infer
from probmix.models import MixtureGAN, MixtureLatent
from probmix.networks import Bounded, ToImages, decoder_network, encoder_network

QUICK = Adversarial(steps=2, batch_size=8, log_every=1)
SUPERVISED = {"supervision": "each_class"}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def labelled(**settings: object) -> MixtureGAN:
    return MixtureGAN(MixtureLatent(4, 2, labels=[0, 1, 1, 2]), **{"width": 16, **SUPERVISED, **settings})


# --- shapes and ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 8, 8), (3, 9, 7)])
def test_default_networks_make_data_of_the_shape_and_range_of_those_given(shape):
    fit = infer(MixtureGAN(MixtureLatent(3, 2), width=16), images(20, *shape), QUICK, seed=0)
    x = fit.program.sample(5, seed=0).x
    assert x.shape == (5, *shape)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


def test_another_range_is_kept_too():
    x = 4 * images(20, 3) - 3
    fit = infer(MixtureGAN(MixtureLatent(3, 2), value_range=(-3.0, 1.0), width=16), x, QUICK, seed=0)
    made = fit.program.sample(50, seed=0).x
    assert float(made.min()) > -3
    assert float(made.max()) < 1


def test_networks_of_the_users_are_trained():
    generator, discriminator = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), nn.Linear(3, 1)
    model = MixtureGAN(MixtureLatent(3, 2), generator, discriminator)
    fit = infer(model, images(20, 3), QUICK, seed=0)
    assert isinstance(fit.program.generator[0], nn.Linear)
    assert not torch.equal(fit.program.generator[0].weight, generator[0].weight)


def test_batch_normalisation_is_in_its_mode_of_use_afterwards():
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())
    fit = infer(MixtureGAN(MixtureLatent(3, 2), generator), images(20, 3), QUICK, seed=0)
    assert not fit.program.generator[1].training
    assert int(fit.program.generator[1].num_batches_tracked) > 0
    one, two = fit.program.sample(4, seed=0).x, fit.program.sample(4, seed=0, temperature=1.0).x
    assert torch.equal(one, two)


def test_samples_are_those_of_the_component_and_the_temperature():
    model = infer(MixtureGAN(MixtureLatent(3, 2), width=16), images(20, 3), QUICK, seed=0).program
    chosen = model.sample(4, seed=0, component=torch.tensor([0, 2, 2, 1]), temperature=0.0)
    assert chosen.component.tolist() == [0, 2, 2, 1]
    torch.testing.assert_close(chosen.x, model.generate(model.latent.loc[chosen.component]))
    assert model.sample(2500, seed=0).x.shape == (2500, 3)  # more than one block
    assert model.generate(torch.zeros(2, 5, 2)).shape == (2, 5, 3)


def test_scores_have_the_number_that_supervision_asks_for():
    for supervision, outputs in ((None, 1), ("each_class", 3), ("classes_and_fake", 4)):
        for recognise in (False, True):
            model = labelled(supervision=supervision, recognise=recognise).built_for(images(5, 3))
            assert model.judge(images(5, 3)).shape == (5, outputs + 4 * recognise)


def test_whole_numbers_are_taken_and_run_in_the_default_dtype():
    x = torch.randint(0, 2, (20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fit = infer(MixtureGAN(MixtureLatent(3, 2), width=16), x, QUICK, seed=0)
    assert fit.program.sample(2, seed=0).x.dtype == torch.float32


# --- networks -------------------------------------------------------------------------------------------------------


def test_images_of_any_size_from_four_pixels_on():
    for height, width in ((4, 4), (7, 10), (28, 28), (32, 30)):
        assert ToImages(2, (2, height, width), channels=(4, 3))(torch.zeros(1, 2)).shape == (1, 2, height, width)
        assert encoder_network((2, height, width), 5, width=16)(torch.zeros(1, 2, height, width)).shape == (1, 5)
    with pytest.raises(DataError, match=r"images of at least 4 x 4 pixels, got \(1, 3, 8\)"):
        decoder_network(2, (1, 3, 8))
    with pytest.raises(DataError, match=r"got \(28, 28\). Add a channel by x\[:, None\]"):
        encoder_network((28, 28), 1)


def test_a_bounded_number_is_a_logistic_function():
    a = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(Bounded((2.0, 6.0))(a), 2 + 4 / (1 + torch.exp(-a)))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (255 * torch.ones(3, 4), r"x: expected values from 0 to 1, got 255 in row 0\. Bytes are brought to that range"),
        (torch.tensor([[0.5], [-0.25]]), r"got -0.25 in row 1\. Rescale the data, or set value_range=\(low, high\)"),
        (torch.tensor([[0.5], [torch.nan]]), r"got nan in row 1\. Drop such rows"),
        (torch.zeros(3, 8, 8), r"got shape \(3, 8, 8\)\. Add a channel to images by x\[:, None\]"),
        (torch.zeros(0, 3), r"expected rows \(n, d\) or images"),
    ],
)
def test_data_out_of_range_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        infer(MixtureGAN(MixtureLatent(3, 2)), x, QUICK, seed=0)


def test_data_without_bounds_must_still_be_finite():
    with pytest.raises(DataError, match="expected finite numbers, got inf in row 1"):
        infer(MixtureGAN(MixtureLatent(3, 2), value_range=None), torch.tensor([[1.0], [torch.inf]]), QUICK, seed=0)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            torch.tensor([0, 1, 2, 3]),
            r"labels 0 to 2, the classes that latent.labels maps onto, got 3 in row 3",
        ),
        (torch.tensor([0, -1, 2, 2]), r"got -1 in row 1\. Number the classes from 0"),
        (torch.tensor([0.5, 1, 2, 2]), r"got 0.5 in row 0"),
        (torch.eye(4), r"a label for each of 4 rows, got shape \(4, 4\)\. Of one-hot labels take y.argmax\(-1\)"),
    ],
)
def test_labels_of_other_classes_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        infer(labelled(), (images(4, 3), y), QUICK, seed=0)


def test_labels_are_needed_where_training_is_supervised_and_nowhere_else():
    with pytest.raises(DataError, match=r"2 tables of data \(x, y\)"):
        infer(labelled(), images(4, 3), QUICK, seed=0)
    with pytest.raises(DataError, match="one table of data"):
        infer(labelled(supervision=None), (images(4, 3), torch.zeros(4)), QUICK, seed=0)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (
            (nn.Linear(2, 4), None),
            r"generator: .* that takes \(2, 2\) to \(2, 3\), got \(2, 4\)\. Change",
        ),
        ((nn.Linear(5, 3), None), r"generator: .*but it failed: .*Change its first layer"),
        ((None, nn.Linear(3, 2)), r"discriminator: expected a network that takes \(2, 3\) to \(2, 1\), got \(2, 2\)"),
    ],
)
def test_networks_of_the_wrong_shape_are_refused_at_the_start(networks, message):
    with pytest.raises(ProgramError, match=message):
        infer(MixtureGAN(MixtureLatent(3, 2), *networks), images(20, 3), QUICK, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supervision": "labels"}, 'expected None, "each_class" or "classes_and_fake", got \'labels\''),
        (SUPERVISED, r"whose components have classes, got one without\. Pass labels= to MixtureLatent"),
        ({"value_range": (1.0, 0.0)}, r"value_range: expected None or \(low, high\) with low < high, got \(1.0, 0.0\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ProgramError, match=message):
        MixtureGAN(MixtureLatent(3, 2), **settings)


def test_a_model_that_is_not_trained_says_how_to_train_it():
    with pytest.raises(ProgramError, match=r"Fit it by infer\(model, x, Adversarial\(\), seed=0\) and take"):
        MixtureGAN(MixtureLatent(3, 2)).sample(3, seed=0)


def test_a_model_that_does_not_recognise_components_says_what_to_do():
    model = infer(MixtureGAN(MixtureLatent(3, 2), width=16), images(20, 3), QUICK, seed=0).program
    with pytest.raises(ProgramError, match=r"Invert the generator instead: generator_program\(model, noise_std\)"):
        model.responsibilities(images(20, 3))


def test_parameters_of_other_networks_are_refused():
    x = images(20, 3)
    fit = infer(MixtureGAN(MixtureLatent(3, 2), width=16), x, QUICK, seed=0)
    with pytest.raises(ProgramError, match="expected the networks that were fitted, got others: size mismatch"):
        MixtureGAN(MixtureLatent(3, 2), width=8).with_parameters(fit.point, x)

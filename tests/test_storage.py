"""Files hold tensors, settings and distributions by name, and can name nothing else."""

from __future__ import annotations

import json

import gpytorch
import pyro.distributions as dist
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from probmix.burr import BurrXII
from probmix.errors import DataError, ProgramError
from probmix.models import ScaleMixtureNNGP, ScaleMixtureProcess, StudentTProcess
from probmix.storage import Missing, read, write

NUMBERS = torch.tensor([0.1, 2.0, 3.0], dtype=torch.float64)
DISTRIBUTIONS = [
    dist.InverseGamma(2.0, 2.0),
    dist.InverseGamma(NUMBERS, 1.0),
    dist.HalfCauchy(NUMBERS),
    dist.HalfNormal(0.1),
    dist.Pareto(NUMBERS, 2.0),
    dist.LogNormal(-1.0, NUMBERS),
    dist.Gamma(2.0, NUMBERS),
    dist.Uniform(0.5, NUMBERS + 1),
    dist.Beta(NUMBERS, 2.0),
    dist.Weibull(NUMBERS, 2.0),
    dist.Exponential(NUMBERS),
    BurrXII(NUMBERS, 2.0),
]


def forge(path, change) -> None:
    """Write a file again with other text in its header."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text = file.metadata()["probmix"]
    save_file(tensors, str(path), metadata={"probmix": json.dumps(change(json.loads(text)))})


@pytest.mark.parametrize("law", DISTRIBUTIONS)
def test_distributions_come_back_bit_for_bit(law, tmp_path):
    write(tmp_path / "a", {"law": law})
    again = read(tmp_path / "a")["law"]
    assert type(again) is type(law)
    assert again.batch_shape == law.batch_shape
    for name in law.arg_constraints:
        assert torch.equal(getattr(again, name), getattr(law, name))
        assert getattr(again, name).dtype == getattr(law, name).dtype


class Own(dist.HalfNormal):
    """A class of the user's, whose name nobody has; and, below, one with a name of Pyro's."""


Impostor = type("HalfCauchy", (dist.HalfNormal,), {})


@pytest.mark.parametrize(
    "law",
    [
        Own(1.0),
        Impostor(1.0),
        dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
        dist.TransformedDistribution(dist.HalfNormal(1.0), [torch.distributions.transforms.ExpTransform()]),
        dist.Categorical(torch.ones(3)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.LogNormal(torch.zeros(3), 1.0)),
        lambda: dist.InverseGamma(2.0, 2.0),
        gpytorch.kernels.RBFKernel(),
    ],
)
def test_what_its_parameters_do_not_make_is_missing(law, tmp_path):
    """Left out, not built half."""
    write(tmp_path / "a", {"law": law})
    assert isinstance(read(tmp_path / "a")["law"], Missing)


@pytest.mark.parametrize("name", ["os.system", "util", "torch", "__builtins__", "constraints", "Distribution2"])
def test_a_file_cannot_name_anything_but_a_distribution(name, tmp_path):
    write(tmp_path / "a", dist.HalfNormal(1.0))
    forge(tmp_path / "a", lambda content: {**content, "distribution": name})
    with pytest.raises(
        DataError, match=f"expected a distribution of Pyro's in the file, got '{name}'. The file was not"
    ):
        read(tmp_path / "a")


@pytest.mark.parametrize("name", ["os:system", "probmix.storage:write", "probmix.burr:BurrXII", "torch.nn:Linear"])
def test_a_file_cannot_name_anything_but_a_dataclass(name, tmp_path):
    """Not even ours of another kind: a distribution is built by its own entry."""
    write(tmp_path / "a", ScaleMixtureNNGP())
    forge(tmp_path / "a", lambda content: {**content, "class": name})
    with pytest.raises(DataError, match=f"expected a dataclass of probmix in the file, got '{name}'"):
        read(tmp_path / "a")


def test_a_model_comes_back_with_its_prior(tmp_path):
    model = ScaleMixtureNNGP(depth=2, activation="erf", scale_prior=BurrXII(2.0, 3.0), inducing=NUMBERS[:, None])
    write(tmp_path / "a", model)
    again = read(tmp_path / "a")
    assert (again.depth, again.activation, again.residual) == (2, "erf", False)
    assert (again.scale_prior.c, again.scale_prior.d) == (2.0, 3.0)
    assert torch.equal(again.inducing, model.inducing)
    assert again.kernel_for(1).base_kernel.depth == 2


def test_a_model_with_something_missing_is_read_and_says_so_when_it_is_used(tmp_path):
    """Its own checks would refuse what stands for the kernel and for the prior."""
    write(tmp_path / "a", StudentTProcess(kernel=gpytorch.kernels.RBFKernel(), df=Own(1.0)))
    again = read(tmp_path / "a")
    assert isinstance(again, StudentTProcess)
    with pytest.raises(ProgramError, match=r"'RBFKernel' was not saved with the fit. Pass it to load_posterior"):
        again.kernel(torch.zeros(2, 1))
    write(tmp_path / "b", ScaleMixtureProcess(kernel=gpytorch.kernels.RBFKernel(), scale_prior=lambda: None))
    assert "lambda" in read(tmp_path / "b").scale_prior.name

"""The sides of ``nngp.py``, each in a process of its own that takes orders: one line of JSON in, one line out.

    python nngp_sides.py probmix|torch|neural-tangents float32|float64

``{"make": {...}}`` prepares a `Case`, on few rows or as its compiler wants it, and answers with its number. Then
``{"time": number}`` answers with CPU and wall seconds of one call, ``{"memory": number}`` with megabytes above what the
process held before it, and ``{"save": [number, path]}`` writes what the call returns. A side imports its library when
it is chosen: neural-tangents does not live in one environment with the others.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIGHT_VAR, BIAS_VAR = 1.69, 0.04
NOT_ONE = {"float32": 1e-6, "float64": 1e-14}  # how near a plain recursion lets correlations come to 1

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """The kernel of ``rows`` rows; or, with ``gradient``, the derivatives of its mean by the two variances."""

    activation: str
    depth: int
    rows: int
    columns: int
    gradient: bool

    def x(self, dtype: str) -> Any:
        """Standard normal rows."""
        return np.random.default_rng(0).standard_normal((self.rows, self.columns)).astype(dtype)


def probmix_side(case: Case, dtype: str) -> Call:
    """The kernel as a user calls it."""
    import torch

    from probmix.nngp import NNGPKernel

    torch.set_num_threads(1)
    x = torch.from_numpy(case.x(dtype))
    kernel = NNGPKernel(case.depth, case.activation).to(x)
    kernel.weight_var, kernel.bias_var = WEIGHT_VAR, BIAS_VAR  # in this dtype

    def values(x: Any) -> Any:
        with torch.no_grad():
            return kernel(x).to_dense()

    def gradient(x: Any) -> Any:
        kernel.zero_grad()
        kernel(x).to_dense().mean().backward()
        chain = [kernel.raw_weight_var, kernel.raw_bias_var]
        return torch.stack([raw.grad.sum() / raw.detach().sigmoid().sum() for raw in chain])  # of softplus

    call = gradient if case.gradient else values
    call(x[:100])
    return lambda: call(x)


def torch_side(case: Case, dtype: str) -> Call:
    """The recursion on whole matrices, as the papers print it, under autograd."""
    import torch

    torch.set_num_threads(1)
    x = torch.from_numpy(case.x(dtype))

    def relu(k: Any, q: Any) -> Any:
        norm = (q[:, None] * q[None, :]).sqrt()
        c = (k / norm).clamp(NOT_ONE[dtype] - 1, 1 - NOT_ONE[dtype])
        return norm / (2 * math.pi) * ((1 - c * c).sqrt() + (math.pi - c.acos()) * c)

    def erf(k: Any, q: Any) -> Any:
        p = 1 + 2 * q
        return 2 / math.pi * (2 * k / (p[:, None] * p[None, :]).sqrt()).asin()

    def recursion(x: Any, weight_var: Any, bias_var: Any) -> Any:
        k = weight_var * (x @ x.mT / x.shape[1]) + bias_var
        for _ in range(case.depth):
            k = weight_var * {"relu": relu, "erf": erf}[case.activation](k, k.diagonal()) + bias_var
        return k

    def call(x: Any) -> Any:
        variances = [torch.tensor(v, dtype=x.dtype, requires_grad=case.gradient) for v in (WEIGHT_VAR, BIAS_VAR)]
        k = recursion(x, *variances)
        return torch.stack(torch.autograd.grad(k.mean(), variances)) if case.gradient else k

    call(x[:100])
    return lambda: call(x)


def neural_tangents_side(case: Case, dtype: str) -> Call:
    """neural-tangents, compiled for these rows."""
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    from neural_tangents import stax

    activation = {"relu": stax.Relu, "erf": stax.Erf}[case.activation]

    def kernel(x: Any, weight_var: Any, bias_var: Any) -> Any:
        dense = stax.Dense(1, W_std=weight_var**0.5, b_std=bias_var**0.5)
        *_, kernel_fn = stax.serial(*[layer for _ in range(case.depth) for layer in (dense, activation())], dense)
        return kernel_fn(x, None, "nngp")

    def mean(variances: Any, x: Any) -> Any:
        return kernel(x, *variances).mean()

    x = jax.numpy.asarray(case.x(dtype))
    if case.gradient:
        variances = jax.numpy.asarray([WEIGHT_VAR, BIAS_VAR], dtype=dtype)
        compiled = jax.jit(jax.grad(mean)).lower(variances, x).compile()
        return lambda: compiled(variances, x).block_until_ready()
    compiled = jax.jit(lambda x: kernel(x, WEIGHT_VAR, BIAS_VAR)).lower(x).compile()
    return lambda: compiled(x).block_until_ready()


SIDES = {"probmix": probmix_side, "torch": torch_side, "neural-tangents": neural_tangents_side}


def seconds(call: Call) -> tuple[float, float]:
    """CPU and wall seconds of one call, all threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def megabytes(call: Call) -> float:
    """Peak memory of one call above what is held before it (Linux alone)."""

    def read(name: str) -> int:
        return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    call()
    return (read("VmHWM") - before) * 1024 / 1e6


def main() -> None:
    """Take orders until there are no more."""
    name, dtype = sys.argv[1:]
    calls: list[Call] = []
    for line in sys.stdin:
        [(order, what)] = json.loads(line).items()
        answer: Any = None
        if order == "make":
            calls.append(SIDES[name](Case(**what), dtype))
            answer = len(calls) - 1
        elif order == "time":
            answer = seconds(calls[what])
        elif order == "memory":
            answer = megabytes(calls[what])
        else:
            np.save(what[1], np.asarray(calls[what[0]]()))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""What is compiled, how often, and that no data ends up inside an executable."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, noise
from flax import nnx

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.sampling import _sample, from_prediction, hybrid, sample

OPTIONS = [
    {"solver": "heun", "num_steps": 3},
    {"solver": "dopri5"},
    {"solver": "tsit5", "per_sample_steps": True},
]
every_solver = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["solver"])


TRACES = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A field-like pytree with a large array; every trace of it is noted."""

    data: Any

    def __call__(self, x, t):
        TRACES.append(t)
        return jnp.mean(self.data, 0) - x


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])
        self.activation = jnp.tanh

    def __call__(self, x, t):
        return self.layers[1](self.activation(self.layers[0](x))) * t


def lowered_text(monkeypatch, velocity, x, **options) -> str:
    """The StableHLO of what `sample` compiles for this call."""
    texts = []
    for name in ("run_fixed", "run_adaptive"):
        original = getattr(_sample, name)

        def spy(*args, original=original, **kwargs):
            texts.append(original.lower(*args, **kwargs).as_text())
            return original(*args, **kwargs)

        monkeypatch.setattr(_sample, name, spy)
    sample(velocity, x, **options)
    (text,) = texts
    return text


@every_solver
@pytest.mark.parametrize(
    "wrap",
    [
        lambda table: table,
        lambda table: hybrid(table, lambda x, t: -x, 0.5),
        lambda table: hybrid(lambda x, t: -x, table, 0.5),
        lambda table: from_prediction(table, paths.Linear(), "data"),
        lambda table: table.__call__,
        lambda table: functools.partial(lambda table, x, t, scale: scale * table(x, t), table, scale=2.0),
    ],
    ids=["pytree", "hybrid first", "hybrid second", "prediction", "bound method", "partial"],
)
def test_large_arrays_are_arguments_of_the_executable(monkeypatch, wrap, options):
    rows = noise(4099, 2)
    text = lowered_text(monkeypatch, wrap(Table(rows)), noise(4, 2), **options)
    (main,) = (line for line in text.splitlines() if "func.func public @main" in line)
    assert "tensor<4099x2xf32>" in main
    constants = [line for line in text.splitlines() if "stablehlo.constant" in line and "4099x2" in line]
    assert not constants
    assert len(text) < 500_000


def test_the_check_above_would_notice_a_constant(monkeypatch):
    rows = jnp.asarray(noise(4099, 2))
    text = lowered_text(
        monkeypatch, lambda x, t: jnp.mean(rows * t, 0) - x, noise(4, 2), solver="euler", num_steps=2
    )
    assert any("stablehlo.constant" in line and "4099x2" in line for line in text.splitlines())


def test_data_of_a_closed_form_field_is_an_argument(monkeypatch):
    field = ClosedFormField(noise(4099, 2))
    text = lowered_text(monkeypatch, field, noise(4, 2), solver="dopri5")
    (main,) = (line for line in text.splitlines() if "func.func public @main" in line)
    assert "tensor<4099x2xf32>" in main
    assert not [line for line in text.splitlines() if "stablehlo.constant" in line and "4099x2xf32" in line]


@every_solver
def test_one_compilation_for_all_data_noise_and_tolerances(options):
    TRACES.clear()
    x = noise(4, 2)
    first = sample(Table(noise(50, 2)), x, **options)
    seen = len(TRACES)
    assert seen > 0
    second = sample(Table(noise(50, 2, seed=9)), noise(4, 2, seed=8), **options)
    tighter = {"rtol": 1e-4, "atol": 1e-6} if "num_steps" not in options else {"grid": "cosine"}
    sample(Table(noise(50, 2, seed=9)), x, start_time=0.1, final_time=0.95, **options, **tighter)
    assert len(TRACES) == seen
    assert not np.allclose(first.samples, second.samples)


@every_solver
def test_a_python_function_is_compiled_once_per_object(options):
    traces = []

    def velocity(x, t):
        traces.append(t)
        return -x

    sample(velocity, noise(4, 2), **options)
    seen = len(traces)
    sample(velocity, noise(4, 2, seed=1), **options)
    assert len(traces) == seen

    def twice(x, t):
        return velocity(x, t)

    sample(twice, noise(4, 2), **options)
    assert len(traces) > seen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Towards:
    """Two classes with the same fields, which jaxlib takes for one structure."""

    data: Any

    def __call__(self, x, t):
        return jnp.mean(self.data, 0) - x


class Away(Towards):
    def __call__(self, x, t):
        return x - jnp.mean(self.data, 0)


jax.tree_util.register_dataclass(Away)


@every_solver
def test_classes_of_equal_fields_have_a_program_each(options):
    x, data = noise(3, 2), noise(5, 2, seed=1)
    towards, away = (
        sample(f(data), x, final_time=0.5, denoise_last=False, **options) for f in (Towards, Away)
    )
    for out, sign in ((towards, -1), (away, 1)):
        expected = data.mean(0) + np.exp(sign * 0.5) * (x - data.mean(0))
        np.testing.assert_allclose(out.samples, expected, atol=2e-2)


@every_solver
def test_nnx_modules(options):
    """Equal structure, other parameters: no new compilation, and the new parameters are the ones in use."""
    x = noise(4, 2)
    count = []

    class Counting(Network):
        def __call__(self, x, t):
            count.append(t)
            return super().__call__(x, t)

    first, second = Counting(nnx.Rngs(0)), Counting(nnx.Rngs(1))
    a = sample(first, x, **options)
    seen = len(count)
    b = sample(second, x, **options)
    assert len(count) == seen
    assert not np.allclose(a.samples, b.samples, atol=1e-3)
    reference = sample(lambda x, t: second(x, t), x, **options)
    np.testing.assert_allclose(b.samples, reference.samples, atol=1e-5)


@pytest.mark.slow
def test_gradient_in_the_parameters_of_a_module():
    graphdef, parameters = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    x = jnp.asarray(noise(4, 2))

    def loss(parameters, **options):
        return jnp.sum(sample(nnx.merge(graphdef, parameters), x, **options).samples ** 2)

    fixed = jax.grad(lambda p: loss(p, solver="rk4", num_steps=20))(parameters)
    adaptive = jax.grad(lambda p: loss(p, solver="dopri5", max_steps=64))(parameters)
    for a, b in zip(jax.tree.leaves(fixed), jax.tree.leaves(adaptive), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert np.abs(a).max() > 1e-3


@pytest.mark.slow
def test_gradient_in_the_noise_through_the_closed_form_field():
    """One data point: x_end = y whatever the noise; without the jump, dx_end/dx_0 = sigma(final) exactly."""
    field, x = ClosedFormField(noise(1, 2)), jnp.asarray(noise(3, 2))
    for options in ({"solver": "heun", "num_steps": 4}, {"solver": "dopri5", "max_steps": 64}):
        slope = jax.grad(
            lambda x, options=options: jnp.sum(
                sample(field, x, final_time=0.75, denoise_last=False, **options).samples
            )
        )(x)
        np.testing.assert_allclose(slope, 0.25, rtol=1e-3)


@pytest.mark.slow
def test_the_path_of_a_wrapped_field_is_still_found():
    """A partial or bound method of a field on another path must not fall back to the linear one."""
    data, x = noise(6, 2), noise(4, 2)
    field = ClosedFormField(data, path=paths.Trigonometric())
    plain = sample(field, x, solver="heun", num_steps=5, final_time=0.6).samples
    assert not np.allclose(
        plain, sample(field, x, solver="heun", num_steps=5, final_time=0.6, path=paths.Linear()).samples
    )
    for wrapped in (
        field.__call__,
        functools.partial(field, labels=None),
        functools.partial(field.__call__, labels=None),
    ):
        np.testing.assert_allclose(
            sample(wrapped, x, solver="heun", num_steps=5, final_time=0.6).samples, plain, atol=1e-5
        )


def test_what_cannot_be_compiled_once_is_refused():
    with pytest.raises(TypeError, match="neither array nor hashable"):
        sample(
            lambda x, t, names: -x, noise(2, 2), solver="euler", num_steps=1, condition={"names": {"a", "b"}}
        )


def test_diffrax_is_not_imported_before_it_is_needed():
    script = (
        "import sys, jax.numpy as jnp; from flowjax.sampling import sample\n"
        "sample(lambda x, t: -x, jnp.ones((1, 1)), solver='euler', num_steps=1)\n"
        "assert not {'diffrax', 'equinox'} & set(sys.modules), 'fixed steps imported diffrax'\n"
        "sample(lambda x, t: -x, jnp.ones((1, 1)))\n"
        "assert 'diffrax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_gaussian_helper_is_a_pytree_like_any_other():
    """`Gaussian` carries Python floats: they are arguments too."""
    x = noise(3, 2)
    a = sample(Gaussian(0.0), x, solver="heun", num_steps=3)
    b = sample(Gaussian(5.0), x, solver="heun", num_steps=3)
    assert np.abs(np.asarray(b.samples - a.samples)).min() > 4

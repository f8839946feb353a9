"""Fixed-step solvers: measured orders, grids, trajectories, counting, transformations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, TwoPeaks, noise, order

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.sampling import grids, sample

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
PATHS = [paths.Linear(), paths.Trigonometric(), paths.VariancePreserving(beta_max=4.0)]
every_solver = pytest.mark.parametrize("solver", ORDERS)


def errors(field, solver, steps, **kwargs):
    x = jnp.linspace(-2.2, 2.0, 9, dtype=jnp.float64)[:, None]
    exact = field.flow(x, 0.0, 0.9)
    return [
        float(jnp.max(jnp.abs(sample(
            field, x, solver=solver, num_steps=n, final_time=0.9, denoise_last=False, **kwargs
        ).samples - exact)))
        for n in steps
    ]  # fmt: skip


@every_solver
@pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])
def test_measured_order(solver, path):
    with jax.enable_x64(True):
        steps = [32, 48, 64, 96]
        measured = order(steps, errors(TwoPeaks(path=path), solver, steps))
    assert abs(measured - ORDERS[solver]) < 0.2, measured


@pytest.mark.parametrize(
    "grid", ["cosine", "karras", grids.power(2.0), lambda u: u + 0.1 * np.sin(2 * np.pi * u)]
)
@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_warped_grids_keep_the_order(solver, grid):
    with jax.enable_x64(True):
        steps = [64, 96, 128] if grid != "karras" else [256, 384, 512]
        measured = order(steps, errors(TwoPeaks(), solver, steps, grid=grid))
    assert abs(measured - ORDERS[solver]) < 0.3, measured


@every_solver
def test_one_data_point_is_reached_on_a_straight_line(solver):
    """n = 1: the velocity is x1 − x0 all along, so one step of any method is exact."""
    point = noise(1, 3, 2, seed=5)
    x = noise(7, 3, 2)
    out = sample(ClosedFormField(point), x, solver=solver, num_steps=4, trajectory=True)
    np.testing.assert_allclose(out.samples, np.broadcast_to(point, x.shape), atol=1e-6)
    assert out.trajectory is not None
    for t, state in zip(np.asarray(out.times), np.asarray(out.trajectory), strict=True):
        np.testing.assert_allclose(state, (1 - t) * x + t * point, atol=1e-5)


@every_solver
@pytest.mark.parametrize("denoise_last", [True, False])
def test_evaluations_are_those_really_made(solver, denoise_last):
    field = Recorder(Gaussian())
    out = sample(field, noise(4, 2), solver=solver, num_steps=7, denoise_last=denoise_last)
    assert field.count() == int(out.num_evaluations) == 7 * STAGES[solver] + denoise_last


@every_solver
def test_the_velocity_is_never_evaluated_at_the_end(solver):
    field = Recorder(Gaussian())
    sample(field, noise(4, 2), solver=solver, num_steps=5)
    jax.effects_barrier()
    assert max(field.calls) == float(np.float32(1 - 1e-3))
    assert min(field.calls) == 0


def test_trajectory_holds_the_state_at_every_step():
    with jax.enable_x64(True):
        field, x = Gaussian(), jnp.asarray(noise(5, 2, dtype=np.float64))
        out = sample(field, x, solver="rk4", num_steps=40, grid="cosine", trajectory=True)
        assert out.trajectory is not None
        assert out.trajectory.shape == (42, 5, 2)
        assert out.times.shape == (42,)
        assert out.times[0] == 0
        assert out.times[-1] == 1
        assert out.times[-2] == 1 - 1e-3
        np.testing.assert_array_equal(out.trajectory[0], x)
        np.testing.assert_array_equal(out.trajectory[-1], out.samples)
        for t, state in zip(out.times, out.trajectory, strict=True):
            np.testing.assert_allclose(state, field.flow(x, 0.0, t), atol=2e-6)


def test_save_times_are_stepped_onto_and_splitting_steps_is_counted():
    with jax.enable_x64(True):
        field, x = Gaussian(), jnp.asarray(noise(5, 2, dtype=np.float64))
        out = sample(
            field, x, solver="rk4", num_steps=20, final_time=0.9, save_times=[0.0, 0.333, 0.45, 0.9, 1.0]
        )
        assert out.trajectory is not None
        assert out.trajectory.shape == (5, 5, 2)
        # .45 and .9 lie on the grid, .333 does not.
        assert int(out.num_evaluations) == 21 * 4 + 1
        np.testing.assert_array_equal(out.times, [0.0, 0.333, 0.45, 0.9, 1.0])
        np.testing.assert_array_equal(out.trajectory[-1], out.samples)
        for t, state in zip(out.times[:-1], out.trajectory[:-1], strict=True):
            np.testing.assert_allclose(state, field.flow(x, 0.0, t), atol=1e-6)


def test_without_a_trajectory_times_are_the_two_ends():
    out = sample(Gaussian(), noise(2, 2), solver="euler", num_steps=3)
    assert out.trajectory is None
    np.testing.assert_array_equal(out.times, [0, 1])
    out = sample(
        Gaussian(),
        noise(2, 2),
        solver="euler",
        num_steps=3,
        start_time=0.25,
        final_time=0.5,
        denoise_last=False,
    )
    np.testing.assert_array_equal(out.times, [0.25, 0.5])


def test_an_explicit_grid_is_used_as_it_is():
    x, times = noise(4, 2), [0.0, 0.1, 0.5, 0.75]
    field = Recorder(Gaussian())
    out = sample(field, x, solver="euler", grid=times, denoise_last=False, trajectory=True)
    jax.effects_barrier()
    np.testing.assert_allclose(field.calls, times[:-1], rtol=1e-7)
    by_hand = x
    for start, stop in itertools.pairwise(times):
        by_hand = by_hand + (stop - start) * np.asarray(Gaussian()(by_hand, jnp.float32(start)))
    np.testing.assert_allclose(out.samples, by_hand, atol=1e-6)
    np.testing.assert_allclose(out.times, times, rtol=1e-7)


def test_usable_under_jit_and_vmap():
    x = noise(6, 2)

    def f(x):
        return sample(Gaussian(), x, solver="heun", num_steps=5, trajectory=True)

    plain, jitted = f(x), jax.jit(f)(x)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    mapped = jax.vmap(f)(x.reshape(3, 2, 2))
    np.testing.assert_allclose(mapped.samples.reshape(6, 2), plain.samples, atol=1e-6)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivatives_in_noise_and_parameters(mode):
    """The flow map of a Gaussian is linear in noise and mean: both derivatives are known."""
    with jax.enable_x64(True):
        x = jnp.asarray(noise(1, 1, dtype=np.float64))

        def f(mean, scale, x):
            return sample(
                Gaussian(mean, scale), x, solver="rk4", num_steps=30, final_time=0.8, denoise_last=False
            ).samples

        def exact(mean, scale, x):
            return Gaussian(mean, scale).flow(x, 0.0, 0.8)

        for a, b in zip(mode(f, (0, 1, 2))(0.7, 0.4, x), mode(exact, (0, 1, 2))(0.7, 0.4, x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_half_precision_noise_is_raised_and_output_dtype_follows_the_state():
    out = sample(
        lambda x, t: (-x).astype(jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16), solver="euler", num_steps=2
    )
    assert out.samples.dtype == jnp.float32
    out = sample(
        lambda x, t: -x, jnp.ones((2, 3)), solver="rk4", num_steps=50, final_time=0.5, denoise_last=False
    )
    np.testing.assert_allclose(out.samples, np.exp(-0.5), rtol=1e-6)


@pytest.mark.slow
def test_noise_sharded_over_devices_stays_sharded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = noise(16, 2)
    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    for kwargs in ({"solver": "heun", "num_steps": 4}, {"solver": "dopri5", "trajectory": True}):
        whole, split = sample(Gaussian(), x, **kwargs), sample(Gaussian(), placed, **kwargs)
        np.testing.assert_allclose(split.samples, whole.samples, atol=1e-5)
        assert split.samples.sharding.spec[0] == "data"

"""Hybrid fields: steps land on the switch, each piece is evaluated only where it is in force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, TwoPeaks, noise, order

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.sampling import hybrid, sample

SWITCH = float(np.float32(0.37))
FIRST, SECOND = TwoPeaks(), TwoPeaks(mean=0.2, scale=0.9)


def start():
    return jnp.linspace(-2.2, 2.0, 9)[:, None]


def exact_end(final):
    return SECOND.flow(FIRST.flow(start(), 0.0, SWITCH), SWITCH, final)


class OnlyBreakpoints:
    """A discontinuous velocity function that says where it jumps, but has no pieces."""

    breakpoints = (SWITCH,)

    def __call__(self, x, t):
        return jnp.where(t < SWITCH, FIRST(x, t), SECOND(x, t))


@pytest.mark.parametrize(
    "velocity", [hybrid(FIRST, SECOND, SWITCH), OnlyBreakpoints()], ids=["hybrid", "breakpoints"]
)
def test_the_order_survives_the_switch(velocity):
    with jax.enable_x64(True):
        steps = [32, 48, 64, 96]
        run = [
            sample(velocity, start(), solver="rk4", num_steps=n, final_time=0.9, denoise_last=False).samples
            for n in steps
        ]
        errors = [float(np.max(np.abs(samples - exact_end(0.9)))) for samples in run]
    assert abs(order(steps, errors) - 4) < 0.3
    assert errors[-1] < 1e-6


def test_stepping_over_the_switch_would_have_cost_the_order():
    """The control: the same velocity without breakpoints falls to order about one."""
    with jax.enable_x64(True):
        velocity = OnlyBreakpoints().__call__
        samples = sample(
            lambda x, t: velocity(x, t),
            start(),
            solver="rk4",
            num_steps=96,
            final_time=0.9,
            denoise_last=False,
        ).samples
        assert float(np.max(np.abs(samples - exact_end(0.9)))) > 1e-5


def test_adaptive_steps_land_on_the_switch():
    with jax.enable_x64(True):
        out = sample(
            hybrid(FIRST, SECOND, SWITCH), start(), rtol=1e-8, atol=1e-8, final_time=0.9, denoise_last=False,
            save_times=[0.1, SWITCH, 0.6, 0.9],
        )  # fmt: skip
        np.testing.assert_allclose(out.samples, exact_end(0.9), atol=1e-6)
        assert out.trajectory is not None
        middle = FIRST.flow(start(), 0.0, SWITCH)
        np.testing.assert_allclose(out.trajectory[0], FIRST.flow(start(), 0.0, 0.1), atol=1e-6)
        np.testing.assert_allclose(out.trajectory[1], middle, atol=1e-6)
        np.testing.assert_allclose(out.trajectory[2], SECOND.flow(middle, SWITCH, 0.6), atol=1e-6)
        np.testing.assert_allclose(out.trajectory[3], out.samples, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"solver": "rk4", "num_steps": 10}, {"solver": "dopri5"}], ids=["rk4", "dopri5"]
)
def test_each_piece_is_evaluated_where_it_is_in_force(options):
    first, second = Recorder(FIRST), Recorder(SECOND)
    out = sample(hybrid(first, second, 0.37), noise(4, 1), **options)
    jax.effects_barrier()
    assert max(first.calls) == np.float32(0.37)
    assert min(second.calls) == np.float32(0.37)
    assert first.count() + second.count() == int(out.num_evaluations)


@pytest.mark.parametrize(("switch", "steps"), [(0.37, 11), (0.3, 10), (0.3 + 1e-8, 10)])
def test_a_switch_between_grid_points_adds_a_step_and_one_on_the_grid_does_not(switch, steps):
    out = sample(hybrid(FIRST, SECOND, switch), noise(4, 1), solver="heun", num_steps=10, final_time=0.999)
    grid = np.linspace(0, 0.999, 11)
    expected = steps if np.min(np.abs(grid - switch)) < 1e-6 else 11
    assert int(out.num_evaluations) == 2 * expected + 1


@pytest.mark.parametrize(
    "options", [{"solver": "heun", "num_steps": 10}, {"solver": "dopri5"}], ids=["heun", "dopri5"]
)
def test_a_switch_at_an_end_leaves_one_function(options):
    x = noise(4, 1)
    first, second = sample(FIRST, x, **options), sample(SECOND, x, **options)
    for switch, alone in ((0.0, second), (1.0, first), (0.9999, first)):
        out = sample(hybrid(FIRST, SECOND, switch), x, **options)
        np.testing.assert_allclose(out.samples, alone.samples, atol=1e-6)
        assert int(out.num_evaluations) == int(alone.num_evaluations)


def test_nested_hybrids_list_all_switches():
    a, b, c = Gaussian(0.0), Gaussian(1.0), Gaussian(2.0)
    nested = hybrid(hybrid(a, b, 0.25), c, 0.5)
    assert [float(time) for time in nested.breakpoints] == [0.25, 0.5]
    assert nested.pieces == (a, b, c)
    hidden = hybrid(hybrid(a, b, 0.75), c, 0.5)
    assert [float(time) for time in hidden.breakpoints] == [0.5, 0.5]
    with jax.enable_x64(True):
        x = jnp.asarray(noise(4, 2, dtype=np.float64))
        options = {"solver": "rk4", "num_steps": 40, "final_time": 0.9, "denoise_last": False}
        by_hand = c.flow(b.flow(a.flow(x, 0.0, 0.25), 0.25, 0.5), 0.5, 0.9)
        np.testing.assert_allclose(sample(nested, x, **options).samples, by_hand, atol=1e-5)
        by_hand = c.flow(a.flow(x, 0.0, 0.5), 0.5, 0.9)
        np.testing.assert_allclose(sample(hidden, x, **options).samples, by_hand, atol=1e-5)


def test_the_call_itself():
    velocity = hybrid(FIRST, SECOND, 0.5)
    x = jnp.asarray(noise(3, 1))
    for t, piece in ((0.25, FIRST), (0.5, SECOND), (0.75, SECOND)):
        np.testing.assert_array_equal(velocity(x, t), piece(x, t))
        np.testing.assert_allclose(jax.jit(velocity)(x, t), piece(x, jnp.float32(t)), rtol=1e-5)
    mixed = velocity(x, jnp.array([0.25, 0.5, 0.75]))
    np.testing.assert_allclose(mixed[0], FIRST(x[:1], 0.25)[0], rtol=1e-5)
    np.testing.assert_allclose(mixed[1:], [SECOND(x[1:2], 0.5)[0], SECOND(x[2:], 0.75)[0]], rtol=1e-5)


def test_a_hybrid_goes_through_jit_with_a_traced_switch():
    x = noise(4, 1)
    for options in ({"solver": "heun", "num_steps": 10, "trajectory": True}, {"solver": "dopri5"}):
        run = jax.jit(lambda velocity, options=options: sample(velocity, x, **options).samples)
        for switch in (0.0, 0.37, 1.0):
            velocity = hybrid(FIRST, SECOND, switch)
            np.testing.assert_allclose(run(velocity), sample(velocity, x, **options).samples, atol=1e-5)


def test_another_switch_time_does_not_compile_anew():
    traces = []

    def second(x, t):
        traces.append(t)
        return -x

    x, field = noise(4, 3), ClosedFormField(noise(11, 3, seed=1))
    for options in ({"solver": "heun", "num_steps": 10}, {"solver": "dopri5"}):
        sample(hybrid(field, second, 0.37), x, **options)
        seen = len(traces)
        sample(hybrid(field, second, 0.52), x, **options)
        assert len(traces) == seen


def test_derivative_in_the_switch_time():
    """Moving the switch by dτ moves the end by (u1 − u2) dτ carried along by the second flow."""
    with jax.enable_x64(True):
        a, b = (lambda x, t: jnp.ones_like(x)), (lambda x, t: -3 * jnp.ones_like(x))
        for options in ({"solver": "rk4", "num_steps": 7}, {"solver": "dopri5"}):
            slope = jax.grad(
                lambda time, options=options: sample(
                    hybrid(a, b, time), jnp.zeros((1, 1)), **options
                ).samples[0, 0]
            )(0.3)
            np.testing.assert_allclose(slope, 4, rtol=1e-5)


def test_the_path_comes_from_whichever_has_one():
    field = ClosedFormField(noise(5, 2), path=paths.Trigonometric())
    assert hybrid(field, lambda x, t: x, 0.5).path == paths.Trigonometric()
    assert hybrid(lambda x, t: x, field, 0.5).path == paths.Trigonometric()
    assert hybrid(lambda x, t: x, lambda x, t: x, 0.5).path is None
    with pytest.raises(ValueError, match=r"first belongs to Trigonometric\(\) and second to Linear\(\)"):
        hybrid(field, Gaussian(), 0.5)


@pytest.mark.parametrize("switch", [-0.1, 1.1, np.nan])
def test_switch_times_outside_the_interval_are_refused(switch):
    with pytest.raises(ValueError, match=r"switch_time must lie in \[0, 1\]"):
        hybrid(FIRST, SECOND, switch)


def test_other_misuse():
    with pytest.raises(ValueError, match="scalar"):
        hybrid(FIRST, SECOND, jnp.zeros(3))
    with pytest.raises(TypeError, match="not callable"):
        hybrid(FIRST, 3.0, 0.5)

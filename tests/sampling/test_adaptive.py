"""Adaptive solvers: tolerance, counting, per-sample steps, failures, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, TwoPeaks, noise

from flowjax.sampling import sample

SOLVERS = ["dopri5", "tsit5"]
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def wiggling(x, t):
    """So fast that the first step is too long and rejected."""
    return 3 * jnp.cos(600 * t) * jnp.ones_like(x)


@every_solver
def test_tolerance_is_met_and_paid_for(solver):
    with jax.enable_x64(True):
        field = TwoPeaks()
        x = jnp.linspace(-2.2, 2.0, 9)[:, None]
        exact = field.flow(x, 0.0, 0.9)
        evaluations = []
        for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
            out = sample(
                field, x, solver=solver, rtol=tolerance, atol=tolerance, final_time=0.9, denoise_last=False
            )
            assert float(np.max(np.abs(out.samples - exact))) < 20 * tolerance
            evaluations.append(int(out.num_evaluations))
        assert evaluations == sorted(set(evaluations))


@every_solver
@pytest.mark.parametrize(
    ("velocity", "denoise_last"), [(TwoPeaks(), True), (wiggling, False)], ids=["smooth", "wiggling"]
)
def test_evaluations_are_those_really_made(solver, velocity, denoise_last):
    """Rejected steps and the first step's extra stage are calls too."""
    field = Recorder(velocity)
    final = 0.05 if velocity is wiggling else 0.9
    out = sample(field, noise(6, 1), solver=solver, denoise_last=denoise_last, final_time=final)
    assert field.count() == int(out.num_evaluations)


def test_the_wiggling_field_does_reject_its_first_step():
    """Otherwise the count above would not be put to the test: a second call at t = 0 shows it."""
    field = Recorder(wiggling)
    sample(field, noise(6, 1), solver="dopri5", final_time=0.05)
    jax.effects_barrier()
    assert field.calls.count(0.0) >= 2


def test_the_worst_sample_decides_the_common_step():
    """A sample's error must not depend on how many easy samples share its batch."""
    hard = np.array([[2.0]], np.float32)
    easy = np.zeros((255, 1), np.float32)

    def velocity(x, t):
        return jnp.where(x > 0, 10 * jnp.cos(40 * t), 0.0) * jnp.ones_like(x)

    alone = sample(velocity, hard, denoise_last=False)
    together = sample(velocity, np.concatenate([hard, easy]), denoise_last=False)
    exact = 2 + 0.25 * np.sin(40 * float(np.float32(1 - 1e-3)))
    assert abs(float(alone.samples[0, 0]) - exact) < 1e-3
    assert abs(float(together.samples[0, 0]) - exact) < 1e-3
    assert int(together.num_evaluations) == int(alone.num_evaluations)


@every_solver
def test_per_sample_steps_equal_solving_each_sample_alone(solver):
    field, x = TwoPeaks(), np.array([[-2.0], [-0.1], [0.02], [1.5]], np.float32)
    shared = sample(field, x, solver=solver)
    own = sample(field, x, solver=solver, per_sample_steps=True, trajectory=True)
    np.testing.assert_allclose(own.samples, shared.samples, atol=2e-3)
    assert own.num_evaluations.shape == (4,)
    assert own.trajectory is not None
    assert own.trajectory.shape == (34, 4, 1)
    alone = [sample(field, row[None], solver=solver) for row in x]
    np.testing.assert_allclose(own.samples, np.concatenate([out.samples for out in alone]), atol=1e-6)
    assert own.num_evaluations.tolist() == [int(out.num_evaluations) for out in alone]
    assert len(set(own.num_evaluations.tolist())) > 1


def test_per_sample_count_with_a_rejected_first_step():
    x = noise(3, 1)
    own = sample(wiggling, x, per_sample_steps=True, final_time=0.05).num_evaluations.tolist()
    assert own == [int(sample(wiggling, row[None], final_time=0.05).num_evaluations) for row in x]


@pytest.mark.parametrize(("solver", "denoise_last"), [("dopri5", True), ("tsit5", False)])
def test_trajectory_at_33_times_and_at_the_end(solver, denoise_last):
    with jax.enable_x64(True):
        field, x = Gaussian(), jnp.asarray(noise(5, 2, dtype=np.float64))
        plain = sample(field, x, solver=solver, denoise_last=denoise_last)
        out = sample(field, x, solver=solver, denoise_last=denoise_last, trajectory=True)
        assert out.trajectory is not None
        assert out.times.shape == (33 + denoise_last,)
        np.testing.assert_allclose(out.samples, plain.samples, rtol=1e-12)
        np.testing.assert_array_equal(out.trajectory[0], x)
        np.testing.assert_allclose(out.trajectory[-1], out.samples, rtol=1e-13)
        for t, state in zip(out.times, out.trajectory, strict=True):
            np.testing.assert_allclose(state, field.flow(x, 0.0, t), atol=1e-4)
        assert int(out.num_evaluations) == int(plain.num_evaluations)


def test_save_times():
    with jax.enable_x64(True):
        field, x = Gaussian(), jnp.asarray(noise(5, 2, dtype=np.float64))
        out = sample(field, x, save_times=[0.2, 0.25, 0.9], rtol=1e-8, atol=1e-8)
        assert out.trajectory is not None
        np.testing.assert_array_equal(out.times, [0.2, 0.25, 0.9])
        for t, state in zip(out.times, out.trajectory, strict=True):
            np.testing.assert_allclose(state, field.flow(x, 0.0, t), atol=1e-6)


@pytest.mark.parametrize("per_sample_steps", [False, True])
def test_labels_reach_every_call(per_sample_steps):
    labels = jnp.array([2, 0, 1, 2])

    def velocity(x, t, labels, offset):
        assert labels.shape == x.shape[:1]
        return labels[:, None].astype(x.dtype) * jnp.ones_like(x) + offset

    x = noise(4, 3)
    out = sample(velocity, x, per_sample_steps=per_sample_steps, condition={"labels": labels, "offset": 0.5})
    np.testing.assert_allclose(out.samples, x + np.asarray(labels)[:, None] + 0.5, atol=1e-5)


def test_unmapped_conditions_are_shared_by_per_sample_steps():
    def velocity(x, t, direction, mode):
        assert mode == "forward"
        return jnp.broadcast_to(direction, x.shape)

    x, direction = noise(4, 3), jnp.array([1.0, -2.0, 0.25])
    out = sample(velocity, x, per_sample_steps=True, condition={"direction": direction, "mode": "forward"})
    np.testing.assert_allclose(out.samples, x + direction, atol=1e-5)


@pytest.mark.slow
def test_derivatives_by_the_adjoint():
    with jax.enable_x64(True):
        x = jnp.asarray(noise(3, 1, dtype=np.float64))

        def loss(run):
            return jax.grad(lambda mean, scale, x: jnp.sum(jnp.sin(run(Gaussian(mean, scale), x))), (0, 1, 2))

        for own in (False, True):

            def run(field, x, own=own):
                return sample(
                    field, x, rtol=1e-9, atol=1e-9, final_time=0.8, denoise_last=False, max_steps=256,
                    per_sample_steps=own,
                ).samples  # fmt: skip

            for a, b in zip(
                loss(run)(0.7, 0.4, x), loss(lambda f, x: f.flow(x, 0.0, 0.8))(0.7, 0.4, x), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_too_few_steps_is_an_error_outside_jit_and_nan_inside():
    x = noise(2, 1)
    with pytest.raises(
        RuntimeError, match=r"dopri5 used up max_steps=5 at t = 0\.\d+ on the way to 0.999; increase"
    ):
        sample(wiggling, x, max_steps=5)
    inside = jax.jit(lambda x: sample(wiggling, x, max_steps=5).samples)(x)
    assert np.all(np.isnan(inside))


@pytest.mark.parametrize(
    "velocity",
    [
        lambda x, t: jnp.full_like(x, jnp.nan),
        lambda x, t: jnp.where(t > 0.3, jnp.nan, 1.0) * x,
        lambda x, t: jnp.where(t > 0.3, jnp.inf, 1.0) * x,
    ],
    ids=["always", "later", "infinite"],
)
def test_a_velocity_that_breaks_ends_soon_and_says_so(velocity):
    field = Recorder(velocity)
    with pytest.raises(
        RuntimeError, match=r"dopri5 meets rtol=1e-05, atol=1e-05 at t = .* with no step however short"
    ):
        sample(field, noise(2, 1))
    assert field.count() < 400

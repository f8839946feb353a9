"""The algebra by itself: merging is what summing everything at once gives, in any order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.closed_form import moments


def of_rows(logits, rows):
    """Moments [1 query] straight from the definition, float64 NumPy."""
    best = logits.max()
    e = np.exp(logits - best)

    def one(value):
        return np.asarray([value], np.float32)

    scalars = (e @ (logits - best), e @ (rows**2).sum(1), (e**2).sum())
    return moments.Moments(one(best), one(e.sum()), one(e @ rows), moments.Scalars(*map(one, scalars)))


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    logits, rows = 5 * rng.normal(size=30), rng.normal(size=(30, 3))
    return logits, rows, [of_rows(logits[s], rows[s]) for s in (slice(0, 7), slice(7, 8), slice(8, 30))]


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6), a, b)


def test_merge_is_the_union_in_any_order(parts):
    logits, rows, (a, b, c) = parts
    whole = of_rows(logits, rows)
    assert_equal(moments.merge(moments.merge(a, b), c), whole)
    assert_equal(moments.merge(c, moments.merge(b, a)), whole)


def test_empty_is_neutral_even_beside_itself(parts):
    a = parts[2][0]
    nothing = moments.empty(1, 3, np.float32, scalars=True)
    assert_equal(moments.merge(a, nothing), a)
    assert_equal(moments.merge(nothing, a), a)
    both = moments.merge(nothing, nothing)
    assert float(both.normaliser[0]) == 0
    assert np.isneginf(both.max[0])


def test_subtract_undoes_merge(parts):
    a, b = parts[2][0], parts[2][2]
    union = moments.merge(a, b)
    rest = moments.subtract(union, moments.rescale(b, union.max))
    assert_equal(
        moments.merge(rest, moments.empty(1, 3, np.float32, scalars=True)), moments.rescale(a, union.max)
    )


def test_shifting_all_logits_scales_the_sums(parts):
    logits, rows, _ = parts
    shifted = moments.shift_logits(of_rows(logits, rows), jnp.float32([0.3]))
    expected = moments.rescale(of_rows(logits + 0.3, rows), jnp.asarray([logits.max()], jnp.float32))
    assert_equal(dataclasses.replace(shifted, max=expected.max), expected)

"""The abstract velocity network: batch axes, dropout mode and dtypes handled once, for every architecture."""

import abc
from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from flowjax.typing import Batch, Indices, PerQuery

from ._layers import flatten_batch


class Network(nnx.Module):
    """A velocity function `model(x, t, labels=None)` with parameters (`nnx.Param`, float32) and nothing else.

    Subclasses set `config`, `event_shape`, `num_classes` and `dropout_rate` in their constructor and define
    `evaluate`. A new model is in evaluation mode. It holds no random state: where dropout is on, the call
    brings its key, so that a model is a pure function of its arguments in either mode.
    """

    config: Any
    event_shape: tuple[int, ...]
    num_classes: int | None
    dropout_rate: float
    deterministic: bool = True

    @abc.abstractmethod
    def evaluate(self, x: Batch, t: PerQuery, labels: Indices | None, rngs: nnx.Rngs | None) -> Batch:
        """The velocity [b, *event] with one batch axis, checked and broadcast arguments.

        Args:
            x: [b, *event].
            t: [b] float32.
            labels: [b] int32, or None for an unconditional network.
            rngs: a generator where dropout is on, else None.
        """

    def __call__(
        self,
        x: jax.Array,
        t: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Velocity [*batch, *event] in x's dtype.

        Args:
            x: [*batch, *event], floating point; any number of batch axes, also none.
            t: time in [0, 1], broadcastable to [*batch].
            labels: class numbers broadcastable to [*batch]; None is the null label.
            deterministic: False switches dropout on, True off, None follows `train()`, `eval()`, `nnx.view`.
            rngs: where dropout masks come from: a key, or nnx.Rngs with a stream `dropout`. Unused when
                dropout is off.

        Raises:
            ValueError, TypeError: another event shape or an integer dtype; labels that are no classes (a
                traced label outside [0, num_classes] cannot be refused: it gives NaN); dropout without rngs.
        """
        points, times, classes, batch = flatten_batch(x, t, labels, self.event_shape, self.num_classes)
        velocity = self.evaluate(points, times, classes, self._dropout_rngs(deterministic, rngs))
        velocity = velocity.astype(points.dtype)
        return velocity if len(batch) == 1 else velocity.reshape(batch + tuple(self.event_shape))

    def set_view(self, deterministic: bool | None = None):
        """What `nnx.view(model, deterministic=...)` calls.

        Args:
          deterministic: True switches dropout off, False on.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_rngs(self, deterministic: bool | None, rngs: nnx.Rngs | jax.Array | None) -> nnx.Rngs | None:
        """The generator if dropout is on, else None."""
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic or self.dropout_rate == 0:
            return None
        if rngs is None:
            raise ValueError(
                f"dropout={self.dropout_rate} is on but the call has no rngs; "
                "pass rngs=key, or deterministic=True to switch dropout off"
            )
        return rngs if isinstance(rngs, nnx.Rngs) else nnx.Rngs(dropout=rngs)

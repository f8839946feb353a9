"""Programs of a data set that is not there: the field and a training step, lowered from shapes alone."""

import dataclasses
from typing import Any

from flowjax.closed_form.shapes import DataShape
from flowjax.data import ROWS

from .estimates import padded


def abstract_field(shape: DataShape, mesh: Any) -> Any:
    """The field of a data set that is not there: rows split over the mesh axis `rows`, leaves without values.

    Args:
        shape: the data set; n is padded up to a multiple of the axis's size.
        mesh: of `flowjax.data.mesh`; without the axis `rows` every device has all rows.

    Returns:
        A `ClosedFormField` of `jax.ShapeDtypeStruct`s, to be lowered with and for nothing else.
    """
    import jax
    import jax.numpy as jnp

    from flowjax.closed_form import ClosedFormField
    from flowjax.closed_form.rows import Rows

    # The treedef of a small real field, the leaves of the large one.
    small = ClosedFormField(jnp.zeros((1, *shape.event_shape), shape.dtype))
    structure = dataclasses.replace(
        small._static, placement=(mesh, ROWS) if ROWS in mesh.axis_names else None
    )
    split = tuple(axis for axis in mesh.axis_names if axis == ROWS)
    n = padded(shape.num_points, mesh.shape.get(ROWS, 1))

    def leaf(sides, dtype, *spec):
        return jax.ShapeDtypeStruct(sides, dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))

    rows = Rows(
        data=leaf((n, shape.dimension), shape.dtype, *split),  # type: ignore[arg-type]
        square_norms=leaf((n,), "float32", *split),  # type: ignore[arg-type]
        log_weights=None,
        labels=None,
        centre=None,
        max_norm=leaf((), "float32"),  # type: ignore[arg-type]
        log_weight_bound=leaf((), "float32"),  # type: ignore[arg-type]
        class_log_weights=leaf((1,), "float32"),  # type: ignore[arg-type]
    )
    return ClosedFormField.tree_unflatten(structure, (rows, None))


def check_batch(batch: int, num_devices: int) -> None:
    """Raises ValueError for a batch that training cannot split over the devices."""
    if batch % num_devices:
        raise ValueError(
            f"a training batch of {batch} cannot be split over {num_devices} devices; take a multiple of "
            f"{num_devices}, or leave the training step out with --no-step"
        )


def train_config(shape: DataShape, batch: int) -> Any:
    """The paper's U-Net for pictures, the preset MLP for everything else, on the exact target.

    Raises:
        ValueError: a picture whose sides the U-Net cannot halve often enough.
    """
    from flowjax.models import MLPConfig, UNetConfig
    from flowjax.training.config import TrainConfig

    if len(shape.event_shape) == 3:
        model = dataclasses.replace(UNetConfig.paper(), event_shape=shape.event_shape)
    else:
        model = MLPConfig(event_shape=shape.event_shape)
    return TrainConfig(model=model, batch_size=batch)


def lower_field(shape: DataShape, batch: int, mesh: Any) -> Any:
    """`field(x, t)` for [batch, *event] queries split over all devices (where they divide), lowered."""
    import jax

    split = jax.NamedSharding(mesh, jax.P() if batch % mesh.size else jax.P(mesh.axis_names))
    x = jax.ShapeDtypeStruct((batch, *shape.event_shape), "float32", sharding=split)
    t = jax.ShapeDtypeStruct((batch,), "float32", sharding=split)
    evaluate = jax.jit(lambda field, x, t: field(x, t), out_shardings=split)
    return evaluate.lower(abstract_field(shape, mesh), x, t)


def lower_step(shape: DataShape, batch: int, mesh: Any, *, exact: bool = True) -> Any:
    """A whole training step on the exact target (or on the conditional one), lowered.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    import jax

    from flowjax import targets
    from flowjax.training.state import create
    from flowjax.training.step import make_step

    check_batch(batch, mesh.size)
    config = train_config(shape, batch)

    def spread(tree, *spec):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    structure = []

    def state_only():
        graphdef, state = create(config)
        structure.append(graphdef)
        return state

    state = spread(jax.eval_shape(state_only))
    rows = {
        "image": jax.ShapeDtypeStruct((batch, *shape.event_shape), shape.dtype),
        "index": jax.ShapeDtypeStruct((batch,), "int32"),
    }
    field = abstract_field(shape, mesh)
    target = targets.closed_form(field) if exact else targets.conditional(field.path)
    program: Any = make_step(config, structure[0])  # a jitted function, typed as a plain one
    return program.lower(state, spread(rows, mesh.axis_names), target, None)

"""One of two processes with two CPU devices each, run by `test_processes`: python THIS PROCESS PORT OUT LAYOUT..."""

import sys

import jax
import numpy as np
import pytest
from process_cases import CASES, LAYOUTS, queries

import flowjax as fj
from flowjax.closed_form import costs


def share(sharding: jax.NamedSharding, whole: np.ndarray) -> np.ndarray:
    """The rows of this process's devices: all that it would have read of a data set."""
    index = sharding.addressable_devices_indices_map(whole.shape).values()
    rows = sorted({row for slices in index for row in range(*slices[0].indices(len(whole)))})
    return whole[rows]


def gather(value: jax.Array) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda a: a, out_shardings=jax.NamedSharding(value.sharding.mesh, jax.P()))(value)
    )


def main(process: int, port: int, out: str, names: list[str]) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert jax.device_count() == 4
    assert jax.local_device_count() == 2
    costs.MEASURED = costs.ONLY_SURVIVORS  # on data as small as here the dense pass is nearly always cheaper
    found = {}
    for layout_name in names:
        layout = LAYOUTS[layout_name]
        devices = np.array(jax.devices())[list(layout.order)].reshape(layout.shape)
        kind = getattr(jax.sharding.AxisType, layout.kind)
        mesh = jax.sharding.Mesh(devices, layout.axes, axis_types=(kind,) * len(layout.axes))
        by_row = jax.NamedSharding(mesh, jax.P("data"))
        by_query = jax.NamedSharding(mesh, jax.P("queries" if "queries" in layout.axes else None))
        for case_name in layout.cases:
            case = CASES[case_name]

            def place(value, by_row=by_row):
                return fj.data.place(share(by_row, value), by_row) if isinstance(value, np.ndarray) else value

            data = place(case.data)
            assert data.shape == case.data.shape
            assert not data.is_fully_addressable
            field = fj.ClosedFormField(data, **{key: place(value) for key, value in case.options.items()})
            asked = queries(case)
            if "queries" in layout.axes:
                asked = jax.tree.map(lambda a, s=by_query: fj.data.place(share(s, a), s), asked)
            posterior = field.posterior(*asked)
            for leaf, value in posterior._asdict().items():
                found[f"{layout_name}/{case_name}/{leaf}"] = gather(value)
            if "queries" in layout.axes:
                assert posterior.velocity.sharding.is_equivalent_to(by_query, posterior.velocity.ndim)
            x, t, labels = asked
            refused = [(x, t + np.float32(2), labels)]
            if labels is not None:
                refused.append((x, t, labels + 3))
            for wrong in refused:
                with pytest.raises(ValueError, match="must lie in"):
                    field(*wrong)
    if process == 0:
        np.savez(out, **found)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])

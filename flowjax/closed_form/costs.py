"""What screening counts when it chooses a pass over the rows, or the dense pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Costs(NamedTuple):
    """In multiply-adds of the dense product.

    Attributes:
        row: of a row that a pass looks at, whatever it reads of it.
        entry: of an entry of the table that a pass reads.
        survivor: of finding a row that a pass leaves.
        bounded: of an entry of such a row, bounded again.
        evaluated: of an entry of a row evaluated exactly.
        projected: of projecting a query on all directions and looking at the sample along them, for an entry of the
            basis.
        setup: queries' worth that a pass costs beside its queries.
    """

    row: float
    entry: float
    survivor: float
    bounded: float
    evaluated: float
    projected: float
    setup: float


def dense_sizes(b: int) -> tuple[int, ...]:
    """Numbers of queries, ascending to b, that the dense pass of those among b that are not screened has room for.

    One pass for all of them, of the least size that holds them; every size is a program to compile, which takes a
    second, and below 64 queries saves little beside what a pass costs anyway.
    """
    if b <= 16:
        return (b,)
    return (b // 2, b) if b < 64 else (b // 16, b // 4, b // 2, b)


def room_for(b: int, count: ArrayLike) -> jax.Array:
    """Which of (0, *dense_sizes(b)) is the least that holds so many queries, int32."""
    return jnp.searchsorted(jnp.array((0, *dense_sizes(b)), jnp.int32), count).astype(jnp.int32)


MEASURED = Costs(row=105, entry=0.85, survivor=3e4, bounded=110, evaluated=210, projected=3, setup=30)
"""By the clock on two cores of an Intel Xeon; what fields are built with. The setup is between those of two machines: a
dense pass took 46 queries' worth there, and 7 to 10 on an AMD EPYC, whose products are a third slower."""

ONLY_SURVIVORS = Costs(row=0, entry=0, survivor=0, bounded=1, evaluated=1, projected=0, setup=0)
"""Screens whatever it can, whatever that costs: to check the certificate on small data."""

STREAMED = MEASURED._replace(evaluated=500)
"""Of rows on the host, which are read one by one where they are evaluated exactly."""

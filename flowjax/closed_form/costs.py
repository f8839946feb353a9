"""What screening counts when it chooses a pass over the rows, or the dense pass."""

from typing import NamedTuple


class Costs(NamedTuple):
    """In multiply-adds of the dense product.

    Attributes:
        entry: of an entry of the table that a pass reads.
        survivor: of finding a row that a pass leaves.
        bounded: of an entry of such a row, bounded again.
        evaluated: of an entry of a row evaluated exactly.
        setup: queries' worth that a pass costs beside its queries. 7 to 10 were measured for the dense pass; more is
            taken, since the choice rests on a sample.
    """

    entry: float
    survivor: float
    bounded: float
    evaluated: float
    setup: float


MEASURED = Costs(entry=2.5, survivor=5e4, bounded=120, evaluated=170, setup=16)
"""By the clock on a CPU of two cores; what fields are built with."""

ONLY_SURVIVORS = Costs(entry=0, survivor=0, bounded=1, evaluated=1, setup=0)
"""Screens whatever it can, whatever that costs: to check the certificate on small data."""

STREAMED = MEASURED._replace(evaluated=400)
"""Of rows on the host, which are read one by one where they are evaluated exactly."""

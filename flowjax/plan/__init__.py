"""Compile the field and a training step for a TPU slice without having one, and read off what it would cost.

The real TPU compiler (the package libtpu) runs on any Linux machine. For a slice it tells the bytes a chip needs, the
collectives between chips, and an estimate of the cycles of every fusion. What is shown, and what it is not:

    bytes       the compiler's own allocation: arguments + temporaries + outputs + code of one device
    cycles      the compiler's `estimated_cycles` of every fusion, times the trip counts of the loops around it,
                which are read from the loops' conditions. An estimate of the compiler, never a measurement. It
                leaves out the transfers between chips, and whatever the compiler gives no estimate for. Of two
                branches the cheaper one counts: the other re-scores what does not fit where candidates lie unevenly
    seconds     cycles over the clock of `CHIPS`
    roofline    a lower bound that does not come from the compiler: the two products of the pass in float32, which are
                six bfloat16 products on a TPU (three for bfloat16 rows), at the peak rate; or the bytes of the rows at
                the memory's bandwidth, whichever takes longer. For a training step the network's operations come on
                top, at one bfloat16 pass
    transfers   bytes that a device sends in collectives; `transfer_seconds` is their time at the full rate of its links
    share       seconds of the field over those of the training step that holds it

Rows lie split over groups of devices, each of which has all of them; queries, like a training batch, over all devices;
parameters on every one, as `flowjax.training` does it. Each compilation runs in a process of its own: platform
variables must be set before JAX is imported, and the compiler logs to standard error.
"""

from .chips import CHIPS as CHIPS
from .chips import TOPOLOGIES as TOPOLOGIES
from .chips import Slice as Slice
from .chips import parse_topology as parse_topology
from .estimates import Estimate as Estimate
from .hlo import Program as Program
from .hlo import out_of_memory as out_of_memory
from .hlo import read_hlo as read_hlo
from .lowering import lower_field as lower_field
from .lowering import lower_step as lower_step
from .planner import check as check
from .planner import estimate as estimate

"""What a velocity network regresses on: three targets with one expectation and falling variance; and couplings."""

from . import couplings as couplings
from ._targets import (
    ClosedFormTarget as ClosedFormTarget,
)
from ._targets import (
    ConditionalTarget as ConditionalTarget,
)
from ._targets import (
    EmpiricalTarget as EmpiricalTarget,
)
from ._targets import (
    Target as Target,
)
from ._targets import (
    closed_form as closed_form,
)
from ._targets import (
    conditional as conditional,
)
from ._targets import (
    draw_distinct as draw_distinct,
)
from ._targets import (
    draw_support as draw_support,
)
from ._targets import (
    empirical as empirical,
)
from ._targets import (
    empirical_velocity as empirical_velocity,
)

"""What a velocity network regresses on: three targets with one expectation and falling variance."""

from ._targets import (
    ClosedFormTarget as ClosedFormTarget,
    ConditionalTarget as ConditionalTarget,
    EmpiricalTarget as EmpiricalTarget,
    Target as Target,
    closed_form as closed_form,
    conditional as conditional,
    draw_support as draw_support,
    empirical as empirical,
    empirical_velocity as empirical_velocity,
)

"""Checks that configurations share: one sentence, with the value and the way out."""


def check_positive(**values: float | None) -> None:
    """Refuses what is neither None nor positive."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value} must be positive")


def check_rate(**values: float) -> None:
    """Refuses what is not in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")


def check_event_shape(event_shape: tuple[int, ...], *, rank: int | None = None) -> None:
    """Refuses an event shape of the wrong rank or without elements."""
    if rank is not None and len(event_shape) != rank:
        raise ValueError(
            f"event_shape={event_shape} has {len(event_shape)} axes, but this network takes {rank}: "
            "(height, width, channels); an MLP takes any"
        )
    if not event_shape or min(event_shape) < 1:
        raise ValueError(f"event_shape={event_shape} must have at least one axis and no empty one")

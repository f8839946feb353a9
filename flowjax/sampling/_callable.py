"""Any velocity function as a pytree, so that what it holds goes through `jit` as arguments, never as constants."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

_ARRAY_LIKE = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Function:
    """A plain Python function as a static pytree: equal to itself only, so one object compiles once."""

    function: Callable[..., Any]

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str):
        if name in ("path", "breakpoints", "pieces", "velocity_and_divergence"):
            return getattr(self.function, name)
        raise AttributeError(name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """`functools.partial` or a bound method whose bound arguments are pytree children instead of constants."""

    function: Any
    args: tuple
    kwargs: dict[str, Any]

    def __call__(self, *args, **kwargs):
        return self.function(*self.args, *args, **{**self.kwargs, **kwargs})

    def __getattr__(self, name: str):
        if name in ("path", "breakpoints"):
            return getattr(
                self.args[0] if isinstance(self.function, Function) and self.args else self.function, name
            )
        if name == "velocity_and_divergence" and not isinstance(self.function, Function):
            return functools.partial(getattr(self.function, name), *self.args, **self.kwargs)
        raise AttributeError(name)


def as_pytree(function: Any) -> Any:
    """The function itself if it is a pytree already (a field, an nnx module, a hybrid), else it wrapped as one.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(function):
        raise TypeError(
            f"a velocity function is called as f(x, t, **condition), but {type(function).__name__} is not callable"
        )
    if isinstance(function, functools.partial):
        return Bound(as_pytree(function.func), function.args, dict(function.keywords))
    if isinstance(function, types.MethodType) and not _is_leaf(function.__self__):
        return Bound(Function(function.__func__), (function.__self__,), {})
    return Function(function) if _is_leaf(function) else function


def _is_leaf(tree: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree_util.tree_structure(tree))


class Static(NamedTuple):
    """The part of a pytree that is known at compile time: structure, its classes, and leaves that are no arrays.

    The classes stand beside the structure since jaxlib (0.10.2) compares registered dataclasses by their fields alone:
    without them one class would be run with the program compiled for another.
    """

    treedef: Any
    classes: tuple[Any, ...]
    leaves: tuple[tuple[str, Any], ...]


def split(tree: Any) -> tuple[list[Any], Static]:
    """Arrays and numbers on one side, everything hashable on the other; `join` undoes it.

    Raises:
        TypeError: if the static part cannot be hashed, which would mean compiling anew at every call.
    """
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    dynamic = [leaf for leaf in leaves if isinstance(leaf, _ARRAY_LIKE)]
    static = Static(
        treedef,
        _classes(treedef),
        tuple(("array", None) if isinstance(leaf, _ARRAY_LIKE) else ("static", leaf) for leaf in leaves),
    )
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(
            f"the velocity function or its condition holds something that is neither array nor hashable ({error}); "
            "register its class as a pytree, or wrap it in a plain function"
        ) from None
    return dynamic, static


def _classes(treedef: Any) -> tuple[Any, ...]:
    node = treedef.node_data()
    return (None if node is None else node[0], *map(_classes, treedef.children()))


def join(dynamic: list[Any], static: Static) -> Any:
    """The tree that `split` took apart."""
    arrays = iter(dynamic)
    leaves = [next(arrays) if kind == "array" else leaf for kind, leaf in static.leaves]
    return jax.tree_util.tree_unflatten(static.treedef, leaves)

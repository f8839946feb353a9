"""flowjax: the exact, closed-form velocity field of flow matching over whole data sets, in JAX.

    field = flowjax.ClosedFormField(images)          # images [n, *event]
    velocity = field(x, t)

Namespaces: `paths`, `closed_form`, `targets`, `models`, `data`, `sampling`, `metrics`, `training`, `report`. Each loads
when it is first used, so that `import flowjax` (and `flowjax --help`) is cheap.
"""

import importlib
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import closed_form as closed_form
    from . import data as data
    from . import experiments as experiments
    from . import metrics as metrics
    from . import models as models
    from . import paths as paths
    from . import report as report
    from . import sampling as sampling
    from . import targets as targets
    from . import training as training
    from .closed_form import ClosedFormField as ClosedFormField
    from .closed_form import Posterior as Posterior

_NAMESPACES = (
    "closed_form",
    "data",
    "experiments",
    "metrics",
    "models",
    "paths",
    "report",
    "sampling",
    "targets",
    "training",
)
_FROM_CLOSED_FORM = ("ClosedFormField", "Posterior")


def __getattr__(name: str):
    if name in _NAMESPACES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FROM_CLOSED_FORM:
        return getattr(importlib.import_module(".closed_form", __name__), name)
    raise AttributeError(f"module 'flowjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMESPACES, *_FROM_CLOSED_FORM])

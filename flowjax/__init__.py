"""flowjax: the exact, closed-form velocity field of flow matching over whole data sets, in JAX."""

from . import closed_form as closed_form, paths as paths, targets as targets
from ._version import __version__ as __version__
from .closed_form import ClosedFormField as ClosedFormField, Posterior as Posterior

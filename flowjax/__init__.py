"""flowjax: the exact, closed-form velocity field of flow matching over whole data sets, in JAX."""

from . import paths as paths
from ._version import __version__ as __version__

"""The engine: posterior moments of a data set seen from a batch of queries."""

from . import oracle as oracle
from .explain import Explanation as Explanation
from .field import ClosedFormField as ClosedFormField
from .field import Posterior as Posterior
from .rows import to_float as to_float

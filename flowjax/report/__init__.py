"""One self-contained page about a run: what it found first, how it got there after; and the parts of such pages."""

from ._figures import COLOURS as COLOURS
from ._figures import figure as figure
from ._page import facts as facts
from ._page import grid as grid
from ._page import page as page
from ._page import text as text
from ._report import write_report as write_report

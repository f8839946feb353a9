"""One self-contained page about a run: what it found first, how it got there after."""

from ._report import write_report as write_report

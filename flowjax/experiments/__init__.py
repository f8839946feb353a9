"""The experiments of "On the Closed-Form of Flow Matching" (arXiv 2506.03719), and the ones it did not run.

Each is a module with the claim it puts to the test, its sizes (`PRESETS`) and what it does; its docstring says what it
shows, what it costs and what to expect.

    result = flowjax.experiments.run("collapse", "digits", preset="quick", out="runs/collapse")
    result["agrees"], result["findings"]

`flowjax experiment NAME` is the same from a shell.
"""

from ._run import EXPERIMENTS as EXPERIMENTS
from ._run import PRESETS as PRESETS
from ._run import module as module
from ._run import run as run

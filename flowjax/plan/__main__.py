"""`python -m flowjax.plan`: the worker, which `planner` starts."""

from .worker import main

main()

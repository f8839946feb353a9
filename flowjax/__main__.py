"""`python -m flowjax` is `flowjax`."""

import sys

from flowjax.cli import main

sys.exit(main())

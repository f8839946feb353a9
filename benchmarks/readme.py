"""Put the recorded results into README: `python -m benchmarks.readme` after `flowjax bench NAME`.

The table of benchmark NAME stands between the lines `<!-- NAME -->` and `<!-- end NAME -->`.
"""

import importlib
import json
import re
from pathlib import Path

from . import harness

README = Path(__file__).parents[1] / "README.md"
TABLES = ("dense", "screened", "training", "accuracy", "certificate", "plan")


def fill(text: str) -> str:
    """README's text with every table as the recorded results have it.

    Raises:
        ValueError: README lacks the two lines of a table.
    """
    for name in TABLES:
        result = json.loads((harness.RESULTS / f"{name}.json").read_text())
        table = harness.markdown(*importlib.import_module(f"benchmarks.{name}").table(result))
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end {name} -->)", re.DOTALL)
        text, count = between.subn(lambda _, table=table: table + "\n", text)
        if count != 1:
            raise ValueError(f"README must hold <!-- {name} --> and <!-- end {name} --> once, found {count}")
    return text


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")

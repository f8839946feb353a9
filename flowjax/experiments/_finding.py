"""What an experiment comes to, and the files that show it: `result.json`, figures as PNG and SVG, `report.html`."""

import dataclasses
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowjax._files import replacing
from flowjax.report import facts, figure, grid, page, text

Curve = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: of its files, NAME.png and NAME.svg.
        caption: what it shows, in words.
        draw: called with matplotlib Axes, once a file.
        size: width and height in inches.
    """

    name: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (6.4, 3.8)


@dataclasses.dataclass(frozen=True)
class Picture:
    """Rows of the data or samples, already saved as NAME.png in the experiment's folder."""

    name: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Plain text in rows under a header; the first column names the rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of an experiment.

    Attributes:
        agrees: whether it bears out the claim; None where this data or size cannot tell.
        sentence: what was found, with its numbers.
        findings: the numbers by name, or a mapping of some by size, time, ... under it.
        curves: {"t": [...], "value": [...]} by name, perhaps with "low" and "high".
        figures: plots, pictures and tables in the order of the page.
        notes: what was cut, and what a reader should know.
    """

    agrees: bool | None
    sentence: str
    findings: Mapping[str, Any]
    curves: Mapping[str, Curve]
    figures: Sequence[Figure | Picture | Table]
    notes: Sequence[str] = ()


def curve(t: Any, value: Any, **bands: Any) -> Curve:
    """Plain numbers of a curve, six digits each; what is not finite is None."""
    return {name: _plain(part) for name, part in {"t": t, "value": value, **bands}.items()}


def _plain(values: Any) -> list[Any]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, np.float64).tolist()]


def write(out: Path, facts_of_run: dict[str, Any], claim: str, finding: Finding) -> dict[str, Any]:
    """Figures, page and at last `result.json`, whose presence says that the run is complete.

    Returns:
        What `result.json` holds.
    """
    for each in finding.figures:
        if isinstance(each, Figure):
            _save(out, each)
    result = {
        **facts_of_run,
        "claim": claim,
        "agrees": finding.agrees,
        "sentence": finding.sentence,
        "notes": list(finding.notes),
        "findings": finding.findings,
        "curves": finding.curves,
    }
    with replacing(out / "report.html") as part:
        part.write_text(_page(out, result, finding), encoding="utf-8")
    with replacing(out / "result.json") as part:
        part.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return result


def _save(out: Path, each: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=each.size, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    each.draw(axes)
    axes.grid(visible=True, linewidth=0.6, color="#d5d9de")
    for kind in ("png", "svg"):
        with replacing(out / f"{each.name}.{kind}") as part:
            canvas.savefig(part, format=kind, dpi=150)


def _page(out: Path, result: dict[str, Any], finding: Finding) -> str:
    verdict = {True: "agrees with the claim", False: "does not agree with the claim", None: "cannot tell"}
    # Of a path its last part: all of it stands in the table of the run.
    title = f"flowjax · {result['experiment']} on {result['data'].rstrip('/').rsplit('/', 1)[-1]}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead"><b>Claim.</b> {html.escape(result["claim"])}</p>',
        f'<p class="lead"><b>Found ({verdict[finding.agrees]}).</b> {html.escape(finding.sentence)}</p>',
    ]
    for each in finding.figures:
        caption = f"<figcaption>{html.escape(each.caption)}</figcaption>"
        if isinstance(each, Figure):
            drawn = figure(each.draw, each.caption, size=each.size)
        elif isinstance(each, Table):
            drawn = grid(each.header, each.rows)
        else:
            drawn = f'<img class="pixels" src="{_inline(out / f"{each.name}.png")}" alt="{html.escape(each.caption)}">'
        parts.append(f"<figure>{drawn}{caption}</figure>")
    parts += [f'<p class="soft">{html.escape(note)}</p>' for note in finding.notes]
    parts += _numbers(finding.findings)
    about = {name: result[name] for name in ("data", "preset", "seconds")} | result["settings"]
    parts += [facts("This run", about), facts("Versions", result["versions"])]
    return page(title, parts)


def _numbers(findings: Mapping[str, Any]) -> list[str]:
    """A table of the plain ones, and one of each set of mappings that have the same keys."""
    plain: dict[str, Any] = {}
    series: dict[tuple[str, ...], list[list[str]]] = {}
    for name, value in findings.items():
        if not isinstance(value, Mapping):
            plain[name] = value
        elif value:
            keys = tuple(key.replace("_", " ") for key in value)
            series.setdefault(keys, []).append([name.replace("_", " "), *map(text, value.values())])
    return [facts("Numbers", plain), *(grid(["", *keys], rows) for keys, rows in series.items())]


def _inline(file: Path) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()

"""Everything recorded under benchmarks/results as one self-contained page: `flowjax bench --report`."""

import html
import importlib
import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flowjax._files import replacing
from flowjax.report import COLOURS, figure, grid, page

from . import harness

_FIRST = ("dense", "peers", "screened", "streamed", "accuracy")
_MARKERS = "osD^vP*X"

Points = list[tuple[str, list[tuple[str, float]]]]
"""Series, each with its name and pairs of a row's name and a value."""


def write(out: Path, folder: Path | None = None) -> Path:
    """Write the page.

    Args:
        out: the file; an older one is replaced.
        folder: of the recorded JSON files; None means benchmarks/results.

    Raises:
        ValueError: nothing is recorded there, or a file of it is no JSON.
        FileNotFoundError: there is no folder to write to.
    """
    text = _page(read(harness.RESULTS if folder is None else folder))
    out = out.expanduser()
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out.absolute().parent} to write {out.name} to; make it first"
        )
    with replacing(out) as part:
        part.write_text(text, encoding="utf-8")
    return out


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The recorded results by name, those with most to say first."""
    results = {}
    for file in folder.glob("*.json"):
        try:
            results[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}); record it again with `flowjax bench`") from None
    if not results:
        raise ValueError(f"nothing is recorded in {folder}; `flowjax bench NAME` records a benchmark")
    rank = {name: place for place, name in enumerate(_FIRST)}
    return dict(sorted(results.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def _page(results: dict[str, dict[str, Any]]) -> str:
    lead = (
        "Figures are ratios inside one run, beside the machine's own limits. Runs of different dates or machines "
        "cannot be compared in seconds."
    )
    sections = [_section(name, result) for name, result in results.items()]
    return page(
        "flowjax · benchmarks", ["<h1>flowjax · benchmarks</h1>", f'<p class="lead">{lead}</p>', *sections]
    )


def _section(name: str, result: dict[str, Any]) -> str:
    heading = f"<h2>{html.escape(name)}</h2>"
    try:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        table = grid(*benchmark.table(result))
        figures = _FIGURES[name](result) if name in _FIGURES else []
        about = (benchmark.__doc__ or "").splitlines()[0]
        caption = _caption(result["machine"], result.get("rounds"))
    except (ModuleNotFoundError, AttributeError, KeyError, TypeError) as error:
        # One file of another version is no reason to withhold the rest.
        return (
            f'{heading}<p class="soft">Recorded by another version ({html.escape(repr(error))}): '
            f"run <code>flowjax bench {html.escape(name)}</code> again.</p>"
        )
    drawn = "".join(f"<figure>{each}</figure>" for each in figures)
    return "\n".join(
        [
            heading,
            f"<p>{html.escape(about)}</p>",
            table,
            f'<p class="soft">{html.escape(caption)}</p>',
            drawn,
        ]
    )


def _caption(machine: dict[str, Any], rounds: int | None) -> str:
    parts = [machine["processor"], f"{machine['cores']} cores", machine["device"], f"jax {machine['jax']}"]
    parts += [f"commit {machine['commit']}", machine["date"]]
    return ", ".join(parts) + (f"; medians of {rounds} rounds" if rounds else "")


def _dots(points: Points, label: str, alternative: str, *, line: float | None = None) -> str:
    """A row a name, a marker a series, on a logarithmic scale; `line` is where a reference stands."""
    names = list(dict.fromkeys(name for _, pairs in points for name, _ in pairs))

    def draw(axes):
        for k, (series, pairs) in enumerate(points):
            axes.plot(
                [value for _, value in pairs],
                [names.index(name) for name, _ in pairs],
                _MARKERS[k % len(_MARKERS)],
                color=COLOURS[k % len(COLOURS)],
                markersize=5,
                label=series,
            )
        if line is not None:
            axes.axvline(line, color="#888", linewidth=1, linestyle="--")
        axes.set(xscale="log", xlabel=label, yticks=range(len(names)), yticklabels=names)
        axes.xaxis.set_minor_formatter("")  # the decades are enough
        axes.invert_yaxis()
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

    return figure(draw, alternative, size=(7.4, 1.4 + 0.3 * len(names)))


def _dense(result: dict[str, Any]) -> list[str]:
    points = []
    for shape in result["shapes"]:
        rates = shape["gigaflop_per_second"]
        limit = rates["both products"]
        pairs = [(name, rate / limit) for name, rate in rates.items() if "product" not in name]
        points.append((f"d = {shape['dimension']}, b = {shape['queries']}", pairs))
    label = "share of the rate of the two products alone"
    return [_dots(points, label, "Share of the product rate, a row a method", line=1)]


def _peers(result: dict[str, Any]) -> list[str]:
    def values(key: str, smallest: float = 0.0) -> Points:
        return [
            (
                shape["name"],
                [
                    (row["name"], max(row[key], smallest))
                    for row in shape["peers"]
                    if row.get(key) is not None
                ],
            )
            for shape in result["shapes"]
        ]

    return [
        _dots(
            values("time_against_dense"),
            "time / time of flowjax's dense pass (left of the line: faster)",
            "Time of every peer against flowjax's dense pass",
            line=1,
        ),
        _dots(
            values("largest_relative_error", 1e-17),
            "largest relative error of the velocity",
            "True velocity error of every peer",
        ),
        _dots(
            values("share_of_product_rate"),
            "share of the rate of the two products alone",
            "Share of the product rate of every peer",
            line=1,
        ),
        _roofline(result["shapes"]),
    ]


def _roofline(shapes: list[dict[str, Any]]) -> str:
    """flowjax's dense pass under the machine's product rate and memory: the data read once, weights never written."""

    def draw(axes):
        limits = [shape["limits"] for shape in shapes]
        peak = statistics.median(each["square_product_gigaflop_per_second"] for each in limits)
        copy = statistics.median(each["copy_gigabyte_per_second"] for each in limits)
        ends = [1.0, 1e4]
        corner = peak / copy
        axes.plot([ends[0], corner, ends[1]], [copy * ends[0], peak, peak], color="#888", label="the machine")
        for k, shape in enumerate(shapes):
            b, n, d = shape["queries"], shape["points"], shape["dimension"]
            flop, bytes_ = 4.0 * b * n * d, 4.0 * (n * d + 2 * b * d)
            rate = flop / shape["peers"][0]["seconds"] / 1e9
            marker, colour = _MARKERS[k % len(_MARKERS)], COLOURS[k % len(COLOURS)]
            axes.plot(flop / bytes_, rate, marker, color=colour, label=shape["name"])
        axes.set(xscale="log", yscale="log", xlabel="flop per byte of data", ylabel="GFLOP/s")
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

    return figure(draw, "Roofline: rate of the dense pass against arithmetic intensity", size=(7.4, 3.6))


def _screened(result: dict[str, Any]) -> list[str]:
    """Cost against time, and survivors where they are recorded, for the batches of one time each."""
    cases = [
        (float(found.group(1)), case)
        for case in result["cases"]
        if (found := re.fullmatch(r"t = ([\d.]+)", case["name"]))
    ]
    if not cases:
        return []
    cases.sort(key=lambda pair: pair[0])
    methods = list(dict.fromkeys(name for _, case in cases for name in case["seconds"]))
    cost = _curves(
        [(m, [(t, 1e3 * c["seconds"][m]) for t, c in cases if m in c["seconds"]]) for m in methods],
        "milliseconds",
        "Cost against time",
    )
    left = [(t, _middle(case["survivors"])) for t, case in cases if case.get("survivors") is not None]
    return (
        [cost, _curves([("survivors", left)], "rows left (median)", "Survivors against time")]
        if left
        else [cost]
    )


def _middle(value: float | Iterable[float]) -> float:
    return float(value) if isinstance(value, int | float) else float(statistics.median(value))


def _curves(series: list[tuple[str, list[tuple[float, float]]]], label: str, alternative: str) -> str:
    def draw(axes):
        for k, (name, pairs) in enumerate(series):
            x, y = zip(*pairs, strict=True)
            line = "-" if k < len(COLOURS) else "--"  # colours come round again
            axes.plot(x, y, line, marker="o", markersize=3, color=COLOURS[k % len(COLOURS)], label=name)
        axes.set(xlabel="t", ylabel=label, yscale="log")
        axes.legend()

    return figure(draw, alternative)


_FIGURES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "dense": _dense,
    "peers": _peers,
    "screened": _screened,
}

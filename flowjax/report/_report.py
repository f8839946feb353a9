"""Assemble report.html from what a run directory holds.

The page reads `config.json`, `metrics.jsonl`, `evaluation.json` and the pictures under `samples/`. A run that was not
evaluated yet gets a page without those parts, which says so.
"""

import base64
import html
import json
import os
from pathlib import Path

from flowjax.training.run_dir import RunDirectory, write_whole

from . import _figures
from ._page import facts, page


def write_report(run_dir: str | os.PathLike) -> Path:
    """Write RUN_DIR/report.html, one self-contained file, and return its path.

    Args:
        run_dir: a run directory with at least config.json and metrics.jsonl.

    Raises:
        FileNotFoundError: if it is not a run directory.
    """
    run = RunDirectory(run_dir)
    config = run.read()
    evaluation = json.loads(run.evaluation_file.read_text()) if run.evaluation_file.is_file() else {}
    report = run.path / "report.html"
    write_whole(report, _page(run.path, config, run.metrics(), evaluation))
    return report


def _page(run_dir: Path, config: dict, metrics: list[dict], evaluation: dict) -> str:
    title = f"flowjax · {run_dir.name}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(_answer(evaluation))}</p>',
        _cards(metrics, evaluation),
        _pictures(run_dir, evaluation),
        _curves(metrics),
        _scores(evaluation),
        _collapse(evaluation),
        _timings(evaluation),
        f"<details><summary>Configuration</summary><pre>{html.escape(json.dumps(config, indent=2))}</pre></details>",
        facts("Versions", evaluation.get("versions", {})),
    ]
    return page(title, parts)


def _answer(evaluation: dict) -> str:
    if not evaluation:
        return "Not evaluated yet: run `flowjax evaluate` on this directory."
    third = evaluation["memorised_fraction"]["1/3"]
    verdict = (
        "the network does not repeat its training data"
        if third < 0.05
        else "part of the samples repeat training data"
    )
    real = evaluation.get("frechet_distance_of_real_rows")
    floor = "" if real is None else f" (as many real rows score {real['mean']:.3g} ± {real['std']:.2g})"
    return (
        f"Fréchet distance {evaluation['frechet_distance']:.3g} over {evaluation['num_samples']} samples{floor}, "
        f"in the features of {evaluation['features']}; {third:.1%} of the samples are memorised: {verdict}."
    )


def _cards(metrics: list[dict], evaluation: dict) -> str:
    cards = []
    if metrics:
        cards.append(("steps", f"{metrics[-1]['step']:,}"))
        cards.append(("last loss", f"{metrics[-1]['loss']:.4g}"))
    if evaluation:
        cards.append(("Fréchet distance", f"{evaluation['frechet_distance']:.3g}"))
        real = evaluation.get("frechet_distance_of_real_rows")
        if real is not None:
            cards.append(("… of as many real rows", f"{real['mean']:.3g} ± {real['std']:.2g}"))
        for ratio in ("1/3", "2/3"):
            cards.append((f"memorised (ratio {ratio})", f"{evaluation['memorised_fraction'][ratio]:.1%}"))
        cards.append(("evaluations per sample", f"{evaluation['num_evaluations']:,}"))
    inner = "".join(f'<div class="card"><b>{html.escape(v)}</b>{html.escape(k)}</div>' for k, v in cards)
    return f'<div class="cards">{inner}</div>'


def _pictures(run_dir: Path, evaluation: dict) -> str:
    samples = run_dir / "samples"
    final, nearest = samples / "final.png", samples / "nearest.png"
    if final.is_file() and nearest.is_file():
        inner = _picture(final, "samples of the network") + _picture(
            nearest, "the training images nearest to them"
        )
    else:
        steps = sorted(samples.glob("step-*.png"))
        if not steps:
            return ""
        inner = _picture(steps[-1], f"samples ({steps[-1].stem})")
    distance = evaluation.get("nearest_distance_median")
    note = (
        ""
        if distance is None
        else f'<p class="soft">Median distance to the nearest training image: {distance:.3g}.</p>'
    )
    return f'<h2>Samples, and the training images nearest to them</h2><div class="pair">{inner}</div>{note}'


def _picture(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img class="pixels" src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _curves(metrics: list[dict]) -> str:
    if len(metrics) < 2:
        return ""
    figures = [_figures.loss_curve([m["step"] for m in metrics], [m["loss"] for m in metrics])]
    scored = [m for m in metrics if m.get("frechet_distance") is not None]
    if scored:
        figures.append(
            _figures.frechet_curve([m["step"] for m in scored], [m["frechet_distance"] for m in scored])
        )
    inner = "".join(f"<figure>{f}</figure>" for f in figures)
    return f'<h2>Training</h2><div class="pair">{inner}</div>'


def _scores(evaluation: dict) -> str:
    parts = []
    for scores in evaluation.get("scores", ()):
        of = (
            f"{scores['num_samples']} samples against {scores['reference']} ({scores['num_reference']} rows), "
            f"features: {scores['network']}"
        )
        notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in scores["notes"])
        parts.append(f"<p>{html.escape(of)}</p>{facts('', scores['values'])}{notes}")
    return "<h2>All measures</h2>" + "".join(parts) if parts else ""


def _collapse(evaluation: dict) -> str:
    curve = evaluation.get("target_curve")
    if not curve:
        return ""
    coincide = next(
        (t for t, v in zip(curve["t"], curve["relative_variance"], strict=True) if v < 0.01), None
    )
    if coincide is None:
        text = (
            "The target keeps more than 1 % of the data's variance at every time drawn: stochastic and exact target "
            "differ throughout."
        )
    else:
        text = (
            f"From t = {coincide:.2f} on, less than 1 % of the data's variance is left in the stochastic target: "
            "there it is the exact one in all but name."
        )
    drawn = _figures.collapse_curves(curve["t"], curve["relative_variance"], curve["effective_sample_size"])
    return f"<h2>What the exact target is on this data set</h2><p>{text}</p><figure>{drawn}</figure>"


def _timings(evaluation: dict) -> str:
    timings = evaluation.get("timings")
    if not timings:
        return ""
    lead = ""
    share = timings.get("target_share_of_step")
    if share is not None:
        lead = f"<p>The target takes {share:.1%} of a training step.</p>"
    return f"<h2>Time</h2>{lead}{facts('', timings)}"

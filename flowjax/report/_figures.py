"""Figures of the report, each drawn twice, for a light and for a dark page, as inline SVG."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

_INK = {"light": "#1c1f24", "dark": "#e7e9ec"}
_GRID = {"light": "#d5d9de", "dark": "#3b414a"}
COLOURS = ("#2f6fde", "#d9822b", "#2e9e6b", "#b04fc4")


def figure(draw: Callable[[Any], None], alternative: str, *, size: tuple[float, float] = (5.6, 3.2)) -> str:
    """HTML of a figure that follows the reader's colour scheme.

    Args:
        draw: called with a matplotlib Axes, once per scheme.
        alternative: what the figure shows, in words.
        size: width and height in inches.
    """
    light, dark = (_svg(draw, scheme, size) for scheme in ("light", "dark"))
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{html.escape(alternative)}"></picture>'
    )


def _svg(draw: Callable[[Any], None], scheme: str, size: tuple[float, float]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(fig)
    axes = fig.add_subplot()
    draw(axes)
    ink, grid = _INK[scheme], _GRID[scheme]
    fig.patch.set_alpha(0)
    for each in fig.axes:
        each.patch.set_alpha(0)
        each.tick_params(colors=ink, which="both")
        each.grid(visible=True, color=grid, linewidth=0.6)
        for text in (each.title, each.xaxis.label, each.yaxis.label):
            text.set_color(ink)
        for spine in each.spines.values():
            spine.set_color(grid)
        legend = each.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(ink)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curve(steps: Sequence[float], losses: Sequence[float]) -> str:
    """Loss of every logged step and its running median."""
    import numpy as np

    window = max(1, len(losses) // 50)
    smooth = [float(np.median(losses[max(0, i - window) : i + window + 1])) for i in range(len(losses))]

    def draw(axes):
        axes.plot(steps, losses, color=COLOURS[0], alpha=0.3, linewidth=0.8, label="logged step")
        axes.plot(steps, smooth, color=COLOURS[0], label="running median")
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.legend()

    return figure(draw, "Training loss against step")


def frechet_curve(steps: Sequence[float], distances: Sequence[float]) -> str:
    """Fréchet distance of samples drawn during training."""

    def draw(axes):
        axes.plot(steps, distances, color=COLOURS[1], marker="o", markersize=3)
        axes.set(xlabel="step", ylabel="Fréchet distance", yscale="log")

    return figure(draw, "Fréchet distance against step")


def collapse_curves(t: Sequence[float], variance: Sequence[float], effective: Sequence[float]) -> str:
    """Where the stochastic target and the exact one coincide: both fall to their floor at the collapse."""

    def draw(axes):
        left = axes.plot(
            t, variance, color=COLOURS[0], label="share of the data's variance left in the target"
        )
        axes.set(xlabel="t", ylabel="target variance / data variance", ylim=(-0.02, 1.05))
        other = axes.twinx()
        right = other.plot(t, effective, color=COLOURS[1], label="effective sample size (median)")
        other.set(ylabel="effective sample size", yscale="log")
        axes.legend(handles=left + right, loc="upper right", fontsize=8)

    return figure(
        draw, "Variance of the conditional target and effective sample size against time", size=(7.4, 3.6)
    )

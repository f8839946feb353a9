"""A self-contained page for light and dark screens, and the tables it is made of; what it says is its caller's."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #59616c; --page: #fff; --card: #f4f6f8; --line: #d5d9de; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #a3abb6; --page: #15181c; --card: #1f242a; --line: #3b414a; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.lead { font-size: 1.1rem; margin: .2rem 0 1.2rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.card { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } img { max-width: 100%; height: auto; } img.pixels { image-rendering: pixelated; width: 100%; }
table { border-collapse: collapse; font-size: .9rem; } td, th { text-align: left; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
details { margin-top: 2rem; } pre { background: var(--card); padding: 1rem;
  overflow: auto; border-radius: .6rem; font-size: .8rem; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file: its title and its parts, which are HTML; empty ones are left out."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, its first column as headings of the rows."""

    def cells(tag: str, values: Iterable[str]) -> str:
        return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('th', row[:1])}{cells('td', row[1:])}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", header)}</tr>{body}</table></div>'


def text(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts(title: str, values: dict[str, Any]) -> str:
    """A table of names and values under a heading, or nothing if there are none."""
    if not values:
        return ""

    rows = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(text(value))}</td></tr>"
        for key, value in values.items()
    )
    heading = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"{heading}<table>{rows}</table>"

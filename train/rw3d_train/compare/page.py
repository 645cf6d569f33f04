"""Markdown, and one HTML page of it that holds its pictures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 72rem; margin: 2.5rem auto 5rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid #ddd; }
p { max-width: 48rem; }
img { max-width: 100%; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; border-bottom: 2px solid #bbb; white-space: normal; vertical-align: bottom; max-width: 9rem; }
td { border-bottom: 1px solid #eee; }
tbody tr:hover { background: #f6f8fa; }
code { font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: #f4f4f4; padding: .1em .3em; }
pre { background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; }
pre code { padding: 0; background: none; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: #0a58a8; }
"""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table: names at the left, numbers at the right."""
    rule = [":--", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in (head, rule, *lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def picture(what: str, file: str) -> str:
    """A picture beside the report; `what` is read where it cannot be seen."""
    return f"![{what}]({file})"


def code(text: str) -> str:
    """Text as it stands, in a fence that is longer than any within it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def folded(title: str, text: str) -> str:
    """Text that is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>\n\n{text}\n\n</details>"


def to_html(text: str, title: str, folder: Path) -> str:
    """A page with the pictures of `folder` inside, so that the file alone can be sent around. It has no scripts."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(text)
    body = re.sub(r'(<img src=")([^":]+)(")', lambda found: f"{found[1]}{_data(folder / found[2])}{found[3]}", body)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n<body>\n{body}</body>\n</html>\n"
    )


def _data(path: Path) -> str:
    """A picture as an address that holds it."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

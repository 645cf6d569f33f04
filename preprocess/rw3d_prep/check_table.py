"""Tables of `rw3d-prep datasets check`."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from rw3d_prep.check import LayoutCheck

SHOWN = 5


def layout_table(root: Path, layout: LayoutCheck) -> Table:
    """Files per part of the layout, then what fits none of them and what has another checksum."""
    table = Table("files", "state", "what", "where", title=f"Layout of {root}", title_justify="left")
    for part, count in layout.counts:
        state = "present" if count else "[red]missing[/]" if part.required else "not there"
        table.add_row(f"{count:,}", state, part.what, part.glob)
    for title, names in (("unexpected", layout.unexpected), ("[red]altered[/]", layout.altered)):
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            table.add_row(
                f"{len(names):,}",
                title,
                "fits no part" if "un" in title else "SHA-256 differs",
                ", ".join(names[:SHOWN]) + more,
            )
    return table


def frames_table(counts: dict[str, dict[str, int]]) -> Table:
    """Frames per split, and how many have each part."""
    first = next(iter(counts.values()))
    table = Table("split", *first, title="Frames", title_justify="left")
    for split, row in counts.items():
        table.add_row(split, *(f"{number:,}" for number in row.values()))
    return table

"""Plots of a comparison. matplotlib is imported where a figure is made; no window system is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rw3d_common.errors import UserError
from rw3d_train.compare.recipe import CompareRecipe
from rw3d_train.compare.tables import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which most colour-blind people tell apart; the reference is grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5230", "#332288")
GREY = "#666666"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
WIDE = 9.0  # inches
DPI = 140
ACROSS = 4  # most axes beside each other


def require_plots() -> None:
    """Say that plots cannot be made before hours of training, not after them.

    Raises:
        UserError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise UserError("the report's plots need matplotlib: pip install 'rw3d[report]'")


def colors_of(recipe: CompareRecipe, names: Iterable[str]) -> dict[str, str]:
    """The colour of every row, the same in all plots."""
    reference = recipe.reference.name if recipe.reference else None
    others = [name for name in names if name != reference]
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(others)} | (
        {reference: GREY} if reference else {}
    )


def plot_scores(recipe: CompareRecipe, entries: Sequence[Entry], colors: Mapping[str, str], file: Path) -> None:
    """mIoU of every row, a field per column: mean, standard deviation, and what is published; or lines over `x`."""
    with figure_in(file) as figure:
        if recipe.x is not None:
            _lines_over_x(figure, recipe, entries, colors)
        else:
            _dots(figure, recipe, entries, colors)


def _dots(figure: Figure, recipe: CompareRecipe, entries: Sequence[Entry], colors: Mapping[str, str]) -> None:
    rows = list(dict.fromkeys(entry.row for entry in entries))
    across = min(len(recipe.columns), ACROSS)
    down = -(-len(recipe.columns) // across)
    figure.set_size_inches(WIDE, down * (0.36 * len(rows) + 0.9))
    fields = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, column in zip(fields.flat, recipe.columns, strict=False):
        axes.set_title(column.name if len(recipe.columns) > 1 else "")
        for entry in entries:
            if entry.column == column.name:
                _dot(axes, entry, rows.index(entry.row), colors[entry.row])
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    for axes in fields.flat[len(recipe.columns) :]:
        axes.set_visible(False)
    for axes in fields[-1]:
        axes.set_xlabel("mIoU, %")
    _key(figure, entries)


def _dot(axes: Axes, entry: Entry, place: int, color: str) -> None:
    if entry.published is not None:
        axes.plot(
            entry.published, place, marker="D", markersize=6, markerfacecolor="none", color=color, linestyle="none"
        )
    if entry.miou is not None:
        place_of_dot = (entry.miou.mean, place)
        axes.errorbar(*place_of_dot, xerr=entry.miou.std, fmt="o", color=color, markersize=6, capsize=3)
        how: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom", "color": color, "fontsize": 8}
        axes.annotate(f"{entry.miou.mean:.1f}", place_of_dot, (0, 4), **how)
        axes.margins(x=0.1)


def _key(figure: Figure, entries: Sequence[Entry]) -> None:
    """Say what the marks mean, where more than the obvious one occur."""
    if any(entry.published is not None for entry in entries):
        figure.supxlabel("●  ours, with standard deviation over seeds     ◇  published", fontsize=8, color=GREY)


def _lines_over_x(figure: Figure, recipe: CompareRecipe, entries: Sequence[Entry], colors: Mapping[str, str]) -> None:
    figure.set_size_inches(WIDE * 0.75, 3.6)
    axes = figure.subplots()
    value = {column.name: column.value or 0.0 for column in recipe.columns}
    for row in dict.fromkeys(entry.row for entry in entries):
        of_row = sorted((entry for entry in entries if entry.row == row), key=lambda entry: value[entry.column])
        ours = [(value[entry.column], entry.miou) for entry in of_row if entry.miou is not None]
        theirs = [(value[entry.column], entry.published) for entry in of_row if entry.published is not None]
        style = "--" if recipe.reference and row == recipe.reference.name else "-"
        if ours:
            means, spreads = [number.mean for _, number in ours], [number.std or 0 for _, number in ours]
            axes.errorbar(
                [x for x, _ in ours], means, spreads, fmt=f"o{style}", color=colors[row], capsize=3, label=row
            )
        if theirs:
            axes.plot(
                *zip(*theirs, strict=True), "D:", color=colors[row], markerfacecolor="none", label=f"{row}, published"
            )
    axes.set_xlabel(recipe.x or "")
    axes.set_ylabel("mIoU, %")
    legend_beside(axes)


@contextmanager
def figure_in(file: Path) -> Iterator[Figure]:
    """An empty figure, written to `file` when its caller has drawn it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        yield figure
        figure.savefig(file, dpi=DPI)


def fields_of(figure: Figure, count: int, height: float, across: int = ACROSS) -> list[Axes]:
    """`count` fields, `height` inches each, in lines of at most `across`."""
    across = max(min(count, across), 1)
    down = max(-(-count // across), 1)
    figure.set_size_inches(WIDE, height * down + 0.5)
    flat = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in flat[count:]:
        axes.set_visible(False)
    return flat[:count]


def legend_beside(axes: Axes) -> None:
    """A legend to the right of a field; each name once."""
    handles, names = axes.get_legend_handles_labels()
    if once := dict(zip(names, handles, strict=True)):
        axes.legend(list(once.values()), list(once), loc="center left", bbox_to_anchor=(1.0, 0.5))


def legend_below(figure: Figure) -> None:
    """One legend of all fields, under them; each name once."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if once := {name: handle for handle, name in found}:
        figure.legend(list(once.values()), list(once), loc="outside lower center", ncols=min(len(once), 4))

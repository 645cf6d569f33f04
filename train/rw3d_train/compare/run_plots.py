"""Plots of how the cells of a comparison were trained: held-out scores, losses, diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rw3d_train.compare.curves import HELD_OUT, Curves
from rw3d_train.compare.plots import COLORS, GREY, WIDE, fields_of, figure_in, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = (
    ("loss/2d", "2D total"),
    ("loss/supervised_2d", "2D supervised"),
    ("loss/consistency_2d", "2D consistency"),
    ("loss/cross_modal_2d", "2D cross-modal"),
    ("loss/3d", "3D total"),
    ("loss/supervised_3d", "3D supervised"),
    ("loss/consistency_3d", "3D consistency"),
    ("loss/cross_modal_3d", "3D cross-modal"),
)
DIAGNOSED = (
    ("diagnose/agreement", "teachers agree", "#000000"),
    ("diagnose/precision_2d", "labels for 2D right", COLORS[0]),
    ("diagnose/weighted_precision_2d", "labels for 2D right, by weight", COLORS[5]),
    ("diagnose/precision_3d", "labels for 3D right", COLORS[1]),
    ("diagnose/weighted_precision_3d", "labels for 3D right, by weight", COLORS[4]),
)


def plot_held_out(
    columns: Sequence[str], found: Mapping[tuple[str, str, int], Curves], colors: Mapping[str, str], file: Path
) -> None:
    """The student's mIoU on scenes kept out of training, by their sparse labels: a line per row and seed.

    Args:
        columns: a field each.
        found: by row, column and seed.
        colors: by row.
        file: the picture to write.
    """
    with figure_in(file) as figure:
        fields = fields_of(figure, len(columns), 2.4)
        for axes, column in zip(fields, columns, strict=True):
            axes.set_title(column if len(columns) > 1 else "")
            for (row, _, _), curves in ((key, one) for key, one in found.items() if key[1] == column):
                epochs, values = curves.over_epochs(HELD_OUT)
                if epochs:
                    percent = [100 * value for value in values]
                    axes.plot(epochs, percent, ".-", color=colors[row], linewidth=1.2, alpha=0.8, label=row)
            _epochs_below(axes)
        fields[0].set_ylabel("held-out mIoU, %")
        legend_below(figure)


def plot_losses(found: Mapping[str, Curves], colors: Mapping[str, str], file: Path) -> None:
    """Every part of the losses over steps, a field each, a line per row."""
    told = {key for curves in found.values() for key in curves.names()}
    parts = [(key, name) for key, name in LOSSES if key in told]
    with figure_in(file) as figure:
        for axes, (key, name) in zip(fields_of(figure, len(parts), 1.9), parts, strict=True):
            axes.set_title(name)
            for row, curves in found.items():
                steps, values = curves.over_steps(key)
                if steps:
                    axes.plot(steps, values, color=colors[row], linewidth=1, label=row)
            axes.margins(x=0.02)
        legend_below(figure)


def plot_diagnostics(found: Mapping[str, Curves], file: Path) -> None:
    """For each row a line of fields: agreement of the teachers and precision of their labels over epochs, and weights."""
    with figure_in(file) as figure:
        figure.set_size_inches(WIDE, 2.1 * len(found) + 0.5)
        fields = figure.subplots(len(found), 2, squeeze=False, sharex="col", sharey="col", width_ratios=(3, 2))
        for (row, curves), (left, right) in zip(found.items(), fields, strict=True):
            left.set_title(row)
            for key, name, color in DIAGNOSED:
                epochs, values = curves.over_epochs(key)
                if epochs:
                    left.plot(epochs, [100 * value for value in values], ".-", color=color, label=name)
            left.set_ylabel("%")
            _histogram(right, curves)
        _epochs_below(fields[-1][0])
        fields[-1][1].set_xlabel("weight")
        legend_below(figure)


def _histogram(axes: Axes, curves: Curves) -> None:
    counts: Any = curves.last("diagnose/weights_2d")
    edges: Any = curves.last("diagnose/weight_edges")
    if not counts or not edges or sum(counts) == 0:
        axes.text(0.5, 0.5, "no weights told", transform=axes.transAxes, ha="center", color=GREY)
        return
    shares = [100 * count / sum(counts) for count in counts]
    axes.stairs(shares, edges, fill=True, color=COLORS[0], alpha=0.75)
    axes.set_title("weights of labels for 2D, last epoch")
    axes.set_ylabel("% of them")


def _epochs_below(axes: Axes) -> None:
    """Epochs along the axis: whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))

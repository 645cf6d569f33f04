"""Tables for `rw3d-prep inspect` and for the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.table import Table

from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.scene import Scene
from rw3d_common.scene_sample import SceneSamples, has_samples
from rw3d_prep.align import Link
from rw3d_prep.health import scene_health


def scenes_table(scenes: Sequence[Scene]) -> Table:
    """One row per scene."""
    table = _table("Scenes", "scene", "geometry", "views", "with labels", "points", "labelled", "MB", "residual")
    for scene in scenes:
        record = scene.attrs["complete"]
        size = sum(file["size"] for file in record["files"].values()) / 1e6
        residual = scene.view_table["reprojection_residual"]
        table.add_row(
            scene.name,
            scene.attrs["backend"]["name"] if scene.has_geometry else "none",
            f"{len(scene):,}",
            f"{int(scene.view_table['has_label'].sum()):,}",
            f"{scene.n_points:,}",
            f"{record['labelled_points'] / scene.n_points:.2%}" if scene.n_points else "–",
            f"{size:,.1f}",
            _median(residual, "{:.2%}"),
        )
    return table


def classes_table(scenes: Sequence[Scene]) -> Table:
    """Points with sparse label and with truth per class, over all scenes, and the share of the truth labelled."""
    classes = scenes[0].classes
    table = _table("Classes", "id", "class", "sparse points", "share", "truth points", "labelled of truth", "in 3D")
    label, truth = _class_counts(scenes, "label"), _class_counts(scenes, "truth")
    for item in classes.classes:
        sparse, dense = label[item.train_id], truth[item.train_id]
        table.add_row(
            str(item.train_id),
            f"[rgb({item.color[0]},{item.color[1]},{item.color[2]})]■[/] {item.name}",
            f"{sparse:,}",
            f"{sparse / max(label[:IGNORE].sum(), 1):.1%}",
            f"{dense:,}" if truth.any() else "–",
            f"{sparse / dense:.1%}" if dense else "–",
            "yes" if item.in_3d else "no",
        )
    return table


def views_table(scene: Scene, rows: int = 12) -> Table:
    """Points, labels, confidence quantiles, coverage and health of up to `rows` views of a scene, evenly chosen."""
    table = _table(
        f"Views of {scene.name}",
        "frame", "camera", "points", "labelled", "confidence 5 / 50 / 95 %", "covered", "valid", "depth 1–99 % m", "residual",
    )  # fmt: skip
    columns = scene.view_table
    for index in np.unique(np.linspace(0, len(scene) - 1, min(rows, len(scene))).astype(int)):
        view = scene.view(int(index))
        low, high = columns["depth_range"][index]
        labelled = np.count_nonzero(view.label != IGNORE)
        table.add_row(
            str(view.frame_id),
            view.camera,
            f"{len(view.position):,}",
            f"{labelled:,}" if view.has_label else "no label",
            _quantiles(view.confidence),
            f"{columns['covered'][index]:.0%}",
            _number(columns["finite_share"][index], "{:.0%}"),
            "–" if np.isnan(low) else f"{low:.1f}–{high:.1f}",
            _median(columns["reprojection_residual"][index : index + 1], "{:.2%}"),
        )
    return table


def samples_table(scenes: Sequence[Scene]) -> Table:
    """One row per scene that has samples: how many, how large, and how many correspondences and labels they hold."""
    table = _table(
        "Samples",
        "scene", "samples", "points each", "correspondences: mean", "5 %", "share of own", "labelled", "attached", "MB",
    )  # fmt: skip
    for scene in scenes:
        if has_samples(scene.path):
            table.add_row(scene.name, *_samples_row(scene))
    return table


def health_table(scenes: Sequence[Scene]) -> Table:
    """One row per scene with views: what tells a sound reconstruction from a failed one, and what is out of bounds.

    Scale, ATE and RPE compare the scene's cameras with the dataset's own poses after the best Sim(3).
    """
    table = _table(
        "Health",
        "scene", "valid", "depth span", "residual", "jitter", "given poses", "scale", "ATE m", "RPE m", "RPE °", "state",
    )  # fmt: skip
    for scene in scenes:
        if not len(scene):
            continue
        health = scene_health(scene)
        table.add_row(
            scene.name,
            _number(health.finite_share, "{:.0%}"),
            _number(health.depth_ratio, "1 : {:,.0f}"),
            _number(health.residual, "{:.2%}"),
            _number(health.jitter, "{:.2f}"),
            f"{health.given_poses:,}",
            _number(health.scale, "{:.3f}"),
            _number(health.ate, "{:.3f}"),
            _number(health.rpe, "{:.3f}"),
            _number(health.rpe_degrees, "{:.2f}"),
            "; ".join(health.faults()) or ("healthy" if scene.has_geometry else "no geometry"),
        )
    return table


def alignment_table(links: Sequence[Link]) -> Table:
    """One row per pair of overlapping scenes: how they lie to each other, and how well that holds."""
    table = _table(
        "Alignment",
        "scene", "to", "shared views", "pixels", "scale", "rotation °", "shift m", "residual", "residual m", "inliers",
    )  # fmt: skip
    for link in links:
        known = link.sim3 is not None
        table.add_row(
            link.scene,
            link.predecessor.rsplit("/", 1)[-1],
            f"{link.shared_views:,}",
            f"{link.correspondences:,}",
            f"{link.sim3.scale:.4f}" if link.sim3 else "–",
            f"{link.sim3.degrees():.2f}" if link.sim3 else "–",
            f"{np.linalg.norm(link.sim3.translation):.2f}" if link.sim3 else "–",
            f"{link.residual:.2%}" if known else "–",
            f"{link.residual_metres:.3f}" if known else "–",
            f"{link.inlier_share:.0%}",
        )
    return table


def _samples_row(scene: Scene) -> list[str]:
    try:
        samples = SceneSamples(scene.path)
    except UserError:
        return ["damaged: ask verify"]
    record, count = samples.record, len(samples)
    return [
        f"{count:,}",
        f"{record['points'] / count:,.0f}",
        f"{record['correspondences']['mean']:,.0f}",
        f"{record['correspondences']['quantile_05']:,.0f}",
        f"{record['own_points'] / max(record['points'], 1):.1%}",
        f"{record['labelled_points'] / count:,.0f}",
        f"{record['attached_labels'] / count:,.1f}",
        f"{sum(file['size'] for file in record['files'].values()) / 1e6:,.1f}",
    ]


def report(scenes: Sequence[Scene], views_of: int = 1) -> Group:
    """All tables: scenes, health, samples and classes where there are any, views of the first `views_of` that have some."""
    parts = [scenes_table(scenes)]
    if any(map(len, scenes)):
        parts.append(health_table(scenes))
    if any(has_samples(scene.path) for scene in scenes):
        parts.append(samples_table(scenes))
    if len(scenes[0].classes) and any(scene.n_points for scene in scenes):
        parts.append(classes_table(scenes))
    parts += [views_table(scene) for scene in [one for one in scenes if len(one) and one.has_geometry][:views_of]]
    return Group(*parts)


def _class_counts(scenes: Sequence[Scene], name: str) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for scene in scenes:
        for train_id, number in scene.attrs["complete"]["class_points"].get(name, {}).items():
            counts[int(train_id)] += number
    return counts


def _quantiles(confidence: np.ndarray) -> str:
    if confidence.size == 0:
        return "–"
    return " / ".join(f"{value:.3g}" for value in np.quantile(confidence, [0.05, 0.5, 0.95], method="nearest"))


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else form.format(value)


def _median(values: np.ndarray, form: str) -> str:
    finite = values[np.isfinite(values)]
    return form.format(np.median(finite)) if finite.size else "–"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, name in enumerate(columns):
        left = index == 0 or name in ("geometry", "class", "camera", "to", "state")
        table.add_column(name, justify="left" if left else "right", no_wrap=name in ("scene", "class", "to"))
    return table

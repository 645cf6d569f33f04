"""What each kind of sparse labels can be asked for, and which folders it fills."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rw3d_prep.sparse_labels.scribbles import Preset


@dataclass(frozen=True)
class PointSettings:
    """One pixel per class, or per instance, among those that nearest resampling by `scale` keeps."""

    kind: ClassVar[str] = "points"
    per_instance: bool = False
    scale: float = 1.0

    def folders(self, out: Path) -> dict[Path, dict[str, Any]]:
        """The folders of labels below `out`, each with the settings that its labels have."""
        return {out: asdict(self)}


@dataclass(frozen=True)
class ScribbleSettings:
    """One curve per region; of each curve the shares `lengths` are drawn, each into a folder of its own."""

    kind: ClassVar[str] = "scribbles"
    preset: Preset
    lengths: tuple[float, ...]

    def folders(self, out: Path) -> dict[Path, dict[str, Any]]:
        """`out` for one length, `out/length_0.5` and so on for several."""
        several = len(self.lengths) > 1
        return {
            out / f"length_{length}" if several else out: {**asdict(self.preset), "length": length}
            for length in self.lengths
        }


@dataclass(frozen=True)
class CoarseSettings:
    """Polygons that keep `margin`, a share of the image's height, from the region's border."""

    kind: ClassVar[str] = "coarse"
    margin: float = 0.01

    def folders(self, out: Path) -> dict[Path, dict[str, Any]]:
        """Just `out`."""
        return {out: asdict(self)}


Settings = PointSettings | ScribbleSettings | CoarseSettings

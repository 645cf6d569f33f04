"""`--shard i/n`: the i-th of n parts of a recipe, for array jobs that share an output folder but no scheduler.

Jobs agree without talking, because each deals out all batches of the recipe, finished or not. A job sweeps and records
only what is its own; the manifest is written by the one that finds every scene there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rw3d_common.errors import UserError
from rw3d_prep.work import Work, steps_of


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1; without arguments the whole."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "i/n".

        Raises:
            UserError: anything else, or not 1 ≤ i ≤ n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        index, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise UserError(
                f"--shard {text}: give i/n with i from 1 to n, for example --shard 3/8 for the third of eight jobs"
            )
        return cls(index, count)

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def of(self, works: Sequence[Work]) -> list[Work]:
        """This part: consecutive works whose middle lies in the i-th of n equal stretches of all views.

        So a part is longer than its n-th by less than the longest batch.
        """
        total, before, mine = sum(map(steps_of, works)), 0, []
        for work in works:
            views = steps_of(work)
            if (2 * before + views) * self.count // (2 * total) == self.index - 1:
                mine.append(work)
            before += views
        return mine

    def file(self, path: Path) -> Path:
        """The file that this job writes in place of one that a whole run writes: jobs never append to the same."""
        return path if self.is_whole else path.with_stem(f"{path.stem}-{self.index}of{self.count}")

    def files_read(self, path: Path) -> list[Path]:
        """The files of earlier runs that this one follows up: of this part, or, for the whole, of all parts."""
        return (
            sorted([path, *path.parent.glob(f"{path.stem}-*of*{path.suffix}")]) if self.is_whole else [self.file(path)]
        )


WHOLE = Shard()

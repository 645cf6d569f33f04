"""What a report is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rw3d_train.compare.cells import Cell
from rw3d_train.compare.recipe import CompareRecipe
from rw3d_train.compare.runner import Failure
from rw3d_train.compare.tables import Entry


@dataclass(frozen=True)
class Comparison:
    """`cells` of every seed, `entries` of the table, and what failed now; `command` is what was typed."""

    recipe: CompareRecipe
    cells: Sequence[Cell]
    entries: Sequence[Entry]
    failed: Sequence[Failure]
    command: str

    @property
    def rows(self) -> list[str]:
        """Every row of the table, in order."""
        return list(dict.fromkeys(entry.row for entry in self.entries))

    @property
    def first_seed(self) -> int:
        """The seed that pictures and losses are shown of."""
        return self.cells[0].seed

    def columns(self) -> Iterator[tuple[int, str, list[str]]]:
        """Number and name of every column, and a heading for what follows of it: none where it is the only one."""
        for number, column in enumerate(self.recipe.columns):
            yield number, column.name, [f"**{column.name}**"] if len(self.recipe.columns) > 1 else []

    def of_column(self, column: str, seed: int | None = None) -> list[Cell]:
        """The cells of a column, of one seed or of all."""
        return [cell for cell in self.cells if cell.column == column and seed in (None, cell.seed)]

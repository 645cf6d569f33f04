"""What a run says of itself: `metrics.jsonl` always, TensorBoard where it is installed, Weights & Biases by flag."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.log import Metrics
from rw3d_train.data.collate import Batch
from rw3d_train.distributed import rank, sum_over_ranks, world
from rw3d_train.metrics import Scores

if TYPE_CHECKING:
    from rw3d_train.run import Run

EVERY_STEPS = 20
Item = TypeVar("Item")


class Logbook:
    """Collects the numbers of steps and writes their means every `EVERY_STEPS`; rank 0 alone writes.

    Values stay on the device until they are written, so that no step waits for it.
    """

    def __init__(self, out: Path, run: Run, wandb: bool = False) -> None:
        self.run, self.out, self.metrics = run, out, Metrics(out / "metrics.jsonl")
        self.summary = ""
        self._trackers = _trackers(out, wandb) if rank() == 0 else []
        self._start_over()

    def _start_over(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._items = 0
        self._waited, self._since = 0.0, time.perf_counter()

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; how long they are waited for is counted."""
        while True:
            started = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield item

    def note(self, losses: dict[str, Tensor], parts: list[tuple[Batch, Batch]]) -> None:
        """Add the losses of a step, and the share of labelled pixels, points and correspondences of its batch."""
        numbers = {f"loss/{name}": value for name, value in losses.items()}
        numbers |= _density([student for student, _ in parts])
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._steps += 1
        self._items += sum(len(student) for student, _ in parts) * world()
        if self._steps == EVERY_STEPS or self.run.position + 1 == self.run.steps_per_epoch:
            self._write()

    def _write(self) -> None:
        elapsed = time.perf_counter() - self._since
        means = {name: float(sum_over_ranks(total)) / self._steps / world() for name, total in self._sums.items()}
        rates = {f"lr/{name}": opt.param_groups[0]["lr"] for name, opt in self.run.optimizers.items()}
        speed = {"samples_per_s": self._items / elapsed, "data_wait_share": self._waited / elapsed}
        self._send(self.run.step + 1, {**means, **rates, **speed, "bad_steps": self.run.bad_steps})
        totals = ", ".join(f"loss {name} {means[f'loss/{name}']:.3f}" for name in self.run.method.students)
        self.summary = f"{totals}, {speed['samples_per_s']:.1f} samples/s, {speed['data_wait_share']:.0%} waiting"
        self._start_over()

    def scores(self, scores: dict[str, Scores]) -> None:
        """Write the scores of an evaluation."""
        numbers = {f"select/{name}/miou": one.miou for name, one in scores.items()}
        self._send(self.run.step, {"epoch": self.run.epoch, **numbers})
        self._start_over()

    def diagnosis(self, numbers: dict[str, Any]) -> None:
        """Write what `diagnose` found, if anything."""
        if numbers:
            self._send(self.run.step, {"epoch": self.run.epoch, **numbers})
        self._start_over()

    def _send(self, step: int, numbers: dict[str, Any]) -> None:
        if rank() == 0:
            self.metrics.write(step=step, **{name: _finite(value) for name, value in numbers.items()})
            scalars = {name: value for name, value in numbers.items() if not isinstance(value, list)}
            for tracker in self._trackers:
                tracker.send(step, scalars)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()


def _density(batches: list[Batch]) -> dict[str, Tensor]:
    """Shares of what teaches: labelled pixels, labelled points, and pixels with a point."""
    pixels = torch.cat([batch.label.flatten() for batch in batches])
    points = torch.cat([batch.point_label for batch in batches])
    pairs = sum(len(batch.correspondences) for batch in batches)
    return {
        "labelled_pixels": (pixels != IGNORE).float().mean(),
        "labelled_points": (points != IGNORE).float().mean(),
        "correspondences_per_pixel": torch.tensor(pairs / len(pixels)),
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such values become null."""
    return None if isinstance(value, float) and value - value != 0 else value


class _TensorBoard:
    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def send(self, step: int, numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, out: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs its package: pip install wandb; or leave the flag out") from None
        self.run = wandb.init(project="rw3d", name=out.name, dir=str(out), resume="allow", id=out.name)

    def send(self, step: int, numbers: dict[str, Any]) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


def _trackers(out: Path, wandb: bool) -> list[_TensorBoard | _Wandb]:
    found: list[_TensorBoard | _Wandb] = [_TensorBoard(out)] if find_spec("tensorboard") else []
    return [*found, _Wandb(out)] if wandb else found

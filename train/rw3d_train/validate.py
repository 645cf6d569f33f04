"""Scores while training, to choose the best checkpoint by: on scenes kept out of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Subset

from rw3d_train.data.views import LabelledView, ViewDataset
from rw3d_train.distributed import rank, world
from rw3d_train.evaluate import evaluate_2d
from rw3d_train.networks import evaluating

if TYPE_CHECKING:
    from rw3d_train.logbook import Logbook
    from rw3d_train.run import Run


def views_of_rank(views: ViewDataset, workers: int) -> DataLoader[LabelledView]:
    """This process's share of the views, one at a time, decoded by worker processes."""
    share = Subset(views, range(rank(), len(views), world()))
    start = "forkserver" if workers else None
    return DataLoader(share, batch_size=None, num_workers=workers, multiprocessing_context=start)


def validate(run: Run, book: Logbook) -> float | None:
    """The student's mIoU on what was kept out of training, in [0, 1]; None where nothing was. Scores go to the log."""
    if run.data.select is None:
        return None
    networks = {name.removesuffix("_2d"): net for name, net in run.networks().items() if name.endswith("_2d")}
    views = views_of_rank(run.data.select, run.config.run.workers)
    with evaluating(networks.values()):
        found = evaluate_2d(networks, views, len(run.data.classes), run.config.evaluate, run.device)
    scores = {name: confusion.scores(run.data.classes, run.config.evaluate.absent) for name, confusion in found.items()}
    book.scores(scores)
    return None if math.isnan(scores["student"].miou) else scores["student"].miou

"""Stands in for `rw3d-train run` in the tests of comparisons: writes a run folder in no time, or fails, or hangs.

`fake.json` in the working folder says what to do with cells by "method seed": "fail", "hang", or an mIoU. Every start
adds a line to `starts.jsonl`.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import yaml

arguments = sys.argv[2:]
out = Path(arguments[arguments.index("--out") + 1])
resumed = "--resume" in arguments
recipe = out / "config.yaml" if resumed else Path(arguments[arguments.index("--config") + 1])
config = yaml.safe_load(recipe.read_text())["train"]
name = f"{config['method']['kind']} {config['run']['seed']}"
plan = json.loads(Path("fake.json").read_text()) if Path("fake.json").is_file() else {}
begin = time.monotonic()


def note(**facts: object) -> None:
    line = {"cell": name, "resumed": resumed, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "begin": begin, **facts}
    with Path("starts.jsonl").open("a") as file:
        file.write(json.dumps({**line, "threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}) + "\n")


if not resumed:
    shutil.copy(recipe, out / "config.yaml")
what = plan.get(name, 0.5)
if what == "hang":
    note(end=None)
    time.sleep(60)
if what == "fail":
    note(end=time.monotonic())
    sys.stderr.write("reads the scenes\nrw3d-train: stores/x: no scene; make some\n")
    sys.exit(2)
time.sleep(plan.get("seconds", 0))
scores = {
    network: {"miou": what, "macc": what, "all_acc": 0.9, "iou": {"road": what, "sky": what / 2, "train": None}}
    for network in ("2D student", "2D teacher")
}
(out / "evaluation-val.json").write_text(json.dumps({"split": "val", "scores": scores}))
note(end=time.monotonic())

"""`rw3d-train run` and `evaluate` on stores that lie on S3 only, and over connections that break."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from builders import kitti360_tree
from rw3d_common import UserError
from rw3d_common.collection import store_paths
from rw3d_common.config import read_yaml
from rw3d_prep.cli_upload import upload_stores
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_train.checkpoint import checkpoints
from rw3d_train.config import load_train_config
from s3_server import Proxy, s3_bucket
from sample_builders import add_samples
from train_builders import TINY

TARGET = "s3://bucket/stores/kitti360"
# As the command, but tries again for a moment only: retries of a minute belong to no test.
COMMAND = (
    "import sys; from rw3d_common import remote; remote.RETRY['max_retries'] = int(sys.argv.pop(1));"
    "remote.RETRY['backoff']['max_backoff'] = remote.timedelta(milliseconds=300);"
    "from rw3d_train.cli import main; main()"
)
SMALL = {**TINY, "method.cross_modal.start": 0, "run.epochs": 1, "run.batch_size": 2, "run.overlays": 0}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """Two drives of split train and one of val on S3 with their images; what they were made from is gone."""
    folder = tmp_path_factory.mktemp("remote-run")
    root = kitti360_tree(folder / "kitti360", sequences=(0, 2), val_sequences=(4,), frames=range(3), size=(32, 64))
    settings = ["dataset.splits=[train, val]", "embed_images=true"]
    reconstruct(load_config("kitti360", None, "sensor", None, settings), root, folder / "stores", workers=1)
    for store in store_paths(folder / "stores"):
        add_samples(store)
    with s3_bucket() as served:
        upload_stores(folder / "stores", TARGET)
        shutil.rmtree(folder)
        yield served


def rw3d_train(folder: Path, *arguments: object, retries: int = 8, **environment: str) -> tuple[int, str, str]:
    """Run the command in a process of its own; gives its exit code, output and messages."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, str(retries), *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def options(**changes: object) -> list[str]:
    values = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_where_stores_lie_is_kept_as_it_was_given():
    for given in ("s3://bucket/stores", "stores/kitti360"):
        config = load_train_config("kitti360", None, "paper", None, [f"data.stores={given}"])
        assert str(config.data.stores) == config.model_dump(mode="json")["data"]["stores"] == given
    with pytest.raises(UserError, match=r"data\.stores.* = 1: "):
        load_train_config("kitti360", None, "paper", None, ["data.stores=1"])


def test_a_run_trains_and_is_evaluated_from_s3(endpoint, tmp_path):
    """Through a connection that breaks now and then: requests are repeated, and nobody notices."""
    proxy = Proxy(endpoint, breaks=5, after=20_000)
    code, shown, said = rw3d_train(
        tmp_path, "run", "--stores", TARGET, "--out", "run", *options(run__workers=1), AWS_ENDPOINT_URL=proxy.endpoint
    )
    proxy.close()
    assert code == 0, said
    assert proxy.broken == 5
    assert f"on {TARGET} (train)" in said
    assert re.search(r"2D student.*2D teacher.*3D student.*3D teacher", shown)
    assert "mIoU" in shown
    assert read_yaml(tmp_path / "run" / "config.yaml")["train"]["data"]["stores"] == TARGET
    scores = (tmp_path / "run" / "evaluation-val.json").read_text()

    (tmp_path / "run" / "evaluation-val.json").unlink()
    code, shown, said = rw3d_train(tmp_path, "evaluate", "run", "--stores", TARGET, "--workers", "0", "--device", "cpu")
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "evaluation-val.json").read_text()) == json.loads(scores)


def test_a_connection_that_stays_broken_ends_the_run_with_one_sentence(endpoint, tmp_path):
    """After the first checkpoint the server is gone, which a reading process notices; the checkpoint stays."""
    proxy = Proxy(endpoint, breaks=0, after=0)

    def cut() -> None:
        while not checkpoints(tmp_path / "run") and not over.wait(0.05):
            pass
        proxy.breaks = 10**9

    over = threading.Event()
    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        arguments = ("run", "--stores", TARGET, "--out", "run", *options(run__workers=1, run__epochs=500))
        code, _, said = rw3d_train(tmp_path, *arguments, retries=1, AWS_ENDPOINT_URL=proxy.endpoint)
    finally:
        over.set()
        cutter.join()
        proxy.close()
    assert code == 2, said
    [sentence] = [line for line in said.splitlines() if line.startswith("rw3d-train: ")]
    assert said.splitlines()[-1] == sentence and "Traceback" not in said
    assert re.match(r"rw3d-train: s3://bucket/stores/kitti360/train/.*: no answer, or one that broke off", sentence)
    assert sentence.endswith("run the same command again; `rw3d-train run --resume` goes on with a run that has begun")
    assert checkpoints(tmp_path / "run")

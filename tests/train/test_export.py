"""Exported networks give the same logits in transformers and in ONNX Runtime."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rw3d_common import UserError
from rw3d_train.export import export_hf, export_onnx
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.segmenter import segmenter
from rw3d_train.networks import rebuild_2d
from rw3d_train.trained import Segmenter, load
from train_builders import SEGFORMER, kitti_classes, saved_run, tiny_config


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`load` of a run whose student is the named network."""

    def made(name: str) -> Segmenter:
        folder, classes = tmp_path_factory.mktemp("export"), kitti_classes()
        torch.manual_seed(0)
        if name == "segformer":
            net = rebuild_2d({"kind": "segformer", "config": {**SEGFORMER, "num_labels": len(classes)}})
        else:
            net = segmenter(name, classes.names)
        return load(saved_run(folder / "run", {"student_2d": net}, tiny_config(folder / "s", "ema"), classes))

    return made


@pytest.mark.parametrize(
    ("name", "kind"), [("segformer", "SegformerForSemanticSegmentation"), ("random:eomt-tiny", "EomtForUniversalSegmentation")]
)  # fmt: skip
def test_transformers_loads_what_was_exported(make, tmp_path, name, kind):
    import transformers

    trained = make(name)
    export_hf(trained, tmp_path / "hf")
    again, report = getattr(transformers, kind).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    assert [again.config.id2label[i] for i in range(len(trained.classes))] == trained.classes.names
    assert again.config.label2id["road"] == 0
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = trained.model.network(pixel_values=image), again.eval()(pixel_values=image)
    field = "logits" if name == "segformer" else "masks_queries_logits"
    torch.testing.assert_close(theirs[field], ours[field], rtol=0, atol=0)


def test_the_image_processor_prepares_images_as_training_does(make, tmp_path):
    from transformers import SegformerImageProcessorPil

    export_hf(make("segformer"), tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)  # the library's own
        processor = SegformerImageProcessorPil.from_pretrained(tmp_path / "hf")
    prepared = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    ours = normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(prepared, ours, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["do_reduce_labels"] is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch's exporter and onnxscript
@pytest.mark.parametrize("name", ["segformer", "unet"])
def test_onnx_runtime_gives_torchs_logits_at_any_size(make, tmp_path, name):
    pytest.importorskip("onnxscript", reason="the exporter needs it")
    runtime = pytest.importorskip("onnxruntime", reason="what reads the file")
    trained, path = make(name), tmp_path / "deep" / "model.onnx"
    export_onnx(trained, path)
    assert [found.name for found in path.parent.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 96), (3, 3, 75, 41)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = upsample(trained.model(image), shape[-2:]).numpy()
        (found,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_exported_is_told(make, tmp_path, monkeypatch):
    trained = make("unet")
    with pytest.raises(UserError, match=r"its network is not one of transformers; take --format onnx"):
        export_hf(trained, tmp_path / "hf")
    with pytest.raises(UserError, match=r"is a folder; give the name of a file, such as .*model\.onnx"):
        export_onnx(trained, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: is a file; give the name of a folder with --out"):
        export_hf(make("segformer"), tmp_path / "file")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"--format onnx needs two more packages: pip install onnx onnxscript"):
        export_onnx(trained, tmp_path / "a.onnx")

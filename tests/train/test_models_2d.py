"""2D networks: one call for all, published sizes, weights that are complete or refused."""

import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rw3d_common import UserError
from rw3d_train.models.eomt import eomt
from rw3d_train.models.images import IMAGENET_MEAN, IMAGENET_STD, normalize, upsample
from rw3d_train.models.pretrained import quiet
from rw3d_train.models.segformer import segformer
from rw3d_train.models.segmenter import segmenter
from rw3d_train.models.unet import UNet

CLASSES = ["road", "car", "sky"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = np.random.default_rng(0)
    pixels = torch.from_numpy(generator.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    return pixels.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def b0_folder(tmp_path_factory) -> Path:
    """An image classifier of 7 classes with the names of its weights as nvidia/mit-b0 has them; its encoder is random."""
    from transformers import SegformerConfig, SegformerForImageClassification

    folder = tmp_path_factory.mktemp("mit-b0")
    torch.manual_seed(1)
    SegformerForImageClassification(SegformerConfig(num_labels=7)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eomt_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eomt")
    torch.manual_seed(2)
    eomt("random:eomt-tiny", ["a", "b"]).network.save_pretrained(folder)
    return folder


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- images ----


def test_normalize(images):
    found = normalize(images)
    expected = (images.numpy() / 255 - np.array(IMAGENET_MEAN)[:, None, None]) / np.array(IMAGENET_STD)[:, None, None]
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last) == images.is_contiguous(
        memory_format=torch.channels_last
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_upsample_places_pixels_by_their_centres():
    logits = torch.from_numpy(np.random.default_rng(0).random((1, 2, 3, 4)))
    found = upsample(logits, (5, 9))
    for row, column in np.ndindex(5, 9):
        y, x = (min(max((i + 0.5) * n / m - 0.5, 0), n - 1) for i, n, m in ((row, 3, 5), (column, 4, 9)))
        top, left = min(int(y), 1), min(int(x), 2)
        corners = logits[0, :, top : top + 2, left : left + 2].numpy()
        expected = np.array([1 - (y - top), y - top]) @ corners @ np.array([1 - (x - left), x - left])
        np.testing.assert_allclose(found[0, :, row, column], expected)
    assert upsample(logits, (3, 4)) is logits


@pytest.mark.parametrize(("name", "stride"), [("unet", 2), ("random:b0", 4), ("random:eomt-tiny", 4)])
def test_all_networks_are_called_alike_and_learn(name, stride, images):
    model = segmenter(name, CLASSES)
    assert model.training
    logits = model(normalize(images))
    assert logits.shape == (2, 3, 64 // stride, 64 // stride)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model.eval()(normalize(images))).all()


@pytest.mark.parametrize(("name", "shape"), [("unet", (37, 51)), ("random:b0", (37, 51)), ("random:b0", (376, 512))])
def test_sizes_that_are_no_multiple_of_the_stride(name, shape):
    with torch.device("meta"):
        logits = segmenter(name, CLASSES)(torch.zeros(1, 3, *shape))
    stride = 2 if name == "unet" else 4
    assert logits.shape == (1, 3, *(-(-n // stride) for n in shape))


# ---- U-Net ----


def test_unet_works_alike_in_both_modes_and_one_by_one(images):
    """So that student and teacher, and batches of any size, see the same network."""
    model, image = UNet(3), normalize(images)
    with torch.no_grad():
        assert torch.equal(model.train()(image), model.eval()(image))
        torch.testing.assert_close(model(image[:1]), model(image)[:1], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 389_635
    assert not list(model.buffers())


# ---- SegFormer ----

# Parameters of the encoders, millions: Table 1 of the paper.
ENCODERS = {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}


@pytest.mark.parametrize("size", ENCODERS)
def test_random_sizes_are_the_published_ones(size):
    with torch.device("meta"):
        network = segformer(f"random:{size}", CLASSES).network
    encoder = sum(p.numel() for p in network.segformer.parameters()) / 1e6
    assert encoder == pytest.approx(ENCODERS[size], abs=0.15)
    config = network.config
    assert config.decoder_hidden_size == (256 if size in ("b0", "b1") else 768)
    assert (config.drop_path_rate, config.classifier_dropout_prob) == (0.1, 0.1)
    assert config.id2label == dict(enumerate(CLASSES))


def test_an_encoder_is_loaded_whole_and_only_the_decoder_is_random(b0_folder, capfd, caplog):
    with caplog.at_level("INFO", "rw3d"):
        model = segmenter(str(b0_folder), CLASSES)
    assert caplog.messages == [f"{b0_folder}: loaded, except that decode_head starts random"]
    assert capfd.readouterr() == ("", "")
    published = load_file(b0_folder / "model.safetensors")
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in published
    loaded = model.network.state_dict()
    query = "segformer.stages.0.blocks.0.attention.q_proj.weight"
    assert torch.equal(loaded[query], published["segformer.encoder.block.0.0.attention.self.query.weight"])
    encoder = [value for name, value in published.items() if name.startswith("segformer.")]
    assert sum(map(torch.numel, encoder)) == sum(p.numel() for p in model.network.segformer.parameters())
    assert sum(value.double().abs().sum() for value in encoder).item() == pytest.approx(
        sum(p.double().abs().sum() for p in model.network.segformer.parameters()).item()
    )
    assert (model.network.config.id2label, model.network.config.label2id["sky"]) == (dict(enumerate(CLASSES)), 2)
    assert model.training
    assert model.network.training


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("names", ["published", "today's"])
@pytest.mark.parametrize("prefix", ["segformer.", ""])
def test_an_encoder_arrives_from_either_file_under_either_names(b0_folder, tmp_path, caplog, file, names, prefix):
    """nvidia/mit-b* were published as pytorch_model.bin, with the names of older transformers."""
    from transformers import SegformerForImageClassification

    with quiet():
        today = SegformerForImageClassification.from_pretrained(b0_folder).state_dict()
    weights = load_file(b0_folder / "model.safetensors") if names == "published" else today
    if not prefix:
        weights = {k.removeprefix("segformer."): v for k, v in weights.items() if k.startswith("segformer.")}
    (tmp_path / "config.json").write_text((b0_folder / "config.json").read_text())
    weights = {k: v.contiguous() for k, v in weights.items()}
    (torch.save if file.endswith(".bin") else save_file)(weights, tmp_path / file)
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with caplog.at_level("INFO", "rw3d"):
            loaded = segmenter(str(tmp_path), CLASSES).network.state_dict()
        heads.append(loaded["decode_head.classifier.weight"])
        for name, value in today.items():
            assert not name.startswith("segformer.") or torch.equal(loaded[name], value), name
    assert caplog.messages == [f"{tmp_path}: loaded, except that decode_head starts random"] * 2
    assert not torch.equal(*heads)


def test_a_random_decoder_follows_the_seed(b0_folder):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(segformer(str(b0_folder), CLASSES).network.decode_head.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("name", ["random:b0", "random:eomt-tiny"])
def test_saved_networks_come_back(name, tmp_path, images, caplog):
    model = segmenter(name, CLASSES).eval()
    model.network.save_pretrained(tmp_path)
    with caplog.at_level("INFO", "rw3d"):
        again = segmenter(str(tmp_path), CLASSES).eval()
    assert not caplog.messages
    with torch.no_grad():
        assert torch.equal(model(normalize(images)), again(normalize(images)))
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "road", "1": "car", "2": "sky"}


def test_half_precision_files_are_trained_in_float32(b0_folder, tmp_path):
    (tmp_path / "config.json").write_text((b0_folder / "config.json").read_text().replace("float32", "float16"))
    weights = load_file(b0_folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert {p.dtype for p in segformer(str(tmp_path), CLASSES).parameters()} == {torch.float32}


# ---- never silently random ----


def spoilt(folder: Path, target: Path, change) -> str:
    """A copy of the folder's config with `change(weights)` beside it."""
    (target / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return str(target)


def test_a_missing_weight_is_refused(b0_folder, tmp_path):
    key = "segformer.encoder.block.2.1.mlp.dense1.weight"
    name = spoilt(b0_folder, tmp_path, lambda weights: weights.pop(key))
    error = error_of(lambda: segformer(name, CLASSES))
    assert f"{name}: 1 weights of SegformerForSemanticSegmentation are missing" in error
    assert "'segformer.stages.2.blocks.1.mlp.fc1.weight' is one" in error
    assert "give weights of that architecture" in error


def test_half_a_decoder_is_refused(tmp_path):
    segformer("random:b0", CLASSES).network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decode_head.linear_fuse.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert "'decode_head.linear_fuse.weight' is one" in error_of(lambda: segformer(str(tmp_path), CLASSES))


def test_new_classes_for_a_trained_network(tmp_path, caplog):
    segformer("random:b0", ["a", "b"]).network.save_pretrained(tmp_path)
    with caplog.at_level("INFO", "rw3d"):
        network = segformer(str(tmp_path), CLASSES).network
    assert caplog.messages == [f"{tmp_path}: loaded, except that decode_head.classifier starts random"]
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(network.decode_head.linear_fuse.weight, saved["decode_head.linear_fuse.weight"])
    assert network.config.id2label == dict(enumerate(CLASSES))


def test_a_weight_of_another_size_is_refused(b0_folder, tmp_path):
    key = "segformer.encoder.patch_embeddings.0.proj.weight"
    name = spoilt(b0_folder, tmp_path, lambda weights: weights.update({key: weights[key][:, :1].contiguous()}))
    assert "'segformer.stages.0.patch_embeddings.proj.weight' is one" in error_of(lambda: segformer(name, CLASSES))


def test_weights_of_another_architecture_are_refused(eomt_folder, b0_folder, tmp_path):
    assert error_of(lambda: segformer(str(eomt_folder), CLASSES)).startswith(f"{eomt_folder}: cannot be loaded (")
    (tmp_path / "config.json").write_text((b0_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((eomt_folder / "model.safetensors").read_bytes())
    error = error_of(lambda: segmenter(str(tmp_path), CLASSES))
    assert "weights of SegformerForSemanticSegmentation are missing" in error


@pytest.mark.parametrize("spoil", ["no config", "no weights", "broken config", "broken weights"])
def test_incomplete_folders(spoil, b0_folder, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((b0_folder / file).read_bytes())
    file = tmp_path / ("config.json" if "config" in spoil else "model.safetensors")
    if spoil.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    error = error_of(lambda: segmenter(str(tmp_path), CLASSES))
    assert error.startswith(f"{tmp_path}: cannot be loaded (")
    assert error.endswith("give a folder with the config.json and model.safetensors of a SegFormer or EoMT")


def test_a_folder_that_is_not_there(offline, tmp_path):
    name = str(tmp_path / "weights" / "b4")
    assert error_of(lambda: segmenter(name, CLASSES)).startswith(f"{name}: cannot be loaded (")


def test_weights_of_the_hub_without_network(offline):
    error = error_of(lambda: segmenter("nobody/no-such-network", CLASSES))
    assert error.startswith("nobody/no-such-network: cannot be loaded (")
    assert "run `hf download nobody/no-such-network --local-dir FOLDER`" in error
    assert "random:b0" in error


@pytest.mark.parametrize("name", ["random:b9", "random:", "random:b4 "])
def test_unknown_sizes(name):
    error = error_of(lambda: segmenter(name, CLASSES))
    assert error.startswith(f"{name}: no such SegFormer")
    assert error.endswith("take random:b0 to random:b5")


def test_networks_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    error = error_of(lambda: segmenter(str(tmp_path), CLASSES))
    assert error == f"{tmp_path}: a network of type vit; give a SegFormer or an EoMT, or unet"


# ---- EoMT ----


def test_eomt_logits_are_those_of_the_formula(images):
    model = eomt("random:eomt-tiny", CLASSES).double().eval()
    image = normalize(images).double()
    with torch.no_grad():
        found = model(image)
        output = model.network(pixel_values=image)
    masks, queries = output.masks_queries_logits, output.class_queries_logits
    assert (masks.shape, queries.shape) == ((2, 8, 16, 16), (2, 8, 4))
    generator = np.random.default_rng(0)
    for b, c, y, x in generator.integers(0, [2, 3, 16, 16], (50, 4)):
        total = 0.0
        for q in range(8):
            powers = np.exp(queries[b, q].numpy())
            total += powers[c] / powers.sum() / (1 + np.exp(-masks[b, q, y, x].item()))
        assert found[b, c, y, x].item() == pytest.approx(np.log(total + 1e-6), rel=1e-12)


def test_eomt_never_masks_attention(images):
    """Training and evaluation see the same network, and so does whoever loads what is exported."""
    model, image = eomt("random:eomt-tiny", CLASSES), normalize(images)
    with torch.no_grad():
        assert torch.equal(model.train()(image), model.eval()(image))
    assert not model.network.attn_mask_probs.any()


def test_eomt_takes_new_classes(eomt_folder, images, caplog):
    with caplog.at_level("INFO", "rw3d"):
        model = segmenter(str(eomt_folder), CLASSES)
    assert caplog.messages == [f"{eomt_folder}: loaded, except that class_predictor starts random"]
    assert model(normalize(images)).shape == (2, 3, 16, 16)
    published = load_file(eomt_folder / "model.safetensors")
    same = [name for name, value in model.network.state_dict().items() if torch.equal(value, published[name])]
    assert set(published) - set(same) == {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}


@pytest.mark.parametrize("shape", [(48, 64), (64, 80), (128, 128)])
def test_eomt_refuses_other_sizes(shape):
    model = eomt("random:eomt-tiny", CLASSES)
    error = error_of(lambda: model(torch.zeros(1, 3, *shape)))
    assert f"images of {shape[1]}×{shape[0]} pixels, but its weights take 64×64 only" in error
    assert "set augment.crop and evaluate.window to [64, 64]" in error

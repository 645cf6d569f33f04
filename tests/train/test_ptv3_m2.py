"""Sonata and Concerto in the trainer: sizes, weights that are encoders alone, channels that samples lack."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rw3d_common import UserError
from rw3d_train import networks
from rw3d_train.config import Model3DConfig
from rw3d_train.models.ptv3 import PointSegmenter
from rw3d_train.models.ptv3.sizes import SIZES
from rw3d_train.trained import load_3d
from train_builders import kitti_classes, saved_run, tiny_config

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "ptv3"
recorded = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recordings are not beside this checkout")
SHRUNKEN = {
    "enc_depths": (1, 1, 1), "enc_channels": (16, 32, 32), "enc_num_head": (1, 2, 2), "enc_patch_size": (32, 32, 32),
    "stride": (2, 2), "dec_depths": (1, 1), "dec_channels": (16, 32), "dec_num_head": (1, 2), "dec_patch_size": (32, 32),
}  # fmt: skip


@pytest.fixture
def shrunken(monkeypatch):
    for size in ("sonata", "concerto"):
        monkeypatch.setitem(SIZES, size, {**SIZES[size], **SHRUNKEN})


def make(seed: int = 0, **config) -> PointSegmenter:
    torch.manual_seed(seed)
    return networks.make_3d(Model3DConfig(**{"size": "sonata", "voxel": 0.1, **config}), kitti_classes())


def points(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(coord, feat, offset) of two elements, 2 m wide and 0.4 m high."""
    generator = torch.Generator().manual_seed(seed)
    coord = torch.rand(470, 3, generator=generator) * torch.tensor([2, 2, 0.4])
    return coord, torch.cat([coord, torch.rand(470, 3, generator=generator)], dim=1), torch.tensor([300, 470])


def encoder(seed: int = 1) -> dict[str, torch.Tensor]:
    """What a published file holds: the encoder, and the token that pretraining masks with."""
    weights = {k: v for k, v in make(seed).backbone.state_dict().items() if not k.startswith("dec.")}
    return {**weights, "embedding.mask_token": torch.zeros(1, 16)}


@recorded
@pytest.mark.parametrize(
    ("size", "published", "parts"),
    [
        ("sonata", "m2_sonata_or_concerto_base_encoder", ("embedding.", "enc.")),
        ("concerto", "m2_concerto_large_with_decoder", ("embedding.", "enc.", "dec.")),
    ],
)
def test_sizes_are_the_published_ones(size, published, parts):
    with torch.device("meta"):
        model = make(size=size)
    names = json.loads((FIXTURES / "ptv3_keys.json").read_text())[published]["keys"]
    ours = {name: list(value.shape) for name, value in model.backbone.state_dict().items() if name.startswith(parts)}
    assert ours == {name: shape for name, shape, _ in names}
    assert model.seg_head.in_features == 64


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "module.student.backbone."])
def test_an_encoder_arrives_and_decoder_and_head_stay_random(shrunken, tmp_path, monkeypatch, prefix):
    lines: list[str] = []
    monkeypatch.setattr(networks.log, "info", lines.append)
    weights, path = encoder(), tmp_path / "sonata.pth"
    others = {"module.teacher.backbone.embedding.stem.linear.bias": torch.zeros(16)} if "student" in prefix else {}
    state = {**{prefix + name: value for name, value in weights.items()}, **others}
    torch.save({"config": {"in_channels": 9, "enc_depths": (1, 1, 1)}, "state_dict": state}, path)
    model, fresh = make(5, weights=path), make(5).state_dict()
    for name, value in model.state_dict().items():
        expected = weights.get(name.removeprefix("backbone."), fresh[name])
        assert torch.equal(value, expected), name
    decoder = sum(name.startswith(("backbone.dec.", "seg_head.")) for name in fresh)
    (line,) = lines
    assert line.startswith(f"3D weights of {path}: {len(weights) - 1} matched, {decoder} missing (backbone.dec.dec1.")
    assert f"{1 + len(others)} unexpected ({prefix}embedding.mask_token" in line


def test_half_a_decoder_is_refused(shrunken, tmp_path):
    weights, path = encoder(), tmp_path / "w.safetensors"
    weights["dec.dec0.up.proj.0.bias"] = torch.zeros(16)
    save_file(weights, path)
    with pytest.raises(UserError, match=r"lacks \d+ of the model's \d+ parameters \(backbone\.dec\."):
        make(weights=path)


def test_an_encoder_without_a_block_is_refused(shrunken, tmp_path):
    weights, path = encoder(), tmp_path / "w.safetensors"
    del weights["enc.enc1.block0.mlp.0.fc1.weight"]
    save_file(weights, path)
    with pytest.raises(UserError, match=r"lacks 1 of .* \(backbone\.enc\.enc1\.block0\.mlp\.0\.fc1\.weight\)"):
        make(weights=path)


def test_m1_needs_its_decoder(tmp_path):
    model = make(size="small")
    weights = {k: v for k, v in model.state_dict().items() if "dec." not in k}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="lacks "):
        make(size="small", weights=tmp_path / "w.safetensors")


def test_channels_that_samples_lack_are_zeros(shrunken):
    model = make().eval()
    coord, feat, offset = points(3)
    with torch.no_grad():
        logits = model(coord, feat, offset)
        model.zero_channels = 0
        assert torch.equal(model(coord, torch.cat([feat, torch.zeros(len(feat), 3)], dim=1), offset), logits)


def test_training_from_an_encoder_and_coming_back(shrunken, tmp_path):
    save_file(encoder(), tmp_path / "w.safetensors")
    model = make(weights=tmp_path / "w.safetensors").train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    (coord, feat, offset), losses = points(4), []
    target = (coord[:, 0] > 1).long() + (coord[:, 1] > 1).long()
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(coord, feat, offset), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    (tmp_path / "w.safetensors").unlink()  # only the beginning of training needs it
    config = tiny_config(tmp_path, "rewis3d", model_3d__size="sonata", model_3d__voxel=0.1, model_3d__weights="w.pth")
    networks_2d = {"student_2d": networks.make_2d(config.model_2d, kitti_classes())}
    run = saved_run(tmp_path / "run", {**networks_2d, "student_3d": model}, config, kitti_classes())
    back = load_3d(run)
    with torch.no_grad():
        assert torch.equal(back(coord, feat, offset), model.eval()(coord, feat, offset))

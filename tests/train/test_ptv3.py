"""PTv3 as a whole: parity with outputs recorded from the official model, and what must hold without them.

The recordings lie beside the checkout (they are no part of the project).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rw3d_common import UserError
from rw3d_train import networks
from rw3d_train.config import Model3DConfig
from rw3d_train.models.ptv3 import PointSegmenter, PointTransformerV3, load_weights
from rw3d_train.models.ptv3.serialization import ORDERS, encode
from train_builders import kitti_classes

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "ptv3"
recorded = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the recordings of the official PTv3 are not beside this checkout"
)
SMALL = {
    "stride": (2, 2), "enc_depths": (1, 1, 1), "enc_channels": (16, 32, 32), "enc_num_head": (1, 2, 2),
    "enc_patch_size": (32, 32, 32), "dec_depths": (1, 1), "dec_channels": (16, 32), "dec_num_head": (1, 2),
    "dec_patch_size": (32, 32),
}  # fmt: skip


@pytest.fixture(scope="module")
def official():
    with np.load(FIXTURES / "ptv3_tiny.npz", allow_pickle=False) as a, np.load(FIXTURES / "ptv3_tiny_extra.npz") as b:
        return {name: file[name] for file in (a, b) for name in file.files}


def tiny(official, path: str) -> PointTransformerV3:
    config = json.loads(bytes(official["config_json"]))
    model = PointTransformerV3(**{**config, "enable_flash": path == "flash"}).eval()
    model.load_state_dict({k[3:]: torch.from_numpy(v) for k, v in official.items() if k.startswith("sd.")})
    return model


def inputs(official) -> list[torch.Tensor]:
    return [torch.from_numpy(official[f"in.{name}"]) for name in ("coord", "feat", "grid_coord", "offset")]


def assert_same(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Within 1e-5 of the largest value."""
    assert ours.shape == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


# Parity


@recorded
@pytest.mark.parametrize("path", ["flash", "noflash"])
def test_every_stage_is_that_of_the_official_model(official, path):
    model = tiny(official, path)
    kept = {}
    model.embedding.register_forward_hook(lambda _, __, out: kept.update(embedding=out))
    with torch.no_grad():
        stages = model.encode(*inputs(official))
        outputs = model.decode(stages)
        assert_same(kept["embedding"], official[f"{path}.embedding"])
        assert_same(model(*inputs(official)), official[f"{path}.out"])
    for s, (_, x) in enumerate(stages):
        assert_same(x, official[f"{path}.enc.enc{s}"])
    for s, x in zip((3, 2, 1, 0), outputs, strict=True):
        assert_same(x, official[f"{path}.dec.dec{s}"])


@recorded
def test_inner_activations(official):
    model, kept = tiny(official, "noflash"), {}

    def keep(name):
        return lambda _, __, out: kept.update({name: out[0] if isinstance(out, tuple) else out})

    for side, number in (("enc", 5), ("dec", 4)):
        for s in range(number):
            stage = getattr(model, side)[f"{side}{s}"]
            for name in ("down", "up", "block0"):
                if name in stage and not (side == "dec" and name == "block0"):
                    stage[name].register_forward_hook(keep(f"{side}.{side}{s}.{name}"))
    with torch.no_grad():
        model(*inputs(official))
    assert len(kept) == 5 + 4 + 4
    for name, x in kept.items():
        assert_same(x, official[f"noflash.{name}"])


@recorded
def test_positional_encoding_and_attention_branch(official):
    model = tiny(official, "noflash")
    with torch.no_grad():
        level, _ = model.encode(*inputs(official))[0]
        block, x = model.enc["enc0"]["block0"], torch.from_numpy(official["noflash.embedding"])
        branch = block.cpe[2](block.cpe[1](block.cpe[0](x, level.neighbours())))
        assert_same(branch, official["noflash.enc.enc0.block0.cpe"])
        inner = torch.from_numpy(official["noflash.enc.enc0.block0.attn"])
        seen = x + branch + inner
        assert_same(seen + block.mlp(block.norm2(seen)), official["noflash.enc.enc0.block0"])


@recorded
@pytest.mark.parametrize("path", ["flash", "noflash"])
def test_geometry_of_every_stage(official, path):
    with torch.no_grad():
        stages = tiny(official, path).encode(*inputs(official))
    for s, (level, _) in enumerate(stages):
        theirs = {
            k: official[f"noflash.geo.enc.enc{s}.{k}"] for k in ("grid_coord", "batch", "offset", "coord", "depth")
        }
        np.testing.assert_array_equal(level.grid, theirs["grid_coord"])
        np.testing.assert_array_equal(level.batch, theirs["batch"])
        np.testing.assert_array_equal(np.cumsum(level.counts), theirs["offset"])
        assert_same(level.coord, theirs["coord"])
        assert level.depth == theirs["depth"]
        np.testing.assert_array_equal(level.codes, official[f"noflash.geo.enc.enc{s}.serialized_code"])
        np.testing.assert_array_equal(level.order, official[f"noflash.geo.enc.enc{s}.serialized_order"])
        if s > 0:
            np.testing.assert_array_equal(level.cluster, official[f"noflash.geo.enc.enc{s}.pooling_inverse"])
        patch = 64 if path == "flash" else min(64, *level.counts)
        at = level.windows(patch, 0)
        order = official[f"noflash.geo.enc.enc{s}.serialized_order"][0]
        np.testing.assert_array_equal(at.rows, order[official[f"{path}.geo.enc.enc{s}.pad"]])
        np.testing.assert_array_equal(at.slot[torch.from_numpy(order).long()], official[f"{path}.geo.enc.enc{s}.unpad"])
        lengths = [run.length for run in at.runs for _ in range(run.windows)]
        np.testing.assert_array_equal(np.cumsum([0, *lengths]), official[f"{path}.geo.enc.enc{s}.cu_seqlens"])


@recorded
@pytest.mark.parametrize("path", ["flash", "noflash"])
def test_shuffled_orders(official, path, monkeypatch):
    model = tiny(official, path)
    monkeypatch.setattr(model, "_permutations", official["shuffle.perms"].tolist)
    with torch.no_grad():
        assert_same(model(*inputs(official)), official[f"shuffle.{path}.out"])


@recorded
def test_gradients(official):
    model = tiny(official, "noflash")
    (model(*inputs(official)) * torch.from_numpy(official["grad.w"])).sum().backward()
    parameters = dict(model.named_parameters())
    largest = max(official[f"gradnorm.{name}"] for name in parameters)
    for name, parameter in parameters.items():
        theirs = official[f"gradnorm.{name}"]
        assert abs(parameter.grad.norm().item() - theirs) <= 1e-5 * theirs + 1e-8 * largest, name
    whole = [name.removeprefix("grad.") for name in official if name.startswith("grad.") and name != "grad.w"]
    assert len(whole) == 4
    for name in whole:
        assert_same(parameters[name].grad, official[f"grad.{name}"])


@recorded
def test_codes_at_every_depth():
    with np.load(FIXTURES / "serialization.npz", allow_pickle=False) as file:
        for depth in (1, 2, 3, 5, 8, 9, 11, 16):
            grid, batch = (torch.from_numpy(file[f"d{depth}.{name}"]) for name in ("grid_coord", "batch"))
            codes = encode(grid, batch, int(file[f"d{depth}.depth"]), ORDERS)
            for name, row in zip(ORDERS, codes, strict=True):
                np.testing.assert_array_equal(row, file[f"d{depth}.{name}"])
        for depth in (5, 6, 7, 8):
            grid = torch.from_numpy(file["depthdep.grid_coord"])
            z, hilbert = encode(grid, torch.zeros(len(grid)), depth, ("z", "hilbert"))
            np.testing.assert_array_equal(z, file[f"depthdep.z.{depth}"])
            np.testing.assert_array_equal(hilbert, file[f"depthdep.hilbert.{depth}"])


@recorded
@pytest.mark.parametrize(
    ("name", "variant", "optional"),
    [
        ("ptv3_m1_published", "m1", {}),
        ("m2_sonata_or_concerto_base_encoder", "m2", {}),
        ("m2_concerto_large_with_decoder", "m2", {}),
        ("m2_sonata_or_concerto_base_encoder", "m2", {"mask_token": True, "layer_scale": 1e-5}),
    ],
)
def test_names_and_shapes_are_the_published_ones(name, variant, optional):
    published = json.loads((FIXTURES / "ptv3_keys.json").read_text())[name]
    with torch.device("meta"):
        model = PointTransformerV3(**{**published["config"], **optional}, variant=variant)
    theirs = {key: tuple(shape) for key, shape, _ in published["keys"]}
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    added = {key for key in ours if key.endswith(("ls1.0.gamma", "ls2.0.gamma", "embedding.mask_token"))}
    assert len(added) == (1 + 2 * sum(published["config"]["enc_depths"]) if optional else 0)
    assert {key: shape for key, shape in ours.items() if key not in added} == theirs
    if not optional:
        assert sum(parameter.numel() for parameter in model.parameters()) == published["n_params"]


# What holds without recordings


def segmenter(seed: int = 0, **changes) -> PointSegmenter:
    torch.manual_seed(seed)
    return PointSegmenter(3, 0.1, **{**SMALL, **changes})


def points(seed: int, sizes=(300, 170)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(coord, feat, offset) of noisy planes of about 2 m."""
    generator = torch.Generator().manual_seed(seed)
    coord = 2 * torch.rand(sum(sizes), 3, generator=generator)
    coord[:, 2] *= 0.2
    feat = torch.cat([coord, torch.rand(sum(sizes), 3, generator=generator)], dim=1)
    return coord, feat, torch.tensor(sizes).cumsum(0)


@pytest.mark.parametrize("changes", [{}, {"variant": "m2", "layer_scale": 0.5}, {"variant": "m2", "enc_mode": True}])
def test_moving_points_within_an_element_moves_their_logits(changes):
    model = segmenter(**changes).eval()
    coord, feat, offset = points(1)
    move = torch.cat([torch.randperm(300), 300 + torch.randperm(170)])
    with torch.no_grad():
        torch.testing.assert_close(
            model(coord[move], feat[move], offset), model(coord, feat, offset)[move], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("variant", ["m1", "m2"])
def test_elements_do_not_depend_on_their_batch(variant):
    model = segmenter(variant=variant, order=("hilbert", "hilbert-trans")).eval()
    coord, feat, _ = points(2)
    wide, wide_feat = torch.cat([coord, 15 * coord[:50]]), torch.cat([feat, feat[:50]])

    def alone_and_together() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            parts = [model(coord[a:b], feat[a:b], torch.tensor([b - a])) for a, b in ((0, 300), (300, 470))]
            return torch.cat(parts), model(wide, wide_feat, torch.tensor([300, 470, 520]))[:470]

    alone, together = alone_and_together()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    model.backbone.config = model.backbone.config.model_copy(update={"depth": None})
    alone, together = alone_and_together()
    assert (together - alone).abs().max() > 1e-3  # what the fixed depth is for


def test_points_of_one_voxel_share_their_logits():
    model = segmenter().eval()
    coord, feat, _ = points(3)
    with torch.no_grad():
        logits = model(torch.cat([coord, coord]), torch.cat([feat, feat]), torch.tensor([940]))
    assert torch.equal(logits[:470], logits[470:])
    assert logits.shape == (940, 3)


@pytest.mark.parametrize("variant", ["m1", "m2"])
def test_training_learns_and_repeats(variant):
    coord, feat, offset = points(4)
    target = (coord[:, 0] > 1).long() + (coord[:, 1] > 1).long()

    def train() -> list[float]:
        model = segmenter(variant=variant).train()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(12):
            loss = torch.nn.functional.cross_entropy(model(coord, feat, offset), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = train()
    assert first[-1] < 0.6 * first[0]
    assert train() == first


def test_every_parameter_learns():
    model = segmenter().train()
    model(*points(5)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_evaluation_repeats_and_training_shuffles():
    model = segmenter(drop_path=0.0)
    inputs = points(6)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(*inputs), model(*inputs))
        draws = model.train().backbone._permutations(), model.backbone._permutations()
        assert draws[0] != draws[1]
        assert all(sorted(row) == [0, 1, 2, 3] for row in draws[0])
        assert segmenter(shuffle_orders=False).backbone._permutations() == [[0, 1, 2, 3]] * 3


def test_autocast_stays_near_float32():
    model = segmenter().eval()
    inputs = points(7)
    with torch.no_grad():
        expected = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*inputs)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(*inputs).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_one_voxel():
    assert segmenter().eval()(torch.zeros(1, 3), torch.zeros(1, 6), torch.tensor([1])).shape == (1, 3)


# Bad input


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"enable_rpe": True}, "PTv3: enable_rpe = True is not supported; set it to False or leave it out"),
        ({"pre_norm": False}, "PTv3: pre_norm = False is not supported; set it to True or leave it out"),
        ({"enc_dephts": (2,)}, "PTv3: unknown key 'enc_dephts' (did you mean 'enc_depths'?)"),
        ({"order": ("z", "hilbrt")}, "PTv3: order.1 = 'hilbrt': input should be 'z', 'z-trans', 'hilbert' or"),
        ({"stride": (2, 3)}, "PTv3: stride.1 = 3: input should be 2, 4 or 8"),
        ({"stride": (2,)}, "stride has 1 entries; give 2, one between two stages"),
        ({"dec_channels": (16,)}, "dec_channels has 1 entries; give 2, one per stage"),
        ({"enc_num_head": (1, 3, 2)}, "32 channels do not split into 3 heads; change enc_num_head"),
        ({"enc_depths": (1, 0, 1)}, "enc_depths is (1, 0, 1); give numbers of at least 1"),
        ({"layer_scale": 0.1}, "mask_token and layer_scale belong to m2; set variant to 'm2' or leave them out"),
    ],
)
def test_configurations_that_cannot_be_built(config, sentence):
    with pytest.raises(UserError) as raised:
        PointTransformerV3(**{**SMALL, **config})
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"feat": torch.zeros(4, 5)}, "features of shape (4, 5) for 4 voxels of 6 channels"),
        ({"offset": torch.tensor([2, 3])}, "offset [2, 3] for 4 voxels; it must rise to their number"),
        ({"offset": torch.tensor([2, 2, 4])}, "offset [2, 2, 4] for 4 voxels; it must rise"),
        ({"grid_coord": torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 70000], [0, 0, 0]])}, "element 1 of the batch has cells from 0 to 70,000, but codes of 16 bits hold 0 to 65,535"),
        ({"grid_coord": torch.tensor([[0, -1, 0], [0, 1, 0], [0, 0, 7], [0, 0, 0]])}, "element 0 of the batch has cells from -1 to 7"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(change, sentence):
    grid = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0], [5, 0, 0]])
    arguments = {"coord": grid.float(), "feat": torch.zeros(4, 6), "grid_coord": grid, "offset": torch.tensor([2, 4])}
    with pytest.raises(UserError) as raised:
        PointTransformerV3(**SMALL).eval()(**{**arguments, **change})
    assert sentence in str(raised.value)


# Weights


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("kind", ["safetensors", "bare", "wrapped"])
def test_published_prefixes_load(tmp_path, prefix, kind):
    source, model = segmenter(1).backbone, segmenter(2)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if kind == "bare" else {"epoch": 3, "state_dict": weights}, path)
    head = model.seg_head.weight.clone()
    report = load_weights(model, path, allow_missing=["seg_head.*"])
    assert sorted(report.missing) == ["seg_head.bias", "seg_head.weight"]
    assert (report.unexpected, report.mismatched) == ([], [])
    assert sorted(report.matched) == sorted(f"backbone.{name}" for name in source.state_dict())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    assert torch.equal(model.seg_head.weight, head)
    assert load_weights(segmenter(3).backbone, path).missing == []


def test_a_whole_segmenter_with_other_classes(tmp_path):
    weights = {f"module.{name}": value for name, value in segmenter(1).state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save({"state_dict": weights}, path)
    torch.manual_seed(0)
    model = PointSegmenter(5, 0.1, **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as raised:
        load_weights(model, path)
    assert str(raised.value).startswith(f"{path}: has another shape of 2 of the model's ")
    assert "(seg_head.weight, seg_head.bias) ((3, 16) there, (5, 16) in the model); give weights" in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    report = load_weights(model, path, allow_missing=["seg_head.*"])
    assert report.mismatched == ["seg_head.weight", "seg_head.bias"]
    assert str(report).endswith("0 missing, 0 unexpected, 2 of another shape (seg_head.weight, seg_head.bias)")
    assert load_weights(model.backbone, path).unexpected == ["module.seg_head.weight", "module.seg_head.bias"]


def test_a_published_checkpoint_starts_the_3d_student(tmp_path, monkeypatch):
    """Names as Pointcept saves them, with the head of another dataset."""
    lines, path, config = [], tmp_path / "model_best.pth", {"size": "small", "voxel": 0.4}
    monkeypatch.setattr(networks.log, "info", lines.append)
    torch.manual_seed(1)
    source = networks.make_3d(Model3DConfig(**config), kitti_classes())
    weights = {f"module.{name}": value for name, value in source.state_dict().items()}
    weights["module.seg_head.weight"], weights["module.seg_head.bias"] = torch.zeros(13, 48), torch.zeros(13)
    torch.save({"epoch": 3, "state_dict": weights}, path)
    model = networks.make_3d(Model3DConfig(**config, weights=path), kitti_classes())
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    assert lines == [
        f"3D weights of {path}: {len(weights) - 2} matched, 0 missing, 0 unexpected, "
        "2 of another shape (seg_head.weight, seg_head.bias)"
    ]
    with pytest.raises(UserError) as raised:
        networks.make_3d(Model3DConfig(weights=path), kitti_classes())
    assert str(raised.value).startswith(f"{path}: lacks ")


def test_missing_weights_are_an_error_unless_allowed(tmp_path):
    model, path = PointTransformerV3(**SMALL), tmp_path / "w.pth"
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("dec.")}
    torch.save(encoder, path)
    with pytest.raises(UserError) as raised:
        load_weights(model, path)
    assert str(raised.value).startswith(f"{path}: lacks ")
    assert "(dec.dec1.block0.cpe.0.weight, " in str(raised.value)
    assert str(raised.value).endswith("give weights of this configuration, or allow these by name")
    assert len(load_weights(model, path, allow_missing=["dec.*"]).matched) == len(encoder)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.pth", None, "no such file; give a checkpoint"),
        ("w.pth", b"", "not a checkpoint of plain tensors (it is cut short"),
        ("w.pth", b"not a checkpoint at all", "not a checkpoint of plain tensors ("),
        ("w.safetensors", b"not safetensors either", "not a safetensors file ("),
        ("w.pth", {"epoch": 3}, "holds no named tensors; give a checkpoint with a state_dict"),
        ("w.pth", [1, 2], "holds no named tensors; give a checkpoint with a state_dict"),
        ("w.pth", {"state_dict": {"a": torch.zeros(1)}, "config": Path("x")}, "not a checkpoint of plain tensors ("),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoint(tmp_path, name, content, sentence):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as raised:
        load_weights(PointTransformerV3(**SMALL), path)
    assert str(raised.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(raised.value)

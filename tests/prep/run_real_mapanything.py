"""Run the real MapAnything package through our backend, with random weights, on a CPU. Not collected by pytest.

Nothing here is a test of quality: random weights give meaningless geometry. What is real is the package's interface,
so this is the check to repeat after upgrading it. Install as docs/mapanything.md says (a CPU build of torch will do)
and have DINOv2's code in torch.hub's cache; then, from the repository:

    python tests/prep/run_real_mapanything.py build WEIGHTS --configs MAP_ANYTHING_CHECKOUT/configs [--small]
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py run WEIGHTS IMAGE IMAGE …
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py inputs IMAGE IMAGE …
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py use WEIGHTS DATASET ROOT
    python tests/prep/run_real_mapanything.py build-wrapped WEIGHTS vggt|pi3|pi3x|da3
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py run-wrapped WEIGHTS MODEL IMAGE IMAGE …

`build` writes config.json and model.safetensors with random weights; `--small` takes a ViT-S and 4 layers instead of
the published 1.2 billion parameters. `run` reconstructs and asserts the interface. `inputs` compares our pictures with
those of the package's own `load_images`, bit for bit. `use` gives the first frames of a dataset with poses, intrinsics
and depth. The last two do the same for the models that the package wraps; VGGT gets 4 of its 24 layers, da3 is DA3-SMALL. Their wrappers
ask for a GPU, which is answered in its place here.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
from pathlib import Path
from typing import Any

SMALL = [  # overrides of MapAnything's own configuration
    "model.encoder.size=small",
    "model.encoder.keep_first_n_layers=4",
    "model.info_sharing.module_args.dim=384",
    "model.info_sharing.module_args.num_heads=6",
    "model.info_sharing.module_args.depth=4",
    "model.info_sharing.module_args.indices=[1,2]",
]


def allow_any_torchvision() -> None:
    """Declare the two operators that a torchvision built for CUDA misses next to a CPU-only torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        allow_any_torchvision.library = library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def say(message: object) -> None:
    sys.stdout.write(f"{message}\n")


def build(folder: Path, configs: Path, small: bool) -> None:
    """Save a randomly initialised MapAnything as `from_pretrained` expects it."""
    import torch
    from mapanything.models import MapAnything

    hydra, OmegaConf = importlib.import_module("hydra"), importlib.import_module("omegaconf").OmegaConf
    OmegaConf.register_new_resolver("special_float", float, replace=True)
    overrides = ["machine=default", "model=mapanything", "model/task=images_only", *(SMALL if small else [])]
    with hydra.initialize_config_dir(str(configs.resolve()), version_base=None):
        tree = hydra.compose("train", overrides)
    arguments: dict[str, Any] = OmegaConf.to_container(tree.model.model_config, resolve=True)
    arguments["encoder_config"] |= {"torch_hub_pretrained": False}
    torch.manual_seed(0)
    model = MapAnything(**copy.deepcopy(arguments))  # it writes classes into what it is given
    last = model.dpt_regressor_head.conv2[-1]  # channels: ray x, y, z, depth, confidence, mask
    with torch.no_grad():  # as initialised, the mask would be all True or all False
        last.weight *= 50
        last.bias[:] = torch.tensor([0.0, 0, 1, 0, 0, 0.4])
    model.save_pretrained(folder, config=arguments)


def run(weights: Path, images: list[Path]) -> None:
    """Reconstruct `images` and assert what `ViewGeometry` promises."""
    import numpy as np

    from rw3d_common.cameras import is_rigid
    from rw3d_common.images import image_size
    from rw3d_prep.frames import Frame
    from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
    from rw3d_prep.reconstruct.mapanything_model import load_model
    from rw3d_prep.reconstruct.pixel_maps import pixel_map_for, target_size

    config = MapAnythingConfig(weights=weights, device="cpu", amp="none")
    frames = [Frame("real", "run", number, "", path) for number, path in enumerate(images)]
    sizes = [image_size(path) for path in images]
    target = target_size(sizes, config.resize, config.resolution)
    loading = time.perf_counter()
    load_model(config)
    started = time.perf_counter()
    views = list(MapAnythingBackend(config).reconstruct(frames, np.zeros(3)))
    seconds = time.perf_counter() - started
    assert len(views) == len(frames)
    for size, view in zip(sizes, views, strict=True):
        assert view.points.shape == (*target, 3) and view.points.dtype == np.float32
        assert view.confidence.shape == target and view.confidence.dtype == np.float32 and view.confidence.min() >= 1
        assert view.valid.shape == target and view.valid.dtype == bool and np.isfinite(view.points[view.valid]).all()
        assert view.points.base is None or view.points.base.nbytes == view.points.nbytes  # a copy of its own
        assert is_rigid(view.camera_to_world) and view.camera_to_world.dtype == np.float64
        assert view.intrinsics.shape == (3, 3) and np.isfinite(view.intrinsics).all()
        assert view.pixel_map == pixel_map_for(size, target)
    assert_masks_of_the_package(config, frames, views)
    edges_kept = config.model_copy(update={"mask_edges": False})
    for view, more in zip(views, MapAnythingBackend(edges_kept).reconstruct(frames, np.zeros(3)), strict=True):
        assert not (view.valid & ~more.valid).any() and view.valid.sum() < more.valid.sum() < more.valid.size
        assert np.array_equal(view.points[view.valid], more.points[view.valid])  # repeats are identical
    say(MapAnythingBackend(config).identity())
    shares = ", ".join(f"{view.valid.mean():.1%}" for view in views)
    say(f"loaded in {started - loading:.1f} s; {len(views)} views on {target[1]}×{target[0]} in {seconds:.1f} s")
    say(f"valid: {shares}; covered: {views[0].pixel_map.covered_fraction():.1%}")


def assert_masks_of_the_package(config: Any, frames: list[Any], views: list[Any]) -> None:
    """Validity and valid points are bit for bit those of `infer` with its own masking, and neither mask is trivial."""
    import numpy as np

    from rw3d_prep.reconstruct.mapanything import MapAnythingBackend
    from rw3d_prep.reconstruct.mapanything_model import load_model

    given = MapAnythingBackend(config).load(frames).views
    outputs = load_model(config).infer(given, minibatch_size=1, use_amp=False, apply_mask=True, mask_edges=True)
    for view, output in zip(views, outputs, strict=True):
        mask, points = output["mask"][0, ..., 0].numpy(), output["pts3d"][0].numpy()
        assert np.array_equal(view.valid, mask & np.isfinite(points).all(-1))
        assert 0 < view.valid.sum() < output["non_ambiguous_mask"].sum() < view.valid.size
        assert np.array_equal(view.points[view.valid], points[view.valid])
    say("edges: bit for bit those of infer(mask_edges=True)")


def inputs(images: list[Path]) -> None:
    """Assert that our pictures equal those of `load_images`, in both resize modes."""
    import numpy as np
    from mapanything.utils.image import load_images

    from rw3d_common.images import image_size
    from rw3d_prep.frames import Frame
    from rw3d_prep.reconstruct.mapanything import _view
    from rw3d_prep.reconstruct.pixel_maps import target_size

    for resize, size in (("fixed_mapping", None), ("longest_side", 518)):
        theirs = load_images([str(path) for path in images], resize_mode=resize, size=size)
        assert len(theirs) == len(images), "load_images dropped a file"
        target = target_size([image_size(path) for path in images], resize, 518)  # type: ignore[arg-type]
        for path, view in zip(images, theirs, strict=True):
            ours = _view(Frame("real", "run", 0, "", path), image_size(path), target, pin=False)
            assert np.array_equal(ours["img"].numpy(), view["img"].numpy()), path
        say(f"{resize}: {len(images)} pictures equal on {target[1]}×{target[0]}")


def use(weights: Path, dataset: str, root: Path, count: int = 3) -> None:
    """Assert that given geometry reaches the model, spoils nothing, and that the scene lies in the dataset's world."""
    import numpy as np

    from rw3d_prep.datasets import DatasetConfig, read_frames
    from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig

    frames = read_frames(root, DatasetConfig(name=dataset)).frames[:count]
    offset = frames[0].camera_to_world[:3, 3]
    before: list[Any] = []
    for given in ((), ("intrinsics",), ("intrinsics", "poses"), ("intrinsics", "poses", "depth")):
        config = MapAnythingConfig(weights=weights, device="cpu", amp="none", mask_edges=False, use=given)
        loaded = MapAnythingBackend(config).load(frames, offset)
        measured = [f"{(view['depth_z'] > 0).float().mean():.0%}" for view in loaded.views if "depth_z" in view]
        views = list(MapAnythingBackend(config).reconstruct(frames, offset))
        assert all(view.valid.any() and np.isfinite(view.points[view.valid]).all() for view in views)
        assert not before or not np.array_equal(before[1].confidence, views[1].confidence), f"{given} changes nothing"
        if "poses" in given:
            error = np.abs(
                views[0].camera_to_world[:3] - [*np.c_[frames[0].camera_to_world[:3, :3], np.zeros(3)]]
            ).max()
            assert error < 1e-5, error
        say(f"use {given}: valid {[f'{view.valid.mean():.0%}' for view in views]}, depth on {measured}")
        before = views


def build_wrapped(folder: Path, network: str) -> None:
    """Save one of the wrapped networks with random weights."""
    import torch

    from rw3d_prep.reconstruct.mapanything_model import _local_dinov2
    from rw3d_prep.reconstruct.wrappers import WRAPPERS

    small = {"vggt": {"depth": 4, "intermediate_layer_idx": [0, 1, 2, 3]}, "da3": {"model_name": "da3-small"}}
    torch.manual_seed(0)
    module = importlib.import_module(f"mapanything.models.external.{network}")
    with _local_dinov2():
        model = getattr(module, WRAPPERS[network].network)(**small.get(network, {}))  # type: ignore[index]
    if network == "vggt":  # as initialised, the field of view is 0; the order is translation, quaternion, field of view
        with torch.no_grad():
            model.camera_head.pose_branch.fc2.weight *= 0.01
            model.camera_head.pose_branch.fc2.bias[6:] = torch.tensor([1.0, 0.25, 0.25])
    model.save_pretrained(folder, config=small.get(network, {}))


def run_wrapped(weights: Path, name: str, images: list[Path]) -> None:
    """Load and reconstruct as the backend does, and assert what `ViewGeometry` promises."""
    import numpy as np
    import torch

    from rw3d_common.cameras import is_rigid, project
    from rw3d_prep.frames import Frame
    from rw3d_prep.reconstruct import mapanything_model
    from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
    from rw3d_prep.reconstruct.models import KNOWN

    torch.cuda.get_device_capability = lambda *_: (8, 0)
    mapanything_model.require = lambda config: "cpu"
    config = MapAnythingConfig(
        model=name, weights=weights, device="cpu", mask_edges=False, resize="longest_side", resolution=280
    )
    frames = [Frame("real", "run", number, "", path) for number, path in enumerate(images)]
    started = time.perf_counter()
    views = list(MapAnythingBackend(config).reconstruct(frames, np.zeros(3)))
    say(MapAnythingBackend(config).identity())
    for view in views:
        assert view.confidence.shape == view.valid.shape and view.confidence.dtype == np.float32
        assert ("logit" in KNOWN[name].confidence) == bool((view.confidence < 1).any())
        assert is_rigid(view.camera_to_world) and np.isfinite(view.points[view.valid]).all() and view.valid.all()
        row, column = np.nonzero(view.valid)
        u, v, z = project(view.points[row, column], view.intrinsics, view.camera_to_world)
        exact_u, exact_v = view.pixel_map.source_coordinates()
        away = np.median(np.hypot(u - exact_u[column], v - exact_v[row])[z > 0])
        say(
            f"confidence {view.confidence.min():.3g} … {view.confidence.max():.3g}, in front {np.mean(z > 0):.0%}, "
            f"median distance of a projected point from its pixel {away:.2g} px"
        )
    say(
        f"{len(views)} views on {views[0].valid.shape[::-1]} in {time.perf_counter() - started:.0f} s, loading included"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("weights", type=Path)
    building.add_argument("--configs", type=Path, required=True)
    building.add_argument("--small", action="store_true")
    running = commands.add_parser("run")
    running.add_argument("weights", type=Path)
    running.add_argument("images", type=Path, nargs="+")
    comparing = commands.add_parser("inputs")
    comparing.add_argument("images", type=Path, nargs="+")
    using = commands.add_parser("use")
    using.add_argument("weights", type=Path)
    using.add_argument("dataset")
    using.add_argument("root", type=Path)
    building_wrapped = commands.add_parser("build-wrapped")
    building_wrapped.add_argument("weights", type=Path)
    building_wrapped.add_argument("network")
    running_wrapped = commands.add_parser("run-wrapped")
    running_wrapped.add_argument("weights", type=Path)
    running_wrapped.add_argument("model")
    running_wrapped.add_argument("images", type=Path, nargs="+")
    options = parser.parse_args()
    allow_any_torchvision()
    match options.command:
        case "build":
            build(options.weights, options.configs, options.small)
        case "run":
            run(options.weights, options.images)
        case "use":
            use(options.weights, options.dataset, options.root)
        case "build-wrapped":
            build_wrapped(options.weights, options.network)
        case "run-wrapped":
            run_wrapped(options.weights, options.model, options.images)
        case _:
            inputs(options.images)


if __name__ == "__main__":
    main()

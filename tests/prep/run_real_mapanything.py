"""Run the real MapAnything package through our backend, with random weights, on a CPU. Not collected by pytest.

Nothing here is a test of quality: random weights give meaningless geometry. What is real is the package's interface,
so this is the check to repeat after upgrading it. Install as docs/mapanything.md says (a CPU build of torch will do)
and have DINOv2's code in torch.hub's cache; then, from the repository:

    python tests/prep/run_real_mapanything.py build WEIGHTS --configs MAP_ANYTHING_CHECKOUT/configs [--small]
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py run WEIGHTS IMAGE IMAGE …
    PYTHONPATH=common:preprocess python tests/prep/run_real_mapanything.py inputs IMAGE IMAGE …

`build` writes config.json and model.safetensors with random weights; `--small` takes a ViT-S and 4 layers instead of
the published 1.2 billion parameters. `run` reconstructs and asserts the interface. `inputs` compares our pictures with
those of the package's own `load_images`, bit for bit.
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
    options = parser.parse_args()
    allow_any_torchvision()
    match options.command:
        case "build":
            build(options.weights, options.configs, options.small)
        case "run":
            run(options.weights, options.images)
        case _:
            inputs(options.images)


if __name__ == "__main__":
    main()

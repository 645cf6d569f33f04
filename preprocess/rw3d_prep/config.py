"""The `prep:` section of a pipeline YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from rw3d_common.config import RECIPE_SECTIONS, Section, config_hash, override, pipeline_file, read_yaml, validate
from rw3d_common.errors import UserError
from rw3d_common.manifest import dataset_entry
from rw3d_common.schema import SCHEMA_VERSION
from rw3d_prep.batching import BatchConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.fuse import FuseConfig
from rw3d_prep.reconstruct import BackendConfig


class PrepConfig(Section):
    dataset: DatasetConfig
    batching: BatchConfig = Field(default_factory=BatchConfig)
    backend: BackendConfig
    fuse: FuseConfig = Field(default_factory=FuseConfig)
    embed_images: bool = False
    """Store the encoded image and label files in the scene as well, so that it trains without the data beside it."""

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of a scene, beside the input files themselves."""
        classes = dataset_entry(self.dataset.name).class_map().hash
        values = self.model_dump(mode="json")
        batching = values["batching"]
        for section, option in ((values, "embed_images"), (values["dataset"], "exclude_masks"), (batching, "overlap")):
            if not section[option]:
                del section[option]  # scenes from before these options stay the same
        del batching["min_size"]  # a scene records which frames it got
        backend = values["backend"]
        backend.pop("licence_policy", None)  # it refuses scenes and changes none
        for option, before in (("lidar", "scan"), ("use", [])):
            if backend.get(option) == before:
                del backend[option]
        return {**values, "class_map": classes, "schema_version": SCHEMA_VERSION}

    def hash(self) -> str:
        """SHA-256 of `identity`; scenes with another hash are never mixed with these."""
        return config_hash(self.identity())


def load_config(
    dataset: str | None, file: Path | None, backend: str | None, batch_size: int | None, assignments: list[str]
) -> PrepConfig:
    """The configuration of a run: recipe file, then named options, then `--set`.

    Without `file` the recipe is `pipelines/<dataset>.yaml`.

    Raises:
        UserError: no dataset and no file, an unknown dataset or key, or a value that does not fit.
    """
    if dataset is None and file is None:
        raise UserError("which dataset? give --dataset NAME (`rw3d-prep datasets` lists them) or --config FILE")
    if dataset is not None:
        dataset_entry(dataset)
    path = file or pipeline_file(str(dataset))
    recipe = read_yaml(path)
    if unknown := set(recipe) - set(RECIPE_SECTIONS):
        raise UserError(f"{path}: unknown section '{min(unknown)}'; a recipe has {', '.join(RECIPE_SECTIONS)}")
    tree = recipe.get("prep")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: has no prep: section; see pipelines/ for complete recipes")
    tree = override(tree, _from_options(tree, dataset, batch_size))
    if backend is not None and tree.get("backend", {}).get("kind") != backend:
        tree["backend"] = {"kind": backend}
    return validate(PrepConfig, override(tree, assignments), f"{path} (prep)")


def _from_options(tree: dict[str, Any], dataset: str | None, batch_size: int | None) -> list[str]:
    written = tree.get("dataset", {}).get("name")
    if dataset is not None and dataset != written:
        raise UserError(f"--dataset {dataset} contradicts the recipe, which is for '{written}'; drop one of the two")
    return [] if batch_size is None else [f"batching.size={batch_size}"]


def save_config(config: PrepConfig, path: Path) -> None:
    """Write the resolved configuration as a recipe that `--config` takes again."""
    text = yaml.safe_dump({"prep": config.model_dump(mode="json")}, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")

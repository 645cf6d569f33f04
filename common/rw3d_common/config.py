"""Configuration: one complete YAML per recipe, `--set a.b=c` on top, validated by frozen pydantic models.

Order of precedence: model defaults < YAML file < named command-line options < `--set`. Unknown keys are errors with a
suggestion; the resolved configuration is saved beside every output.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rw3d_common.errors import UserError

Tree = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
RECIPE_SECTIONS = ("prep", "train", "train_official")
PIPELINES = (Path(__file__).parents[2] / "pipelines", Path(__file__).parent / "pipelines")


class Section(BaseModel):
    """Base of every configuration section: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({where}); mend that line") from error
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: holds {type(tree).__name__}, not 'key: value' lines; see pipelines/ for complete files"
        )
    return tree


def pipeline_file(name: str) -> Path:
    """The recipe `pipelines/<name>.yaml` of the checkout or of the installed package.

    Raises:
        UserError: no such recipe; the message lists those that exist.
    """
    for folder in PIPELINES:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in PIPELINES if folder.is_dir() for path in folder.glob("*.yaml")})
    raise UserError(
        f"no recipe for dataset '{name}'{did_you_mean(name, known)}; give your own with --config FILE, or take one of {', '.join(known)}"
    )


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> Tree:
    """A copy of `tree` with every 'a.b=value' applied; values are read as YAML.

    Raises:
        UserError: an assignment without '=', or one that descends into a value that is not a section.
    """
    merged: Tree = json.loads(json.dumps(tree, default=str))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: expected KEY=VALUE, for example --set batching.size=100")
        node = merged
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {assignment}: '{section}' is a value, not a section")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: '{value}' is not a YAML value; quote it") from error
    return merged


def validate(model: type[Model], tree: Mapping[str, Any], source: str) -> Model:
    """`tree` as `model`; `source` (a file or option) is named in the error.

    Raises:
        UserError: the first offence, with its key, value and, for a misspelt key, the nearest known one.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_offence(model, error)}") from error


def _first_offence(model: type[BaseModel], error: ValidationError) -> str:
    offence = error.errors()[0]
    key = ".".join(str(part) for part in offence["loc"])
    if offence["type"] == "extra_forbidden":
        known = _known_keys(model, offence["loc"][:-1])
        return f"unknown key '{key}'{did_you_mean(str(offence['loc'][-1]), known)}; known keys: {', '.join(known)}"
    if offence["type"] == "missing":
        return f"'{key}' is missing; add it"
    message = offence["msg"].removeprefix("Value error, ")
    return f"{key} = {offence['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that `location` leads to; a union is searched through its members' tags."""
    schema = model.model_json_schema()
    node = schema
    for part in location:
        node = _resolve(schema, node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        else:  # a list index or the tag of a tagged union
            mapping = node.get("discriminator", {}).get("mapping", {})
            node = {"$ref": mapping[part]} if part in mapping else node.get("items", node)
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: Tree, node: Tree) -> Tree:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def config_hash(tree: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration's canonical JSON; equal for equal values whatever their order."""
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The changed leaves as 'a.b: old → new', comma-separated."""
    left, right = _leaves(old), _leaves(new)
    return ", ".join(
        f"{key}: {left.get(key)!r} → {right.get(key)!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(_leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat

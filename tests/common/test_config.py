"""Configuration: precedence, suggestions, hashes."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rw3d_common.config import Section, config_hash, difference, override, read_yaml, validate
from rw3d_common.errors import UserError


class Small(Section):
    kind: Literal["small"] = "small"
    radius: float = 1.0


class Large(Section):
    kind: Literal["large"] = "large"
    height: int = 3


class Whole(Section):
    name: str
    shape: Annotated[Small | Large, Field(discriminator="kind")]
    many: tuple[Small, ...] = ()


TREE = {"name": "a", "shape": {"kind": "small"}}


def test_override_replaces_nested_values_and_leaves_the_original():
    changed = override(TREE, ["shape.radius=2.5", "many=[{radius: 3}]", "name=b"])
    whole = validate(Whole, changed, "test")
    assert (whole.name, whole.shape.radius, whole.many[0].radius) == ("b", 2.5, 3.0)
    assert TREE == {"name": "a", "shape": {"kind": "small"}}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("shape.radios=1", "unknown key 'shape.small.radios' (did you mean 'radius'?)"),
        ("nam=1", "unknown key 'nam' (did you mean 'name'?)"),
        ("shape.radius=wide", "shape.small.radius = 'wide'"),
        ("shape.kind=huge", "'huge'"),
        ("name.first=x", "'name' is a value, not a section"),
        ("radius", "expected KEY=VALUE"),
        ("name=[", "is not a YAML value"),
    ],
)
def test_bad_override_is_one_sentence(assignment, said):
    with pytest.raises(UserError) as caught:
        validate(Whole, override(TREE, [assignment]), "recipe.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key_is_named():
    with pytest.raises(UserError, match=r"recipe.yaml: 'name' is missing"):
        validate(Whole, {"shape": {"kind": "small"}}, "recipe.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words"])
def test_unreadable_yaml_names_the_file(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        read_yaml(path)


def test_sections_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        validate(Whole, TREE, "test").name = "b"


trees = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda leaf: st.dictionaries(st.text("abc", min_size=1, max_size=2), leaf, max_size=3),
).filter(lambda tree: isinstance(tree, dict))


@given(trees)
def test_hash_ignores_order(tree):
    assert config_hash(tree) == config_hash(dict(reversed(tree.items())))


@given(trees, trees)
def test_difference_is_empty_exactly_for_equal_leaves(old, new):
    if old == new:
        assert difference(old, new) == ""
    if difference(old, new) == "" and "{}" not in f"{old}{new}":
        assert config_hash(old) == config_hash(new)

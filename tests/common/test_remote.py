"""Remote paths behave like pathlib's where both exist; without the extra there is one sentence."""

import builtins
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rw3d_common import UserError, open_scene
from rw3d_common.remote import RemotePath, as_store_path

PARTS = st.lists(st.text("abc.-_0", min_size=1).filter(lambda part: part.strip(".")), min_size=1, max_size=5)


@given(PARTS, PARTS)
def test_names_parents_and_joins_are_those_of_pathlib(first, second):
    ours, theirs = RemotePath("s3://b", "/".join(first)), PurePosixPath(*first)
    assert ours.name == theirs.name
    assert (ours / second[0]).key == str(theirs / second[0])
    assert ours.joinpath(*second).key == str(theirs.joinpath(*second))
    assert [parent.key for parent in ours.parents] == [str(p) if str(p) != "." else "" for p in theirs.parents]
    assert ours.joinpath(*second).relative_to(ours) == PurePosixPath(*second)


@pytest.mark.parametrize("url", ["s3://b/a/x.zarr", "s3://b/a/x.zarr/", Path("s3://b/a/x.zarr")])
def test_urls_and_paths_made_of_them(url):
    assert as_store_path(url) == RemotePath("s3://b", "a/x.zarr")
    assert str(as_store_path(url)) == "s3://b/a/x.zarr"


def test_all_else_is_a_local_path():
    assert as_store_path("stores/demo") == Path("stores/demo")


def test_without_the_extra_one_sentence_names_it(monkeypatch):
    real = builtins.__import__

    def lean(name, *more, **others):
        if name.split(".")[0] == "obstore":
            raise ImportError("No module named 'obstore'")
        return real(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", lean)
    with pytest.raises(UserError, match=r"^s3://b/x.zarr.*needs the extra s3: pip install 'rw3d\[s3\]'$"):
        open_scene("s3://b/x.zarr")

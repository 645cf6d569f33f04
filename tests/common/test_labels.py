"""Class maps and label files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap, LabelClass
from rw3d_common.manifest import DatasetEntry, dataset_entry, load_manifest

MAP = ClassMap(
    (LabelClass(0, "road", (7, 9), (1, 2, 3)), LabelClass(1, "sky", (23,), (4, 5, 6), in_3d=False)),
    ignored_ids=(0, 255),
)


@given(st.lists(st.sampled_from([0, 7, 9, 23, 255]), min_size=1))
def test_train_ids_equal_a_dictionary_look_up(ids):
    expected = [{7: 0, 9: 0, 23: 1}.get(raw, 255) for raw in ids]
    assert MAP.to_train_ids(np.array(ids, np.uint8), "x.png").tolist() == expected


def test_unknown_ids_are_errors_that_name_file_and_ids():
    with pytest.raises(UserError, match=r"x\.png: unknown label id 8, 200"):
        MAP.to_train_ids(np.array([7, 200, 8], np.uint8), "x.png")


def test_map_survives_json_but_for_its_ignored_ids():
    assert ClassMap.from_json(MAP.to_json()).classes == MAP.classes
    assert ClassMap.from_json(MAP.to_json()).hash == MAP.hash


def test_only_classes_without_surface_are_left_out_of_3d():
    assert MAP.in_3d[[0, 1, 255]].tolist() == [True, False, True]


@pytest.mark.parametrize("name", sorted(load_manifest().datasets))
def test_every_dataset_of_the_manifest_has_a_usable_class_map(name):
    entry = dataset_entry(name)
    classes = entry.class_map()
    surfaces = [item.in_3d for item in classes.classes]
    assert surfaces == sorted(surfaces, reverse=True), "classes without surface must come last"
    for raw in entry.ignored_in_truth:
        assert entry.truth_map().train_id_of[raw] == 255 != classes.train_id_of[raw]


def test_kitti360_knows_every_id_of_the_official_list():
    known = dataset_entry("kitti360").class_map().is_known
    assert known[:45].sum() == 45, "helpers/labels.py defines 0..44"
    assert dataset_entry("kitti360").class_map().names[-1] == "sky"


def test_a_raw_id_in_two_classes_is_refused():
    entry = dataset_entry("demo").model_dump()
    entry["classes"][1]["ids"] = entry["classes"][0]["ids"]
    with pytest.raises(ValueError, match="given to two classes"):
        DatasetEntry.model_validate(entry)


def test_unknown_dataset_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'kitti360'"):
        dataset_entry("kitty360")

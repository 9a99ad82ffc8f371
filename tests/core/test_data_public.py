"""The readers of public datasets, on their original layouts and against torchvision's own readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets as torchvision_datasets

from dsd_core.data import DATASETS, Dataset, open_dataset
from dsd_core.data.cityscapes import CLASSES as CITYSCAPES
from dsd_core.data.cityscapes import PALETTE
from dsd_core.data.class_list import voc_palette
from dsd_core.data.sbd import read_segmentation
from dsd_core.errors import DataError, NoSplitError, SpecError
from tests.builders import tiny_camvid
from tests.core import layouts

TRAIN_IDS = {c.id: c.train_id for c in torchvision_datasets.Cityscapes.classes if 0 <= c.train_id < 19}


def ids_of(dataset: Dataset, index: int = 0) -> list[int]:
    return sorted(np.unique(dataset[index][1]).tolist())


def stems(dataset: Dataset) -> list[str]:
    return [Path(name).stem for name in dataset.names]


WRITE = {
    "camvid": tiny_camvid,
    "cityscapes": layouts.cityscapes,
    "ade20k": layouts.ade20k,
    "voc2012": layouts.voc,
    "voc2012_aug": layouts.voc_aug,
    "coco_stuff": layouts.coco_stuff,
    "folder": layouts.folder,
}
CLASSES = {"camvid": 11, "cityscapes": 19, "ade20k": 150, "voc2012": 21, "voc2012_aug": 21, "coco_stuff": 171}


@pytest.mark.parametrize("name", WRITE)
def test_every_reader_gives_images_and_labels_of_its_classes_and_255(name: str, tmp_path: Path) -> None:
    root = WRITE[name](tmp_path)
    for split in ("train", "val"):
        dataset = open_dataset(name, root, split)
        for image, label in dataset:
            assert image.dtype == np.uint8 and image.shape == (*label.shape, 3) and label.dtype == np.int64
            assert set(np.unique(label)) <= {*range(len(dataset.classes)), 255}
        assert len(dataset) and dataset.labelled and len(dataset.fingerprint()) == 64
        assert len(dataset.classes) == len(set(dataset.classes)) == len(dataset.palette) == CLASSES.get(name, 3)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "streets"])
def test_a_missing_root_is_refused_with_the_layout(name: str, tmp_path: Path) -> None:
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as caught:
            open_dataset(name, root, "train")
        assert caught.value.field == "/dataset/root" and len(caught.value.hint or "") > 60


# --- Cityscapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_cityscapes_has_torchvisions_images_and_its_labels_as_train_ids(split: str, tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path)
    ours = open_dataset("cityscapes", root, split)
    theirs = torchvision_datasets.Cityscapes(str(root), split=split, target_type="semantic")
    by_path = {
        str(Path(path).relative_to(root / "leftImg8bit" / split)): item
        for path, item in zip(theirs.images, theirs, strict=True)
    }
    assert set(ours.names) == set(by_path)
    for name, (image, label) in zip(ours.names, ours, strict=True):
        picture, target = by_path[name]
        assert np.array_equal(image, np.asarray(picture))
        assert np.array_equal(label, np.vectorize(lambda number: TRAIN_IDS.get(number, 255))(np.asarray(target)))


def test_cityscapes_classes_and_colours_are_torchvisions() -> None:
    known = {c.train_id: c for c in torchvision_datasets.Cityscapes.classes if c.id in TRAIN_IDS}
    assert list(CITYSCAPES) == [known[place].name for place in range(19)]
    assert PALETTE == [known[place].color for place in range(19)]


def test_cityscapes_test_labels_are_all_ignored(tmp_path: Path) -> None:
    assert ids_of(open_dataset("cityscapes", layouts.cityscapes(tmp_path), "test")) == [255]


def test_cityscapes_reads_train_ids_where_there_are_no_label_ids(tmp_path: Path) -> None:
    root = layouts.cityscapes(tmp_path, "labelTrainIds", [*range(19), 255])
    assert ids_of(open_dataset("cityscapes", root, "train")) == [*range(19), 255]
    layouts.cityscapes(tmp_path, "labelIds", [7])
    assert ids_of(open_dataset("cityscapes", root, "train")) == [0]


# --- ADE20K -----------------------------------------------------------------------------------------------------------


def test_ade20k_ids_1_to_150_are_classes_and_0_is_ignored(tmp_path: Path) -> None:
    dataset = open_dataset("ade20k", layouts.ade20k(tmp_path), "train")
    assert np.array_equal(dataset[0][1], np.where((m := layouts.mask_of(list(range(151)), (19, 24))) == 0, 255, m - 1))
    assert (dataset.classes[0], dataset.classes[12], dataset.classes[149]) == ("wall", "person", "flag")
    assert dataset.palette[0] == (120, 120, 120) and dataset.palette[2] == (6, 230, 230)


def test_ade20k_has_no_test_split(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train, val"):
        open_dataset("ade20k", layouts.ade20k(tmp_path), "test")


# --- VOC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_equals_torchvisions_reader_from_each_root(split: str, root: str, tmp_path: Path) -> None:
    layouts.voc(tmp_path)
    ours = open_dataset("voc2012", tmp_path / root, split)
    theirs = torchvision_datasets.VOCSegmentation(str(tmp_path), year="2012", image_set=split)
    assert len(ours) == len(theirs) == 2
    for (image, label), (picture, target) in zip(ours, theirs, strict=True):
        assert np.array_equal(image, np.asarray(picture)) and np.array_equal(label, np.asarray(target))


def test_voc_images_keep_their_sizes_until_one_is_asked_for(tmp_path: Path) -> None:
    dataset = open_dataset("voc2012", layouts.voc(tmp_path), "train")
    assert not dataset.same_size and dataset.size == (18, 24) and dataset.size_of(1) == (18, 25)
    assert open_dataset("voc2012", tmp_path, "train", (20, 20)).same_size


def test_voc_colours_follow_the_devkit() -> None:
    assert voc_palette(4) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert voc_palette(21)[15] == (192, 128, 128) and voc_palette(256)[255] == (224, 224, 192)


def test_voc_test_images_have_no_labels(tmp_path: Path) -> None:
    place = layouts.voc(tmp_path)
    with pytest.raises(NoSplitError, match=r"test\.txt"):
        open_dataset("voc2012", tmp_path, "test")
    layouts.save_list(place / "ImageSets" / "Segmentation" / "test.txt", ["2012_004331"])
    dataset = open_dataset("voc2012", tmp_path, "test")
    assert not dataset.labelled and ids_of(dataset) == [255]


@pytest.mark.parametrize("listing", ["trainaug.txt", "train_aug.txt"])
def test_voc_aug_trains_on_the_augmented_masks_and_never_on_val(listing: str, tmp_path: Path) -> None:
    layouts.voc_aug(tmp_path, listing)
    train, val = (open_dataset("voc2012_aug", tmp_path, split) for split in ("train", "val"))
    assert stems(train) == [*layouts.VOC_TRAIN, "2008_000002"] and stems(val) == layouts.VOC_VAL
    assert ids_of(train) == [0, 5] and ids_of(val) == [*range(21), 255]


def test_voc_aug_reads_lists_with_the_folders_of_their_authors(tmp_path: Path) -> None:
    place = layouts.voc_aug(tmp_path)
    line = "/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png"
    layouts.save_list(place / "ImageSets" / "Segmentation" / "trainaug.txt", [line])
    assert stems(open_dataset("voc2012_aug", tmp_path, "train")) == ["2008_000002"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_sbd_alone_equals_torchvisions_reader(split: str, tmp_path: Path) -> None:
    place = layouts.sbd(tmp_path)
    ours = open_dataset("voc2012_aug", tmp_path, split)
    theirs = torchvision_datasets.SBDataset(str(place), image_set=split, mode="segmentation")
    assert len(ours) == len(theirs)
    for (image, label), (picture, target) in zip(ours, theirs, strict=True):
        assert np.array_equal(image, np.asarray(picture)) and np.array_equal(label, np.asarray(target))


def test_sbd_beside_voc_adds_its_images_without_those_of_vocs_val(tmp_path: Path) -> None:
    layouts.voc(tmp_path)
    layouts.sbd(tmp_path)
    train, val = (open_dataset("voc2012_aug", tmp_path, split) for split in ("train", "val"))
    assert stems(train) == [*layouts.VOC_TRAIN, "2008_000002", "2008_000003"] and stems(val) == layouts.VOC_VAL
    assert ids_of(train, 0) == [*range(21), 255], "VOC's own mask goes before SBD's"
    assert ids_of(train, 2) == [0, 20] and not set(train.names) & set(val.names)


def test_a_mat_file_that_is_not_packed_is_read_as_well(tmp_path: Path) -> None:
    segmentation = layouts.mask_of([3, 20], (5, 7)).astype(np.uint8)
    path = layouts.save_mat(tmp_path / "a.mat", segmentation, packed=False)
    assert np.array_equal(read_segmentation(path, "/dataset/root"), segmentation)


@pytest.mark.parametrize("damage", ["truncated", "text", "colours", "float", "out of range", "bomb", "pickle"])
def test_a_bad_mat_file_is_refused_by_name_and_nothing_in_it_runs(damage: str, tmp_path: Path) -> None:
    place = layouts.sbd(tmp_path) / "cls" / "2008_000002.mat"
    zeros = np.zeros(layouts.SIZE, np.uint8)
    canary = tmp_path / "canary"
    if damage == "truncated":
        place.write_bytes(place.read_bytes()[:-100])
    elif damage == "text":
        place.write_text("not a mat file")
    elif damage == "pickle":
        place.write_bytes(f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode())
    elif damage == "bomb":
        layouts.save_mat(place, np.zeros((12_000, 12_000), np.uint8))
    else:
        layouts.save_mat(
            place, {"colours": np.dstack([zeros] * 3), "float": zeros + 0.5, "out of range": zeros + 21}[damage]
        )
    with pytest.raises(DataError, match=r"2008_000002\.mat") as caught:
        open_dataset("voc2012_aug", tmp_path, "train")[0]
    assert caught.value.hint and not canary.exists()


# --- COCO-Stuff -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "masks"), [("images", "annotations"), (".", "stuffthingmaps")])
def test_coco_stuff_maps_its_171_ids_in_order_and_ignores_the_rest(images: str, masks: str, tmp_path: Path) -> None:
    dataset = open_dataset("coco_stuff", layouts.coco_stuff(tmp_path, masks, images), "val")
    label = dataset[1][1]
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    expected = {number: place for place, number in enumerate(n for n in range(182) if n not in unused)}
    mask = layouts.mask_of([*range(182), 255], (18, 49))
    assert np.array_equal(label, np.vectorize(lambda number: expected.get(number, 255))(mask))
    assert [dataset.classes[place] for place in (0, 11, 79, 80, 170)] == [
        *("person", "stop sign", "toothbrush", "banner", "wood")
    ]

"""Reading CamVid: what is accepted, and what is refused with which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_core.data import image_file, open_dataset
from dsd_core.errors import DataError, SpecError
from tests.builders import save_pair, tiny_camvid


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_camvid(tmp_path / "CamVid")


def refusal(
    root: Path, split: str = "train", index: int | None = None, size: tuple[int, int] | None = None
) -> DataError:
    """The error of opening the split, or of reading one item."""
    with pytest.raises(DataError) as caught:
        dataset = open_dataset("camvid", root, split, size)
        assert index is not None, "opening should have failed"
        dataset[index]
    return caught.value


def test_item_is_rgb_image_and_label_with_void_as_255(root: Path) -> None:
    image, label = open_dataset("camvid", root, "train")[0]
    assert image.dtype == np.uint8 and image.shape == (48, 64, 3)
    assert label.dtype == np.int64 and label.shape == (48, 64)
    assert set(np.unique(label)) <= {*range(11), 255}
    assert (label[:, :2] == 255).all()


def test_dataset_is_a_sequence_that_ends(root: Path) -> None:
    dataset = open_dataset("camvid", root, "val")
    assert len(dataset) == len(list(dataset)) == 3
    assert np.array_equal(dataset[-1][0], dataset[2][0])
    with pytest.raises(IndexError):
        dataset[3]


def test_without_list_all_images_count_sorted_by_name(root: Path) -> None:
    assert open_dataset("camvid", root, "val").names == ["val_000.png", "val_001.png", "val_002.png"]


def test_list_of_foreign_absolute_paths_chooses_and_orders_by_base_name(root: Path) -> None:
    lines = [
        f"/home/author/SegNet/val/{name} /home/author/SegNet/valannot/{name}" for name in ("val_002.png", "val_000.png")
    ]
    (root / "val.txt").write_text("\n".join([*lines, ""]))
    assert open_dataset("camvid", root, "val").names == ["val_002.png", "val_000.png"]


def test_list_cannot_lead_out_of_the_folder(root: Path) -> None:
    shutil.copy(root / "val" / "val_000.png", root.parent / "outside.png")
    (root / "val.txt").write_text("../../outside.png\n")
    assert "outside.png" in refusal(root, "val").message


def test_size_resizes_images_and_labels_without_new_ids(root: Path) -> None:
    dataset = open_dataset("camvid", root, "train", (40, 24))
    before, (image, label) = open_dataset("camvid", root, "train")[0], dataset[0]
    assert dataset.size == label.shape == image.shape[:2] == (40, 24)
    assert set(np.unique(label)) <= set(np.unique(before[1]))


def test_fingerprint_follows_content_and_not_place(root: Path, tmp_path: Path) -> None:
    first = open_dataset("camvid", root, "train").fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert open_dataset("camvid", moved, "train").fingerprint() == first
    mask = moved / "trainannot" / "train_003.png"
    Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(mask)
    assert open_dataset("camvid", moved, "train").fingerprint() != first


def test_palette_mask_is_read_by_index(root: Path) -> None:
    path = root / "trainannot" / "train_000.png"
    with Image.open(path) as image:
        grey = np.asarray(image)
    paletted = Image.fromarray(grey)
    paletted.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    expected = open_dataset("camvid", root, "train")[0][1]
    paletted.save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert np.array_equal(open_dataset("camvid", root, "train")[0][1], expected)


def test_jpeg_image_pairs_with_png_mask(root: Path) -> None:
    with Image.open(root / "train" / "train_000.png") as image:
        image.save(root / "train" / "train_000.jpg")
    (root / "train" / "train_000.png").unlink()
    dataset = open_dataset("camvid", root, "train")
    assert dataset.names[0] == "train_000.jpg" and dataset[0][0].shape == (48, 64, 3)


def test_grey_image_becomes_rgb(root: Path) -> None:
    Image.fromarray(np.full((48, 64), 77, dtype=np.uint8)).save(root / "train" / "train_000.png")
    assert (open_dataset("camvid", root, "train")[0][0] == 77).all()


def test_missing_folder_is_refused_with_the_layout(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in error.message
    assert "trainannot/" in (error.hint or "") and error.field == "/dataset/root"


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_missing_part_of_the_layout_is_named(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    assert str(root / folder) in refusal(root).message


def test_missing_annotations_are_counted_and_named_up_to_twenty(tmp_path: Path) -> None:
    root = tiny_camvid(tmp_path, train=25, size=(8, 8))
    for index in range(1, 25):
        (root / "trainannot" / f"train_{index:03d}.png").unlink()
    message = refusal(root).message
    assert "24 of 25" in message and "train_001.png" in message and "train_020.png" in message
    assert "train_021.png" not in message and "4 more" in message


def test_listed_image_that_is_absent_is_named(root: Path) -> None:
    (root / "val.txt").write_text("val_000.png\nval_077.png\n")
    assert "val_077.png" in refusal(root, "val").message


def test_empty_split_is_refused(root: Path) -> None:
    for path in (root / "val").iterdir():
        path.unlink()
    assert "holds no image" in refusal(root, "val").message


def test_id_out_of_range_names_file_ids_and_range(root: Path) -> None:
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[0, 0], mask[0, 1] = 12, 200
    Image.fromarray(mask).save(root / "trainannot" / "train_002.png")
    message = refusal(root, index=2).message
    assert "train_002.png" in message and "12, 200" in message and "0..11" in message


def test_colour_mask_is_refused(root: Path) -> None:
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(root / "trainannot" / "train_000.png")
    error = refusal(root, index=0)
    assert "mode RGB" in error.message and "class ids" in (error.hint or "")


def test_sixteen_bit_files_are_refused(root: Path) -> None:
    deep = Image.fromarray(np.zeros((48, 64), dtype=np.uint16))
    for folder in ("train", "trainannot"):
        deep.save(root / folder / "train_000.png")
        assert f"{folder}/train_000.png" in refusal(root, index=0).message
        tiny_camvid(root)


def test_mask_of_another_size_is_refused_with_both_sizes(root: Path) -> None:
    Image.fromarray(np.zeros((47, 64), dtype=np.uint8)).save(root / "trainannot" / "train_001.png")
    message = refusal(root, index=1).message
    assert "47x64" in message and "48x64" in message


def test_images_of_two_sizes_keep_their_own_unless_one_is_asked_for(root: Path) -> None:
    assert open_dataset("camvid", root, "train").same_size
    save_pair(root, "train", "z.png", np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8))
    dataset = open_dataset("camvid", root, "train")
    assert not dataset.same_size and dataset.size == (48, 64) and dataset.size_of(6) == (20, 30)
    assert dataset[6][1].shape == (20, 30)
    assert open_dataset("camvid", root, "train", (48, 64)).same_size


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95])
def test_truncated_image_is_refused_by_name(root: Path, keep: float) -> None:
    path = root / "train" / "train_004.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "train_004.png" in refusal(root, index=4).message


def test_damaged_byte_is_refused(root: Path) -> None:
    path = root / "train" / "train_004.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(bytes(content))
    assert "train_004.png" in refusal(root, index=4).message


def test_other_formats_are_refused_whatever_their_name(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "train" / "train_004.png", format="GIF")
    assert "PNG or JPEG" in (refusal(root, index=4).hint or "")


def test_image_beyond_the_pixel_cap_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("1", (9000, 8000)).save(path)
    with pytest.raises(DataError, match=r"wide\.png has more than 64 million pixels"):
        image_file.read_image(path, "/dataset/root")


def test_unknown_names_are_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(SpecError, match="camvid"):
        open_dataset("camvit", root, "train")
    with pytest.raises(SpecError, match="val"):
        open_dataset("camvid", root, "../val")


def test_shared_camvid_is_complete(camvid: Path) -> None:
    train, val = open_dataset("camvid", camvid, "train"), open_dataset("camvid", camvid, "val")
    assert (len(train), len(val)) == (367, 101)
    assert train.size == val.size == (360, 480)
    assert train.names[0] == "0001TP_006690.png"
    assert len(train.classes) == len(train.palette) == 11
    assert train.classes[3] == "Road" and train.palette[3] == (128, 64, 128)


def test_shared_camvid_labels_hold_class_ids_and_ignore_only(camvid: Path) -> None:
    dataset = open_dataset("camvid", camvid, "val")
    ids = set().union(*(np.unique(dataset[index][1]).tolist() for index in range(0, 101, 10)))
    assert ids == {*range(11), 255}

"""Data of one's own: a folder or a manifest, with `classes.yaml`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_core.data import Dataset, open_dataset
from dsd_core.data.classes_file import read_classes
from dsd_core.errors import DataError, NoSplitError
from tests.core import layouts


def refused(name: str, root: Path, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        open_dataset(name, root, split)
    assert caught.value.field == "/dataset/root" and caught.value.hint
    return caught.value


def labels_in(dataset: Dataset) -> set[int]:
    return set().union(*(np.unique(label).tolist() for _, label in dataset))


# --- classes.yaml -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids", "expected"),
    [
        ("[road, car]", [0, 1, 255], [0, 1, 255]),
        ("classes: [road, car]\nignore: [7]", [0, 1, 7, 255], [0, 1, 255, 255]),
        ("classes: {road: 7, car: 3}", [3, 7, 255], [1, 0, 255]),
        ("classes: {road: 255, car: 0}", [0, 255], [1, 0]),
        ("classes: {road: 7, car: 40000}\nignore: [300]", [7, 300, 40000], [0, 255, 1]),
    ],
)
def test_ids_become_places_in_the_list(text: str, ids: list[int], expected: list[int], tmp_path: Path) -> None:
    classes = tmp_path / "classes.yaml"
    classes.write_text(text)
    labels = read_classes(classes)
    mask = layouts.save_ids(tmp_path / "m.png", ids, (1, len(ids)), dtype=np.uint16 if max(ids) > 255 else np.uint8)
    assert labels.classes == ("road", "car") and len(labels.palette) == 2
    assert labels.read(mask).tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colours_become_places_in_the_list(mode: str, tmp_path: Path) -> None:
    classes = tmp_path / "classes.yaml"
    classes.write_text("classes: {road: [128, 64, 128], car: [0, 0, 142]}\nignore: [[0, 0, 0]]")
    pixels = np.array([[(0, 0, 142), (128, 64, 128), (0, 0, 0)]], dtype=np.uint8)
    mask = Image.fromarray(pixels)
    (mask if mode == "RGB" else mask.quantize(8)).save(tmp_path / "m.png")
    labels = read_classes(classes)
    assert labels.read(tmp_path / "m.png").tolist() == [[1, 0, 255]]
    assert labels.palette == [(128, 64, 128), (0, 0, 142)]


def test_a_colour_that_is_no_class_is_named_with_those_allowed(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes: {road: [128, 64, 128]}")
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / "classes.yaml").read(layouts.save_image(tmp_path / "m.png", (1, 30)))
    message = caught.value.message
    assert "m.png" in message and "and 10 more" in message and "allowed are (128, 64, 128)" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as YAML"),
        ("3", "does not list the classes"),
        ("classes: []", "lists 0 classes"),
        (f"[{', '.join(f'c{n}' for n in range(256))}]", "lists 256 classes; 1 to 255"),
        ("[road, road]", "twice"),
        ("[road, 3]", "whose name is no line of text but int"),
        ('["ro\\nad"]', "no line of text"),
        ("classes: {road: 1, car: 1}", "one id or colour to two classes"),
        ("classes: {road: 1}\nignore: [1]", "`ignore`"),
        ("classes: {road: 70000}", "no whole number of 0..65535"),
        ("classes: {road: true}", "no whole number"),
        ("classes: {road: [1, 2]}", "not three of 0..255"),
        ("classes: {road: [1, 2, 3], car: 4}", "mixes ids and colours"),
        ("classes: [a]\nvoid: [1]", "nothing else"),
        ("classes: !!python/object/apply:os.system ['touch canary']", "cannot be read as YAML"),
        (f"classes: {'[' * 5000}", "cannot be read as YAML"),
    ],
)
def test_a_wrong_classes_file_is_refused_with_the_forms(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = layouts.folder(tmp_path, text)
    error = refused("folder", root)
    assert said in error.message and "classes.yaml" in error.message and "{road: 7}" in (error.hint or "")
    assert not (tmp_path / "canary").exists()


# --- folder -----------------------------------------------------------------------------------------------------------


def test_splits_are_the_folders_where_there_are_any(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path, train=["a", "town/b"], val=["c"], test=["d"])
    assert open_dataset("folder", root, "train").names == ["a.png", "town/b.png"]
    assert open_dataset("folder", root, "test").names == ["d.png"]
    assert labels_in(open_dataset("folder", root, "train")) == {0, 1, 2, 255}


def flat(root: Path, count: int = 40) -> Path:
    """A folder whose images are not divided."""
    layouts.folder(root, train=[f"{number:03d}" for number in range(count)])
    for part in ("images", "masks"):
        shutil.move(root / part / "train", root / "moved")
        (root / part).rmdir()
        shutil.move(root / "moved", root / part)
    return root


def test_splits_are_the_lists_where_there_are_any(tmp_path: Path) -> None:
    root = flat(tmp_path, 4)
    layouts.save_list(root / "train.txt", ["002.png", "000"])
    layouts.save_list(root / "val.txt", ["001.png"])
    assert open_dataset("folder", root, "train").names == ["002.png", "000.png"]
    assert open_dataset("folder", root, "val").names == ["001.png"]
    assert isinstance(refused("folder", root, "test"), NoSplitError)


def test_else_one_in_ten_is_val_by_its_name_alone(tmp_path: Path) -> None:
    root = flat(tmp_path, 40)
    train, val = (set(open_dataset("folder", root, split).names) for split in ("train", "val"))
    assert len(train | val) == 40 and not train & val and 1 <= len(val) <= 9
    for name in list(train)[:30]:
        (root / "images" / name).unlink()
    assert set(open_dataset("folder", root, "val").names) == val
    assert isinstance(refused("folder", root, "test"), NoSplitError)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_list_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "data", 2)
    layouts.save_image(tmp_path / "secret.png")
    layouts.save_list(root / "train.txt", [name])
    assert "no path below" in refused("folder", root).message


def test_a_listed_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = flat(tmp_path / "data", 2)
    (root / "images" / "000.png").unlink()
    (root / "images" / "000.png").symlink_to(layouts.save_image(tmp_path / "secret.png"))
    layouts.save_list(root / "train.txt", ["000.png"])
    assert "a link that leads out" in refused("folder", root).message


def test_without_masks_there_are_images_and_no_labels(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path)
    shutil.rmtree(root / "masks" / "val")
    train, val = (open_dataset("folder", root, split) for split in ("train", "val"))
    assert train.labelled and not val.labelled and labels_in(val) == {255}
    shutil.rmtree(root / "masks")
    assert not open_dataset("folder", root, "train").labelled


def test_masks_that_are_not_divided_as_the_images_are_refused(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(root / "masks" / split)
    layouts.save_ids(root / "masks" / "a.png", [0])
    assert "is not" in refused("folder", root).message


def test_the_meaning_of_masks_enters_the_fingerprint(tmp_path: Path) -> None:
    first = open_dataset("folder", layouts.folder(tmp_path), "train").fingerprint()
    assert open_dataset("folder", layouts.folder(tmp_path), "train").fingerprint() == first
    swapped = layouts.folder(tmp_path, "classes: {car: 1, road: 0, sky: 2}")
    assert open_dataset("folder", swapped, "train").fingerprint() != first


# --- manifest ---------------------------------------------------------------------------------------------------------


def manifest(root: Path, rows: list[dict[str, str]], kind: str = "csv") -> Path:
    """A manifest over the files of `layouts.folder`."""
    layouts.folder(root)
    if kind == "jsonl":
        text = "".join(json.dumps({k: v for k, v in row.items() if v}) + "\n" for row in rows)
    else:
        text = "image,mask,split\n" + "".join(f"{r['image']},{r['mask']},{r['split']}\n" for r in rows)
    (root / f"manifest.{kind}").write_text(text)
    return root


def row(split: str, name: str, mask: str | None = None, as_split: str | None = None) -> dict[str, str]:
    mask = f"masks/{split}/{name}.png" if mask is None else mask
    return {"image": f"images/{split}/{name}.png", "mask": mask, "split": as_split or split}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_says_image_mask_and_split(kind: str, tmp_path: Path) -> None:
    rows = [row("train", "b"), row("train", "a"), row("val", "d"), row("train", "c", mask="", as_split="test")]
    root = manifest(tmp_path, rows, kind)
    assert open_dataset("manifest", root, "train").names == ["images/train/b.png", "images/train/a.png"]
    assert len(open_dataset("manifest", root / f"manifest.{kind}", "val")) == 1
    assert labels_in(open_dataset("manifest", root, "val")) == {0, 1, 2, 255}
    assert not open_dataset("manifest", root, "test").labelled


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("train", "a"), row("train", "a")], "twice in one split: images/train/a.png"),
        ([row("train", "nobody")], "not there"),
        ([row("train", "a"), row("train", "b", mask="")], "without are: images/train/b.png"),
        ([row("train", "a", mask="/etc/passwd")], "no path below"),
        ([row("train", "a", mask="../masks/a.png")], "no path below"),
        ([row("train", "a", as_split="training")], "Line 2 of"),
        ([row("val", "d")], "no row of the split 'train'"),
        ([{"image": "", "mask": "", "split": "train"}], "Line 2"),
    ],
)
def test_a_wrong_manifest_is_refused(rows: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    assert said in refused("manifest", manifest(tmp_path, rows)).message


@pytest.mark.parametrize(
    "text", ["", "[1]\n", '{"image": 3, "split": "train"}\n', "{", '{"image": "a", "x": ""}', "\udcff"]
)
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    root = layouts.folder(tmp_path)
    (root / "manifest.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    assert "manifest.jsonl" in refused("manifest", root).message


def test_a_link_of_a_manifest_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    root = manifest(tmp_path / "data", [row("train", "a")])
    (root / "images" / "train" / "a.png").unlink()
    (root / "images" / "train" / "a.png").symlink_to(layouts.save_image(tmp_path / "secret.png"))
    assert "a link that leads out" in refused("manifest", root).message


def test_names_with_newlines_stand_in_quotes_in_a_csv(tmp_path: Path) -> None:
    root = layouts.folder(tmp_path, train=["a\nb"], val=["d"])
    (root / "manifest.csv").write_text('image,mask,split\n"images/train/a\nb.png","masks/train/a\nb.png",train\n')
    assert labels_in(open_dataset("manifest", root, "train")) == {0, 1, 2, 255}

"""Files nobody vouches for: each is answered with its name, a reason and a remedy, or read by the stated rule."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dsd_core.data import open_dataset
from dsd_core.data.image_file import read_colours, read_ids, read_image
from dsd_core.data.sbd import read_segmentation
from dsd_core.errors import DataError
from tests.core import layouts

SIZE = layouts.SIZE
NOISE = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
IDS = layouts.mask_of([0, 1, 2, 255])


def png(width: int, height: int, bits: int, kind: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A PNG by hand: what Pillow does not write, or that is not what it says."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noisy(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(NOISE).convert(mode)


def transparent_palette() -> bytes:
    return saved(noisy("P"), "PNG", transparency=b"\x00\x80" * 100)


FLAT = Image.new("RGB", SIZE[::-1], (200, 100, 50))
DEEP_ROWS = (b"\0" + bytes(SIZE[1] * 6)) * SIZE[0]
TEXT_BOMB = b"k\0\0" + zlib.compress(bytes(200_000_000))
BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "cannot be decoded"),
    "truncated": (saved(noisy(), "PNG")[:-300], "cannot be decoded"),
    "truncated JPEG": (saved(noisy(), "JPEG")[:-200], "cannot be decoded"),
    "text": (b"hello", "cannot be decoded"),
    "GIF": (saved(noisy(), "GIF"), "cannot be decoded"),
    "TIFF": (saved(noisy(), "TIFF"), "cannot be decoded"),
    "pickle": (b"cposix\nsystem\n(S'touch canary'\ntR.", "cannot be decoded"),
    "16 bits grey": (saved(Image.fromarray(np.zeros(SIZE, np.uint16)), "PNG"), "16 bits"),
    "16 bits colour": (png(SIZE[1], SIZE[0], 16, 2, data=DEEP_ROWS), "16 bits"),
    "animation": (saved(noisy(), "PNG", save_all=True, append_images=[Image.fromarray(255 - NOISE)]), "animation"),
    "30000x30000": (png(30_000, 30_000, 8, 2), "more than 64 million pixels"),
    "text bomb": (png(SIZE[1], SIZE[0], 8, 2, (b"zTXt", TEXT_BOMB), data=DEEP_ROWS), "too large"),
}
GOOD_IMAGES: dict[str, tuple[bytes, Callable[[], np.ndarray]]] = {
    "grey": (saved(noisy("L"), "PNG"), lambda: np.dstack([np.asarray(noisy("L"))] * 3)),
    "alpha": (saved(noisy("RGBA"), "PNG"), lambda: NOISE),
    "palette with transparency": (transparent_palette(), lambda: np.asarray(noisy("P").convert("RGB"))),
    "PNG called JPEG": (saved(noisy(), "PNG"), lambda: NOISE),
    "CMYK": (saved(FLAT.convert("CMYK"), "JPEG", quality=100), lambda: np.asarray(FLAT)),
}
BAD_MASKS: dict[str, tuple[bytes, str]] = {
    "JPEG": (saved(Image.fromarray(IDS.astype(np.uint8)), "JPEG"), "compression changes class ids"),
    "colours": (saved(noisy(), "PNG"), "mode RGB"),
    "alpha": (saved(noisy("LA"), "PNG"), "mode LA"),
    "float": (saved(Image.fromarray(IDS.astype(np.float32)), "TIFF"), "cannot be decoded"),
    "16 bits": (saved(Image.fromarray(IDS.astype(np.uint16)), "PNG"), "16 bits"),
    "id 77": (saved(Image.fromarray(np.full(SIZE, 77, np.uint8)), "PNG"), "holds the ids 77; allowed are 0..2, 255"),
    "another size": (saved(Image.fromarray(np.zeros((9, 24), np.uint8)), "PNG"), "is 9x24, its image 18x24"),
    "no bytes": (b"", "cannot be decoded"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.folder(tmp_path)


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_refused_with_name_reason_and_remedy(kind: str, root: Path) -> None:
    content, said = BAD_IMAGES[kind]
    (root / "images" / "train" / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.png") as caught:
        open_dataset("folder", root, "train")[1]
    assert said in caught.value.message and caught.value.hint


@pytest.mark.parametrize("kind", GOOD_IMAGES)
def test_an_unusual_image_is_read_by_the_stated_rule(kind: str, root: Path) -> None:
    content, expected = GOOD_IMAGES[kind]
    (root / "images" / "train" / "b.png").unlink()
    (root / "images" / "train" / "b.jpg").write_bytes(content)
    image = open_dataset("folder", root, "train")[1][0]
    assert np.abs(image.astype(int) - expected()).max() <= (2 if kind == "CMYK" else 0)


def test_the_orientation_that_a_camera_noted_is_not_applied(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noisy().save(root / "images" / "train" / "b.png", exif=exif)
    assert np.array_equal(open_dataset("folder", root, "train")[1][0], NOISE)


def test_an_image_of_one_pixel_is_an_image(root: Path) -> None:
    layouts.save_image(root / "images" / "train" / "b.png", (1, 1))
    layouts.save_ids(root / "masks" / "train" / "b.png", [2], (1, 1))
    assert open_dataset("folder", root, "train")[1][1].tolist() == [[2]]


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_bad_mask_is_refused_with_name_reason_and_remedy(kind: str, root: Path) -> None:
    content, said = BAD_MASKS[kind]
    (root / "masks" / "train" / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"masks/train/b\.png") as caught:
        open_dataset("folder", root, "train")[1]
    assert said in caught.value.message and caught.value.hint


SCAN = """
import resource, sys
from dsd_core.data import open_dataset
from dsd_core.data.image_file import read_colours, read_ids, read_image
from dsd_core.data.sbd import read_segmentation
from dsd_core.data.scan import survey
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
survey(open_dataset("folder", sys.argv[1], "val"))
before = peak()
bad = survey(open_dataset("folder", sys.argv[1], "train")).bad
print(len(bad), all(error.hint for error in bad), (peak() - before) // 1024)
"""


def test_a_folder_of_bad_files_takes_bounded_memory_and_runs_nothing(root: Path) -> None:
    for number, (content, _) in enumerate(BAD_IMAGES.values()):
        (root / "images" / "train" / f"bad{number}.png").write_bytes(content)
        shutil.copy(root / "masks" / "train" / "a.png", root / "masks" / "train" / f"bad{number}.png")
    done = subprocess.run(
        [sys.executable, "-c", SCAN, root], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    count, hints, megabytes = done.stdout.split()
    assert int(count) == len(BAD_IMAGES) and hints == "True" and int(megabytes) <= 256
    assert not (Path.cwd() / "canary").exists()


WHOLE = {
    "PNG": saved(noisy(), "PNG"),
    "palette": transparent_palette(),
    "animation": BAD_IMAGES["animation"][0],
    "JPEG": saved(noisy(), "JPEG"),
    "progressive": saved(noisy("CMYK"), "JPEG", progressive=True),
}
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)


def damaged(content: bytes, changes: list[tuple[int, int]], kept: float) -> bytes:
    """Some bytes changed, half of them near the start where formats keep their lengths, and the end cut off."""
    damage = bytearray(content)
    for number, (place, value) in enumerate(changes):
        damage[place % (len(damage) if number % 2 else min(len(damage), 200))] = value
    return bytes(damage[: round(len(damage) * kept)])


KEPT = st.sampled_from([1.0, 1.0, 0.9, 0.3])


@settings(deadline=None, max_examples=120)
@given(kind=st.sampled_from(sorted(WHOLE)), changes=CHANGES, kept=KEPT)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on notes of cameras that it cannot read
def test_whatever_is_damaged_is_an_image_or_an_error_that_names_the_file(
    kind: str, changes: list[tuple[int, int]], kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(damaged(WHOLE[kind], changes, kept))
    for read in (read_image, read_ids, read_colours):
        try:
            assert read(path, "/dataset/root").size
        except DataError as error:
            assert "damaged.png" in error.message and error.hint


@settings(deadline=None, max_examples=120)
@given(packed=st.booleans(), changes=CHANGES, kept=KEPT)
def test_whatever_is_damaged_in_a_mat_file_is_a_mask_or_an_error_that_names_the_file(
    packed: bool, changes: list[tuple[int, int]], kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    layouts.save_mat(path, layouts.mask_of([0, 20]).astype(np.uint8), packed=packed)
    path.write_bytes(damaged(path.read_bytes(), changes, kept))
    try:
        assert read_segmentation(path, "/dataset/root").dtype == np.uint8
    except DataError as error:
        assert "damaged.mat" in error.message and error.hint


def test_a_chunk_that_claims_four_gigabytes_makes_no_room_for_them(root: Path) -> None:
    content = bytearray(saved(noisy(), "PNG"))
    start = content.index(b"IDAT") - 4
    content[start : start + 4] = b"\xff\xff\xff\xff"
    (root / "images" / "train" / "b.png").write_bytes(content)
    code = (
        "import resource, sys; from dsd_core.data import open_dataset;"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31)); open_dataset('folder', sys.argv[1], 'train')[1]"
    )
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    assert "MemoryError" not in done.stderr


# --- names ------------------------------------------------------------------------------------------------------------


def write_named(root: Path, names: list[str]) -> None:
    """Image and mask of each name; the number of the name is the image's grey and the mask's id."""
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number,) * 3).save(root / "images" / "train" / f"{name}.png")
        Image.new("L", (4, 4), number).save(root / "masks" / "train" / f"{name}.png")
    (root / "classes.yaml").write_text(f"[{', '.join(f'c{number}' for number in range(len(names)))}]")


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
NAMES = st.lists(NAME.filter(lambda name: not name.startswith(".")), min_size=1, max_size=8, unique=True)


@settings(deadline=None, max_examples=30)
@given(names=NAMES)
@example(names=["Road", "road", "ROAD"])
@example(names=["caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")])
@example(names=["a b", " a", "a ", "a\nb", "\U0001f6e3\ufe0f", "a.jpg", "a.png"])
def test_every_image_gets_the_mask_of_exactly_its_name(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_named(Path(folder), names)
        for image, label in open_dataset("folder", folder, "train"):
            assert (label == image[..., 0]).all()


def test_two_images_that_differ_in_their_ending_alone_are_refused(root: Path) -> None:
    layouts.save_image(root / "images" / "train" / "a.jpg")
    with pytest.raises(DataError, match=r"holds both a\.jpg and a\.png") as caught:
        open_dataset("folder", root, "train")
    assert "rename" in (caught.value.hint or "")


@pytest.mark.parametrize(("image", "mask"), [("Road", "road"), ("caf\u00e9", "cafe\u0301")])
def test_a_mask_that_differs_in_case_or_unicode_form_is_pointed_out(image: str, mask: str, tmp_path: Path) -> None:
    write_named(tmp_path, [image])
    (tmp_path / "masks" / "train" / f"{image}.png").rename(tmp_path / "masks" / "train" / f"{mask}.png")
    with pytest.raises(DataError, match="differ in case or in the Unicode form") as caught:
        open_dataset("folder", tmp_path, "train")
    assert f"{mask}.png" in caught.value.message


def test_a_name_that_would_break_the_line_is_shown_escaped(tmp_path: Path) -> None:
    write_named(tmp_path, ["a\nb"])
    (tmp_path / "masks" / "train" / "a\nb.png").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset("folder", tmp_path, "train")
    assert "'a\\nb.png'" in caught.value.message and "\n" not in caught.value.message


def test_a_name_that_is_no_utf_8_is_read_and_fingerprinted(tmp_path: Path) -> None:
    write_named(tmp_path, ["\udcff"])
    assert len(open_dataset("folder", tmp_path, "train").fingerprint()) == 64


def test_hidden_files_and_other_endings_are_passed_over(root: Path) -> None:
    for name in (".hidden.png", "._a.png", "Thumbs.db", "notes.txt"):
        (root / "images" / "train" / name).write_bytes(b"x")
    assert open_dataset("folder", root, "train").names == ["a.png", "b.png", "c.png"]


def test_an_empty_split_is_refused_with_the_endings(root: Path) -> None:
    for path in (root / "images" / "val").iterdir():
        path.rename(path.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"holds no image of this split; endings are \.png"):
        open_dataset("folder", root, "val")

"""Small things made on the fly that tests of several levels need."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dsd_core.data.camvid import PALETTE, VOID
from dsd_core.network_spec import DECODERS, OWN_NETWORKS, TORCHVISION_NETWORKS

NETWORKS = (*OWN_NETWORKS, *TORCHVISION_NETWORKS, *(f"{decoder}:resnet18" for decoder in DECODERS))


def tiny_camvid(root: Path, *, train: int = 6, val: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """A CamVid folder whose classes are bands and boxes of the palette's colours with noise, void at the left edge."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            image_HW3, mask_HW = _tiny_scene(rng, size)
            save_pair(root, split, f"{split}_{index:03d}.png", image_HW3, mask_HW)
    return root


def save_pair(root: Path, split: str, name: str, image_HW3: np.ndarray, mask_HW: np.ndarray) -> None:
    """Write an image and its annotation where the CamVid layout has them."""
    for folder, pixels in ((split, image_HW3), (f"{split}annot", mask_HW)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / name)


def _tiny_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    mask_HW = np.zeros(size, dtype=np.uint8)
    mask_HW[height // 4 :] = 1
    mask_HW[height * 2 // 3 :] = 3
    for class_id in range(2, len(PALETTE)):
        top, left = int(rng.integers(0, height * 3 // 4)), int(rng.integers(2, width * 3 // 4))
        mask_HW[top : top + height // 4, left : left + width // 4] = class_id
    colours = np.array([*PALETTE, (0, 0, 0)])[mask_HW]
    mask_HW[:, :2] = VOID
    noisy = colours + rng.normal(0, 12, colours.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask_HW


def a_header(path: Path, header: object, data: bytes = b"") -> Path:
    """A file that starts as a safetensors file with this header does."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """In this process no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

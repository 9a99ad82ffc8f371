"""Write `encoders.txt`, the encoders that this version of the zoos offers: `python -m dsd_core.models.encoder_list`.

A timm model is listed when it gives features at 1/2 or 1/4 and every power of two below, which is what decoders take.
Trying all of them on the meta device takes minutes; `smp_encoders` and `timm_models` are the quick parts.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import timm
import torch
from segmentation_models_pytorch.encoders import encoders as _smp_encoders

FILE = Path(__file__).with_name("encoders.txt")


def smp_encoders() -> list[str]:
    """Encoders of segmentation-models-pytorch itself."""
    return sorted(_smp_encoders)


def timm_models() -> list[str]:
    """timm's models, `tu-` before each, whether or not they give features."""
    return [f"tu-{name}" for name in timm.list_models()]


def gives_pyramid(encoder: str) -> bool:
    """Whether the timm model builds as a feature extractor whose stages halve the size each."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(encoder.removeprefix("tu-"), features_only=True)
    except Exception:  # each architecture refuses in its own way
        return False
    reductions = list(model.feature_info.reduction())
    return any(reductions == [first * 2**i for i in range(len(reductions))] for first in (1, 2, 4))


def main() -> None:
    names = [*smp_encoders(), *filter(gives_pyramid, timm_models())]
    FILE.write_text("\n".join(names) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(names)} encoders in {FILE}\n")


if __name__ == "__main__":
    main()

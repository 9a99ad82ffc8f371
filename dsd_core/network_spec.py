"""A network as a job names it, and what it wants done to the pixels. Torch-free.

Names are keys of closed tables; `dsd_core.models` builds what they mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from dsd_core.errors import unknown
from dsd_core.parts import Part, alternatives

OWN_NETWORKS = {
    "espnet": "ESPNet (Mehta et al., ECCV 2018), alpha2 = p, alpha3 = q",
    "espnet_c": "ESPNet-C, the encoder of ESPNet alone",
    "enet": "ENet (Paszke et al., 2016)",
    "pspnet_r101": "PSPNet on ResNet-101 as SKD and IFVD have it, with an auxiliary head",
    "pspnet_r18": "PSPNet on ResNet-18 as SKD and IFVD have it, with an auxiliary head",
    "pspnet_r18_half": "pspnet_r18 with half the channels",
}
# torchvision's builders of segmentation networks, under their own names.
TORCHVISION_NETWORKS = {
    "fcn_resnet50": "FCN on ResNet-50, of torchvision",
    "fcn_resnet101": "FCN on ResNet-101, of torchvision",
    "deeplabv3_resnet50": "DeepLabV3 on ResNet-50, of torchvision",
    "deeplabv3_resnet101": "DeepLabV3 on ResNet-101, of torchvision",
    "deeplabv3_mobilenet_v3_large": "DeepLabV3 on MobileNetV3-Large, of torchvision",
    "lraspp_mobilenet_v3_large": "Lite R-ASPP on MobileNetV3-Large, of torchvision",
}
# segmentation-models-pytorch's class for each name; any of its encoders goes with each, timm's as `tu-NAME`.
DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
}
Option = Annotated[
    bool | int | float | str | list[int] | None,
    alternatives("give a number, text, true, false, null or a list of whole numbers."),
]


class Preprocess(Part):
    """What a network wants done to 8-bit RGB pixels: reorder, then `(x - mean) / std` on the 0..255 scale, per
    channel."""

    order: Literal["RGB", "BGR"] = "RGB"
    """Order of the channels the network was trained with; mean and std are given in this order."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from each channel, on the 0..255 scale. The default is ImageNet's."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        58.395,
        57.12,
        57.375,
    )
    """Divides each channel, on the 0..255 scale. The default is ImageNet's."""


class NetworkSpec(Part):
    """A network by name: `espnet`, `fcn_resnet50`, or a decoder of segmentation-models-pytorch with an encoder, short
    `fpn:resnet18`."""

    name: str
    """One of the networks in `GET /catalog`."""
    encoder: str | None = None
    """For decoders: an encoder of segmentation-models-pytorch, or `tu-` and any timm model name."""
    encoder_weights: str | None = None
    """Pretrained weights of the encoder by their name in the zoo (`imagenet`, the only one for torchvision's networks);
    they are downloaded. None starts from random."""
    options: dict[str, Option] = Field(default={})
    """Further arguments of the network, such as `decoder_pyramid_channels`, or `p` and `q` of ESPNet."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [*OWN_NETWORKS, *TORCHVISION_NETWORKS, *DECODERS]
        if self.name not in known:
            raise ValueError(str(unknown("network", self.name, known)))
        if self.name in DECODERS and not self.encoder:
            raise ValueError(f"network {self.name!r} needs an encoder, for example {self.name}:resnet18.")
        if self.name not in DECODERS and self.encoder:
            raise ValueError(f"network {self.name!r} takes no encoder.")
        return self

    def __str__(self) -> str:
        return f"{self.name}:{self.encoder}" if self.encoder else self.name


def _from_short_form(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, _, encoder = value.partition(":")
    return {"name": name, "encoder": encoder or None}


Network = Annotated[NetworkSpec, BeforeValidator(_from_short_form, json_schema_input_type=NetworkSpec | str)]
_network: TypeAdapter[NetworkSpec] = TypeAdapter(Network)


def network_spec(value: Any) -> NetworkSpec:
    """A network from its fields or its short form. Raises pydantic.ValidationError, a ValueError."""
    return _network.validate_python(value)

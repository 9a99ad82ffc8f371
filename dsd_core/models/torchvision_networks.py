"""torchvision's segmentation networks, giving logits alone. Names of weights are torchvision's own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights
from torchvision.models.segmentation import FCN, LRASPP

from dsd_core.errors import SpecError, WeightsError
from dsd_core.models.auxiliary import is_wanted
from dsd_core.models.tap_names import TapNames
from dsd_core.network_spec import NetworkSpec

# The weights that torchvision's own builders of these networks take for the backbone.
_IMAGENET = "IMAGENET1K_V1"
_BACKBONES = ("resnet50", "resnet101", "mobilenet_v3_large")
_RESNET_STAGES = ("backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4")
_MOBILENET_STAGES = ("backbone.3", "backbone.6", "backbone.12", "backbone.16")  # 1/4, 1/8, and two at 1/16


class TorchvisionSegmentation(nn.Module):
    """The parts of a torchvision network; its auxiliary head, where it has one, runs only where it is wanted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.classifier = network.get_submodule("classifier")
        self.aux_classifier: nn.Module | None = getattr(network, "aux_classifier", None)
        self.takes_two_stages = isinstance(network, LRASPP)
        self.tap_names = _tap_names(network)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits NKHW, for images of any size."""
        features = self.backbone(images_N3HW)
        if self.aux_classifier is not None and is_wanted(self.aux_classifier):
            self.aux_classifier(features["aux"])
        logits = self.classifier(features if self.takes_two_stages else features["out"])
        return F.interpolate(logits, size=images_N3HW.shape[2:], mode="bilinear", align_corners=False)


def build_torchvision(spec: NetworkSpec, classes: int, field: str) -> nn.Module:
    """The network of `spec`, its backbone random or with torchvision's ImageNet weights.

    Raises SpecError for an option of the wrong kind, WeightsError where the weights cannot be downloaded.
    """
    network = get_model_builder(spec.name)(
        weights=None, weights_backbone=None, num_classes=classes, **_options(spec, field)
    )
    module = TorchvisionSegmentation(network)
    if spec.encoder_weights is not None:
        _load_backbone(module.backbone, spec, field)
    return module


def _options(spec: NetworkSpec, field: str) -> dict[str, Any]:
    if spec.name.startswith("lraspp"):
        return {}
    auxiliary = spec.options.get("aux_loss", True)
    if not isinstance(auxiliary, bool):
        raise SpecError(f"aux_loss of {spec.name} must be true or false.", field=f"{field}/options/aux_loss")
    return {"aux_loss": auxiliary}


def _load_backbone(backbone: nn.Module, spec: NetworkSpec, field: str) -> None:
    """Fill the backbone from torchvision's ImageNet weights of it; the tensors of their classifier are left out."""
    name = next(name for name in _BACKBONES if spec.name.endswith(name))
    weights = get_model_weights(name)[_IMAGENET]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib, the operating system and the check of the hash each have their own classes
        raise WeightsError(
            f"The weights {weights} could not be downloaded: {error}",
            field=f"{field}/encoder_weights",
            hint="Check the worker's network, or leave encoder_weights out to start from random.",
        ) from error
    state = {key.removeprefix("features."): tensor for key, tensor in state.items()}
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})


def _tap_names(network: nn.Module) -> TapNames:
    resnet = hasattr(network.get_submodule("backbone"), "layer4")
    stages = _RESNET_STAGES if resnet else _MOBILENET_STAGES
    if isinstance(network, LRASPP):
        return TapNames(stages, head="classifier.cbr", logits="classifier")
    head = "classifier.2" if isinstance(network, FCN) else "classifier.3"
    auxiliary = None if getattr(network, "aux_classifier", None) is None else "aux_classifier"
    return TapNames(stages, head, "classifier.4", auxiliary)

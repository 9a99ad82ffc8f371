"""The code of every registered student: MLflow stores this file beside the weights and runs it again on loading.

Images are uint8 RGB `(N, H, W, 3)` of any size, masks uint8 class ids `(N, H, W)`. It stands on numpy and onnxruntime,
so a student is served without torch and without this project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Student(PythonModel):
    """Images in, masks of class ids out."""

    def load_context(self, context: Any) -> None:
        path = Path(context.artifacts["student"]) / "model.onnx"
        usable = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in usable]
        self.session = onnxruntime.InferenceSession(path, providers=providers)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Masks `(N, H, W)` for a batch `(N, H, W, 3)`; a list of masks for a list (or object array) of images."""
        if isinstance(model_input, np.ndarray) and model_input.dtype != np.object_:
            return self._masks_NHW(model_input)
        return [self._masks_NHW(np.asarray(image_HW3)[None])[0] for image_HW3 in model_input]

    def _masks_NHW(self, images_NHW3: np.ndarray) -> np.ndarray:
        if images_NHW3.dtype != np.uint8:
            raise ValueError(f"Images must be uint8 RGB, not {images_NHW3.dtype}: scale, then x.astype('uint8').")
        if images_NHW3.ndim != 4 or images_NHW3.shape[-1] != 3 or 0 in images_NHW3.shape:
            raise ValueError(f"Images must be (N, H, W, 3), or a list of (H, W, 3); got {images_NHW3.shape}.")
        logits_NKHW = self.session.run(["logits"], {"image": images_NHW3})[0]
        return logits_NKHW.argmax(axis=1).astype(np.uint8)


set_model(Student())

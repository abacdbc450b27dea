"""Trained models outside of training: prediction of images, folders and videos, attention reports, and export."""

from typing import TYPE_CHECKING

from tmt_d2.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from tmt_d2.inference.predictor import Prediction, Predictor
else:
    __getattr__ = lazy_exports(__name__, predictor="Prediction Predictor")

__all__ = ["Prediction", "Predictor"]

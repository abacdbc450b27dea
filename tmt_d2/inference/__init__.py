"""Trained models outside of training: prediction of images, folders and videos, attention reports, and export."""

from tmt_d2.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]

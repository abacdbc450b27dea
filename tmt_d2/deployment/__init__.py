"""Trained models outside of training: a predictor for images, and export to torch.export and ONNX files."""

from .predictor import Prediction, Predictor, load_model

__all__ = ["Prediction", "Predictor", "load_model"]

"""Trained models outside of training: a predictor for images, and export to torch.export and ONNX files."""

from tmt_d2.inference.predictor import Prediction, Predictor, load_model

__all__ = ["Prediction", "Predictor", "load_model"]

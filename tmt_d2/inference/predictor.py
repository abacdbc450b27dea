"""A trained model with its config: labels, scores and transferability of images from files or memory.

Letters: (H, W) size of the given image, K classes, L levels of the decoder's pyramid (strides 32, 16, 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from tmt_d2.config import replace_keys, setup_cfg
from tmt_d2.data import mapper, register_data
from tmt_d2.data.datasets.label_spaces import LabelSpace, class_list_of
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.reader import ChannelOrder, read_image_of
from tmt_d2.engine.loading import load_model
from tmt_d2.errors import UserError
from tmt_d2.estimation.calibration import tempered
from tmt_d2.estimation.estimators import Confidence, Transferability, read_calibration
from tmt_d2.estimation.sample import PixelSample, normalized
from tmt_d2.evaluation.inference import MAX_SCORE_PIXELS, SinglePass, WithTransferability, build_inference
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.folding import fold_batch_norm
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.memory import reuse_freed_memory

ImageLike = str | Path | Image.Image | np.ndarray
AS_IN_TRAINING = ("MODEL.TMT.TEST_ATTENTION", "True")  # overrides for figures of what T excludes


class Prediction(NamedTuple):
    """Prediction for one image; all tensors are on the CPU.

    Attributes:
        labels: (H, W) uint8, class index of each pixel.
        scores: (K, H, W) float32, not normalized over the classes; for images above ``MAX_SCORE_PIXELS`` at 1/2, 1/4,
            ... of the model's input size.
        transferability: (L, H, W) float32 in [0, 1] at the size of ``scores``, coarsest level first, high = like the
            source (Eq. 11); None for plain Mask2Former and where MODEL.TMT.TEST_ATTENTION and
            OUTPUT_TRANSFERABILITY are False.
        temperatures: (K,) float32, of each predicted class in this image; None without a calibration.
    """

    labels: Tensor
    scores: Tensor
    transferability: Tensor | None
    temperatures: Tensor | None = None

    def confidence(self) -> Tensor:
        """(H, W) float32 in [0, 1]: score of the best class, divided by the sum over all classes, and calibrated."""
        best, index = self.scores.max(0)
        if self.temperatures is None:
            shares = best / self.scores.sum(0).clamp(min=1e-6)
        else:
            probabilities = normalized(self.scores).movedim(0, -1)
            shares = tempered(probabilities, self.temperatures[index][..., None]).amax(-1)
        return resize(shares[None], self.labels.shape)[0]

    def __repr__(self) -> str:
        def shape(tensor: Tensor | None) -> str:
            return "None" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

        ids = ", ".join(map(str, self.labels.unique().tolist()))
        parts = (f"{name} {shape(value)}" for name, value in self._asdict().items())
        return f"Prediction({', '.join(parts)}; classes {ids})"


class Predictor:
    """A trained model with its config: labels, scores and transferability of images of any size.

        predictor = Predictor.from_config("output/R50/tmt/config.yaml", "output/R50/tmt/model_final.pth")
        labels = predictor("street.png").labels
        shares = {name: float((labels == i).float().mean()) for i, name in enumerate(predictor.classes.names)}
        for prediction in predictor.batch(["a.png", numpy_image, pil_image]): ...

    Images are resized as in testing (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST); results have the size of the given image.
    TEST.PRECISION, TEST.SLIDING_WINDOW and TEST.AUG apply. An EXIF orientation is not applied; for the upright photo
    pass ``ImageOps.exif_transpose(Image.open("photo.jpg"))``.

    Attributes:
        cfg: config of the model; MODEL.WEIGHTS is the checkpoint.
        model: the model in evaluation mode.
        classes: names and colors of the labels, from the checkpoint.
        image_format: channel order that the model reads.
        name: task or method that trained the model, used in titles.
        calibration: calibrates the confidence of predictions; None at first, see ``calibrate``.
    """

    def __init__(self, cfg: CfgNode, model: MaskFormer) -> None:
        reuse_freed_memory()
        self.cfg = cfg
        self.model = model.eval()
        self.classes = class_list_of(model)
        self.image_format: ChannelOrder = cfg.INPUT.FORMAT
        self.name: str = cfg.TRANSFER.METHOD
        self.calibration: Confidence | None = None
        self._inference = cast(SinglePass, build_inference(cfg, WithTransferability(model)).eval())
        self._batched = not (cfg.TEST.SLIDING_WINDOW.ENABLED or cfg.TEST.AUG.ENABLED)

    @classmethod
    def from_config(cls, config_file: str, weights: str = "", opts: Sequence[str] = (), method: str = "") -> Predictor:
        """Load a trained model, onto the CPU where there is no GPU.

        The config's custom data sets are registered if their files exist; the classes come from the checkpoint.

        Args:
            weights: checkpoint, path or URL; MODEL.WEIGHTS by default.
            opts: KEY VALUE ... overrides of the config.
            method: a method of ``configs/methods``, merged over the config file.

        Raises:
            FileNotFoundError, UserError: config or checkpoint cannot be used.
        """
        overrides = [*opts, *(["MODEL.WEIGHTS", weights] if weights else [])]
        cfg = setup_cfg(config_file, overrides, method)
        if cfg.MODEL.TMT.TEST_ATTENTION:  # else T costs a second encoder
            cfg = replace_keys(cfg, {"MODEL.TMT.OUTPUT_TRANSFERABILITY": True})
        register_data(cfg, missing_ok=True)
        return cls(cfg, cast(MaskFormer, fold_batch_norm(load_model(cfg))))

    def __call__(self, image: ImageLike, channels: ChannelOrder = "RGB") -> Prediction:
        """Predict one image.

        Args:
            image: path, PIL image, or (H, W, 3) uint8 array.
            channels: channel order of an array (OpenCV reads BGR); ignored for paths and PIL images.

        Raises:
            UserError: the file or the array is no such image.
        """
        return self.batch([image], channels)[0]

    def batch(self, images: Sequence[ImageLike], channels: ChannelOrder = "RGB", size: int = 8) -> list[Prediction]:
        """Predict several images; equal to predicting them one by one.

        Args:
            images, channels: as in ``__call__``.
            size: maximum number of images in a forward pass; only images that are padded to one size share a pass.
        """
        items = [self.model_input(image, channels) for image in images]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(items):
            shared = self._batched and _area(item) <= MAX_SCORE_PIXELS
            step = self.model.size_divisibility or 1
            key = tuple(-(-edge // step) for edge in item["image"].shape[1:]) if shared else (-1, index)
            groups.setdefault(key, []).append(index)
        predictions: dict[int, Prediction] = {}
        for group in groups.values():
            for start in range(0, len(group), size):
                indices = group[start : start + size]
                for index, maps in zip(indices, self._maps([items[index] for index in indices])):
                    predictions[index] = self._prediction(maps, items[index])
        return [predictions[index] for index in range(len(items))]

    def model_input(self, image: ImageLike, channels: ChannelOrder = "RGB") -> dict[str, Any]:
        """Return the model's input record, resized as in testing: ``image`` (3, h, w), ``height`` H and ``width`` W."""
        pixels = _pixels(image, channels, self.image_format)
        return mapper.model_input(pixels, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

    def calibrate(self, file: str | Path) -> None:
        """Read the calibration that ``tools/estimate.py`` has written for this model; if it needs T, T is output.

        Raises:
            UserError: it is of a model with other classes, or of one with transferability while this one has none.
        """
        has_domain = isinstance(self.model, TransferableMaskFormer)
        self.calibration = read_calibration(file, self.classes.names, has_domain)
        if isinstance(self.model, TransferableMaskFormer) and isinstance(self.calibration, Transferability):
            self.model.output_transferability = True

    def label_space_of(self, split: str) -> LabelSpace:
        """Return the label space of a registered split whose classes are the model's.

        Raises:
            UserError: the split has other classes.
        """
        space = label_space_of(split)
        if space.classes.names != self.classes.names:
            message = f"{space.classes}, the model has {self.classes}"
            raise UserError(message, key=split, hint="name a split with the model's classes")
        return space

    @torch.no_grad()
    def _maps(self, items: list[dict[str, Any]]) -> list[Tensor]:
        """(K + L, h, w): scores and transferability of each item."""
        if len(items) > 1:
            return [result["sem_seg"] for result in self._inference.model(items)]
        (item,) = items
        if _area(item) > MAX_SCORE_PIXELS:
            return [self._inference.scores(item)]
        return [self._inference([item])[0]["sem_seg"]]

    def _prediction(self, maps: Tensor, item: Mapping[str, Any]) -> Prediction:
        num_classes = len(self.classes)
        scores, transferability = maps[:num_classes], maps[num_classes:]
        labels = labels_at_size(scores, (item["height"], item["width"]))
        scores, t = scores.float().cpu(), transferability.float().cpu() if len(transferability) else None
        temperatures = None
        if self.calibration is not None:
            temperatures = self.calibration.temperatures(PixelSample.of_image(scores, t))[0]
        return Prediction(labels.to("cpu", torch.uint8), scores, t, temperatures)


def _area(item: Mapping[str, Any]) -> int:
    return item["height"] * item["width"]


def _pixels(image: ImageLike, channels: ChannelOrder, image_format: ChannelOrder) -> np.ndarray:
    """Return the image as (H, W, 3) uint8 in the channel order ``image_format``."""
    if channels not in ("RGB", "BGR"):
        raise UserError("choose RGB or BGR", key="channels", value=channels)
    if isinstance(image, (str, Path)):
        return read_image_of({"file_name": str(image)}, image_format)
    if isinstance(image, Image.Image):
        image, channels = _rgb(image), "RGB"
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image is a path, a PIL image or a NumPy array, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(f"an image array is (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return image if channels == image_format else image[:, :, ::-1]


def _rgb(image: Image.Image) -> np.ndarray:
    """Return a PIL image as (H, W, 3) uint8; 16-bit values are scaled as in reading files, where Pillow clips them."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"a PIL image of mode {image.mode} has no range of values: convert it to L or RGB, 0-255")
    return np.asarray(image.convert("RGB"))

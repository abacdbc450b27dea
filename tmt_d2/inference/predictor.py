"""From an image, however it is held, to labels, scores and transferability.

Letters: (H, W) the size of the image as given, K classes, L levels of the decoder's pyramid (strides 32, 16, 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from tmt_d2.config import setup_cfg
from tmt_d2.data import register_data
from tmt_d2.data.datasets.label_spaces import class_list_of
from tmt_d2.data.mapper import model_input
from tmt_d2.data.reader import ChannelOrder, read_image_of
from tmt_d2.engine import loading
from tmt_d2.errors import UserError
from tmt_d2.evaluation.inference import MAX_SCORE_PIXELS, SinglePass, build_inference
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.ops.resize import resize, resize_level
from tmt_d2.modeling.pixel_decoder import STRIDES

ImageLike = str | Path | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """What a model says about one image; tensors are on the CPU.

    labels: (H, W) uint8, the class of every pixel.
    scores: (K, H, W) float32, not normalised over the classes; for images above ``MAX_SCORE_PIXELS`` at a half, a
        quarter, ... of the model's input size.
    transferability: (L, H, W) float32 in [0, 1] at the same size as ``scores``, coarsest level first, high = like the
        source (Eq. 11); None for plain Mask2Former.
    """

    labels: Tensor
    scores: Tensor
    transferability: Tensor | None

    def confidence(self) -> Tensor:
        """(H, W) float32 in [0, 1]: the share of the best class in the sum of all classes' scores."""
        shares = self.scores.amax(0) / self.scores.sum(0).clamp(min=1e-6)
        return resize(shares[None], self.labels.shape)[0]

    def __repr__(self) -> str:
        def shape(tensor: Tensor | None) -> str:
            return "None" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

        ids = ", ".join(map(str, self.labels.unique().tolist()))
        parts = (f"{name} {shape(value)}" for name, value in self._asdict().items())
        return f"Prediction({', '.join(parts)}; classes {ids})"


class Predictor:
    """Labels, scores and transferability of images of any size.

        predictor = Predictor.from_config("configs/R50/tmt.yaml", "output/R50/tmt/model_final.pth")
        labels = predictor("street.png").labels
        shares = {name: float((labels == i).float().mean()) for i, name in enumerate(predictor.classes.names)}
        for prediction in predictor.batch(["a.png", numpy_image, pil_image]): ...

    Images are resized as in testing (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST); results have the size of the image as given:
    a file, as in its data set, as stored. An EXIF orientation is not applied (of a file, the log says so), and that of
    a PIL image not looked at: ``ImageOps.exif_transpose(Image.open("photo.jpg"))`` is the photo as a person sees it.
    TEST.PRECISION, TEST.SLIDING_WINDOW and TEST.AUG are obeyed.

    Attributes:
        classes: names and colours of the labels, as the checkpoint has them.
    """

    def __init__(
        self,
        model: MaskFormer,
        *,
        inference: SinglePass,
        batched: bool,
        min_size: int,
        max_size: int,
        image_format: ChannelOrder,
    ) -> None:
        """
        Args:
            inference: ``build_inference`` around ``WithTransferability(model)``.
            batched: images may share a forward pass (no windows, no augmentation).
            min_size, max_size: of the shortest and the longest edge of the model's input; min_size 0 keeps the size.
            image_format: channel order that the model was trained with.
        """
        self.model = model.eval()
        self.classes = class_list_of(model)
        self.inference = inference.eval()
        self.batched = batched
        self.min_size, self.max_size = min_size, max_size
        self.image_format = image_format

    @classmethod
    def from_config(
        cls, config_file: str, weights: str = "", opts: Sequence[str] = (), precision: str = ""
    ) -> Predictor:
        """
        Args:
            weights: checkpoint, path or URL; MODEL.WEIGHTS by default. opts: KEY VALUE ... overrides.
            precision: "float32" or "bfloat16" (or "bf16"); TEST.PRECISION by default.

        Raises:
            FileNotFoundError, UserError: config or checkpoint cannot be used; one line.
        """
        if precision:
            opts = [*opts, "TEST.PRECISION", {"bf16": "bfloat16"}.get(precision, precision)]
        return cls.of_model(*load_model(config_file, weights, opts))

    @classmethod
    def of_model(cls, cfg: CfgNode, model: MaskFormer) -> Predictor:
        """What a model says, tested as its config says; see ``load_model``."""
        return cls(
            model,
            inference=cast(SinglePass, build_inference(cfg, WithTransferability(model))),
            batched=not (cfg.TEST.SLIDING_WINDOW.ENABLED or cfg.TEST.AUG.ENABLED),
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_format=cfg.INPUT.FORMAT,
        )

    def __call__(self, image: ImageLike, channels: ChannelOrder = "RGB") -> Prediction:
        """
        Args:
            image: path, PIL image, or (H, W, 3) uint8 array.
            channels: order of an array's channels (OpenCV reads BGR); paths and PIL images know their own.

        Raises:
            UserError: no such image, or no such file.
        """
        return self.batch([image], channels)[0]

    def batch(self, images: Sequence[ImageLike], channels: ChannelOrder = "RGB", size: int = 8) -> list[Prediction]:
        """Predictions in the order of ``images``, the same as one by one.

        Args:
            images, channels: as above. size: how many images share a forward pass; those that are padded to one size.
        """
        items = [
            model_input(_pixels(image, channels, self.image_format), self.min_size, self.max_size) for image in images
        ]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(items):
            shared = self.batched and _area(item) <= MAX_SCORE_PIXELS
            step = self.model.size_divisibility or 1
            key = tuple(-(-edge // step) for edge in item["image"].shape[1:]) if shared else (-1, index)
            groups.setdefault(key, []).append(index)
        predictions: dict[int, Prediction] = {}
        for group in groups.values():
            for start in range(0, len(group), size):
                chosen = group[start : start + size]
                for index, maps in zip(chosen, self._maps([items[index] for index in chosen])):
                    predictions[index] = self._prediction(maps, items[index])
        return [predictions[index] for index in range(len(items))]

    @torch.no_grad()
    def _maps(self, items: list[dict[str, Any]]) -> list[Tensor]:
        """(K + L, h, w): scores and transferability of each item."""
        if len(items) > 1:
            return [result["sem_seg"] for result in self.inference.model(items)]
        (item,) = items
        if _area(item) > MAX_SCORE_PIXELS:
            return [self.inference.scores(item)]
        return [self.inference([item])[0]["sem_seg"]]

    def _prediction(self, maps: Tensor, item: Mapping[str, Any]) -> Prediction:
        classes = self.model.sem_seg_head.num_classes
        scores, transferability = maps[:classes], maps[classes:]
        labels = labels_at_size(scores, (item["height"], item["width"]))
        return Prediction(
            labels.to("cpu", torch.uint8),
            scores.float().cpu(),
            transferability.float().cpu() if len(transferability) else None,
        )


class WithTransferability(nn.Module):
    """A model whose ``sem_seg`` has, behind the K class scores, the transferability of every level: (K + L, H, W).

    So whatever averages scores over windows, scales and mirror images averages transferability alike.
    """

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        results = self.model(batched_inputs)
        for record, result in zip(batched_inputs, results):
            scores, image = result["sem_seg"], record["image"].shape[-2:]
            maps = zip(result.pop("transferability", []), STRIDES)
            levels = [resize_level(level[None].float(), stride, image, scores.shape[-2:]) for level, stride in maps]
            result["sem_seg"] = torch.cat([scores, *(level.to(scores) for level in levels)])
        return results


def load_model(config_file: str, weights: str = "", opts: Sequence[str] = ()) -> tuple[CfgNode, MaskFormer]:
    """The model in evaluation mode with its weights, and its config; TMT models also say their transferability. The
    config's custom data sets are registered, where they are here: the classes stand in the checkpoint.

    Args:
        weights: checkpoint, path or URL; MODEL.WEIGHTS by default. opts: KEY VALUE ... overrides.

    Raises:
        FileNotFoundError, UserError: config or checkpoint cannot be used; one line.
    """
    cfg = setup_cfg(config_file, opts)
    if weights:
        cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.TMT.OUTPUT_TRANSFERABILITY = True  # also where attention does not use it ("w/o TMA")
    register_data(cfg, missing_ok=True)
    return cfg, loading.load_model(cfg)


def _area(item: Mapping[str, Any]) -> int:
    return item["height"] * item["width"]


def _pixels(image: ImageLike, channels: ChannelOrder, wanted: ChannelOrder) -> np.ndarray:
    """(H, W, 3) uint8 in the ``wanted`` channel order."""
    if channels not in ("RGB", "BGR"):
        raise UserError(f"channels is {channels!r}: say RGB or BGR")
    if isinstance(image, (str, Path)):
        return read_image_of({"file_name": str(image)}, wanted)
    if isinstance(image, Image.Image):
        image, channels = _rgb(image), "RGB"
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image is a path, a PIL image or a NumPy array, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(f"an image array is (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return image if channels == wanted else image[:, :, ::-1]


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, as the reader of files has it; Pillow would cut values above 255 off."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"a PIL image of mode {image.mode} has no range of values: convert it to L or RGB, 0-255")
    return np.asarray(image.convert("RGB"))

"""What a model saw in one image: prediction, transferability, and what chosen queries attended to.

Everything comes from one ``model.inspect`` pass; maps are NumPy arrays at the resolution of their level, without
padding. Letters: (h, w) the valid positions of a level, (H, W) the picture, Q queries, M heads, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, class_list_of
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.mask_former import Inspection, MaskFormer
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.visualization.grid import Grid
from tmt_d2.visualization.overlays import wrong_pixels
from tmt_d2.visualization.sizes import Size

# A query by its number from 0; by the name of a class, of which it is the most confident query; by a pixel (x, y) of
# the picture, which it owns.
Selector = int | str | tuple[int, int]


class Choice(NamedTuple):
    """A query, the class that it is shown for, what selected it, and how: number, class, pixel or rank."""

    query: int
    train_id: int
    selector: Selector
    reason: str


@dataclass(frozen=True)
class LevelReport:
    """t: (h, w) float32, T; logits: (h, w), of E; regions: (h, w) index; excluded: (h, w) bool, may not be attended
    to; None where transferability masks no attention."""

    grid: Grid
    t: np.ndarray
    logits: np.ndarray
    regions: np.ndarray
    excluded: np.ndarray | None


@dataclass(frozen=True)
class LayerReport:
    """One query in one decoder layer.

    predicted: (h, w) bool, the mask alone; allowed: (h, w) bool, what the layer obeyed; attention: (M, h, w), the
    weights; mask_empty: the mask had no position, so all were attended to; none_transferable: no position of
    the mask was transferable enough, so the mask alone was obeyed; final_mask: (h, w) bool, the query's last mask.
    """

    layer: int
    level: int
    grid: Grid
    predicted: np.ndarray
    allowed: np.ndarray
    attention: np.ndarray
    mask_empty: bool
    none_transferable: bool
    final_mask: np.ndarray

    @property
    def removed(self) -> np.ndarray:
        """(h, w) bool: positions of the mask that transferability takes away."""
        return self.predicted & ~self.allowed

    def numbers(self) -> dict[str, Any]:
        weights = self.attention.mean(0)
        positions = int(self.predicted.sum())
        return {
            "layer": self.layer,
            "stride": self.grid.stride,
            "positions": self.predicted.size,
            "mask_positions": positions,
            "allowed_positions": int(self.allowed.sum()),
            "removed_positions": int(self.removed.sum()),
            "removed_share_of_mask": float(self.removed.sum() / positions) if positions else None,
            "mask_empty": self.mask_empty,
            "none_transferable": self.none_transferable,
            "attention_inside_final_mask": float(weights[self.final_mask].sum()),
            "attention_outside_final_mask": float(weights[~self.final_mask].sum()),
            "attention_maximum": float(weights.max()),
        }


@dataclass(frozen=True)
class QueryReport:
    """probabilities: (N,), of the classes; mask: (H, W) bool, the last mask."""

    choice: Choice
    classes: ClassList
    probabilities: np.ndarray
    mask: np.ndarray
    layers: list[LayerReport]

    @property
    def name(self) -> str:
        return self.classes.names[self.choice.train_id]

    @property
    def confidence(self) -> float:
        return float(self.probabilities[self.choice.train_id])

    def numbers(self) -> dict[str, Any]:
        best = int(self.probabilities.argmax())
        return {
            "query": self.choice.query,
            "chosen_by": self.choice.reason,
            "class": self.name,
            "confidence": self.confidence,
            "most_probable_class": self.classes.names[best],
            "mask_share_of_image": float(self.mask.mean()),
            "layers": [layer.numbers() for layer in self.layers],
        }


@dataclass(frozen=True)
class AttentionReport:
    """picture: (H, W, 3) uint8 RGB; classes: of the model; prediction, truth: (H, W) uint8, their train ids; levels: []
    for plain Mask2Former; p_t: None where transferability masks no attention."""

    picture: np.ndarray
    classes: ClassList
    prediction: np.ndarray
    truth: np.ndarray | None
    levels: list[LevelReport]
    queries: list[QueryReport]
    p_t: float | None
    name: str

    @property
    def error(self) -> float | None:
        """Share of the labelled pixels that are wrong."""
        if self.truth is None or not (labelled := (self.truth != IGNORE).sum()):
            return None
        return float(wrong_pixels(self.prediction, self.truth).sum() / labelled)

    def numbers(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        counts = np.bincount(self.prediction.ravel())
        return {
            "model": self.name,
            "p_t": self.p_t,
            "pixel_error": self.error,
            "predicted_share": {self.classes.names[i]: float(counts[i] / counts.sum()) for i in counts.nonzero()[0]},
            "levels": [level_numbers(level) for level in self.levels],
            "queries": [query.numbers() for query in self.queries],
        }


def level_numbers(level: LevelReport) -> dict[str, Any]:
    t = level.t.astype(np.float64)
    return {
        "stride": level.grid.stride,
        "size": list(t.shape),
        "regions": len(np.unique(level.regions)),
        "t": {
            "minimum": float(t.min()),
            "mean": float(t.mean()),
            "median": float(np.median(t)),
            "maximum": float(t.max()),
            "standard_deviation": float(t.std()),
        },
        "excluded_positions": None if level.excluded is None else int(level.excluded.sum()),
        "excluded_share": None if level.excluded is None else float(level.excluded.mean()),
    }


def attention_report(
    model: MaskFormer,
    record: Mapping[str, Any],
    picture: np.ndarray,
    *,
    selectors: Sequence[Selector] = (),
    top: int = 0,
    layers: Sequence[int] | None = None,
    truth: np.ndarray | None = None,
    name: str = "model",
    p_t: float | None = None,
) -> AttentionReport:
    """Look at one image with one pass of the model.

    Args:
        model: in evaluation mode.
        record: Detectron2's model input, "image" (3, h, w); the picture's size is the size of the output.
        picture: (H, W, 3) uint8 RGB, the same image.
        selectors: of the queries to report.
        top: besides these, those of the ``top`` most confident queries that are not among them.
        layers: decoder layers, numbered from 0; None = the last three.
        truth: (H, W) uint8 train ids.
        p_t: share of the positions that T excludes from attention; None = the model's own.

    Raises:
        UserError: a query, class, pixel or layer that does not exist.
    """
    size: Size = (picture.shape[0], picture.shape[1])
    view = look(model, {**record, "height": size[0], "width": size[1]}, p_t)
    chosen_layers = _check_layers(layers, len(view.layers))
    prediction = labels_at_size(view.scores, size).cpu().numpy()
    probabilities = view.probabilities.cpu().numpy()
    queries = [
        QueryReport(
            choice,
            view.classes,
            probabilities[choice.query],
            _numpy(view.mask(choice.query, size)),
            [view.layer_report(layer, choice.query) for layer in chosen_layers],
        )
        for choice in choose_queries(view, prediction, selectors, top)
    ]
    return AttentionReport(picture, view.classes, prediction, truth, view.levels(), queries, view.p_t, name)


class View:
    """One ``inspect`` pass of one image, with the padding left behind."""

    def __init__(self, inspected: Inspection, p_t: float | None, classes: ClassList):
        """p_t: that of the pass; None where transferability masked no attention. classes: of the model."""
        self.classes = classes
        images = inspected["images"]
        self.padded: Size = tuple(images.tensor.shape[-2:])
        self.image: Size = tuple(images.image_sizes[0])
        self.scores: Tensor = inspected["results"][0]["sem_seg"]
        self.layers = inspected["layers"]
        outputs = inspected["outputs"]
        self._masks = outputs["pred_masks"]
        self._class_logits = outputs["pred_logits"][0]
        self.probabilities: Tensor = self._class_logits.softmax(-1)[:, :-1]
        self.transferability = inspected["transferability"]
        self.p_t = p_t

    def grid(self, level_size: Sequence[int]) -> Grid:
        return Grid((level_size[0], level_size[1]), self.padded, self.image)

    def has_class(self) -> Tensor:
        """(Q,) bool: a class is more probable than "no object"."""
        return self._class_logits.argmax(-1) < self.probabilities.shape[1]

    def mask(self, query: int, size: Size) -> Tensor:
        """(*size) bool, the last mask of one query, resized as inference does it."""
        last = self._masks
        logits = MaskLogits(last.embeddings[:, query, None], last.features).dense()
        logits = resize(logits, self.padded)[:, :, : self.image[0], : self.image[1]]
        return resize(logits, size)[0, 0] >= 0

    def masks_at(self, pixel: tuple[int, int], size: Sequence[int]) -> Tensor:
        """(Q,) probabilities of the last masks at pixel (x, y) of a picture of ``size``."""
        last = self._masks
        x, y = ((pixel[i] + 0.5) * self.image[1 - i] / (size[1 - i] * self.padded[1 - i]) * 2 - 1 for i in (0, 1))
        at = torch.tensor([[[[x, y]]]], dtype=last.features.dtype, device=last.features.device)
        features = F.grid_sample(last.features, at, padding_mode="border", align_corners=False)
        return last.resized(features)[0, :, 0, 0].sigmoid()

    def levels(self) -> list[LevelReport]:
        reports = []
        for level in self.transferability or ():
            grid = self.grid(level.logits.shape[-2:])
            excluded = None if self.p_t is None else ~_numpy(level.transferable(self.p_t)[0])
            reports.append(
                LevelReport(
                    grid,
                    _numpy(level.map_of(0)),
                    grid.crop(_numpy(level.logits[0])),
                    grid.crop(_numpy(level.regions.index[0])),
                    None if excluded is None else grid.crop(excluded),
                )
            )
        return reports

    def layer_report(self, layer: int, query: int) -> LayerReport:
        trace = self.layers[layer]
        grid = self.grid(trace.positions.predicted.shape[-2:])
        final = self._masks
        final_masks = final.resized(resize(final.features, grid.level))[0, query] >= 0
        return LayerReport(
            layer=layer,
            level=trace.level,
            grid=grid,
            predicted=grid.crop(_numpy(trace.positions.predicted[0, query])),
            allowed=grid.crop(_numpy(trace.positions.allowed[0, query])),
            attention=grid.crop(_numpy(trace.attention[0, :, query])),
            mask_empty=bool(trace.positions.mask_empty[0, query]),
            none_transferable=bool(trace.positions.none_transferable[0, query]),
            final_mask=grid.crop(_numpy(final_masks)),
        )


def masking_p_t(model: MaskFormer) -> float | None:
    """p_T as trained; None where transferability masks no attention."""
    return model.p_t if isinstance(model, TransferableMaskFormer) and model.attention == "hard" else None


def look(model: MaskFormer, record: Mapping[str, Any], p_t: float | None = None) -> View:
    """One pass over one record. p_t: instead of the model's own; without effect where it masks no attention."""
    trained = masking_p_t(model)
    if trained is None:
        return View(model.inspect([record]), None, class_list_of(model))
    p_t = trained if p_t is None else p_t
    return View(model.inspect([record], p_t=p_t), p_t, class_list_of(model))


def choose_queries(view: View, prediction: np.ndarray, selectors: Sequence[Selector], top: int) -> list[Choice]:
    """One choice for each selector, then the others of the ``top`` most confident queries.

    A pixel's owner is the query that adds most to the score of the predicted class there.

    Args:
        prediction: (H, W) train ids.
    """
    confidence, best = view.probabilities.max(1)
    names = view.classes.names
    choices = []
    for item in selectors:
        if isinstance(item, int):
            if not 0 <= item < len(best):
                raise UserError(f"query {item} does not exist: the model has queries 0 to {len(best) - 1}")
            choices.append(Choice(item, int(best[item]), item, "number"))
        elif isinstance(item, str):
            if item not in names:
                raise UserError(f"class {item!r} is not known: choose from {', '.join(names)}")
            train_id = names.index(item)
            query = int(view.probabilities[:, train_id].argmax())
            choices.append(Choice(query, train_id, item, "class"))
        else:
            x, y = item
            height, width = prediction.shape
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(f"pixel {x} {y} lies outside the image, which is {width} wide and {height} high")
            train_id = int(prediction[y, x])
            query = int((view.probabilities[:, train_id] * view.masks_at(item, prediction.shape)).argmax())
            choices.append(Choice(query, train_id, item, f"pixel {x} {y}"))
    if not 0 <= top <= len(best):
        raise UserError(f"the {top} most confident queries were asked for: the model has {len(best)}")
    numbers = {choice.query for choice in choices}
    for rank, query in enumerate(confidence.argsort(descending=True, stable=True)[:top].tolist(), 1):
        if query not in numbers:
            train_id = int(best[query])
            choices.append(Choice(query, train_id, names[train_id], f"rank {rank}"))
    return choices


def _check_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(max(0, count - 3), count))
    for layer in layers:
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} does not exist: the decoder has layers 0 to {count - 1}")
    return list(dict.fromkeys(layers))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()

"""Report of one image: prediction, transferability, and the attention of selected queries.

Everything comes from one ``model.inspect`` pass; maps are NumPy arrays at the resolution of their level, without
padding. Letters: (h, w) valid positions of a level, (H, W) the image as shown, Q queries, M heads, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.label_spaces import IGNORE, class_list_of
from tmt_d2.errors import UserError
from tmt_d2.evaluation.semantic import labels_at_size
from tmt_d2.modeling.mask_former import Inspection, MaskFormer
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.ops.resize import resize
from tmt_d2.modeling.tmt import TransferableMaskFormer, output_transferability
from tmt_d2.visualization.grid import Grid
from tmt_d2.visualization.overlays import wrong_pixels
from tmt_d2.visualization.sizes import Size

# Selects a query: by its number from 0; by a class name, the most confident query of that class; by a pixel (x, y) of
# the image as shown, the query that owns it.
Selector = int | str | tuple[int, int]


class SelectedQuery(NamedTuple):
    """A query and the class that it is shown for; reason: "number", "class", "pixel X Y" or "rank R"."""

    query: int
    train_id: int
    selector: Selector
    reason: str


@dataclass(frozen=True)
class LevelReport:
    """Transferability of one level.

    Attributes:
        t: (h, w) float32, T.
        logits: (h, w) of the estimator E.
        regions: (h, w) region indices of ACTE.
        excluded: (h, w) bool, positions that may not be attended to; None if transferability masks no attention.
    """

    grid: Grid
    t: np.ndarray
    logits: np.ndarray
    regions: np.ndarray
    excluded: np.ndarray | None

    def numbers(self) -> dict[str, Any]:
        t = self.t.astype(np.float64)
        return {
            "stride": self.grid.stride,
            "size": list(t.shape),
            "regions": len(np.unique(self.regions)),
            "t": {
                "minimum": float(t.min()),
                "mean": float(t.mean()),
                "median": float(np.median(t)),
                "maximum": float(t.max()),
                "standard_deviation": float(t.std()),
            },
            "excluded_positions": None if self.excluded is None else int(self.excluded.sum()),
            "excluded_share": None if self.excluded is None else float(self.excluded.mean()),
        }


@dataclass(frozen=True)
class LayerReport:
    """One query in one decoder layer.

    Attributes:
        predicted: (h, w) bool, the predicted mask.
        allowed: (h, w) bool, positions that the layer attended to.
        attention: (M, h, w), attention weights.
        mask_empty: the mask had no position, so every position was allowed.
        none_transferable: no position of the mask was transferable, so the mask alone was used.
        final_mask: (h, w) bool, the last mask of the query.
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
        """(h, w) bool: positions of the mask that transferability excludes."""
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
    """One query; probabilities: (N,), of the classes; mask: (H, W) bool, the last mask."""

    selected: SelectedQuery
    classes: ClassList
    probabilities: np.ndarray
    mask: np.ndarray
    layers: list[LayerReport]

    @property
    def name(self) -> str:
        return self.classes.names[self.selected.train_id]

    @property
    def confidence(self) -> float:
        return float(self.probabilities[self.selected.train_id])

    def numbers(self) -> dict[str, Any]:
        return {
            "query": self.selected.query,
            "chosen_by": self.selected.reason,
            "class": self.name,
            "confidence": self.confidence,
            "most_probable_class": self.classes.names[int(self.probabilities.argmax())],
            "mask_share_of_image": float(self.mask.mean()),
            "layers": [layer.numbers() for layer in self.layers],
        }


@dataclass(frozen=True)
class AttentionReport:
    """One image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: classes of the model.
        prediction, truth: (H, W) uint8 train ids.
        levels: coarsest first; empty for plain Mask2Former.
        p_t: share of excluded positions; None if transferability masks no attention.
        name: name of the model.
    """

    image: np.ndarray
    classes: ClassList
    prediction: np.ndarray
    truth: np.ndarray | None
    levels: list[LevelReport]
    queries: list[QueryReport]
    p_t: float | None
    name: str

    @property
    def error(self) -> float | None:
        """Share of the labeled pixels whose prediction is wrong."""
        if self.truth is None or not (labeled := (self.truth != IGNORE).sum()):
            return None
        return float(wrong_pixels(self.prediction, self.truth).sum() / labeled)

    def numbers(self) -> dict[str, Any]:
        """Return the report as plain numbers, for JSON."""
        counts = np.bincount(self.prediction.ravel())
        return {
            "model": self.name,
            "p_t": self.p_t,
            "pixel_error": self.error,
            "predicted_share": {self.classes.names[i]: float(counts[i] / counts.sum()) for i in counts.nonzero()[0]},
            "levels": [level.numbers() for level in self.levels],
            "queries": [query.numbers() for query in self.queries],
        }


def attention_report(
    model: MaskFormer,
    record: Mapping[str, Any],
    image: np.ndarray,
    *,
    selectors: Sequence[Selector] = (),
    top: int = 0,
    layers: Sequence[int] | None = None,
    truth: np.ndarray | None = None,
    name: str = "model",
    p_t: float | None = None,
) -> AttentionReport:
    """Inspect one image with one pass of the model.

    Args:
        model: in evaluation mode.
        record: model input, "image" (3, h, w).
        image: (H, W, 3) uint8 RGB, the same image as it is to be shown.
        selectors: queries to report.
        top: also report the ``top`` most confident queries.
        layers: decoder layers, numbered from 0; None = the last three.
        truth: (H, W) uint8 train ids.
        p_t: share of the positions that T excludes from attention; None = the model's own.

    Raises:
        UserError: a query, class, pixel or layer does not exist.
    """
    size: Size = (image.shape[0], image.shape[1])
    inspected = inspect_image(model, {**record, "height": size[0], "width": size[1]}, p_t)
    count = len(inspected.layers)
    layers = list(range(max(0, count - 3), count)) if layers is None else list(dict.fromkeys(layers))
    for layer in layers:
        _check_number("layer", layer, count)
    prediction = labels_at_size(inspected.scores, size).cpu().numpy()
    queries = [
        QueryReport(
            selected,
            inspected.classes,
            _numpy(inspected.probabilities[selected.query]),
            _numpy(inspected.mask(selected.query, size)),
            [inspected.layer_report(layer, selected.query) for layer in layers],
        )
        for selected in select_queries(inspected, prediction, selectors, top)
    ]
    levels = inspected.levels()
    return AttentionReport(image, inspected.classes, prediction, truth, levels, queries, inspected.p_t, name)


def masking_p_t(model: MaskFormer) -> float | None:
    """Return the model's p_T; None if transferability masks no attention."""
    return model.p_t if isinstance(model, TransferableMaskFormer) and model.masks_attention else None


def inspect_image(model: MaskFormer, record: Mapping[str, Any], p_t: float | None = None) -> InspectedImage:
    """Run one pass over one record; p_t: replaces the model's own, without effect if it masks no attention."""
    trained = masking_p_t(model)
    if trained is None:
        with output_transferability(model):
            return InspectedImage(model.inspect([record]), None, class_list_of(model))
    p_t = trained if p_t is None else p_t
    return InspectedImage(model.inspect([record], p_t=p_t), p_t, class_list_of(model))


class InspectedImage:
    """One ``inspect`` pass of one image, without the padding.

    Attributes:
        scores: (N, H, W), not normalized.
        probabilities: (Q, N), of the classes.
        layers: ``LayerTrace`` of each decoder layer.
        p_t: p_T of the pass; None if transferability masked no attention.
        classes: classes of the model.
    """

    def __init__(self, inspection: Inspection, p_t: float | None, classes: ClassList) -> None:
        self.p_t, self.classes = p_t, classes
        self.layers = inspection["layers"]
        self.scores: Tensor = inspection["results"][0]["sem_seg"]
        self._padded_size: Size = tuple(inspection["images"].tensor.shape[-2:])
        self._image_size: Size = tuple(inspection["images"].image_sizes[0])
        self._masks = inspection["outputs"]["pred_masks"]
        self._class_logits = inspection["outputs"]["pred_logits"][0]
        self._transferability, self._allowed = inspection["transferability"], inspection["key_mask"].allowed
        self.probabilities: Tensor = self._class_logits.softmax(-1)[:, :-1]

    def grid(self, level_size: Sequence[int]) -> Grid:
        return Grid((level_size[0], level_size[1]), self._padded_size, self._image_size)

    def has_class(self) -> Tensor:
        """(Q,) bool: a class is more probable than "no object"."""
        return self._class_logits.argmax(-1) < self.probabilities.shape[1]

    def mask(self, query: int, size: Size) -> Tensor:
        """(*size) bool: the last mask of one query, resized as in inference."""
        logits = MaskLogits(self._masks.embeddings[:, query, None], self._masks.features).dense()
        logits = resize(logits, self._padded_size)[:, :, : self._image_size[0], : self._image_size[1]]
        return resize(logits, size)[0, 0] >= 0

    def masks_at(self, pixel: tuple[int, int], size: Sequence[int]) -> Tensor:
        """(Q,): probabilities of the last masks at pixel (x, y) of the image at ``size``."""
        image, padded, features = self._image_size, self._padded_size, self._masks.features
        x, y = ((pixel[i] + 0.5) * image[1 - i] / (size[1 - i] * padded[1 - i]) * 2 - 1 for i in (0, 1))
        at = features.new_tensor([[[[x, y]]]])
        features = F.grid_sample(features, at, padding_mode="border", align_corners=False)
        return self._masks.resized(features)[0, :, 0, 0].sigmoid()

    def levels(self) -> list[LevelReport]:
        """Return T of each level, with the positions that were excluded from attention in this pass."""
        reports = []
        for index, level in enumerate(self._transferability or ()):
            grid = self.grid(level.logits.shape[-2:])
            logits, regions = grid.crop(_numpy(level.logits[0])), grid.crop(_numpy(level.regions.index[0]))
            excluded = None if self._allowed is None else grid.crop(~_numpy(self._allowed[index][0]))
            reports.append(LevelReport(grid, _numpy(level.map_of(0)), logits, regions, excluded))
        return reports

    def layer_report(self, layer: int, query: int) -> LayerReport:
        trace = self.layers[layer]
        positions = trace.positions
        grid = self.grid(positions.predicted.shape[-2:])
        final_masks = self._masks.resized(resize(self._masks.features, grid.level_size))[0, query] >= 0
        return LayerReport(
            layer=layer,
            level=trace.level,
            grid=grid,
            predicted=grid.crop(_numpy(positions.predicted[0, query])),
            allowed=grid.crop(_numpy(positions.allowed[0, query])),
            attention=grid.crop(_numpy(trace.attention[0, :, query])),
            mask_empty=bool(positions.mask_empty[0, query]),
            none_transferable=bool(positions.none_transferable[0, query]),
            final_mask=grid.crop(_numpy(final_masks)),
        )


def select_queries(
    inspected: InspectedImage, prediction: np.ndarray, selectors: Sequence[Selector], top: int
) -> list[SelectedQuery]:
    """Return one query for each selector, then the others of the ``top`` most confident queries.

    A pixel is owned by the query that adds most to the score of the class predicted there.

    Args:
        prediction: (H, W) train ids.
    """
    probabilities, names = inspected.probabilities, inspected.classes.names
    confidence, best = probabilities.max(1)
    selected = []
    for selector in selectors:
        if isinstance(selector, int):
            _check_number("query", selector, len(best))
            selected.append(SelectedQuery(selector, int(best[selector]), selector, "number"))
        elif isinstance(selector, str):
            if selector not in names:
                raise UserError("unknown class", key="class", value=selector, hint=f"choose from {', '.join(names)}")
            train_id = names.index(selector)
            selected.append(SelectedQuery(int(probabilities[:, train_id].argmax()), train_id, selector, "class"))
        else:
            (x, y), (height, width) = selector, prediction.shape
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(f"outside of the image of width {width} and height {height}", key=f"pixel {x} {y}")
            train_id = int(prediction[y, x])
            owner = (probabilities[:, train_id] * inspected.masks_at(selector, prediction.shape)).argmax()
            selected.append(SelectedQuery(int(owner), train_id, selector, f"pixel {x} {y}"))
    if not 0 <= top <= len(best):
        raise UserError(f"the model has {len(best)} queries", key="--top", value=top)
    chosen = {each.query for each in selected}
    for rank, query in enumerate(confidence.argsort(descending=True, stable=True)[:top].tolist(), 1):
        if query not in chosen:
            train_id = int(best[query])
            selected.append(SelectedQuery(query, train_id, names[train_id], f"rank {rank}"))
    return selected


def _check_number(kind: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        raise UserError(f"the model has numbers 0 to {count - 1}", key=f"{kind} {number}")


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()

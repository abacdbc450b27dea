"""Drift: how far T of held-out images moves while the features that it is computed from are fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from tmt_d2.adaptation.estimator import existing_regions, held_out_loader, spearman
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.transferability import proxy_a_distance
from tmt_d2.utils.files import atomic_write, read_npz, write_json
from tmt_d2.utils.signals import Stoppable

logger = logging.getLogger(__name__)

DRIFT = "transferability"  # prefix of the scalars, and name of the file with the last values
STEP_0 = "transferability_step0.npz"

Shapes = list[list[tuple[int, ...]]]


class Drift:
    """T of fixed images of both domains, compared with T before the first step."""

    def __init__(
        self, model: TransferableMaskFormer, loaders: Mapping[str, Iterable[list[dict[str, Any]]]], folder: str | Path
    ) -> None:
        """
        Args:
            loaders: "target" and, if there are held-out source images, "source" -> batches of one record.
            folder: of the run; keeps T before the first step, for a resumed run, and the last values.
        """
        self.model, self.loaders, self.folder = model, loaders, Path(folder)
        self.step_0: list[list[np.ndarray]] | None = None

    def begin(self, start_iter: int) -> None:
        """Measure T before the first step, or read it where the run is resumed."""
        file = self.folder / STEP_0
        if start_iter:
            self.step_0 = self._read(file)
            return
        maps, _ = self._measure_maps()
        self.step_0 = [[t.numpy() for t in level] for level in maps]
        if comm.is_main_process():
            arrays = {f"{level}_{i}": t for level, each in enumerate(self.step_0) for i, t in enumerate(each)}
            with atomic_write(file) as stream:
                np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]

    def _read(self, file: Path) -> list[list[np.ndarray]] | None:
        """Return T before the first step, per level; None if ``file`` is missing or of another number of levels."""
        levels = len(self.model.transferability.discriminators)
        content = read_npz(file, remedy="delete it; the drift of T is then unknown") if file.is_file() else {}
        names = [[f"{level}_{i}" for i in range(len(content) // levels)] for level in range(levels)]
        if not content or {name for level in names for name in level} != {*content}:
            logger.warning("%s is missing or of another model: the drift of T is unknown", file)
            return None
        return [[content[name] for name in level] for level in names]

    def log(self) -> None:
        """Write ``measure`` to the event storage and to a file of the run."""
        values = self.measure()
        for name, levels in values.items():
            for level, value in enumerate(levels):
                get_event_storage().put_scalar(f"{DRIFT}/{name}/{level}", value, smoothing_hint=False)
        if comm.is_main_process():
            write_json(self.folder / f"{DRIFT}.json", values)

    def measure(self) -> dict[str, list[float]]:
        """Return one value per level of:

        - "mean" and "spread" (standard deviation within an image) of T, means over the target's images;
        - "spearman_to_step_0": rank correlation of T with T before the first step, mean over the target's images;
          missing if that is not known;
        - "error": balanced error of E on regions of both domains; missing without source images.
        """
        maps, errors = self._measure_maps()
        t = [[1 - logits.sigmoid() for logits in level] for level in maps]
        result = {
            "mean": [float(np.mean([each.mean() for each in level])) for level in t],
            "spread": [float(np.mean([each.std(correction=0) for each in level])) for level in t],
        }
        if self.step_0 is not None and _shapes(maps) != _shapes(self.step_0):
            logger.warning("%s is of other images or sizes: the drift of T is unknown", self.folder / STEP_0)
            self.step_0 = None
        if self.step_0 is not None:
            result["spearman_to_step_0"] = [
                float(np.mean([spearman(now.flatten(), torch.from_numpy(then).flatten()) for now, then in zip(*both)]))
                for both in zip(maps, self.step_0)
            ]
        return result | ({"error": errors} if errors else {})

    @torch.no_grad()
    def _measure_maps(self) -> tuple[list[list[Tensor]], list[float]]:
        """Return the logits of the target's images, (h, w), and the balanced error of E, per level."""
        estimator = self.model.transferability
        levels = range(len(estimator.discriminators))
        maps: list[list[Tensor]] = [[] for _ in levels]
        regions: dict[str, list[list[Tensor]]] = {domain: [[] for _ in levels] for domain in self.loaders}
        with evaluation_mode(self.model):
            for domain, loader in self.loaders.items():
                for batch in loader:
                    images = self.model.preprocess(batch)
                    for level, t in enumerate(self.model.estimate(images, self.model.encode(images))):
                        exists = existing_regions(t.regions, t.valid, estimator.cell_sizes[level])
                        regions[domain][level].append(t.region_logits[exists].cpu())
                        if domain == "target":
                            maps[level].append(t.logits_of(0).float().cpu())
        if "source" not in regions:
            return maps, []
        both = zip(regions["source"], regions["target"])
        return maps, [(1 - proxy_a_distance(torch.cat(source), torch.cat(target)) / 2) / 2 for source, target in both]


def _shapes(maps: Sequence[Sequence[Tensor | np.ndarray]]) -> Shapes:
    return [[tuple(each.shape) for each in level] for level in maps]


def build_drift(cfg: CfgNode, model: nn.Module) -> Drift | None:
    """Return None where T cannot move (MODEL.TMT.FEATURES "source"), or TRANSFER.DRIFT_IMAGES is 0."""
    limit = cfg.TRANSFER.DRIFT_IMAGES
    if not isinstance(model, TransferableMaskFormer) or cfg.MODEL.TMT.FEATURES == "source" or not limit:
        return None
    splits = {"target": cfg.DATASETS.TEST, "source": cfg.DATASETS.SOURCE_TEST}
    loaders = {domain: Stoppable(held_out_loader(cfg, names, limit)) for domain, names in splits.items() if names}
    return Drift(model, loaders, cfg.OUTPUT_DIR)

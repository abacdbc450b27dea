"""How far transferability moves while a model is fine-tuned: T of held-out pictures, now and before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.adaptation.estimator import existing_regions, held_out_loader, spearman
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.transferability import proxy_a_distance
from tmt_d2.utils.files import atomic_write, read_npz
from tmt_d2.utils.signals import Stoppable

logger = logging.getLogger(__name__)

DRIFT = "transferability"  # of the results in metrics.json, and the name of the file with the last of them
STEP_0 = "transferability_step0.npz"


class Drift:
    """Measures T on fixed pictures of both domains; ``begin`` before the first step, ``measure`` whenever wanted."""

    def __init__(
        self, model: TransferableMaskFormer, loaders: Mapping[str, Iterable[list[dict[str, Any]]]], folder: str | Path
    ) -> None:
        """
        Args:
            loaders: "target" and, where there are held-out source pictures, "source" -> batches of one record.
            folder: where T before the first step is kept, for a run that is resumed.
        """
        self.model, self.loaders, self.file = model, loaders, Path(folder) / STEP_0
        self.step_0: list[list[np.ndarray]] | None = None

    def begin(self, start: int) -> None:
        """Before the first step of this sitting, which is step ``start`` of the run: T of step 0 is made or read."""
        if start:
            if not self.file.is_file():
                logger.warning("%s is not there: how T has moved since step 0 is not known", self.file)
                return
            content = read_npz(self.file, remedy="delete it; how T has moved since step 0 is then not known")
            levels = range(len(self.model.transferability.discriminators))
            names = [[f"{level}_{i}" for i in range(len(content) // len(levels))] for level in levels]
            if {name for level in names for name in level} != {*content}:
                logger.warning("%s is of another model: how T has moved since step 0 is not known", self.file)
                return
            self.step_0 = [[content[name] for name in level] for level in names]
            return
        maps, _ = self._look()
        self.step_0 = [[t.numpy() for t in level] for level in maps]
        if comm.is_main_process():
            with atomic_write(self.file) as file:
                arrays = {f"{level}_{i}": t for level, each in enumerate(self.step_0) for i, t in enumerate(each)}
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def measure(self) -> dict[str, list[float]]:
        """One value a level: "mean" of T and its "spread" within a picture (standard deviation), both means over the
        target's pictures; "spearman_to_step_0", of the ranks of T in each picture, their mean; "error" of E on the
        regions of both domains, balanced. Where step 0 or the source's pictures are missing there is no such entry.
        """
        maps, errors = self._look()
        t = [[1 - logits.sigmoid() for logits in level] for level in maps]
        result = {
            "mean": [float(np.mean([each.mean() for each in level])) for level in t],
            "spread": [float(np.mean([each.std(correction=0) for each in level])) for level in t],
        }
        if self.step_0 is not None and shapes(maps) != shapes(self.step_0):
            logger.warning("%s is of other pictures or sizes: how T has moved since step 0 is not known", self.file)
            self.step_0 = None
        if self.step_0 is not None:
            result["spearman_to_step_0"] = [
                float(np.mean([spearman(now.flatten(), torch.from_numpy(then).flatten()) for now, then in zip(*both)]))
                for both in zip(maps, self.step_0)
            ]
        return result | ({"error": errors} if errors else {})

    @torch.no_grad()
    def _look(self) -> tuple[list[list[Tensor]], list[float]]:
        """Per level the logits of the target's pictures (h, w), and the balanced errors of E."""
        estimator = self.model.transferability
        levels = range(len(estimator.discriminators))
        maps: list[list[Tensor]] = [[] for _ in levels]
        regions: dict[str, list[list[Tensor]]] = {domain: [[] for _ in levels] for domain in self.loaders}
        with evaluation_mode(self.model):
            for domain, loader in self.loaders.items():
                for batch in loader:
                    images = self.model.preprocess(batch)
                    for level, found in enumerate(self.model.estimate(images, self.model.encode(images))):
                        exists = existing_regions(found.regions, found.valid, estimator.cell_sizes[level])
                        regions[domain][level].append(found.region_logits[exists].cpu())
                        if domain == "target":
                            maps[level].append(found.logits_of(0).float().cpu())
        if "source" not in regions:
            return maps, []
        both = zip(regions["source"], regions["target"])
        return maps, [(1 - proxy_a_distance(torch.cat(source), torch.cat(target)) / 2) / 2 for source, target in both]


def shapes(maps: Sequence[Sequence[Tensor | np.ndarray]]) -> list[list[tuple[int, ...]]]:
    return [[tuple(each.shape) for each in level] for level in maps]


def build_drift(cfg: CfgNode, model: nn.Module) -> Drift | None:
    """None where T cannot move (plain Mask2Former, MODEL.TMT.FEATURES "source"), or TRANSFER.DRIFT_IMAGES is 0."""
    limit = cfg.TRANSFER.DRIFT_IMAGES
    if not isinstance(model, TransferableMaskFormer) or cfg.MODEL.TMT.FEATURES == "source" or not limit:
        return None
    splits = {"target": cfg.DATASETS.TEST, "source": cfg.DATASETS.SOURCE_TEST}
    loaders = {domain: Stoppable(held_out_loader(cfg, names, limit)) for domain, names in splits.items() if names}
    return Drift(model, loaders, cfg.OUTPUT_DIR)

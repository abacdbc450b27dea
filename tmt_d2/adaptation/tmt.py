"""Fine-tuning with transferable masked attention (TMT)."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from tmt_d2.adaptation.drift import Drift, build_drift
from tmt_d2.adaptation.map_cache import maps_of, prepare_maps
from tmt_d2.adaptation.supervised import FineTuning
from tmt_d2.adaptation.task import Load, Task, Test
from tmt_d2.data.mapper import SemanticMapper


class Tmt(FineTuning):
    name = "tmt"
    about = "train the whole model; attention is masked by transferability"
    starts_from = "estimator"
    architecture = "TransferableMaskFormer"
    drift: Drift | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Task:
        task = super().from_config(cfg, model)
        assert isinstance(task, cls)
        task.drift = build_drift(cfg, model)
        return task

    @classmethod
    def build_mapper(cls, cfg: CfgNode) -> SemanticMapper:
        return SemanticMapper(cfg, is_train=True, maps=maps_of(cfg))

    def load_references(self, cfg: CfgNode, load: Load) -> None:
        prepare_maps(cfg, self.model, load)

    def begin(self, start_iter: int) -> None:
        if self.drift is not None:
            self.drift.begin(start_iter)

    def evaluate(self, cfg: CfgNode, test: Test) -> dict[str, Any]:
        results = super().evaluate(cfg, test)
        if self.drift is not None:
            self.drift.log()
        return results

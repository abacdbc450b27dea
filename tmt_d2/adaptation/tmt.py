"""Fine-tuning with transferable masked attention (TMT)."""

from __future__ import annotations

from detectron2.config import CfgNode

from tmt_d2.adaptation.map_cache import maps_of, prepare_maps
from tmt_d2.adaptation.supervised import FineTuning
from tmt_d2.adaptation.task import Load
from tmt_d2.data.mapper import SemanticMapper


class Tmt(FineTuning):
    name = "tmt"
    about = "train the whole model; attention is masked by transferability"
    starts_from = "estimator"
    architecture = "TransferableMaskFormer"

    @classmethod
    def build_mapper(cls, cfg: CfgNode) -> SemanticMapper:
        return SemanticMapper(cfg, is_train=True, maps=maps_of(cfg))

    def load_references(self, cfg: CfgNode, load: Load) -> None:
        prepare_maps(cfg, self.model, load)

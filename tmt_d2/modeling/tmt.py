"""``TransferableMaskFormer``: Mask2Former whose masked attention is also restricted by transferability (the paper).

One image: ``preprocess`` and ``encode`` as in ``MaskFormer`` -> ``transferability_of`` every position, read from the
record or estimated by ACTE (Eqs. 2-11) -> ``KeyMask`` (Eq. 12) -> decoder, which combines it with the mask of each
query (Eq. 13).

Letters: B images, (h, w) a level of the pyramid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tmt_d2.modeling.mask_former import MaskFormer, Pass, Record, real_positions, valid_positions
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.transformer_decoder import DecoderInputs, KeyMask, LayerTrace
from tmt_d2.transferability.acte import TransferabilityEstimator, fill_frozen_encoder
from tmt_d2.transferability.map import LevelTransferability, TransferabilityMap


@dataclass(frozen=True)
class TransferablePass(Pass):
    """``Pass`` with the transferability of every level; None if it is neither used nor output."""

    transferability: Sequence[TransferabilityMap] | None


@META_ARCH_REGISTRY.register()
class TransferableMaskFormer(MaskFormer):
    """Mask2Former whose masked attention also obeys transferability (Eqs. 12-13).

    Adds ``transferability.*`` to the state dict; a plain Mask2Former checkpoint loads with only those missing.
    """

    @configurable
    def __init__(
        self,
        *,
        transferability: TransferabilityEstimator,
        p_t: float,
        attention: str,
        output_transferability: bool,
        rank_by: str = "T",
        train_attention: bool = True,
        test_attention: bool = False,
        **mask_former: Any,
    ):
        """
        Args:
            transferability: ACTE. p_t: fraction of positions, those with the highest T, that are not attended to.
            attention: "hard": these positions are not attended to (Eq. 12); "off": T has no effect ("w/o TMA").
            output_transferability: add "transferability" to each result.
            rank_by: "T", or for controls "inverted" (the lowest T is excluded) or "random" positions.
            train_attention: False masks no attention in training; a control with ``test_attention``.
            test_attention: True masks attention in inference too, as the paper does; T then costs a second encoder.
            mask_former: the arguments of ``MaskFormer``.
        """
        super().__init__(**mask_former)
        self.transferability = transferability
        self.p_t, self.attention, self.output_transferability = p_t, attention, output_transferability
        self.rank_by, self.train_attention, self.test_attention = rank_by, train_attention, test_attention
        if transferability.backbone is not None:
            self.register_load_state_dict_pre_hook(_fill_frozen_encoder)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        tmt = cfg.MODEL.TMT
        encoder = (arguments["backbone"], arguments["sem_seg_head"].pixel_decoder)
        # The estimator's training needs no copy: there the model's own features are those of the source model.
        copies_encoder = tmt.FEATURES == "source" and cfg.TRANSFER.METHOD != "estimator"
        return {
            **arguments,
            "transferability": TransferabilityEstimator(
                channels=cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
                features=tmt.FEATURES,
                cell_sizes=tmt.CELL_SIZES,
                iterations=tmt.ITERATIONS,
                kappa=tmt.KAPPA,
                regions=tmt.REGIONS,
                hidden_dim=tmt.DISCRIMINATOR.HIDDEN_DIM,
                normalize=tmt.DISCRIMINATOR.NORMALIZE,
                frozen_encoder=encoder if copies_encoder else None,
            ),
            "p_t": tmt.P_T,
            "attention": tmt.ATTENTION,
            "output_transferability": tmt.OUTPUT_TRANSFERABILITY,
            "rank_by": tmt.RANK_BY,
            "train_attention": tmt.TRAIN_ATTENTION,
            "test_attention": tmt.TEST_ATTENTION,
        }

    @property
    def masks_attention(self) -> bool:
        """True if transferability masks attention in the present mode, training or evaluation."""
        return self.attention != "off" and (self.train_attention if self.training else self.test_attention)

    def run(
        self,
        images: ImageList,
        batched_inputs: Sequence[Record] = (),
        trace: list[LayerTrace] | None = None,
        p_t: float | None = None,
    ) -> TransferablePass:
        """As ``MaskFormer.run``, with transferability between pixel decoder and decoder; p_t: None = the model's."""
        inputs = self.encode(images)
        transferability: Sequence[TransferabilityMap] | None = None
        if self.masks_attention or self.output_transferability:
            transferability = self.transferability_of(images, inputs, batched_inputs)
        if self.masks_attention and transferability is not None:
            key_mask = self._key_mask(inputs.key_mask, transferability, self.p_t if p_t is None else p_t)
            inputs = inputs._replace(key_mask=key_mask)
        return TransferablePass(inputs, self.sem_seg_head.predictor(*inputs, trace), transferability)

    def transferability_of(
        self, images: ImageList, inputs: DecoderInputs, batched_inputs: Sequence[Record] = ()
    ) -> Sequence[TransferabilityMap]:
        """Return the records' "transferability", a map of logits for each level, if they have it, else the estimate."""
        maps = [record["transferability"] for record in batched_inputs if "transferability" in record]
        if not maps:
            return self.estimate(images, inputs)
        if len(maps) < len(batched_inputs):
            raise ValueError(f'{len(maps)} of {len(batched_inputs)} records have "transferability": all or none must')
        return [given_map([each[i] for each in maps], level) for i, level in enumerate(inputs.levels)]

    @torch.no_grad()
    def estimate(self, images: ImageList, inputs: DecoderInputs) -> list[LevelTransferability]:
        """Estimate transferability from the features that MODEL.TMT.FEATURES names.

        The features are always those of evaluation mode, on which the discriminators were trained: with running
        statistics, without dropout. They are computed again if those of training mode differ.
        """
        levels: Sequence[Tensor] | None = self.transferability.encode(images.tensor)
        if levels is None:
            encoder = nn.ModuleList([self.backbone, self.sem_seg_head.pixel_decoder])
            levels = inputs.levels
            if any(map(differs_in_training, encoder.modules())):
                with evaluation_mode(encoder):
                    levels = self.sem_seg_head.pixel_decoder.levels(self.backbone(images.tensor))
        return self.transferability(levels, valid_positions(images, levels))

    def _key_mask(self, key_mask: KeyMask, transferability: Sequence[TransferabilityMap], p_t: float) -> KeyMask:
        """Add the positions that transferability leaves open (Eq. 12)."""
        ranked = [self._ranked(level) for level in transferability]
        transferable = [level.transferable(p_t) for level in ranked]
        if self.attend_padding:  # padding has no transferability, so only the predicted mask decides there
            transferable = [mask | ~level.valid for mask, level in zip(transferable, ranked)]
        return key_mask._replace(allowed=transferable)

    def _ranked(self, level: TransferabilityMap) -> TransferabilityMap:
        """Return the map whose largest T are excluded: T, or for controls the opposite or random values.

        Random values are new in every training step and one fixed pattern in evaluation.
        """
        if self.rank_by == "T":
            return level
        logits = -level.logits
        if self.rank_by == "random":
            generator = None if self.training else torch.Generator(logits.device).manual_seed(0)
            size = logits.shape if self.training else logits.shape[1:]
            logits = torch.rand(size, generator=generator, device=logits.device).expand_as(logits)
        return TransferabilityMap(logits, level.valid)

    def postprocess(self, passed: Pass, batched_inputs: Sequence[Record], images: ImageList) -> list[dict[str, Any]]:
        """As ``MaskFormer.postprocess``, with an optional "transferability": T of every level, (h, w)."""
        results = super().postprocess(passed, batched_inputs, images)
        if self.output_transferability and isinstance(passed, TransferablePass) and passed.transferability is not None:
            padded = images.tensor.shape[-2:]
            for index, (result, size) in enumerate(zip(results, images.image_sizes)):
                result["transferability"] = [
                    level.map_of(index, real_positions(size, padded, level.logits.shape[-2:]))
                    for level in passed.transferability
                ]
        return results


def _fill_frozen_encoder(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any) -> None:
    """Weights without the frozen copy are those of the source model: they fill the copy, too."""
    if not prefix:
        state_dict.update(fill_frozen_encoder(state_dict))


def given_map(logits: Sequence[Tensor], level: Tensor) -> TransferabilityMap:
    """Pad maps (h, w) of the images of a batch to the size of the level (B, C, H, W)."""
    padded = level.new_zeros(len(logits), *level.shape[-2:], dtype=torch.float32)
    valid = torch.zeros_like(padded, dtype=torch.bool)
    for index, each in enumerate(logits):
        padded[index, : each.shape[0], : each.shape[1]] = each.to(level.device, non_blocking=True)
        valid[index, : each.shape[0], : each.shape[1]] = True
    return TransferabilityMap(padded, valid)


def differs_in_training(module: nn.Module) -> bool:
    """Return True if the module's output in its present mode differs from that in evaluation mode."""
    if not module.training:
        return False
    if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
        return module.p > 0
    if type(module).__name__ == "DropPath":  # timm's stochastic depth; timm need not be installed
        return float(getattr(module, "drop_prob", 0.0)) > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def output_transferability(model: Any) -> AbstractContextManager[None]:
    """Let the model, if it has T, output it within the block."""
    return _switched_on(model, "output_transferability")


def attention_in_inference(model: Any) -> AbstractContextManager[None]:
    """Let T, if the model has it, mask attention in evaluation mode within the block."""
    return _switched_on(model, "test_attention")


@contextmanager
def _switched_on(model: Any, name: str) -> Iterator[None]:
    if not isinstance(model, TransferableMaskFormer):
        yield
        return
    before = getattr(model, name)
    setattr(model, name, True)
    try:
        yield
    finally:
        setattr(model, name, before)

"""Self-training: a student learns from labels and from the pseudo-labels of its teacher.

A step reads from top to bottom: ``prepare_batch`` (pseudo-labels of the teacher, ClassMix, augmentation), ``losses`` of
the student, ``after_step`` (the teacher follows the student).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.adaptation.self_training.augmentation import BlockMasking, StrongAugmentation
from tmt_d2.adaptation.self_training.checks import check_settings, check_source_classes
from tmt_d2.adaptation.self_training.classmix import classmix_mask, donor_of, paste
from tmt_d2.adaptation.self_training.fda import fda
from tmt_d2.adaptation.self_training.pseudo_labels import (
    CollapseMonitor,
    PseudoLabel,
    PseudoLabelPolicy,
    balanced,
    labels_and_confidence,
    marginals,
)
from tmt_d2.adaptation.self_training.teacher import MovingAverage, share_statistics
from tmt_d2.adaptation.supervised import FineTuning
from tmt_d2.adaptation.task import Record, Split, Test, loader_options
from tmt_d2.data.datasets.registration import label_space_of, labeled_records
from tmt_d2.data.loaders import SOURCE_DOMAIN, Shares, build_semi_supervised_loader
from tmt_d2.data.rare_classes import RareClasses
from tmt_d2.evaluation.semantic import METRICS
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.mask_logits import outputs_of
from tmt_d2.utils.randomness import derived_seed, seeded

LABELED, PSEUDO, MASKED = GROUPS = ("labeled", "pseudo", "masked")  # of the records of a prepared batch
VIEW_STREAM, MIX_STREAM, MASK_STREAM = 1, 2, 3  # of the random draws for one sample


class SelfTraining(FineTuning):
    """Labeled and unlabeled images -> losses of the student on labels, "loss_pseudo", "loss_masked".

    The teacher is the model that is saved and evaluated. A record without a label has "labeled" False.
    """

    name = "self-training"
    about = "a moving average of the model labels unlabeled images of the target"
    model: MaskFormer
    state: nn.ModuleDict

    def __init__(
        self,
        model: MaskFormer,
        *,
        average: MovingAverage,
        augmentation: StrongAugmentation,
        policy: PseudoLabelPolicy,
        class_names: Sequence[str] = (),
        warm_up: int = 0,
        weight: float = 1.0,
        mixes: bool = True,
        class_balance: float = 0.0,
        masking: BlockMasking | None = None,
        masked_weight: float = 1.0,
        fda_beta: float = 0.0,
    ) -> None:
        """
        Args:
            augmentation, policy: of images with pseudo-labels.
            class_names: for messages.
            warm_up: number of first steps without unlabeled images.
            weight: of the loss on pseudo-labels.
            mixes: use ClassMix.
            class_balance: exponent of ``balanced`` for the teacher's predictions; 0: they stay as they are.
            masking: adds a view of each unlabeled image with hidden blocks, whose loss has the weight masked_weight.
            fda_beta: source images take over the style of an unlabeled image, see ``fda``; 0: they do not.
        """
        super().__init__(model)
        number = model.sem_seg_head.num_classes
        names = class_names if len(class_names) == number else [f"class {index}" for index in range(number)]
        self.state = nn.ModuleDict(
            {"student": copy.deepcopy(model), "average": average, "monitor": CollapseMonitor(names)}
        )
        model.requires_grad_(False)
        self.augmentation, self.policy, self.warm_up, self.weight = augmentation, policy, warm_up, weight
        self.class_balance = class_balance
        self.mixes, self.masking, self.masked_weight, self.fda_beta = mixes, masking, masked_weight, fda_beta

    @property
    def teacher(self) -> MaskFormer:
        return self.model

    @property
    def student(self) -> MaskFormer:
        return self.state["student"]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> SelfTraining:
        super().train(mode)
        self.teacher.eval()
        return self

    # --- before anything is built

    @classmethod
    def training_splits(cls, cfg: CfgNode) -> list[Split]:
        splits = [Split("TRAIN", needs_labels=False)]  # the loader finds those that have one
        if Shares.from_config(cfg).source:
            splits.append(Split("SOURCE_TRAIN", hint="or train without source images: SELF_TRAINING.SOURCE_RATIO 0.0"))
        if cfg.DATASETS.UNLABELED:
            splits.append(Split("UNLABELED", needs_labels=False, defines_classes=False))
        return splits

    @classmethod
    def check(cls, cfg: CfgNode, eval_only: bool = False) -> None:
        if not eval_only:
            check_settings(cfg)
            if Shares.from_config(cfg).source:
                check_source_classes(cfg)

    @classmethod
    def learns_from_target_labels(cls, cfg: CfgNode) -> bool:
        return cfg.SELF_TRAINING.LABELED_RATIO > 0

    @classmethod
    def labeled_images(cls, cfg: CfgNode) -> dict[str, list[Record]]:
        images = super().labeled_images(cfg) if cls.learns_from_target_labels(cfg) else {}
        if Shares.from_config(cfg).source:
            images["DATASETS.SOURCE_TRAIN"] = labeled_records(cfg.DATASETS.SOURCE_TRAIN)
        return images

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_semi_supervised_loader(
            Shares.from_config(cfg),
            target=cfg.DATASETS.TRAIN,
            unlabeled=cfg.DATASETS.UNLABELED,
            source=cfg.DATASETS.SOURCE_TRAIN,
            mapper=cls.build_mapper(cfg),
            labels=cls.label_choice(cfg),
            rare=RareClasses.from_config(cfg),
            **loader_options(cfg),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> SelfTraining:
        assert isinstance(model, MaskFormer)
        keys, iterations = cfg.SELF_TRAINING, cfg.SOLVER.MAX_ITER
        names = label_space_of(cfg.DATASETS.TRAIN[0]).classes.names if cfg.DATASETS.TRAIN else ()
        masking = BlockMasking(keys.MIC_MASK_RATIO, keys.MIC_BLOCK_SIZE, model.pixel_mean)
        return cls(
            model,
            average=MovingAverage(keys.EMA_MOMENTUM, round(keys.BURN_IN * iterations)),
            augmentation=StrongAugmentation(
                keys.COLOR_JITTER_PROB, keys.COLOR_JITTER_STRENGTH, keys.BLUR_PROB, bgr=cfg.INPUT.FORMAT == "BGR"
            ),
            policy=PseudoLabelPolicy(keys.CONFIDENCE_THRESHOLD, keys.IGNORE_UNCONFIDENT, keys.WEIGHT_BY),
            class_names=names,
            warm_up=round(keys.WARM_UP * iterations),
            weight=keys.PSEUDO_LABEL_WEIGHT,
            mixes=keys.MIX == "classmix",
            class_balance=keys.CLASS_BALANCE,
            masking=masking if keys.MIC_WEIGHT else None,
            masked_weight=keys.MIC_WEIGHT,
            fda_beta=keys.FDA_BETA,
        )

    # --- one step

    @torch.no_grad()
    def prepare_batch(self, records: Sequence[Record]) -> list[Record]:
        """Return new records with a "group" of ``GROUPS``: the labeled ones, the student's views of the unlabeled ones
        with pseudo-labels, and masked views of them. In the warm-up only the labeled ones.
        """
        labeled = [record | {"group": LABELED} for record in records if record.get("labeled", True)]
        unlabeled = [record for record in records if not record.get("labeled", True)]
        if not unlabeled or self.state["average"].steps < self.warm_up:
            return labeled
        if self.fda_beta:
            labeled = [self._stylize(record, index, unlabeled, len(labeled)) for index, record in enumerate(labeled)]
        for record in labeled:
            self.state["monitor"].add("labelled", record["sem_seg"])
        views, masked = [], []
        for index, (record, pseudo) in enumerate(zip(unlabeled, self._pseudo_labels(unlabeled))):
            self.state["monitor"].add("predicted", pseudo.label)
            record = record | {"group": PSEUDO, "image": record["image"].to(self.teacher.device)}
            if self.masking is not None:
                masked.append(self._masked(record | self.policy.entries(pseudo)))
            if self.mixes:
                record, pseudo = self._mix(record, pseudo, donor_of(index, len(unlabeled), labeled, record["seed"]))
            with seeded(record["seed"], VIEW_STREAM):
                record["image"] = self.augmentation(record["image"])
            views.append(record | self.policy.entries(pseudo))
        return [*labeled, *views, *masked]

    def _stylize(self, record: Record, index: int, unlabeled: Sequence[Record], count: int) -> Record:
        """Return a source record in the style of an unlabeled image, any other as it is."""
        if record.get("domain") != SOURCE_DOMAIN:
            return record
        style = donor_of(index, count, unlabeled, record["seed"])["image"].to(self.teacher.device)
        return record | {"image": fda(record["image"].to(style.device), style, self.fda_beta)}

    def _pseudo_labels(self, records: Sequence[Record]) -> Iterator[PseudoLabel]:
        """Yield the teacher's prediction for each image as it is."""
        images = self.teacher.preprocess(records)
        probabilities = marginals(self.teacher.run(images, records).outputs)
        if self.class_balance:
            probabilities = balanced(probabilities, self.state["monitor"].get_buffer("predicted"), self.class_balance)
        padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        for (height, width), (label, confidence) in zip(
            images.image_sizes, labels_and_confidence(probabilities, padded_size)
        ):
            yield self.policy.pseudo_label(label[:height, :width], confidence[:height, :width])

    def _masked(self, record: Record) -> Record:
        assert self.masking is not None
        with seeded(record["seed"], MASK_STREAM):
            image = self.masking(self.augmentation(record["image"]))
        return record | {"group": MASKED, "image": image, "seed": derived_seed(record["seed"], MASK_STREAM)}

    def _mix(self, record: Record, pseudo: PseudoLabel, donor: Record) -> tuple[Record, PseudoLabel]:
        """Paste half of the donor's classes; pasted pixels are confident and have the weight 1."""
        label, image = (donor[key].to(self.teacher.device) for key in ("sem_seg", "image"))
        with seeded(record["seed"], MIX_STREAM):
            mask = classmix_mask(label, pseudo.label.shape)
        mixed = PseudoLabel(paste(pseudo.label, label, mask), pseudo.confident | mask, pseudo.weights.where(~mask, 1.0))
        return record | {"image": paste(record["image"].float(), image, mask)}, mixed

    def count_masks(self, records: Sequence[Record]) -> list[int]:
        """Count the masks of each of ``GROUPS``."""
        groups = ([record for record in records if record["group"] == group] for group in GROUPS)
        return [self.student.count_masks(group) for group in groups]

    def losses(self, records: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """num_masks: (3,), of ``GROUPS``."""
        student = self.student
        images = student.preprocess(records)
        outputs = student.run(images, records).outputs
        counts: Sequence[Tensor | None] = [None] * len(GROUPS) if num_masks is None else num_masks.unbind()
        losses: dict[str, Tensor] = {}
        for group, weight, count in zip(GROUPS, (1.0, self.weight, self.masked_weight), counts):
            indices = [index for index, record in enumerate(records) if record["group"] == group]
            if not indices:
                continue
            values = student.losses(outputs_of(outputs, indices), [records[i] for i in indices], images, count)
            if group == LABELED:
                losses |= values
            else:
                losses[f"loss_{group}"] = weight * torch.stack(list(values.values())).sum()
        return losses

    def after_step(self) -> None:
        self.state["average"].update(self.teacher, self.student)
        share_statistics(self.teacher)
        self.state["monitor"].after_step(self.state["average"].steps)

    # --- one run

    def begin(self, start_iter: int) -> None:
        if not start_iter:
            self.student.load_state_dict(self.teacher.state_dict())

    def evaluate(self, cfg: CfgNode, test: Test) -> dict[str, Any]:
        """Return the metrics of the teacher, and the means of the student as "mIoU-student" and so on."""
        scores = test(self.teacher, title="teacher")
        for split, metrics in test(self.student, folder="inference/student", title="student").items():
            scores[split] |= {f"{metric}-student": metrics[metric] for metric in METRICS if metric in metrics}
        return scores


class FullEma(SelfTraining):
    """Supervised training (SELF_TRAINING.UNLABELED_RATIO 0) whose moving average is evaluated."""

    name = "full-ema"
    about = "as full; the moving average of the weights is evaluated"

"""Semi-supervised and unsupervised adaptation: a student learns from labels and from what its teacher says.

Follow a batch: ``prepare`` has the teacher label the pictures without a label, pastes parts of labelled ones onto them
and changes their colours; ``forward`` takes the losses on both; ``after_update`` moves the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tmt_d2.errors import UserError
from tmt_d2.methods.method_training import MethodTraining
from tmt_d2.methods.self_training.mixing import paste, pasted
from tmt_d2.methods.self_training.pseudo_labels import labels_and_confidence, marginals
from tmt_d2.methods.self_training.teacher import MovingAverage
from tmt_d2.methods.self_training.views import StrongView
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.modeling.mask_logits import DecoderOutputs, MaskLogits, QueryOutputs
from tmt_d2.randomness import derived_seed, seeded

Record = dict[str, Any]
STUDENT = "student"
VIEW_STREAM, MIX_STREAM = 1, 2  # of the draws for one sample


class SelfTraining(MethodTraining):
    """Batches of labelled and unlabelled pictures -> the student's losses on labels, and "loss_pseudo".

    A record without a label has "labelled" False. The model that was given is the teacher: it is what is evaluated and
    saved. Without unlabelled pictures this is supervised training of which the moving average counts.
    """

    def __init__(
        self,
        model: MaskFormer,
        *,
        momentum: float,
        burn_in: int,
        weight: float,
        mixes: bool,
        view: StrongView,
    ):
        """
        Args:
            momentum, burn_in: of ``MovingAverage``. weight: of the loss on pseudo-labels.
            mixes: paste classes of labelled pictures onto unlabelled ones.
        """
        super().__init__()
        self.teacher = model
        self.progress = nn.ModuleDict({STUDENT: copy.deepcopy(model), "average": MovingAverage(momentum, burn_in)})
        self.teacher.requires_grad_(False)
        self.weight, self.mixes, self.view = weight, mixes, view

    @property
    def student(self) -> MaskFormer:
        return self.progress[STUDENT]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> SelfTraining:
        super().train(mode)
        self.teacher.eval()
        return self

    def begin(self) -> None:
        self.student.load_state_dict(self.teacher.state_dict())

    def also_evaluated(self) -> Mapping[str, nn.Module]:
        return {STUDENT: self.student}

    def after_update(self) -> None:
        self.progress["average"].update(self.teacher, self.student)

    def count_masks(self, batched_inputs: Sequence[Record]) -> list[int]:
        """Of labels and of pseudo-labels."""
        self.prepare(batched_inputs)
        return [self.student.count_masks([batched_inputs[i] for i in part]) for part in split(batched_inputs)]

    def forward(self, batched_inputs: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """num_masks: (2,), the means of ``count_masks`` over the calls that make one step."""
        self.prepare(batched_inputs)
        student = self.student
        images = student.preprocess(batched_inputs)
        outputs = student.run(images, batched_inputs).outputs
        counts: Sequence[Tensor | None] = (None, None) if num_masks is None else num_masks.unbind()
        by_part = [
            student.losses(outputs_of(outputs, part), [batched_inputs[i] for i in part], images, count) if part else {}
            for part, count in zip(split(batched_inputs), counts)
        ]
        losses, pseudo = by_part
        if pseudo:
            losses["loss_pseudo"] = self.weight * torch.stack(list(pseudo.values())).sum()
        return losses

    @torch.no_grad()
    def prepare(self, batched_inputs: Sequence[Record]) -> None:
        """Give the unlabelled records the teacher's "sem_seg" and the student's view of the picture; in place, once."""
        records = [batched_inputs[i] for i in split(batched_inputs)[1] if "sem_seg" not in batched_inputs[i]]
        if not records:
            return
        donors = [batched_inputs[i] for i in split(batched_inputs)[0]]
        teacher = self.teacher
        images = teacher.preprocess(records)
        probabilities = marginals(teacher.run(images, records).outputs)
        padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        labels = labels_and_confidence(probabilities, padded_size)
        for place, (record, (height, width), (label, _)) in enumerate(zip(records, images.image_sizes, labels)):
            record["sem_seg"] = label[:height, :width].to(torch.uint8)
            record["image"] = record["image"].to(teacher.device)
            if self.mixes:
                self._mix(record, donor_of(place, record["seed"], donors, len(records)))
            with seeded(record["seed"], VIEW_STREAM):
                record["image"] = self.view(record["image"])

    def _mix(self, record: Record, donor: Record) -> None:
        label = donor["sem_seg"].to(self.teacher.device)
        with seeded(record["seed"], MIX_STREAM):
            mask = pasted(label, record["sem_seg"].shape)
        record["sem_seg"] = paste(record["sem_seg"], label, mask)
        record["image"] = paste(record["image"], donor["image"].to(self.teacher.device), mask)


def split(batched_inputs: Sequence[Record]) -> tuple[list[int], list[int]]:
    """Places of the records with a label, and of those without."""
    labelled = [record.get("labelled", True) for record in batched_inputs]
    return [i for i, has in enumerate(labelled) if has], [i for i, has in enumerate(labelled) if not has]


def donor_of(place: int, seed: int, donors: Sequence[Record], pictures: int) -> Record:
    """One of the labelled pictures for the unlabelled one at ``place`` among so many, of those that lie next to it.

    A batch is made of equal blocks (``StepSampler``), and what lies in another one is never chosen: so it is the same
    picture whatever processes and micro-batches share the batch.
    """
    first = place * len(donors) // pictures
    behind = max((place + 1) * len(donors) // pictures, first + 1)
    return donors[first + derived_seed(seed, MIX_STREAM, 1) % (behind - first)]


def outputs_of(outputs: DecoderOutputs, images: Sequence[int]) -> DecoderOutputs:
    """Those of some images of the batch."""
    if len(images) == len(outputs["pred_logits"]):
        return outputs
    index = torch.tensor(images, device=outputs["pred_logits"].device)
    features = outputs["pred_masks"].features[index]  # of all layers the same

    def chosen(layer: QueryOutputs) -> QueryOutputs:
        masks = MaskLogits(layer["pred_masks"].embeddings[index], features)
        return {"pred_logits": layer["pred_logits"][index], "pred_masks": masks}

    return {**chosen(outputs), "aux_outputs": [chosen(layer) for layer in outputs["aux_outputs"]]}


def self_training(cfg: CfgNode, model: nn.Module) -> SelfTraining:
    """
    Raises:
        UserError: a setting that needs labels is on and no picture of a batch has one.
    """
    keys = cfg.TRANSFER.SELF_TRAINING
    mixes = keys.MIX == "classmix" and keys.UNLABELLED > 0
    if mixes and not (keys.LABELLED or keys.SOURCE):
        raise UserError(
            "TRANSFER.SELF_TRAINING.MIX classmix pastes from labelled pictures, and LABELLED and SOURCE are 0: set MIX "
            "none"
        )
    assert isinstance(model, MaskFormer)
    return SelfTraining(
        model,
        momentum=keys.EMA,
        burn_in=round(keys.BURN_IN * cfg.SOLVER.MAX_ITER),
        weight=keys.WEIGHT,
        mixes=mixes,
        view=StrongView(keys.COLOUR, keys.COLOUR_STRENGTH, keys.BLUR, bgr=cfg.INPUT.FORMAT == "BGR"),
    )

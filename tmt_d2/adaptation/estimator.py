"""Estimator training: train the domain discriminators on frozen features, and measure them on held-out images.

Letters: B images, (R, S) the grid of regions of a level, N regions.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tmt_d2.adaptation.task import Record, Split, Task, Test, loader_options
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.datasets.registration import label_space_of, labeled_records, records_of, shared_images
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN, build_paired_loader
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.data.reader import read_label
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_former import valid_positions
from tmt_d2.modeling.modes import evaluation_mode
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.transferability import proxy_a_distance
from tmt_d2.transferability.clustering import Regions
from tmt_d2.utils.signals import Stoppable

logger = logging.getLogger(__name__)

DOMAINS = {"source": SOURCE_DOMAIN, "target": TARGET_DOMAIN}


class EstimatorState(nn.Module):
    """State of training beside the model.

    twin: the second set of discriminators. running_error: (levels,), of the first set on training batches.
    """

    def __init__(self, discriminators: nn.ModuleList):
        super().__init__()
        self.twin = copy.deepcopy(discriminators)
        for module in self.twin.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        self.register_buffer("running_error", torch.full((len(discriminators),), 0.5))


class Estimator(Task):
    """Batches of both domains -> the losses of the discriminators (Eqs. 2-5); the rest of the model is frozen.

    Two sets of discriminators with different initial weights are trained on the same features. The first is the
    model's; the rank correlation of both tells how much of T is chance.
    """

    name = "estimator"
    about = "train the domain discriminators on the frozen source model"
    architecture = "TransferableMaskFormer"
    fine_tunes = False
    measures_splits = False
    requires_head = True  # the features are those of a trained pixel decoder
    results = "estimator.json"
    state_name = "estimator_training"
    test_splits = (Split("TEST", False, False), Split("SOURCE_TEST", needs_labels=False))
    model: TransferableMaskFormer
    state: EstimatorState

    def __init__(self, model: TransferableMaskFormer, target_error: float):
        """target_error: a level takes no step while the running mean of its training error is below this."""
        super().__init__(model)
        model.requires_grad_(False)
        model.transferability.discriminators.requires_grad_(True)
        self.state = EstimatorState(model.transferability.discriminators)
        self.target_error = target_error

    @classmethod
    def training_splits(cls, cfg: CfgNode) -> list[Split]:
        return [Split("TRAIN", False, False), Split("SOURCE_TRAIN", needs_labels=False)]

    @classmethod
    def check(cls, cfg: CfgNode, eval_only: bool = False) -> None:
        trained = (*cfg.DATASETS.SOURCE_TRAIN, *cfg.DATASETS.TRAIN)
        tested = [(key, name) for key in ("SOURCE_TEST", "TEST") for name in cfg.DATASETS[key]]
        for key, name in tested:
            shared = [] if eval_only else shared_images([name], trained)
            if name in trained or shared:
                which = f"{len(shared)} of its images" if shared else "it"
                raise UserError(
                    f"the discriminators are trained on {which}, and the proxy A-distance needs unseen images",
                    key=f"DATASETS.{key}",
                    value=name,
                    hint="name a held-out split",
                )

    @classmethod
    def learns_from_target_labels(cls, cfg: CfgNode) -> bool:
        return False

    @classmethod
    def labeled_images(cls, cfg: CfgNode) -> dict[str, list[Record]]:
        return {}

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        data, mapper = cfg.DATASETS, SemanticMapper(cfg, is_train=True, with_label=False)
        images = cfg.SOLVER.IMS_PER_BATCH
        return build_paired_loader(data.SOURCE_TRAIN, data.TRAIN, mapper, images, **loader_options(cfg))

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Estimator:
        assert isinstance(model, TransferableMaskFormer)
        return cls(model, cfg.TRANSFER.ESTIMATOR.TARGET_ERROR)

    @classmethod
    def evaluate_checkpoint(
        cls, cfg: CfgNode, model: nn.Module, checkpoint: Mapping[str, Any], test: Test
    ) -> dict[str, Any]:
        task, state = cls.from_config(cfg, model), checkpoint.get(cls.state_name)
        if state is None:
            logger.warning("%s holds one set of discriminators: rank stability, of two, is unknown", cfg.MODEL.WEIGHTS)
        else:
            task.state.load_state_dict(state)
        return measure(task, held_out_loaders(cfg), has_twin=state is not None)

    def evaluate(self, cfg: CfgNode, test: Test) -> dict[str, Any]:
        return measure(self, held_out_loaders(cfg))

    def train(self, mode: bool = True) -> Estimator:
        super().train(mode)
        self.model.eval()  # frozen, with its normalization statistics
        return self

    def count_masks(self, records: Sequence[Record]) -> int:
        return 0  # no loss is divided by it

    def losses(self, records: Sequence[Record], num_masks: Tensor | None = None) -> dict[str, Tensor]:
        """Return "loss_domain_<level>" of records with "image" and "domain" (0 source, 1 target), both in the batch."""
        domain = torch.tensor([record["domain"] for record in records], device=self.model.device)
        estimator = self.model.transferability
        losses = {}
        for level, (features, exists) in enumerate(self._regions(records)):
            loss = features.new_zeros(())
            for discriminators in (estimator.discriminators, self.state.twin):
                logits = discriminators[level](features)
                loss = loss + balanced_loss(logits, domain, exists)
                if discriminators is estimator.discriminators:
                    self._track_error(level, logits.detach(), domain, exists)
            losses[f"loss_domain_{level}"] = loss
        return losses

    def after_backward(self) -> None:
        """Remove the gradients of levels that are below the target error, in both sets.

        With a loss of 0, momentum and weight decay would still move them. Without a loss, data-parallel training would
        wait for their gradients forever.
        """
        for level, error in enumerate(self.state.running_error.tolist()):
            if error < self.target_error:
                for discriminators in (self.model.transferability.discriminators, self.state.twin):
                    discriminators[level].zero_grad()  # to None

    @torch.no_grad()
    def _regions(self, records: Sequence[Record]) -> list[tuple[Tensor, Tensor]]:
        """Return per level the features of the regions, (B, R, S, C), and a mask of existing ones, (B, R, S) bool."""
        images = self.model.preprocess(records)
        estimator = self.model.transferability
        levels = estimator.encode(images.tensor) or self.model.encode(images).levels
        valid = valid_positions(images, levels)
        pairs = []
        for index, features in enumerate(levels):
            level_valid = None if valid is None else valid[index]
            regions = estimator.regions_of(index, features, level_valid)
            exists = existing_regions(regions, level_valid, estimator.cell_sizes[index])
            pairs.append((regions.centers.permute(0, 2, 3, 1), exists))
        return pairs

    def _track_error(self, level: int, logits: Tensor, domain: Tensor, exists: Tensor) -> None:
        wrong = (logits > 0) != (domain[:, None, None] == TARGET_DOMAIN)
        error = torch.stack(
            [wrong[domain == value][exists[domain == value]].float().mean() for value in DOMAINS.values()]
        )
        mean = error.mean()
        if comm.get_world_size() > 1:  # all processes decide alike whether a level is updated
            torch.distributed.all_reduce(mean)
            mean /= comm.get_world_size()
        self.state.running_error[level].lerp_(mean, 0.05)


def balanced_loss(logits: Tensor, domain: Tensor, exists: Tensor) -> Tensor:
    """Return the binary cross-entropy in which both domains have the same weight, whatever their numbers of regions.

    Args:
        logits: (B, R, S). domain: (B,), 0 source, 1 target, both occur. exists: (B, R, S) bool.
    """
    is_target = (domain == TARGET_DOMAIN).float()[:, None, None].expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, is_target, reduction="none")
    means = [losses[domain == value][exists[domain == value]].mean() for value in DOMAINS.values()]
    return torch.stack(means).mean()


def existing_regions(regions: Regions, valid: Tensor | None, cell_size: int) -> Tensor:
    """Return the regions whose cell has a position that is not padding, (B, R, S) bool."""
    if valid is None:
        return torch.ones_like(regions.centers[:, 0], dtype=torch.bool)
    return F.max_pool2d(valid[:, None].float(), cell_size, ceil_mode=True)[:, 0] > 0


def held_out_loaders(cfg: CfgNode) -> dict[str, Stoppable]:
    """Return TRANSFER.ESTIMATOR.HELD_OUT images of each domain, by its name."""
    splits = {"source": cfg.DATASETS.SOURCE_TEST, "target": cfg.DATASETS.TEST}
    limit = cfg.TRANSFER.ESTIMATOR.HELD_OUT
    return {domain: Stoppable(held_out_loader(cfg, names, limit)) for domain, names in splits.items()}


def held_out_loader(
    cfg: CfgNode, names: Sequence[str], limit: int, with_label: bool = False
) -> Iterable[list[dict[str, Any]]]:
    """Return at most ``limit`` images, evenly spread over the registered splits, one per batch, in a fixed order.

    with_label: only images with a label.
    """
    records = labeled_records(names) if with_label else records_of(names)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int))
    return build_detection_test_loader(
        [records[index] for index in chosen],
        mapper=SemanticMapper(cfg, is_train=False),
        sampler=range(len(chosen)),  # every process measures on all of them
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


@torch.no_grad()
def measure(
    task: Estimator, loaders: Mapping[str, Iterable[list[dict[str, Any]]]], has_twin: bool = True
) -> dict[str, Any]:
    """Measure the discriminators on held-out images.

    Args:
        loaders: "source" and "target" -> batches of one record.
        has_twin: the second set of discriminators is trained; if not, "rank_stability" is NaN.

    Returns:
        lists with one entry per level: "proxy_a_distance"; "error", balanced; "std_of_t_within_image", the mean over
        target images; "rank_stability", the mean over target images of Spearman's correlation between the region
        logits of two independently initialized discriminators; and "mean_t_by_class", per level {class: mean T over
        the target's labeled positions}.
    """
    estimator = task.model.transferability
    levels = range(len(estimator.discriminators))
    logits: dict[str, list[list[Tensor]]] = {domain: [[] for _ in levels] for domain in loaders}
    spread: list[list[float]] = [[] for _ in levels]
    stability: list[list[float]] = [[] for _ in levels]
    classes: Sequence[str] = ()  # of the target, which may have others than the source model
    sums, counts = np.zeros((2, len(levels), IGNORE))
    with evaluation_mode(task):
        for domain, loader in loaders.items():
            for batch in loader:
                images = task.model.preprocess(batch)
                features = estimator.encode(images.tensor) or task.model.encode(images).levels
                for level, result in enumerate(estimator(features, valid_positions(images, features))):
                    exists = existing_regions(result.regions, result.valid, estimator.cell_sizes[level])
                    logits[domain][level].append(result.region_logits[exists].cpu())
                    if domain == "source":
                        continue
                    t_map = result.map_of(0)
                    spread[level].append(float(t_map.std(correction=0)))
                    twin = task.state.twin[level](result.regions.centers.permute(0, 2, 3, 1))[exists].cpu()
                    stability[level].append(
                        spearman(result.region_logits[exists].cpu(), twin) if has_twin else float("nan")
                    )
                    if LABEL in batch[0]:
                        classes = label_space_of(batch[0]["dataset"]).classes.names
                        _add_by_class(sums[level], counts[level], t_map, STRIDES[level], batch[0])
    distances = [
        proxy_a_distance(torch.cat(logits["source"][level]), torch.cat(logits["target"][level])) for level in levels
    ]
    names = ", ".join(f"{distance:.2f} at stride {stride}" for distance, stride in zip(distances, STRIDES))
    logger.info("proxy A-distance of held-out images (0: not distinguished, 2: perfectly): %s", names)
    return {
        "proxy_a_distance": distances,
        "error": [(1 - distance / 2) / 2 for distance in distances],
        "std_of_t_within_image": [float(np.mean(values)) for values in spread],
        "rank_stability": [float(np.mean(values)) for values in stability],
        "mean_t_by_class": [
            {name: float(s / n) for name, s, n in zip(classes, sums[level], counts[level]) if n} for level in levels
        ],
    }


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation, 0 where one of both is constant."""
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def _add_by_class(sums: np.ndarray, counts: np.ndarray, t_map: Tensor, stride: int, record: Mapping[str, Any]) -> None:
    """Add T at the position of every labeled pixel to the sum of its class. t_map: (h, w), stride pixels a position."""
    label = torch.from_numpy(read_label(record["sem_seg_file_name"], label_space_of(record["dataset"])))
    rows, columns = (
        ((torch.arange(of_label) + 0.5) * of_image / (of_label * stride)).long()
        for of_label, of_image in zip(label.shape, record["image"].shape[-2:])
    )
    enlarged = t_map.cpu()[rows][:, columns]
    valid = label != IGNORE
    ids = label[valid].long().numpy()
    sums += np.bincount(ids, enlarged[valid].double().numpy(), minlength=len(sums))
    counts += np.bincount(ids, minlength=len(counts))

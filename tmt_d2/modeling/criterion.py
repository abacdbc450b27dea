"""The set criterion of Mask2Former: match queries to targets, then classification, mask and dice losses on points.

All decoder outputs are matched and scored together: one batch, one transfer to the host, no loop over layers.
Letters: L decoder outputs, B images, Q queries, C channels, N classes, T targets of an image, K targets of all images,
P points.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend import point_features
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.modeling.mask_logits import DecoderOutputs, QueryOutputs
from tmt_d2.modeling.matcher import EPS, match, matching_costs
from tmt_d2.modeling.ops.linear import inner
from tmt_d2.modeling.targets import MaskTargets

_TEMPORARY = 2**22  # elements of a temporary tensor of the matcher: it stays in a CPU's cache, and out of the peak

# Bilinear samples: maps (B, C, H, W), points (B, P, 2), (x, y) in [0, 1] between the outer edges -> (B, C, P).
point_sample = functools.partial(point_features.point_sample, align_corners=False)


def _keep_empty_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keep the config's weights: official checkpoints hold them too."""
    name = f"{prefix}empty_weight"
    if name in state_dict:
        state_dict[name] = module.get_buffer("empty_weight").clone()


class SetCriterion(nn.Module):
    """Losses of all decoder outputs; ``weight_dict`` names them with their weights."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_aux_outputs: int,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ):
        """
        Args:
            num_classes: N, without "no object".
            class_weight, mask_weight, dice_weight: used both for matching and as weights of the losses.
            no_object_weight: weight of the "no object" class in the classification loss.
            num_aux_outputs: decoder outputs that are supervised besides the last one.
            num_points: P. oversample_ratio, importance_sample_ratio: of PointRend's uncertainty sampling.
        """
        super().__init__()
        self.num_classes, self.num_points = num_classes, num_points
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.oversample_ratio, self.importance_sample_ratio = oversample_ratio, importance_sample_ratio
        self.num_aux_outputs = num_aux_outputs
        weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.weight_dict = dict(weights)
        for index in range(num_aux_outputs):
            self.weight_dict.update({f"{name}_{index}": weight for name, weight in weights.items()})
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)
        self.register_load_state_dict_pre_hook(_keep_empty_weight)

    def forward(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskTargets],
        num_masks: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            outputs: of the decoder; "aux_outputs" may be missing.
            targets: of each image; the masks of all have one size, and all of them have ``valid``, or none, and the
                same of ``weights``.
            num_masks: K averaged over all the calls that make one step; by default over the processes of this call. The
                official code raises it to 1, so that a step with fewer masks than calls depends on how it is split.
            seeds: per image, of its random points; without them all points come from the global generator.

        Returns:
            unweighted scalar losses: "loss_ce", "loss_mask", "loss_dice" of the last output, with suffix "_i" those
            of auxiliary output i. Sums are divided by means over all calls of a step (every call having B images), so
            the mean of the losses over the calls is the loss of all images in one call.
        """
        layers: list[QueryOutputs] = [*outputs.get("aux_outputs", [])[: self.num_aux_outputs], outputs]
        with torch.autocast(layers[-1]["pred_logits"].device.type, enabled=False):
            class_logits = torch.stack([layer["pred_logits"].float() for layer in layers])  # (L, B, Q, N + 1)
            embeddings = torch.stack([layer["pred_masks"].embeddings.float() for layer in layers])  # (L, B, Q, C)
            features = outputs["pred_masks"].features.float()  # (B, C, H, W), the same for every output
            if num_masks is None:
                num_masks = _mean_over_processes(sum(len(target.labels) for target in targets), class_logits.device)
            draw = _RandomPoints(class_logits.device, seeds)
            queries = self._match(class_logits, embeddings, features, targets, draw)
            loss_ce = self._classification_losses(class_logits, targets, queries, num_masks)
            masks = _matched_masks(embeddings, features, queries)
            loss_mask, loss_dice = self._mask_losses(masks, targets, num_masks, draw)
        losses = {}
        for index in range(len(layers)):
            suffix = "" if index == len(layers) - 1 else f"_{index}"
            losses[f"loss_ce{suffix}"] = loss_ce[index]
            losses[f"loss_mask{suffix}"] = loss_mask[index]
            losses[f"loss_dice{suffix}"] = loss_dice[index]
        return losses

    @torch.no_grad()
    def _match(
        self,
        class_logits: Tensor,
        embeddings: Tensor,
        features: Tensor,
        targets: Sequence[MaskTargets],
        draw: _RandomPoints,
    ) -> list[Tensor]:
        """Return for each image (L, T) long, the query matched to each target, for every decoder output."""
        points = draw([1] * len(targets), self.num_points).split(1)  # (1, P, 2) each
        costs = []
        for image, target in enumerate(targets):
            target_points = point_sample(target.masks[None].float(), points[image])[0]  # (T, P)
            point_weights = _point_weights([target], [points[image]])
            features_at = point_sample(features[image : image + 1], points[image])[0].T.contiguous()  # (P, C)
            costs.append(
                torch.cat(
                    [
                        matching_costs(
                            class_logits[outputs, image],
                            inner(embeddings[outputs, image], features_at),
                            target.labels,
                            target_points,
                            class_weight=self.class_weight,
                            mask_weight=self.mask_weight,
                            dice_weight=self.dice_weight,
                            point_weights=None if point_weights is None else point_weights[0],
                        )
                        for outputs in _slices(len(class_logits), class_logits.shape[2] * self.num_points)
                    ]
                )
            )
        return [torch.from_numpy(queries).to(class_logits.device) for queries in match(costs)]

    def _classification_losses(
        self,
        class_logits: Tensor,
        targets: Sequence[MaskTargets],
        queries: list[Tensor],
        num_masks: Tensor,
    ) -> Tensor:
        """(L,): cross-entropy over all queries; those without a target belong to "no object"."""
        classes = torch.full(class_logits.shape[:3], self.num_classes, dtype=torch.long, device=class_logits.device)
        for image, (target, matched) in enumerate(zip(targets, queries)):
            classes[:, image].scatter_(1, matched, target.labels.expand(len(matched), -1))
        losses = F.cross_entropy(class_logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        weights = num_masks + self.empty_weight[-1] * (classes[0].numel() - num_masks)
        return losses.view(classes.shape).sum((1, 2)) / weights

    def _mask_losses(
        self,
        masks: Tensor,
        targets: Sequence[MaskTargets],
        num_masks: Tensor,
        draw: _RandomPoints,
    ) -> tuple[Tensor, Tensor]:
        """(L,), (L,): binary cross-entropy and dice on uncertain points of the matched masks (L, K, H, W)."""
        L, K = masks.shape[:2]
        if K == 0:
            zero = masks.sum((1, 2, 3))  # keeps every parameter in the graph
            return zero, zero
        by_target = masks.transpose(0, 1)  # (K, L, H, W)
        with torch.no_grad():
            points = self._uncertain_points(by_target, targets, draw)  # (K, L, P, 2)
            by_image = points.flatten(1, 2).split([len(target.labels) for target in targets])
            sampled = [point_sample(t.masks[:, None].float(), at)[:, 0] for t, at in zip(targets, by_image)]
            target_points = torch.cat(sampled).view(K, L, -1)
            point_weights = _point_weights(targets, by_image)
        logits = point_sample(by_target.flatten(0, 1)[:, None], points.flatten(0, 1)).view(K, L, -1)
        background, probabilities = F.softplus(logits), logits.sigmoid()
        overlap = 2 * (probabilities * target_points).sum(-1)
        if point_weights is not None:  # where the weights are 0, so are target_points
            point_weights = point_weights.view(K, L, -1)
            background, probabilities = background * point_weights, probabilities * point_weights
        loss_mask = (background - target_points * logits).mean(-1)  # binary cross-entropy, see the matcher
        if point_weights is not None:
            loss_mask = loss_mask / point_weights.mean(-1).clamp(min=EPS)
        loss_dice = 1 - (overlap + 1) / (probabilities.sum(-1) + target_points.sum(-1) + 1)
        weights = [target.weights for target in targets if target.weights is not None]
        if weights:
            loss_mask, loss_dice = (loss * torch.cat(weights)[:, None] for loss in (loss_mask, loss_dice))
        return loss_mask.sum(0) / num_masks, loss_dice.sum(0) / num_masks

    def _uncertain_points(self, masks: Tensor, targets: Sequence[MaskTargets], draw: _RandomPoints) -> Tensor:
        """PointRend's sampling (arXiv 1912.08193, 3.3) of P points per mask: of P * oversample_ratio random points
        the importance_sample_ratio share nearest to the mask's border, the rest uniformly.

        All outputs choose among the same random points of a target: each output's points are distributed as if it had
        drawn its own, and the points are drawn and located once instead of L times. Points of weight 0 come last.

        Args:
            masks: (K, L, H, W) logits.

        Returns:
            (K, L, P, 2) in [0, 1)
        """
        L, counts = masks.shape[1], [len(target.labels) for target in targets]
        candidates = draw(counts, int(self.num_points * self.oversample_ratio))  # (K, P', 2)
        distances = point_sample(masks, candidates).abs_()  # (K, L, P')
        point_weights = _point_weights(targets, candidates.split(counts))
        if point_weights is not None:
            distances.masked_fill_(point_weights[:, None] == 0, float("inf"))
        uncertain = int(self.importance_sample_ratio * self.num_points)
        nearest = distances.topk(uncertain, largest=False, sorted=False).indices.flatten(1)
        chosen = torch.view_as_complex(candidates).gather(1, nearest)  # (x, y) are moved as one number
        chosen = torch.view_as_real(chosen).unflatten(1, (L, -1))
        uniform = draw(counts, self.num_points - uncertain)
        return torch.cat([chosen, uniform[:, None].expand(-1, L, -1, -1)], 2)


class _RandomPoints:
    """Uniform points in [0, 1) x [0, 1); those of an image come from its own seed where there are seeds."""

    def __init__(self, device: torch.device, seeds: Sequence[int] | None):
        self._device = device
        self._generators = None if seeds is None else [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, counts: Sequence[int], points: int) -> Tensor:
        """counts: of masks per image -> (sum of counts, points, 2)."""
        if self._generators is None:
            return torch.rand(sum(counts), points, 2, device=self._device)
        drawn = [
            torch.rand(count, points, 2, generator=generator, device=self._device)
            for count, generator in zip(counts, self._generators)
        ]
        return torch.cat(drawn)


def _matched_masks(embeddings: Tensor, features: Tensor, queries: Sequence[Tensor]) -> Tensor:
    """(L, K, H, W) logits of the matched queries, images one after the other."""
    matched = [
        torch.einsum("ltc,chw->lthw", torch.take_along_dim(embeddings[:, image], index[..., None], 1), features[image])
        for image, index in enumerate(queries)
    ]
    return torch.cat(matched, 1)


def _point_weights(targets: Sequence[MaskTargets], points: Sequence[Tensor]) -> Tensor | None:
    """Share of each point that is valid: points of each image (T, P, 2) -> (K, P) in [0, 1]; None = 1."""
    valid = [target.valid for target in targets if target.valid is not None]
    if not valid:
        return None
    maps = [each.float().expand(len(at), 1, -1, -1) for each, at in zip(valid, points, strict=True)]
    return torch.cat([point_sample(each, at, padding_mode="border")[:, 0] for each, at in zip(maps, points)])


def _slices(outputs: int, elements: int) -> list[slice]:
    """Slices over outputs of so many elements each that a temporary of one slice stays small."""
    step = max(1, _TEMPORARY // elements)
    return [slice(start, start + step) for start in range(0, outputs, step)]


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    total = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return total / comm.get_world_size()

"""The set criterion of Mask2Former: match queries to targets, then classification, mask and dice losses on points.

All decoder outputs are matched and scored together: one batch, one transfer to the host, no loop over layers.
Letters: L decoder outputs, B images, Q queries, N classes, T targets of an image, K targets of all images, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from tmt_d2.modeling.mask_logits import DecoderOutputs, MaskLogits, QueryOutputs
from tmt_d2.modeling.matcher import LEAST, match, matching_costs
from tmt_d2.modeling.ops.linear import inner
from tmt_d2.modeling.targets import MaskTargets

_TEMPORARY = 2**22  # elements of a temporary tensor of the matcher: it stays in a CPU's cache, and out of the peak


def _keep_empty_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Official checkpoints hold it, and it is a setting: that of the config stays."""
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
            outputs: of the decoder; "pred_masks" may also be tensors (B, Q, h, w), and "aux_outputs" missing.
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
            masks = _StackedMasks([layer["pred_masks"] for layer in layers])
            if num_masks is None:
                num_masks = _mean_over_processes(sum(len(t.labels) for t in targets), class_logits.device)
            draw = _Points(class_logits.device, seeds)
            queries = self._match(class_logits, masks, targets, draw)
            loss_ce = self._classification_losses(class_logits, targets, queries, num_masks)
            loss_mask, loss_dice = self._mask_losses(masks, targets, queries, num_masks, draw)
        losses = {}
        for index in range(len(layers)):
            suffix = "" if index == len(layers) - 1 else f"_{index}"
            losses[f"loss_ce{suffix}"] = loss_ce[index]
            losses[f"loss_mask{suffix}"] = loss_mask[index]
            losses[f"loss_dice{suffix}"] = loss_dice[index]
        return losses

    @torch.no_grad()
    def _match(
        self, class_logits: Tensor, masks: _StackedMasks, targets: Sequence[MaskTargets], draw: _Points
    ) -> list[Tensor]:
        """Per image (L, T) long: the query of each target, for every decoder output."""
        device = class_logits.device
        points = draw([1] * len(targets), self.num_points)  # (B, P, 2)
        costs = []
        for image, target in enumerate(targets):
            target_points = _at(target.masks[None].float(), points[image : image + 1])[0]  # (T, P)
            counted = self._counted([target], [points[image : image + 1]])
            logits_at = masks.sampler(image, points[image])
            costs.append(
                torch.cat(
                    [
                        matching_costs(
                            class_logits[some, image],
                            logits_at(some),
                            target.labels,
                            target_points,
                            class_weight=self.class_weight,
                            mask_weight=self.mask_weight,
                            dice_weight=self.dice_weight,
                            counted=None if counted is None else counted[0],
                        )
                        for some in _slices(len(class_logits), class_logits.shape[2] * self.num_points)
                    ]
                )
            )
        return [torch.from_numpy(chosen).to(device) for chosen in match(costs)]

    def _classification_losses(
        self,
        class_logits: Tensor,
        targets: Sequence[MaskTargets],
        queries: list[Tensor],
        num_masks: Tensor,
    ) -> Tensor:
        """(L,): cross-entropy over all queries; those without a target belong to "no object"."""
        wanted = torch.full(class_logits.shape[:3], self.num_classes, dtype=torch.long, device=class_logits.device)
        for image, (target, chosen) in enumerate(zip(targets, queries)):
            wanted[:, image].scatter_(1, chosen, target.labels.expand(len(chosen), -1))
        losses = F.cross_entropy(class_logits.flatten(0, 2), wanted.flatten(), self.empty_weight, reduction="none")
        no_object = self.empty_weight[-1]
        labels = torch.cat([target.labels for target in targets])
        of_class = self.empty_weight[labels].mean() if len(labels) else 1.0  # 1 unless a checkpoint says otherwise
        weights = of_class * num_masks + no_object * (wanted[0].numel() - num_masks)
        return losses.view(wanted.shape).sum((1, 2)) / weights

    def _mask_losses(
        self,
        masks: _StackedMasks,
        targets: Sequence[MaskTargets],
        queries: list[Tensor],
        num_masks: Tensor,
        draw: _Points,
    ) -> tuple[Tensor, Tensor]:
        """(L,), (L,): binary cross-entropy and dice on uncertain points of the matched masks."""
        predicted = masks.select(queries)  # (L, K, h, w)
        L, K = predicted.shape[:2]
        if K == 0:
            zero = predicted.sum(tuple(range(1, predicted.dim())))  # keeps every parameter in the graph
            return zero, zero
        by_target = predicted.transpose(0, 1)  # (K, L, h, w)
        with torch.no_grad():
            points = self._uncertain_points(by_target, targets, draw)  # (K, L, P, 2)
            of_images = points.flatten(1, 2).split([len(target.labels) for target in targets])
            wanted = [_at(target.masks[:, None].float(), some)[:, 0] for target, some in zip(targets, of_images)]
            wanted_points = torch.cat(wanted).view(K, L, -1)  # each target was read once for all outputs
            counted = self._counted(targets, of_images)
        logits = _at(by_target.flatten(0, 1)[:, None], points.flatten(0, 1)).view(K, L, -1)
        background, probabilities = F.softplus(logits), logits.sigmoid()
        overlap = 2 * (probabilities * wanted_points).sum(-1)
        if counted is not None:  # the masks are 0 where nothing counts
            counted = counted.view(K, L, -1)
            background, probabilities = background * counted, probabilities * counted
        loss_mask = (background - wanted_points * logits).mean(-1)  # binary cross-entropy, see the matcher
        if counted is not None:
            loss_mask = loss_mask / counted.mean(-1).clamp(min=LEAST)
        loss_dice = 1 - (overlap + 1) / (probabilities.sum(-1) + wanted_points.sum(-1) + 1)
        weights = [target.weights for target in targets if target.weights is not None]
        if weights:
            loss_mask, loss_dice = (loss * torch.cat(weights)[:, None] for loss in (loss_mask, loss_dice))
        return loss_mask.sum(0) / num_masks, loss_dice.sum(0) / num_masks

    def _counted(self, targets: Sequence[MaskTargets], points: Sequence[Tensor]) -> Tensor | None:
        """Share of each point that is valid: points of each image (T, P, 2) -> (K, P) in [0, 1]; None = 1."""
        valid = [target.valid for target in targets if target.valid is not None]
        if not valid:
            return None
        maps = [each.float().expand(len(some), 1, -1, -1) for each, some in zip(valid, points, strict=True)]
        return torch.cat([_at(each, some, "border")[:, 0] for each, some in zip(maps, points)])

    def _uncertain_points(self, predicted: Tensor, targets: Sequence[MaskTargets], draw: _Points) -> Tensor:
        """PointRend's sampling (arXiv 1912.08193, 3.3) of P points per mask: of P * oversample_ratio random points
        the importance_sample_ratio share nearest to the mask's border, the rest uniformly.

        All outputs choose among the same random points of a target: each output's points are distributed as if it had
        drawn its own, and the points are drawn and located once instead of L times. Points that do not count come last.

        Args:
            predicted: (K, L, h, w).

        Returns:
            (K, L, P, 2) in [-1, 1)
        """
        L, counts = predicted.shape[1], [len(target.labels) for target in targets]
        candidates = draw(counts, int(self.num_points * self.oversample_ratio))  # (K, P', 2)
        distances = _at(predicted, candidates).abs_()  # (K, L, P')
        counted = self._counted(targets, candidates.split(counts))
        if counted is not None:
            distances.masked_fill_(counted[:, None] == 0, float("inf"))
        uncertain = int(self.importance_sample_ratio * self.num_points)
        nearest = distances.topk(uncertain, largest=False, sorted=False).indices.flatten(1)
        chosen = torch.view_as_complex(candidates).gather(1, nearest)  # (x, y) are moved as one number
        chosen = torch.view_as_real(chosen).unflatten(1, (L, -1))
        uniform = draw(counts, self.num_points - uncertain)
        return torch.cat([chosen, uniform[:, None].expand(-1, L, -1, -1)], 2)


class _Points:
    """Random points, those of an image from its own seed where there are seeds.

    They are (x, y) in [-1, 1), as ``grid_sample`` wants them: -1 and 1 are the outer edges of a mask.
    """

    def __init__(self, device: torch.device, seeds: Sequence[int] | None):
        self._device = device
        self._generators = None if seeds is None else [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, counts: Sequence[int], points: int) -> Tensor:
        """counts: of masks per image -> (sum of counts, points, 2)."""
        if self._generators is None:
            return torch.rand(sum(counts), points, 2, device=self._device).mul_(2).sub_(1)
        drawn = [
            torch.rand(count, points, 2, generator=generator, device=self._device)
            for count, generator in zip(counts, self._generators)
        ]
        return torch.cat(drawn).mul_(2).sub_(1)


class _StackedMasks:
    """The mask predictions of all L outputs, as factors or as maps, behind the two questions the criterion asks."""

    def __init__(self, layers: Sequence[MaskLogits | Tensor]):
        if isinstance(layers[0], MaskLogits):
            self._features: Tensor | None = layers[0].features.float()  # the same for every output
            self._stack = torch.stack([layer.embeddings.float() for layer in layers])  # (L, B, Q, C)
        else:
            self._features = None
            self._stack = torch.stack([layer.float() for layer in layers])  # (L, B, Q, h, w)

    def sampler(self, image: int, points: Tensor) -> Callable[[slice], Tensor]:
        """A function that gives the masks of some outputs of one image at points (P, 2): logits (L', Q, P)."""
        stack = self._stack[:, image]
        if self._features is None:
            return lambda outputs: _at(stack[outputs], points.expand(len(stack[outputs]), -1, -1))
        features = _at(self._features[image : image + 1], points[None])[0].T.contiguous()  # (P, C)
        return lambda outputs: inner(stack[outputs], features)

    def select(self, queries: Sequence[Tensor]) -> Tensor:
        """queries: per image (L, T) long -> the maps of these queries (L, K, h, w), images one after the other."""
        selected = []
        for image, chosen in enumerate(queries):
            index = chosen.view(*chosen.shape, *(1,) * (self._stack.dim() - 3))
            picked = torch.take_along_dim(self._stack[:, image], index, 1)
            if self._features is not None:
                picked = torch.einsum("ltc,chw->lthw", picked, self._features[image])
            selected.append(picked)
        return torch.cat(selected, 1)


def _slices(outputs: int, elements: int) -> list[slice]:
    """Slices over outputs of so many elements each that a temporary of one slice stays small."""
    step = max(1, _TEMPORARY // elements)
    return [slice(start, start + step) for start in range(0, outputs, step)]


def _at(maps: Tensor, points: Tensor, outside: str = "zeros") -> Tensor:
    """Bilinear samples: maps (N, C, H, W), points (N, P, 2) as ``_Points`` draws them -> (N, C, P)."""
    return F.grid_sample(maps, points[:, :, None], padding_mode=outside, align_corners=False)[..., 0]


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    total = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return total / comm.get_world_size()

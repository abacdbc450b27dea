"""Alignment, the step before leep and otce fine-tuning: its pixels, its plan, what it does to scores and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.errors import refuses
from tests.helpers.models import make_records, random, tiny_cfg
from tests.helpers.small_runs import small_cfg
from tmt_d2.adaptation.alignment import (
    Alignment,
    LeepAlignment,
    OtceAlignment,
    Pixels,
    class_probabilities,
    draw_pixels,
    pixel_features,
    pixels_of_a_call,
    sinkhorn_plan,
)
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.step import TrainingStep
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.transferability.scores import transport_plan

# --- the transport plan


def test_sinkhorn_plan_is_the_transport_plan() -> None:
    cost = random(5, 7).double().square()
    plan = sinkhorn_plan(cost / cost.mean(), 0.5, 300)
    torch.testing.assert_close(plan, transport_plan(cost, 0.5), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 1 / 5, dtype=torch.double))


# --- pixels of a batch


def test_only_labeled_pixels_are_drawn() -> None:
    labels = torch.full((2, 3, 4), 255)
    labels[0, 1, 2], labels[1, 2, 3] = 7, 0
    pixels = draw_pixels(labels, 10)
    assert sorted(zip(*(part.tolist() for part in pixels))) == [(0, 1, 2, 7), (1, 2, 3, 0)]
    assert len(draw_pixels(labels, 1).label) == 1
    assert len(draw_pixels(torch.full((1, 2, 2), 255), 5).label) == 0


def test_probabilities_at_pixels_are_those_of_semantic_inference() -> None:
    features, logits, embeddings = random(2, 3, 2, 4), random(2, 5, 20, seed=1), random(2, 5, 3, seed=2)
    outputs = {"pred_logits": logits, "pred_masks": MaskLogits(embeddings, features)}
    pixels = Pixels(*(torch.tensor(values) for values in ([1, 0, 1], [0, 7, 4], [15, 3, 8], [0, 0, 0])))
    found = class_probabilities(outputs, pixels, (8, 16))
    for row, (image, y, x) in zip(found, [(1, 0, 3), (0, 1, 0), (1, 1, 2)]):
        masks = (embeddings[image] @ features[image, :, y, x]).sigmoid()
        scores = (logits[image].softmax(-1)[:, :-1] * masks[:, None]).sum(0)
        torch.testing.assert_close(row, scores / scores.sum())
    torch.testing.assert_close(pixel_features(features, pixels, (8, 16))[0], features[1, :, 0, 3])


# --- the alignment step


def alignment(build_tiny, score: str, **changes) -> Alignment:
    settings = {"weight": 1.0, "pixels": 60, "epsilon": 0.1, "sinkhorn_iterations": 20}
    kind = {"leep": LeepAlignment, "otce": OtceAlignment}[score]
    return kind(build_tiny("MaskFormer"), **{**settings, **changes}).train()


def paired_records() -> list:
    domains = (SOURCE_DOMAIN, TARGET_DOMAIN, SOURCE_DOMAIN, TARGET_DOMAIN)
    records = make_records(((48, 64),) * 4)
    return [record | {"domain": domain} for record, domain in zip(records, domains)]


@pytest.mark.slow
@pytest.mark.parametrize("score", ["leep", "otce"])
def test_steps_raise_the_score(build_tiny, score: str) -> None:
    training = alignment(build_tiny, score)
    batch = paired_records()
    parameters = [parameter for parameter in training.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    values = []
    for _ in range(6):
        torch.manual_seed(0)  # the same pixels
        losses = training(batch)
        assert set(losses) == {"loss_score"}
        optimizer.zero_grad()
        losses["loss_score"].backward()
        assert all(parameter.grad is not None for parameter in parameters if parameter.dim() > 1)
        optimizer.step()
        values.append(losses["loss_score"].item())
    assert values[-1] < values[0] - 1e-3
    assert all(value > 0 for value in values)


def test_segmentation_takes_the_rest_of_the_weight(build_tiny) -> None:
    training, score_alone = alignment(build_tiny, "leep", weight=0.25), alignment(build_tiny, "leep")
    batch = make_records(((48, 64),) * 2)
    torch.manual_seed(0)
    losses = training(batch)
    torch.manual_seed(0)
    whole = score_alone(batch)
    assert set(losses) == {"loss_score", "loss_segmentation"}
    torch.testing.assert_close(losses["loss_score"], 0.25 * whole["loss_score"])


def test_segmentation_is_of_the_target(build_tiny) -> None:
    training, batch = alignment(build_tiny, "otce", weight=0.25), paired_records()

    def segmentation(changed: int) -> torch.Tensor:
        records = [{**record, "seed": index} for index, record in enumerate(batch)]
        for record in records:
            if record["domain"] == changed:
                record["sem_seg"] = torch.full_like(record["sem_seg"], 7)
        return training(records)["loss_segmentation"]

    unchanged = segmentation(-1)
    assert torch.equal(segmentation(SOURCE_DOMAIN), unchanged)
    assert not torch.equal(segmentation(TARGET_DOMAIN), unchanged)
    assert training.count_masks(batch) == training.model.count_masks([r for r in batch if r["domain"] == TARGET_DOMAIN])


@pytest.mark.parametrize("score", ["leep", "otce"])
def test_batches_without_labels_change_nothing(build_tiny, score: str) -> None:
    training = alignment(build_tiny, score)
    batch = [record | {"sem_seg": torch.full_like(record["sem_seg"], 255)} for record in paired_records()]
    loss = training(batch)["loss_score"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in training.parameters())


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("score", ["leep", "otce"])
@pytest.mark.parametrize("decoder", [{}, {"MODEL__MASK_FORMER__HIDDEN_DIM": 32, "MODEL__MASK_FORMER__DEC_LAYERS": 2}])
def test_every_trainable_tensor_has_a_gradient(
    build_tiny, decoder: dict, score: str, weight: float, labeled: bool
) -> None:
    """Data-parallel training waits for each. One decoder layer attends to one level, and projects no other one."""
    training = alignment(lambda name: build_tiny(name, **decoder), score, weight=weight)
    batch = paired_records()
    if not labeled:
        batch = [record | {"sem_seg": torch.full_like(record["sem_seg"], 255)} for record in batch]
    torch.stack(list(training(batch).values())).sum().backward()
    assert not [name for name, p in training.named_parameters() if p.requires_grad and p.grad is None]


def test_pixels_are_of_a_step(monkeypatch) -> None:
    cfg = tiny_cfg(TRANSFER__ALIGNMENT__PIXELS=30, SOLVER__ACCUMULATION_STEPS=2)
    assert pixels_of_a_call(cfg) == 15
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    assert pixels_of_a_call(cfg) == 3
    with refuses("TRANSFER.ALIGNMENT.PIXELS"):
        pixels_of_a_call(tiny_cfg(TRANSFER__ALIGNMENT__PIXELS=7, SOLVER__ACCUMULATION_STEPS=2))


def test_segmentation_of_micro_batches_is_that_of_the_batch(build_tiny) -> None:
    """Images with different numbers of classes: each micro-batch divides by the mean over both."""
    records = [record | {"seed": index} for index, record in enumerate(make_records(((64, 64),) * 2))]
    records[1]["sem_seg"] = torch.full_like(records[1]["sem_seg"], 3)  # one class, the other image has four
    losses = []
    for steps in (1, 2):
        training = alignment(build_tiny, "leep", weight=0.5)
        parameters = [parameter for parameter in training.parameters() if parameter.requires_grad]
        step = TrainingStep(training, torch.optim.SGD(parameters, lr=0.1), accumulation_steps=steps)
        losses.append(step.backward(records)[0]["loss_segmentation"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_alignment_keeps_normalization_statistics(build_tiny) -> None:
    training = alignment(build_tiny, "leep")
    before = {name: value.clone() for name, value in training.named_buffers()}
    training(make_records(((48, 64),) * 2))
    assert before
    assert all(torch.equal(before[name], value) for name, value in training.named_buffers())


# --- configurations and whole stages


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["leep", "otce"])
@pytest.mark.usefixtures("data_root")
def test_alignment_comes_before_fine_tuning_and_is_not_repeated(start, tmp_path, monkeypatch, method) -> None:
    changes = {"TRANSFER__ALIGNMENT__ITERATIONS": 2, "SOLVER__MAX_ITER": 1, "TRANSFER__ALIGNMENT__PIXELS": 40}
    changes |= {"SOLVER__ACCUMULATION_STEPS": 2}
    cfg = small_cfg(method, tmp_path, start, **changes, DATASETS__SOURCE_TRAIN="('cityscapes_sem_seg_train',)")
    drawn = []
    draw = lambda labels, number: drawn.append(number) or draw_pixels(labels, number)  # noqa: E731
    monkeypatch.setattr("tmt_d2.adaptation.alignment.draw_pixels", draw)
    run_stage(cfg)
    assert drawn == [20] * (2 * 2 * (1 + (method == "otce")))  # iterations, micro-batches, domains: 40 a step
    aligned = tmp_path / "alignment" / "model_final.pth"
    before, between, after = weights(start), weights(aligned), weights(tmp_path / "model_final.pth")
    head = "sem_seg_head.predictor.class_embed.weight"
    feature = "sem_seg_head.pixel_decoder.mask_features.weight"
    assert not torch.equal(before[feature], between[feature])
    assert torch.equal(before[head], between[head]) == (method == "otce")  # the score is on features
    assert not torch.equal(between[head], after[head])  # fine-tuning learns what alignment held fixed
    aligned.write_bytes(b"must not be read again")
    longer = small_cfg(method, tmp_path, start, **changes | {"SOLVER__MAX_ITER": 2})
    run_stage(longer, resume=True)
    assert aligned.read_bytes() == b"must not be read again"


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_otce_without_a_source_is_refused(start, tmp_path) -> None:
    with refuses("DATASETS.SOURCE_TRAIN"):
        run_stage(small_cfg("otce", tmp_path, start, DATASETS__SOURCE_TRAIN="()"))

"""One step of self-training: the prepared batch, its losses, and which parameters learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.errors import refuses
from tests.helpers.models import make_records, tiny_cfg
from tmt_d2.adaptation.self_training.checks import check_settings
from tmt_d2.adaptation.self_training.fda import fda
from tmt_d2.adaptation.self_training.pseudo_labels import labels_and_confidence, marginals
from tmt_d2.adaptation.self_training.task import SelfTraining, outputs_of
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN


def build(build_tiny: Any, **changes: Any) -> SelfTraining:
    cfg = tiny_cfg(TRANSFER__METHOD="self-training", MODEL__RESNETS__NORM="FrozenBN", **changes)
    task = SelfTraining.from_config(cfg, build_tiny("MaskFormer", MODEL__RESNETS__NORM="FrozenBN"))
    task.begin(0)
    return task.train()


def batch(sizes: Any = ((48, 64), (48, 64), (40, 64), (48, 50))) -> list[dict[str, Any]]:
    """Labeled and unlabeled images in turn; a prepared batch has the labeled ones first."""
    records = [record | {"seed": index} for index, record in enumerate(make_records(sizes))]
    for record in records:
        record["sem_seg"] = record["sem_seg"].to(torch.uint8)
    for record in records[1::2]:
        del record["sem_seg"]
        record["labeled"] = False
    return records


def test_pseudo_labels_are_the_teachers_of_the_original_image(build_tiny: Any) -> None:
    task = build(build_tiny, SELF_TRAINING__MIX="none")
    records = batch()
    with torch.no_grad():
        for parameter in task.student.parameters():
            parameter.add_(1)  # the student does not matter
        prepared = task.prepare_batch(records)
        images = task.teacher.preprocess(records[1::2])
        outputs = task.teacher.run(images).outputs
    assert [record["group"] for record in prepared] == ["labeled"] * 2 + ["pseudo"] * 2
    expected = labels_and_confidence(marginals(outputs), images.tensor.shape[-2:])
    for record, original, (label, _) in zip(prepared[2:], records[1::2], expected):
        h, w = original["image"].shape[-2:]
        assert torch.equal(record["sem_seg"], label[:h, :w].to(torch.uint8))
        assert not torch.equal(record["image"], original["image"].float())  # augmented
    assert torch.equal(prepared[0]["image"], records[0]["image"])
    for record, original in zip(records, batch()):  # the given records are not changed
        assert record.keys() == original.keys() and torch.equal(record["image"], original["image"])


def test_pseudo_labels_are_balanced_by_earlier_ones(build_tiny: Any) -> None:
    task = build(build_tiny, SELF_TRAINING__MIX="none", SELF_TRAINING__CLASS_BALANCE=0.9)
    first = task.prepare_batch(batch())[2]["sem_seg"]
    assert torch.equal(first, build(build_tiny, SELF_TRAINING__MIX="none").prepare_batch(batch())[2]["sem_seg"])
    task.after_step()
    second = task.prepare_batch(batch())[2]["sem_seg"]
    most = first.flatten().mode().values
    assert (second == most).sum() < (first == most).sum()


def test_classmix_pastes_the_labels_of_people(build_tiny: Any) -> None:
    plain_view = {"SELF_TRAINING__COLOR_JITTER_PROB": 0.0, "SELF_TRAINING__BLUR_PROB": 0.0}
    mixed = build(build_tiny, **plain_view).prepare_batch(batch())
    plain = build(build_tiny, SELF_TRAINING__MIX="none", **plain_view).prepare_batch(batch())
    for index in (2, 3):
        donor = mixed[index - 2]
        h, w = (min(pair) for pair in zip(mixed[index]["sem_seg"].shape, donor["sem_seg"].shape))
        changed = (mixed[index]["image"] - plain[index]["image"]).abs().sum(0)[:h, :w] > 1e-3
        assert 0.05 < changed.float().mean() < 1
        assert torch.equal(mixed[index]["sem_seg"][:h, :w][changed], donor["sem_seg"][:h, :w][changed])


def test_losses_of_both_parts_are_those_of_the_model(build_tiny: Any) -> None:
    task = build(build_tiny, SELF_TRAINING__PSEUDO_LABEL_WEIGHT=0.5)
    records = batch()
    records = task.prepare_batch(records)
    losses = task(records)
    student = task.student
    images = student.preprocess(records)
    outputs = student.run(images).outputs
    parts = [student.losses(outputs_of(outputs, part), [records[i] for i in part], images) for part in ([0, 1], [2, 3])]
    torch.testing.assert_close(losses.pop("loss_pseudo"), 0.5 * torch.stack(list(parts[1].values())).sum())
    assert losses.keys() == parts[0].keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, parts[0][name])


def test_unconfident_pixels_are_ignored_and_have_no_weight(build_tiny: Any, monkeypatch: Any) -> None:
    """The confidence of an untrained model is constant, so it is invented here."""

    def invented(probabilities: Tensor, size: tuple[int, int]) -> Any:
        for labels, _ in labels_and_confidence(probabilities, size):
            yield labels, torch.linspace(0, 1, size[1]).expand(size)

    monkeypatch.setattr("tmt_d2.adaptation.self_training.task.labels_and_confidence", invented)
    settings: dict[str, Any] = {"CONFIDENCE_THRESHOLD": 0.5, "IGNORE_UNCONFIDENT": True, "WEIGHT_BY": "pixel"}
    task = build(build_tiny, **{f"SELF_TRAINING__{key}": value for key, value in settings.items()})
    records, plain = batch(), batch()
    records = task.prepare_batch(records)
    plain = build(build_tiny).prepare_batch(plain)
    shares = []
    for index in (2, 3):
        label, ignored = records[index]["sem_seg"], records[index]["sem_seg"] == 255
        assert torch.equal(label[~ignored], plain[index]["sem_seg"][~ignored])
        share = 1 - ignored.float().mean()
        for class_id in plain[index]["sem_seg"].unique():
            of_class = plain[index]["sem_seg"] == class_id
            expected = 1 - ignored[of_class].float().mean()
            assert records[index]["mask_weights"][int(class_id)] == pytest.approx(float(expected), abs=1e-6)
        shares.append(float(share))
    assert min(shares) > 0.05 and max(shares) < 1  # the test has something of both
    assert torch.isfinite(torch.stack(list(task(records).values()))).all()
    assert task.count_masks(records)[1] <= sum(len(record["sem_seg"].unique()) for record in plain[2:])


def test_masked_views_come_on_top_and_keep_the_label(build_tiny: Any) -> None:
    task = build(build_tiny, SELF_TRAINING__MIC_WEIGHT=0.25)
    plain = build(build_tiny, SELF_TRAINING__MIX="none").prepare_batch(batch())
    records = task.prepare_batch(batch())
    losses = task(records)
    views = [record for record in records if record["group"] == "masked"]
    for view, record in zip(views, plain[2:], strict=True):
        assert torch.equal(view["sem_seg"], record["sem_seg"])  # before anything was pasted
        hidden = (view["image"] == task.teacher.pixel_mean).all(0)
        assert 0.5 < hidden.float().mean() < 0.9
    assert task.count_masks(records)[2] == sum(len(view["sem_seg"].unique()) for view in views)
    student = task.student
    images = student.preprocess(records)
    alone = student.losses(outputs_of(student.run(images).outputs, [4, 5]), views, images)
    torch.testing.assert_close(losses["loss_masked"], 0.25 * torch.stack(list(alone.values())).sum())


def test_only_source_images_change_their_style(build_tiny: Any) -> None:
    task = build(build_tiny, SELF_TRAINING__FDA_BETA=0.05, SELF_TRAINING__SOURCE_RATIO=1.0)
    records = batch()
    records[0]["domain"], records[2]["domain"] = SOURCE_DOMAIN, TARGET_DOMAIN
    prepared = task.prepare_batch(records)
    assert torch.equal(prepared[0]["image"], fda(records[0]["image"], records[1]["image"], 0.05))
    assert torch.equal(prepared[1]["image"], records[2]["image"])


def test_without_unlabeled_images_it_is_the_model(build_tiny: Any) -> None:
    task = build(build_tiny)
    records = [record for record in batch() if "sem_seg" in record]
    found = task(task.prepare_batch(records))
    expected = task.teacher.train()(records)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_only_the_student_learns_and_every_part_of_it(build_tiny: Any) -> None:
    task = build(build_tiny)
    torch.stack(list(task(task.prepare_batch(batch())).values())).sum().backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert not [name for name, p in task.student.named_parameters() if p.grad is None]
    assert not task.teacher.training and task.student.training


def test_in_the_warm_up_only_labels_are_used(build_tiny: Any) -> None:
    task = build(build_tiny)
    task.warm_up = 1
    records = batch()
    losses, expected = task(task.prepare_batch(records)), task.student(records[::2])
    assert losses.keys() == expected.keys()
    assert all(value.item() == pytest.approx(expected[name].item(), rel=1e-4) for name, value in losses.items())
    task.after_step()
    assert "loss_pseudo" in task(task.prepare_batch(records))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"FDA_BETA": 0.1}, "FDA_BETA"),
        ({"LABELED_RATIO": 0.0, "WARM_UP": 0.5, "MIX": "none"}, "WARM_UP"),
        ({"LABELED_RATIO": 0.0}, "MIX"),
        ({"CONFIDENCE_THRESHOLD": 0.9}, "CONFIDENCE_THRESHOLD"),
        ({"CLASS_BALANCE": 0.3, "LABELED_RATIO": 0.0, "MIX": "none"}, "CLASS_BALANCE"),
        ({"IGNORED_ROWS": (0.5, 0.5)}, "IGNORED_ROWS"),
        ({"IGNORED_ROWS": (0.0, 0.1), "UNLABELED_RATIO": 0.0}, "IGNORED_ROWS"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], key: str) -> None:
    settings = {f"SELF_TRAINING__{name}": value for name, value in changes.items()}
    with refuses(f"SELF_TRAINING.{key}"):
        check_settings(tiny_cfg(DATASETS__TRAIN=("cityscapes_sem_seg_train",), **settings))

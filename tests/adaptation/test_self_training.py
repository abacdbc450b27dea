"""A step of self-training: what it makes of a batch, its losses, and who learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import make_records, tiny_cfg
from tmt_d2.adaptation.self_training.fourier import in_style_of
from tmt_d2.adaptation.self_training.pseudo_labels import labels_and_confidence, marginals
from tmt_d2.adaptation.self_training.training import SelfTraining, outputs_of, self_training
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN
from tmt_d2.errors import UserError


def build(build_tiny: Any, **changes: Any) -> SelfTraining:
    cfg = tiny_cfg(TRANSFER__METHOD="self-training", MODEL__RESNETS__NORM="FrozenBN", **changes)
    training = self_training(cfg, build_tiny("MaskFormer", MODEL__RESNETS__NORM="FrozenBN"))
    training.begin()
    return training.train()


def batch(sizes: Any = ((48, 64), (48, 64), (40, 64), (48, 50))) -> list[dict[str, Any]]:
    """Labelled and unlabelled, in turn."""
    records = [record | {"seed": index} for index, record in enumerate(make_records(sizes))]
    for record in records:
        record["sem_seg"] = record["sem_seg"].to(torch.uint8)
    for record in records[1::2]:
        del record["sem_seg"]
        record["labeled"] = False
    return records


def test_pseudo_labels_are_the_teachers_of_the_picture_as_it_is(build_tiny: Any) -> None:
    training = build(build_tiny, SELF_TRAINING__MIX="none")
    records = batch()
    plain = [dict(record) for record in records]
    with torch.no_grad():
        for parameter in training.student.parameters():
            parameter.add_(1)  # whatever the student says
        records = training.prepare_batch(records)
        for index in (1, 3):
            images = training.teacher.preprocess(plain[1::2])
            outputs = training.teacher.run(images).outputs
            labels = list(labels_and_confidence(marginals(outputs), images.tensor.shape[-2:]))[index // 2][0]
            h, w = records[index]["sem_seg"].shape
            assert (h, w) == plain[index]["image"].shape[-2:]
            assert torch.equal(records[index]["sem_seg"], labels[:h, :w].to(torch.uint8))
            assert not torch.equal(records[index]["image"], plain[index]["image"].float())  # the student's view
    assert torch.equal(records[0]["image"], plain[0]["image"])  # labelled images are left alone
    assert all(torch.equal(given["image"], record["image"]) for given, record in zip(batch(), plain))  # and the batch


def test_classmix_pastes_the_label_of_people(build_tiny: Any) -> None:
    mixed, plain = batch(), batch()
    without = build(build_tiny, SELF_TRAINING__COLOR_JITTER_PROB=0.0, SELF_TRAINING__BLUR_PROB=0.0)
    mixed = without.prepare_batch(mixed)
    plain = build(
        build_tiny,
        SELF_TRAINING__COLOR_JITTER_PROB=0.0,
        SELF_TRAINING__BLUR_PROB=0.0,
        SELF_TRAINING__MIX="none",
    ).prepare_batch(plain)
    for index in (1, 3):
        donor = mixed[index - 1]
        h, w = (min(pair) for pair in zip(mixed[index]["sem_seg"].shape, donor["sem_seg"].shape))
        changed = (mixed[index]["image"] - plain[index]["image"]).abs().sum(0)[:h, :w] > 1e-3
        assert 0.05 < changed.float().mean() < 1
        assert torch.equal(mixed[index]["sem_seg"][:h, :w][changed], donor["sem_seg"][:h, :w][changed])


def test_losses_of_both_parts_are_those_of_the_model(build_tiny: Any) -> None:
    training = build(build_tiny, SELF_TRAINING__PSEUDO_LABEL_WEIGHT=0.5)
    records = batch()
    records = training.prepare_batch(records)
    losses = training(records)
    student = training.student
    images = student.preprocess(records)
    outputs = student.run(images).outputs
    parts = [student.losses(outputs_of(outputs, part), [records[i] for i in part], images) for part in ([0, 2], [1, 3])]
    torch.testing.assert_close(losses.pop("loss_pseudo"), 0.5 * torch.stack(list(parts[1].values())).sum())
    assert losses.keys() == parts[0].keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, parts[0][name])


def test_what_the_teacher_is_not_sure_of_does_not_count(build_tiny: Any, monkeypatch: Any) -> None:
    """An untrained model is equally sure of everything, so its confidence is invented here."""

    def invented(probabilities: Tensor, size: tuple[int, int]) -> Any:
        for labels, _ in labels_and_confidence(probabilities, size):
            yield labels, torch.linspace(0, 1, size[1]).expand(size)

    monkeypatch.setattr("tmt_d2.adaptation.self_training.training.labels_and_confidence", invented)
    settings: dict[str, Any] = {"CONFIDENCE_THRESHOLD": 0.5, "IGNORE_UNCONFIDENT": True, "WEIGHT_BY": "pixel"}
    training = build(build_tiny, **{f"SELF_TRAINING__{key}": value for key, value in settings.items()})
    records, plain = batch(), batch()
    records = training.prepare_batch(records)
    plain = build(build_tiny).prepare_batch(plain)
    shares = []
    for index in (1, 3):
        label, ignored = records[index]["sem_seg"], records[index]["sem_seg"] == 255
        assert torch.equal(label[~ignored], plain[index]["sem_seg"][~ignored])
        share = 1 - ignored.float().mean()
        for class_id in plain[index]["sem_seg"].unique():
            of_class = plain[index]["sem_seg"] == class_id
            expected = 1 - ignored[of_class].float().mean()
            assert records[index]["mask_weights"][int(class_id)] == pytest.approx(float(expected), abs=1e-6)
        shares.append(float(share))
    assert min(shares) > 0.05 and max(shares) < 1  # the test has something of both
    assert torch.isfinite(torch.stack(list(training(records).values()))).all()
    assert training.count_masks(records)[1] <= sum(len(record["sem_seg"].unique()) for record in plain[1::2])


def test_masked_views_come_on_top_and_keep_the_label(build_tiny: Any) -> None:
    training = build(build_tiny, SELF_TRAINING__MIC_WEIGHT=0.25)
    records, plain = batch(), batch()
    plain = build(build_tiny, SELF_TRAINING__MIX="none").prepare_batch(plain)
    records = training.prepare_batch(records)
    losses = training(records)
    views = [records[index]["masked_view"] for index in (1, 3)]
    for view, record in zip(views, plain[1::2]):
        assert torch.equal(view["sem_seg"], record["sem_seg"])  # of the picture before anything was pasted
        hidden = (view["image"] == training.teacher.pixel_mean).all(0)
        assert 0.5 < hidden.float().mean() < 0.9
    assert training.count_masks(records)[2] == sum(len(view["sem_seg"].unique()) for view in views)
    student = training.student
    seen = [*records, *views]
    images = student.preprocess(seen)
    alone = student.losses(outputs_of(student.run(images).outputs, [4, 5]), views, images)
    torch.testing.assert_close(losses["loss_masked"], 0.25 * torch.stack(list(alone.values())).sum())


def test_only_source_pictures_change_their_style(build_tiny: Any) -> None:
    training = build(build_tiny, SELF_TRAINING__FDA_BETA=0.05, SELF_TRAINING__SOURCE_RATIO=1.0)
    records, plain = batch(), batch()
    for each in (records, plain):
        each[0]["domain"], each[2]["domain"] = SOURCE_DOMAIN, TARGET_DOMAIN
    records = training.prepare_batch(records)
    assert torch.equal(records[0]["image"], in_style_of(plain[0]["image"], plain[1]["image"], 0.05))
    assert torch.equal(records[2]["image"], plain[2]["image"])


def test_features_of_source_pictures_stay_near_the_frozen_ones(build_tiny: Any) -> None:
    settings = {"FEATURE_DISTANCE_WEIGHT": 0.5, "FEATURE_DISTANCE_CHECKPOINT": "pretrained.pth", "SOURCE_RATIO": 1.0}
    changes: dict[str, Any] = {f"SELF_TRAINING__{key}": value for key, value in settings.items()}
    training = build(build_tiny, DATASETS__TRAIN=("cityscapes_sem_seg_train",), **changes)
    loaded: list[str] = []
    training.load_references(lambda path, other: loaded.append(path))
    assert loaded == ["pretrained.pth"]
    records = batch()
    for record, domain in zip(records, (SOURCE_DOMAIN, TARGET_DOMAIN, TARGET_DOMAIN, TARGET_DOMAIN)):
        record["domain"] = domain
    records[0]["sem_seg"][:] = 13
    records = training.train().prepare_batch(records)
    assert training(records)["loss_features"] < 1e-3  # the same features, as normalisation is frozen
    assert training.reference is not None and not training.reference.training
    with torch.no_grad():
        for parameter in training.student.backbone.parameters():
            parameter.mul_(1.1)
    loss = training(training.prepare_batch(records))["loss_features"]
    assert loss > 0.01
    loss.backward()
    learning = {name for name, p in training.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning and all(name.startswith("progress.student.backbone.") for name in learning)
    for key, value, message in (
        (
            "FEATURE_DISTANCE_CHECKPOINT",
            "",
            "FEATURE_DISTANCE_WEIGHT is 0.5, FEATURE_DISTANCE_CHECKPOINT is empty: name the pretrained backbone",
        ),
        ("SOURCE_RATIO", 0.0, "FEATURE_DISTANCE_WEIGHT is of source pictures, and SOURCE_RATIO is 0"),
        ("FEATURE_DISTANCE_CLASSES", ("cow",), "FEATURE_DISTANCE_CLASSES: none of cow is a class of the data sets"),
    ):
        with pytest.raises(ValueError, match=message):
            build(
                build_tiny,
                DATASETS__TRAIN=("cityscapes_sem_seg_train",),
                **changes | {f"SELF_TRAINING__{key}": value},
            )


def test_without_unlabelled_pictures_it_is_the_model(build_tiny: Any) -> None:
    training = build(build_tiny)
    records = [record for record in batch() if "sem_seg" in record]
    found = training(training.prepare_batch(records))
    expected = training.teacher.train()(records)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_only_the_student_learns_and_every_part_of_it(build_tiny: Any) -> None:
    training = build(build_tiny)
    torch.stack(list(training(training.prepare_batch(batch())).values())).sum().backward()
    assert all(p.grad is None for p in training.teacher.parameters())
    assert not [name for name, p in training.student.named_parameters() if p.grad is None]
    assert not training.teacher.training and training.student.training


def test_in_the_warm_up_only_labels_teach(build_tiny: Any) -> None:
    training = build(build_tiny)
    training.warm_up = 1
    torch.manual_seed(0)
    records = batch()
    records = training.prepare_batch(records)
    losses = training(records)
    assert "loss_pseudo" not in losses and all("sem_seg" not in r for r in records if not r.get("labeled", True))
    alone = batch()
    expected = training.student([record for record in alone if record.get("labeled", True)])
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    training.after_update()
    assert "loss_pseudo" in training(training.prepare_batch(batch()))


def test_mixing_needs_a_label_somewhere() -> None:
    cfg = tiny_cfg(SELF_TRAINING__LABELED_RATIO=0.0)
    with pytest.raises(ValueError, match="FDA_BETA is 0.1: .* and SOURCE_RATIO or UNLABELED_RATIO is 0"):
        self_training(tiny_cfg(SELF_TRAINING__FDA_BETA=0.1), nn.Module())
    warm = {"SELF_TRAINING__WARM_UP": 0.5, "SELF_TRAINING__MIX": "none"}
    with pytest.raises(
        ValueError, match="WARM_UP is 0.5: only labels teach in it, and LABELED_RATIO and SOURCE_RATIO are 0"
    ):
        self_training(tiny_cfg(SELF_TRAINING__LABELED_RATIO=0.0, **warm), nn.Module())
    with pytest.raises(ValueError, match=r"MIX classmix pastes from labelled pictures, .* set MIX none$"):
        self_training(cfg, nn.Module())


def test_a_threshold_that_nothing_depends_on() -> None:
    cfg = tiny_cfg(SELF_TRAINING__CONFIDENCE_THRESHOLD=0.9)
    with pytest.raises(UserError, match=r"SELF_TRAINING\.CONFIDENCE_THRESHOLD"):
        self_training(cfg, nn.Module())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("EMA_MOMENTUM", 1.5, r"SELF_TRAINING.EMA_MOMENTUM is 1.5: it must be in \[0, 1\]"),
        ("PSEUDO_LABEL_WEIGHT", -1.0, "SELF_TRAINING.PSEUDO_LABEL_WEIGHT is -1.0: it must be at least 0"),
        ("MIX", "cut", "SELF_TRAINING.MIX is 'cut': choose one of classmix, none"),
    ],
)
def test_settings_that_mean_nothing(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_cfg(**{f"SELF_TRAINING__{key}": value})

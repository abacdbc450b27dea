"""Self-training: the teacher, its labels, what is mixed and changed; that a run is exact, and `full` without it."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import make_records, tiny_cfg
from tests.helpers.small_runs import contents, differences, small_cfg
from tests.test_resume import FINAL, run_killed, trainer_of
from tmt_d2.data.label_spaces import CLASSES, LabelSpace
from tmt_d2.data.loaders import SOURCE_DOMAIN, TARGET_DOMAIN
from tmt_d2.data.registration import register_split
from tmt_d2.methods.self_training.feature_distance import feature_distance, thing_positions
from tmt_d2.methods.self_training.fourier import in_style_of
from tmt_d2.methods.self_training.mixing import paste, pasted
from tmt_d2.methods.self_training.pseudo_labels import (
    Statistics,
    Trust,
    labels_and_confidence,
    marginals,
    mask_weights,
    transferability_ranks,
)
from tmt_d2.methods.self_training.teacher import MovingAverage
from tmt_d2.methods.self_training.training import SelfTraining, neighbour, outputs_of, self_training
from tmt_d2.methods.self_training.views import MaskedView, StrongView
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.randomness import seeded
from tmt_d2.training.stages import _check_source, run_stage
from tmt_d2.transferability.map import TransferabilityMap

STUDENT = "/method_training/student."


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the teacher


class Model(nn.Module):
    def __init__(self, value: float, count: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("statistic", torch.tensor(10 * value))
        self.register_buffer("count", torch.tensor(count))


def test_moving_average_by_hand() -> None:
    teacher, average = Model(8.0), MovingAverage(0.75, burn_in=2)
    expected = [8, 8, 2, 3, 3 * 2 / 3 + 4 / 3, (3 * 2 / 3 + 4 / 3) * 0.75 + 6 / 4, None]
    kept = [1, 1, 0, 0.5, 2 / 3, 0.75, 0.75]
    for step, (value, share) in enumerate(zip(expected, kept)):
        student = Model(float([0, 1, 2, 4, 4, 6, 0][step]), count=step)
        assert average.kept() == pytest.approx(share)
        average.update(teacher, student)
        if value is not None:
            assert teacher.weight.item() == pytest.approx(value)
            assert float(teacher.statistic) == pytest.approx(10 * value)  # buffers too
            assert int(teacher.count) == (0 if step < 2 else step)  # copied


def test_the_step_of_the_average_is_kept() -> None:
    average, other = MovingAverage(0.9, 0), MovingAverage(0.9, 0)
    for _ in range(3):
        average.update(Model(0.0), Model(1.0))
    other.load_state_dict(average.state_dict())
    assert other.kept() == average.kept() == 0.75


# --- pseudo-labels


def test_marginals_by_hand() -> None:
    """Two queries, two classes, two pixels: class times mask probabilities, then divided by their sum."""
    class_logits = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]]).log()
    masks = torch.tensor([[[0.5, 0.01], [0.25, 0.02]]]).logit()  # (1, Q, pixels)
    outputs: Any = {"pred_logits": class_logits, "pred_masks": MaskLogits(masks, torch.eye(2)[None, :, None])}
    found = marginals(outputs)[0, :, 0]
    first = torch.tensor([0.8 * 0.5 + 0.2 * 0.25, 0.1 * 0.5 + 0.2 * 0.25])
    second = torch.tensor([0.8 * 0.01 + 0.2 * 0.02, 0.1 * 0.01 + 0.2 * 0.02])  # of almost nothing, still sums to 1
    torch.testing.assert_close(found, torch.stack([first / first.sum(), second / second.sum()], 1))


def test_labels_and_confidence_are_those_of_the_enlarged_map() -> None:
    probabilities = torch.tensor([[[[0.9, 0.3]], [[0.1, 0.7]]]])  # (1, 2, 1, 2)
    ((labels, confidence),) = labels_and_confidence(probabilities, (1, 4))
    assert labels.tolist() == [[0, 0, 1, 1]]
    torch.testing.assert_close(confidence, torch.tensor([[0.9, 0.75, 0.55, 0.7]]))


def test_confident_pixels_by_hand() -> None:
    labels, confidence = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0.5, 0.9, 0.5, 0.7]])
    quantiles = torch.tensor([0.8, 0.6])

    def confident(**settings: float) -> list[int]:
        return Trust(**settings).confident(labels, confidence, quantiles)[0].int().tolist()

    assert confident() == [1, 1, 1, 1]
    assert confident(threshold=0.7) == [0, 1, 0, 1]
    assert confident(quantile=0.3) == [0, 1, 0, 1]
    assert confident(quantile=0.3, threshold=0.95) == [0, 1, 0, 1]  # the lower one of each class
    assert confident(quantile=0.3, threshold=0.5) == [1, 1, 1, 1]


def test_weights_of_masks_by_hand() -> None:
    labels = torch.tensor([[2, 2, 2], [5, 5, 255]], dtype=torch.uint8)
    confident = torch.tensor([[True, True, False], [False, False, True]])
    for weighs, two, five in (("nothing", 1, 1), ("confident", 2 / 3, 0), ("picture", 0.5, 0.5)):
        weights = mask_weights(labels, Trust(weighs=weighs).weights(confident))
        assert weights[2] == pytest.approx(two) and weights[5] == pytest.approx(five)
        assert weights[:2].eq(0).all() and weights.shape == (256,)


def test_weights_by_t_are_ranks_within_the_picture() -> None:
    logits = torch.tensor([[[9.0, -3.0, 2.0, 0.0]], [[1.0, 2.0, 8.0, 8.0]]])  # of E: T is 1 minus it
    valid = torch.tensor([[[True] * 4], [[True, True, False, False]]])
    ranks = transferability_ranks([TransferabilityMap(logits, valid)], (1, 4))
    torch.testing.assert_close(ranks, torch.tensor([[[0, 1, 1 / 3, 2 / 3]], [[1, 0, 0.5, 0.5]]]))
    confident = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(Trust(weighs="T").weights(confident, ranks[0]), 2 * ranks[0])
    torch.testing.assert_close(Trust(weighs="1-T").weights(confident, ranks[0]), 2 - 2 * ranks[0])
    two = transferability_ranks([TransferabilityMap(logits, valid), TransferabilityMap(-logits, valid)], (1, 4))
    torch.testing.assert_close(two, torch.full((2, 1, 4), 0.5))  # the mean over levels


def test_quantiles_are_of_each_class_and_take_effect_after_the_step() -> None:
    statistics = Statistics(3, quantile=0.5)
    confidence = torch.tensor([[0.2, 0.4, 0.6, 0.8, 0.9], [0.1, 0.1, 0.1, 0.3, 1.0]])
    statistics.note(torch.tensor([[0] * 5, [1] * 5]), confidence)
    assert statistics.quantiles().tolist() == [0, 0, 0]
    statistics.after_step()
    assert statistics.quantiles().tolist() == pytest.approx([0.6, 0.1, 0])  # to a bin of 1 / 200
    split = Statistics(3, quantile=0.5)
    for label in (0, 1):  # two micro-batches
        split.note(torch.full((5,), label), confidence[label])
    split.after_step()
    assert torch.equal(split.said, statistics.said)
    for _ in range(600):  # what was said long ago is forgotten
        statistics.note(torch.tensor([0]), torch.tensor([0.333]))
        statistics.after_step()
    assert statistics.quantiles()[0] == pytest.approx(0.33)


@pytest.mark.parametrize(("road", "labelled", "expected"), [(19, 10, True), (14, 10, False), (19, 18, False)])
def test_a_collapse_is_named_once(road: int, labelled: int, expected: bool, caplog: Any) -> None:
    statistics = Statistics(19, names=CLASSES)
    for _ in range(45):
        statistics.note(torch.tensor([0] * road + [1] * (20 - road)), torch.ones(20))
        statistics.note_label(torch.tensor([0] * labelled + [3] * (20 - labelled) + [255] * 50, dtype=torch.uint8))
        statistics.after_step()
    told = [record.getMessage() for record in caplog.records if "collapse" in record.getMessage()]
    assert len(told) == expected
    if expected:
        assert told[0].startswith("collapse? 95 % of the pseudo-labels are road, of the labels 50 %: ")


# --- mixing and views


def test_half_of_the_classes_are_pasted() -> None:
    label = torch.tensor([[3, 3, 5], [7, 255, 9], [11, 11, 11]])
    counts = []
    for seed in range(20):
        with seeded(seed):
            mask = pasted(label, torch.Size((3, 3)))
        chosen = set(label[mask].tolist())
        assert torch.equal(mask, torch.isin(label, torch.tensor(sorted(chosen))))  # whole classes
        assert 255 not in chosen
        counts.append(len(chosen))
    assert set(counts) == {3}  # of five
    with seeded(0):
        assert not pasted(torch.full((2, 2), 255), torch.Size((2, 2))).any()


def test_pixels_and_labels_are_pasted_together_where_both_pictures_are() -> None:
    below, above = torch.zeros(1, 2, 4), torch.ones(1, 3, 2)
    with seeded(0):
        mask = pasted(torch.full((3, 2), 4), torch.Size((2, 4)))
    assert mask.tolist() == [[True, True, False, False]] * 2
    assert paste(below, above, mask)[0].tolist() == [[1, 1, 0, 0]] * 2
    assert not below.any()


def test_donors_lie_in_the_same_block() -> None:
    """Blocks of two labelled and one unlabelled, or of one and two: each is served from its own block, and all are."""
    for per_block, pictures in ((2, 1), (1, 2), (3, 2), (1, 1)):
        blocks = 4
        donors: Any = [(block, i) for block in range(blocks) for i in range(per_block)]
        seen = set()
        for place, seed in itertools.product(range(blocks * pictures), range(30)):
            whole = neighbour(place, seed, donors, blocks * pictures)
            block = place // pictures
            assert whole[0] == block
            alone = neighbour(place - block * pictures, seed, donors[block * per_block :][:per_block], pictures)
            assert alone == whole  # whatever the batch is split into
            seen.add(whole)
        assert len(seen) == len(donors)


def test_strong_views() -> None:
    image = (random(3, 9, 13).sigmoid() * 255).to(torch.uint8)
    with seeded(1):
        assert torch.equal(StrongView(0, 0.2, 0)(image).round(), image.float())  # control: nothing
    with seeded(1):
        coloured = StrongView(1, 0.2, 0)(image)
    with seeded(1):
        swapped = StrongView(1, 0.2, 0, bgr=True)(image.flip(0)).flip(0)
    torch.testing.assert_close(coloured, swapped)
    assert (coloured - image).abs().mean() > 2 and coloured.min() >= 0 and coloured.max() <= 255
    with seeded(3):
        blurred = StrongView(0, 0.2, 1)(image)
    assert blurred.std() < 0.95 * image.float().std()
    changed = []
    for seed in range(300):
        with seeded(seed):
            changed.append(not torch.equal(StrongView(0.8, 0.2, 0)(image).round(), image.float()))
    assert 0.72 < sum(changed) / 300 < 0.88


def test_masked_view_hides_whole_blocks() -> None:
    image, fill = (random(3, 40, 70).sigmoid() * 255).to(torch.uint8), torch.full((3, 1, 1), -1.0)
    shares = []
    for seed in range(30):
        with seeded(seed):
            view = MaskedView(0.7, 0.25, fill)(image)
        hidden = (view == -1).all(0)
        assert torch.equal(view[:, ~hidden], image[:, ~hidden].float())
        for row, column in itertools.product(range(0, 40, 10), range(0, 70, 10)):  # a quarter of the shorter side
            assert len(hidden[row : row + 10, column : column + 10].unique()) == 1
        shares.append(hidden.float().mean().item())
    assert sum(shares) / 30 == pytest.approx(0.7, abs=0.05) and len(set(shares)) > 5


def test_low_frequencies_take_the_other_pictures_amplitudes() -> None:
    image, other = random(3, 24, 33).sigmoid() * 100 + 50, random(3, 24, 33, seed=1).sigmoid() * 60 + 150
    found = in_style_of(image, other, 0.1)  # up to frequency 2
    spectrum, expected = (torch.fft.fft2(each) for each in (found, image))
    amplitudes = torch.fft.fft2(other).abs()
    frequencies = list(itertools.product((0, 1, 2, 3, -1, -2, -3), repeat=2))
    for y, x in frequencies:
        wanted = amplitudes if max(abs(y), abs(x)) <= 2 else expected.abs()
        torch.testing.assert_close(spectrum[:, y, x].abs(), wanted[:, y, x], rtol=1e-3, atol=0.1)
    torch.testing.assert_close(spectrum[:, 3, 4].angle(), expected[:, 3, 4].angle(), rtol=1e-3, atol=1e-3)
    assert found.mean() == pytest.approx(float(other.mean()), rel=1e-3)
    torch.testing.assert_close(in_style_of(image, image, 0.1), image, rtol=1e-4, atol=1e-2)  # control
    assert in_style_of(image, other[:, :10, :50], 0.5).shape == image.shape


def test_feature_distance_by_hand() -> None:
    labels = torch.full((2, 4, 8), 255)
    labels[0, :, :4] = 13  # the left cell is a car, of the right one a quarter less
    labels[0, 1:, 4:] = 11
    labels[0, 0, 4:] = 13
    where = thing_positions(labels, [11, 13], (1, 2))
    assert where.tolist() == [[[True, True]], [[False, False]]]
    assert thing_positions(labels, [13], (1, 2)).tolist() == [[[True, False]], [[False, False]]]
    features = torch.zeros(2, 2, 1, 2)
    features[0, :, 0, 0], features[0, :, 0, 1], features[1] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), 9.0
    features.requires_grad_()
    distance = feature_distance(features, torch.zeros(2, 2, 1, 2), where)
    assert distance.item() == pytest.approx((5 + 2) / 2 / 2)  # over positions, then over both images
    distance.backward()
    assert features.grad is not None and not features.grad[1].any() and torch.isfinite(features.grad).all()


# --- the training module


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
        record["labelled"] = False
    return records


def test_pseudo_labels_are_the_teachers_of_the_picture_as_it_is(build_tiny: Any) -> None:
    training = build(build_tiny, TRANSFER__SELF_TRAINING__MIX="none")
    records = batch()
    plain = [dict(record) for record in records]
    with torch.no_grad():
        for parameter in training.student.parameters():
            parameter.add_(1)  # whatever the student says
        training.prepare(records)
        for index in (1, 3):
            images = training.teacher.preprocess(plain[1::2])
            outputs = training.teacher.run(images).outputs
            labels = list(labels_and_confidence(marginals(outputs), images.tensor.shape[-2:]))[index // 2][0]
            h, w = records[index]["sem_seg"].shape
            assert (h, w) == plain[index]["image"].shape[-2:]
            assert torch.equal(records[index]["sem_seg"], labels[:h, :w].to(torch.uint8))
            assert not torch.equal(records[index]["image"], plain[index]["image"].float())  # the student's view
    before = [record["image"] for record in records]
    training.prepare(records)  # once
    assert all(record["image"] is image for record, image in zip(records, before))
    assert torch.equal(records[0]["image"], plain[0]["image"])  # labelled pictures are left alone


def test_classmix_pastes_the_label_of_people(build_tiny: Any) -> None:
    mixed, plain = batch(), batch()
    build(build_tiny, TRANSFER__SELF_TRAINING__COLOUR=0.0, TRANSFER__SELF_TRAINING__BLUR=0.0).prepare(mixed)
    build(
        build_tiny,
        TRANSFER__SELF_TRAINING__COLOUR=0.0,
        TRANSFER__SELF_TRAINING__BLUR=0.0,
        TRANSFER__SELF_TRAINING__MIX="none",
    ).prepare(plain)
    for index in (1, 3):
        donor = mixed[index - 1]
        h, w = (min(pair) for pair in zip(mixed[index]["sem_seg"].shape, donor["sem_seg"].shape))
        changed = (mixed[index]["image"] - plain[index]["image"]).abs().sum(0)[:h, :w] > 1e-3
        assert 0.05 < changed.float().mean() < 1
        assert torch.equal(mixed[index]["sem_seg"][:h, :w][changed], donor["sem_seg"][:h, :w][changed])


def test_losses_of_both_parts_are_those_of_the_model(build_tiny: Any) -> None:
    training = build(build_tiny, TRANSFER__SELF_TRAINING__WEIGHT=0.5)
    records = batch()
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

    monkeypatch.setattr("tmt_d2.methods.self_training.training.labels_and_confidence", invented)
    settings: dict[str, Any] = {"THRESHOLD": 0.5, "IGNORE_UNCONFIDENT": True, "WEIGHT_BY": "confident"}
    settings["SCALE_NO_OBJECT"] = True
    training = build(build_tiny, **{f"TRANSFER__SELF_TRAINING__{key}": value for key, value in settings.items()})
    records, plain = batch(), batch()
    training.prepare(records)
    build(build_tiny).prepare(plain)
    shares = []
    for index in (1, 3):
        label, ignored = records[index]["sem_seg"], records[index]["sem_seg"] == 255
        assert torch.equal(label[~ignored], plain[index]["sem_seg"][~ignored])
        share = 1 - ignored.float().mean()
        assert records[index]["no_object"] == pytest.approx(float(share))
        for class_id in plain[index]["sem_seg"].unique():
            of_class = plain[index]["sem_seg"] == class_id
            expected = 1 - ignored[of_class].float().mean()
            assert records[index]["mask_weights"][int(class_id)] == pytest.approx(float(expected), abs=1e-6)
        shares.append(float(share))
    assert min(shares) > 0.05 and max(shares) < 1  # the test has something of both
    assert torch.isfinite(torch.stack(list(training(records).values()))).all()
    assert training.count_masks(records)[1] <= sum(len(record["sem_seg"].unique()) for record in plain[1::2])


def test_masked_views_come_on_top_and_keep_the_label(build_tiny: Any) -> None:
    training = build(build_tiny, TRANSFER__SELF_TRAINING__MASKED_WEIGHT=0.25)
    records, plain = batch(), batch()
    build(build_tiny, TRANSFER__SELF_TRAINING__MIX="none").prepare(plain)
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
    training = build(build_tiny, TRANSFER__SELF_TRAINING__FDA_BETA=0.05, TRANSFER__SELF_TRAINING__SOURCE=1.0)
    records, plain = batch(), batch()
    for each in (records, plain):
        each[0]["domain"], each[2]["domain"] = SOURCE_DOMAIN, TARGET_DOMAIN
    training.prepare(records)
    assert torch.equal(records[0]["image"], in_style_of(plain[0]["image"], plain[1]["image"], 0.05))
    assert torch.equal(records[2]["image"], plain[2]["image"])


def test_features_of_source_pictures_stay_near_the_frozen_ones(build_tiny: Any) -> None:
    settings = {"FEATURE_DISTANCE": 0.5, "FEATURE_WEIGHTS": "pretrained.pth", "SOURCE": 1.0}
    changes: dict[str, Any] = {f"TRANSFER__SELF_TRAINING__{key}": value for key, value in settings.items()}
    training = build(build_tiny, DATASETS__TRAIN=("cityscapes_sem_seg_train",), **changes)
    loaded: list[str] = []
    training.load_references(lambda path, other: loaded.append(path))
    assert loaded == ["pretrained.pth"]
    records = batch()
    for record, domain in zip(records, (SOURCE_DOMAIN, TARGET_DOMAIN, TARGET_DOMAIN, TARGET_DOMAIN)):
        record["domain"] = domain
    records[0]["sem_seg"][:] = 13
    assert training.train()(records)["loss_features"] < 1e-3  # the same features, as normalisation is frozen
    assert training.reference is not None and not training.reference.training
    with torch.no_grad():
        for parameter in training.student.backbone.parameters():
            parameter.mul_(1.1)
    loss = training(records)["loss_features"]
    assert loss > 0.01
    loss.backward()
    learning = {name for name, p in training.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning and all(name.startswith("progress.student.backbone.") for name in learning)
    for key, value, message in (
        ("FEATURE_WEIGHTS", "", "FEATURE_DISTANCE is 0.5 and FEATURE_WEIGHTS is empty: name the pretrained backbone"),
        ("SOURCE", 0.0, "FEATURE_DISTANCE is of source pictures, and SOURCE is 0"),
        ("FEATURE_CLASSES", ("cow",), "FEATURE_CLASSES: none of cow is a class of the data sets"),
    ):
        with pytest.raises(ValueError, match=message):
            build(
                build_tiny,
                DATASETS__TRAIN=("cityscapes_sem_seg_train",),
                **changes | {f"TRANSFER__SELF_TRAINING__{key}": value},
            )


def test_without_unlabelled_pictures_it_is_the_model(build_tiny: Any) -> None:
    training = build(build_tiny)
    records = [record for record in batch() if "sem_seg" in record]
    found, expected = training(records), training.teacher.train()(records)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_only_the_student_learns_and_every_part_of_it(build_tiny: Any) -> None:
    training = build(build_tiny)
    torch.stack(list(training(batch()).values())).sum().backward()
    assert all(p.grad is None for p in training.teacher.parameters())
    assert not [name for name, p in training.student.named_parameters() if p.grad is None]
    assert not training.teacher.training and training.student.training


def test_in_the_warm_up_only_labels_teach(build_tiny: Any) -> None:
    training = build(build_tiny)
    training.warm_up = 1
    torch.manual_seed(0)
    records = batch()
    losses = training(records)
    assert "loss_pseudo" not in losses and all("sem_seg" not in r for r in records if not r.get("labelled", True))
    alone = batch()
    expected = training.student([record for record in alone if record.get("labelled", True)])
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    training.after_update()
    assert "loss_pseudo" in training(batch())


def test_mixing_needs_a_label_somewhere() -> None:
    cfg = tiny_cfg(TRANSFER__SELF_TRAINING__LABELLED=0.0)
    with pytest.raises(ValueError, match="FDA_BETA is 0.1: .* and SOURCE or UNLABELLED is 0"):
        self_training(tiny_cfg(TRANSFER__SELF_TRAINING__FDA_BETA=0.1), nn.Module())
    warm = {"TRANSFER__SELF_TRAINING__WARM_UP": 0.5, "TRANSFER__SELF_TRAINING__MIX": "none"}
    with pytest.raises(ValueError, match="WARM_UP is 0.5: only labels teach in it, and LABELLED and SOURCE are 0"):
        self_training(tiny_cfg(TRANSFER__SELF_TRAINING__LABELLED=0.0, **warm), nn.Module())
    with pytest.raises(ValueError, match=r"MIX classmix pastes from labelled pictures, .* set MIX none$"):
        self_training(cfg, nn.Module())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("EMA", 1.5, r"SELF_TRAINING.EMA is 1.5: it must be in \[0, 1\]"),
        ("WEIGHT", -1.0, "SELF_TRAINING.WEIGHT is -1.0: it must be at least 0"),
        ("MIX", "cut", "SELF_TRAINING.MIX is 'cut': choose one of classmix, none"),
    ],
)
def test_settings_that_mean_nothing(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_cfg(**{f"TRANSFER__SELF_TRAINING__{key}": value})


# --- whole stages

FEW: dict[str, Any] = {"TRANSFER__LABEL_COUNT": 2, "TRANSFER__SELF_TRAINING__BURN_IN": 0.25}
CAREFUL: dict[str, Any] = {
    "TRANSFER__SELF_TRAINING__QUANTILE": 0.5,
    "TRANSFER__SELF_TRAINING__IGNORE_UNCONFIDENT": True,
    "TRANSFER__SELF_TRAINING__WEIGHT_BY": "confident",
    "TRANSFER__SELF_TRAINING__SCALE_NO_OBJECT": True,
    "TRANSFER__SELF_TRAINING__MASKED_WEIGHT": 1.0,
}


def self_training_cfg(output: Path, start: Path, method: str = "self-training", **changes: Any) -> Any:
    return small_cfg(method, output, start, **FEW | changes)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(("accumulation", "source"), [(1, 0.0), (2, 0.5)])
def test_resumed_equals_uninterrupted(start: Path, tmp_path: Path, accumulation: int, source: float) -> None:
    changes: dict[str, Any] = {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__ACCUMULATION_STEPS": accumulation}
    changes |= {"TRANSFER__SELF_TRAINING__SOURCE": source, "DATASETS__SOURCE_TRAIN": ("cityscapes_sem_seg_train",)}
    if source:
        settings = {"FDA_BETA": 0.05, "FEATURE_DISTANCE": 0.1, "FEATURE_WEIGHTS": str(start), "RARE_CLASSES": 0.1}
        changes |= CAREFUL | {f"TRANSFER__SELF_TRAINING__{key}": value for key, value in settings.items()}
    run_stage(self_training_cfg(tmp_path / "straight", start, **changes))
    run_killed(self_training_cfg(tmp_path / "killed", start, **changes), 3)
    run_stage(self_training_cfg(tmp_path / "killed", start, **changes), resume=True)
    assert not differences(tmp_path / "straight" / FINAL, tmp_path / "killed" / FINAL)
    saved = contents(tmp_path / "killed" / FINAL)
    assert saved["/method_training/average._extra_state/steps"] == 4
    names = [name for name in saved if name.startswith("/model/")]
    assert any((saved[name] != saved[STUDENT + name.removeprefix("/model/")]).any() for name in names)
    scores = json.loads((tmp_path / "killed" / "evaluation.json").read_text())["bdd100k_sem_seg_val"]
    assert {"mIoU", "mIoU-student", "fwIoU-student", "mACC-student", "pACC-student"} <= scores.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_t_weighs_pseudo_labels_and_nothing_else(start: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"SOLVER__MAX_ITER": 2, "DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",)}
    losses: dict[str, list[float]] = {}
    for name in ("tmt-self-training", "tmt-self-training-inverted"):
        run_stage(self_training_cfg(tmp_path / name, start, name, **changes))
        losses[name] = [logged["loss_pseudo"] for logged in lines(tmp_path / name)]
        saved, before = contents(tmp_path / name / FINAL), contents(start)
        assert all(torch.equal(saved[key], before[key]) for key in before if key.startswith("/model/transferability.d"))
    assert losses["tmt-self-training"] != losses["tmt-self-training-inverted"]
    with pytest.raises(ValueError, match="WEIGHT_BY is T: it needs discriminators, use the method tmt-self-training"):
        run_stage(self_training_cfg(tmp_path / "no", start, TRANSFER__SELF_TRAINING__WEIGHT_BY="T"))


def lines(folder: Path) -> list[dict[str, float]]:
    values = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line for line in values if "loss_pseudo" in line]


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_full_ema_trains_as_full_and_saves_the_average(start: Path, tmp_path: Path) -> None:
    changes = {"TRANSFER__LABEL_COUNT": 2, "MODEL__RESNETS__NORM": "BN"}
    run_stage(small_cfg("full", tmp_path / "full", start, **changes))
    run_stage(small_cfg("full-ema", tmp_path / "ema", start, **changes))
    full, ema = contents(tmp_path / "full" / FINAL), contents(tmp_path / "ema" / FINAL)
    names = [name.removeprefix("/model/") for name in full if name.startswith("/model/")]
    assert all(torch.equal(full[f"/model/{name}"], ema[STUDENT + name]) for name in names)
    scores = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["bdd100k_sem_seg_val"] for name in ("full", "ema")
    ]
    assert scores[0]["mIoU"] == scores[1]["mIoU-student"]
    moved = [name for name in names if not torch.equal(full[f"/model/{name}"], ema[f"/model/{name}"])]
    assert any("running_mean" in name for name in moved)
    mean = ema["/model/sem_seg_head.predictor.class_embed.bias"]  # min(1 - 1 / (i + 1), m): so far the plain mean
    steps = [contents(tmp_path / "full" / f"model_000000{i}.pth") for i in (1, 2)] + [full]
    first = small_cfg("full", tmp_path / "one", start, SOLVER__CHECKPOINT_PERIOD=1, **changes)
    run_killed(first, 1)
    steps.insert(0, contents(tmp_path / "one" / "model_0000000.pth"))
    values = [each["/model/sem_seg_head.predictor.class_embed.bias"] for each in steps]
    torch.testing.assert_close(mean, torch.stack(values).mean(0))


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_gradients_do_not_depend_on_the_split(start: Path, tmp_path: Path) -> None:
    def gradients(steps: int) -> tuple[dict[str, float], list[Tensor]]:
        cfg = self_training_cfg(tmp_path, start, SOLVER__ACCUMULATION_STEPS=steps, **CAREFUL)
        run, records = trainer_of(cfg)
        run.module.statistics.said += 1  # thresholds of 0.5
        for name, parameter in run.module.student.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter.data += 0.3  # as in test_resume
        values, _ = run.step.backward(records)
        return {name: float(value) for name, value in values.items()}, [p.grad.clone() for p in run.step.parameters]

    (whole_losses, whole), (split_losses, split) = gradients(1), gradients(2)
    assert whole_losses == pytest.approx(split_losses, rel=1e-4)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, split)) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_the_checkpoint_of_a_stage_that_ended_holds_the_teacher_alone(start: Path, tmp_path: Path) -> None:
    from tmt_d2.training.checkpoint import keep_weights

    run_stage(self_training_cfg(tmp_path, start, SOLVER__MAX_ITER=1))
    keep_weights(tmp_path)
    kept = ("/model/", "/classes/", "/ended_after")
    assert not [name for name in contents(tmp_path / FINAL) if not name.startswith(kept)]


def test_a_source_of_other_classes(caplog: Any) -> None:
    """Cityscapes as source and target, and two sources that have some and none of its classes."""
    for name, ids in (("some", {0: 0}), ("none", {0: 3})):
        register_split(name, list, LabelSpace(name, ids, frozenset({255})))
    register_split("target", list, LabelSpace("target", {0: 0, 1: 1}, frozenset({255})))
    message = "SOURCE_TRAIN none has none of the target's classes .road, sidewalk.: name another source"
    for source, expected in (("some", nullcontext()), ("none", pytest.raises(ValueError, match=message))):
        cfg = tiny_cfg(DATASETS__TRAIN=("target",), DATASETS__SOURCE_TRAIN=(source,))
        with expected:
            _check_source(cfg)
    assert "the source has no sidewalk: only labels of the target can teach them" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TRANSFER__LABEL_COUNT": 6}, "^no unlabelled picture: all 6 of DATASETS.TRAIN are used with their labels; "),
        ({"TRANSFER__LABEL_COUNT": 7}, "TRANSFER.LABEL_COUNT is 7: DATASETS.TRAIN has 6 labelled images"),
        ({"TRANSFER__SELF_TRAINING__SOURCE": 1.0, "DATASETS__SOURCE_TRAIN": ()}, "DATASETS.SOURCE_TRAIN is empty"),
        (
            {"TRANSFER__SELF_TRAINING__UNLABELLED": 0.3},
            r"UNLABELLED is 0.3: times SOLVER.IMS_PER_BATCH 4 it must be",
        ),
        ({"SOLVER__ACCUMULATION_STEPS": 4}, r"ACCUMULATION_STEPS 4 does not divide a process's 4 \+ 2 images of its"),
    ],
)
def test_bad_input_is_one_line(start: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_stage(self_training_cfg(tmp_path, start, **changes))

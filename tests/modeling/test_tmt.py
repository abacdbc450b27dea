"""TMT's model against Mask2Former with the same weights: what they share, and where transferability acts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from scipy.stats import spearmanr
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.helpers.models import Build, Records, equal, make_records, plain_twin, scores, train_step
from tests.helpers.small_runs import small_cfg
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.modeling.tmt import differs_in_training, output_transferability


@pytest.mark.parametrize("attend_padding", [False, True])
def test_excluding_nothing_is_mask2former_to_the_last_bit(
    attend_padding: bool, build_tiny: Build, records: Records
) -> None:
    options = {"MODEL__MASK_FORMER__ATTEND_PADDING": attend_padding}
    model = build_tiny(MODEL__TMT__P_T=0.0, **options)
    plain = plain_twin(model, build_tiny, **options)
    assert equal(scores(model, records), scores(plain, records))
    model.p_t = 0.3
    assert not equal(scores(model, records), scores(plain, records))


def test_excluding_nothing_trains_like_mask2former(build_tiny: Build, records: Records) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.0)
    plain = plain_twin(model, build_tiny)
    found, expected = train_step(model, records), train_step(plain, records)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def test_without_tma(build_tiny: Build, records: Records) -> None:
    model = build_tiny(MODEL__TMT__ATTENTION="off", MODEL__TMT__OUTPUT_TRANSFERABILITY=True)
    assert equal(scores(model, records), scores(plain_twin(model, build_tiny), records))
    with torch.no_grad():
        results = model(records)
    assert [level.shape for level in results[0]["transferability"]] == [(2, 3), (3, 6), (5, 12)]
    assert [level.shape for level in results[1]["transferability"]] == [(2, 2), (4, 4), (8, 7)]


def test_transferability_is_given_where_asked(build_tiny: Build, records: Records) -> None:
    with torch.no_grad():
        silent = build_tiny()(records)
        telling = build_tiny(MODEL__TMT__OUTPUT_TRANSFERABILITY=True)(records)
        plain = build_tiny("MaskFormer", MODEL__TMT__OUTPUT_TRANSFERABILITY=True)(records)
    assert equal([result["sem_seg"] for result in silent], [result["sem_seg"] for result in telling])
    assert set(silent[0]) == set(plain[0]) == {"sem_seg"}
    assert set(telling[0]) == {"sem_seg", "transferability"}
    for level in telling[0]["transferability"]:
        assert level.min() >= 0
        assert level.max() <= 1


def test_estimator_gets_no_gradient_and_gives_none(build_tiny: Build, records: Records) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.3)
    losses = train_step(model, records)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(losses) == 3 * 5
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("transferability."), name
    images = model.preprocess(records)
    encoded = model.encode(images)
    assert encoded.levels[0].requires_grad
    for level in model.transferability_of(images, encoded):
        assert not level.logits.requires_grad
        assert not level.regions.centers.requires_grad


def test_source_features_stay_those_of_the_source(build_tiny: Build, records: Records) -> None:
    model, live = build_tiny(MODEL__TMT__FEATURES="source"), build_tiny(MODEL__TMT__FEATURES="live")
    for parameter in live.parameters():
        parameter.data.mul_(1.1)  # no longer what both began with
    model.load_state_dict(live.state_dict())  # without the copy, which is filled from the model's own encoder
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert equal(scores(model, records), scores(live, records))  # both are still the source model

    images = model.preprocess(records)
    with torch.no_grad():
        before = model.transferability_of(images, model.encode(images))
        for part in (model, live):
            part.backbone.stem.conv1.weight.mul_(-1)  # stands for fine-tuning
        after = model.transferability_of(images, model.encode(images))
        moved = live.transferability_of(images, live.encode(images))
    assert all(torch.equal(left.logits, right.logits) for left, right in zip(before, after))
    assert not any(torch.equal(left.logits, right.logits) for left, right in zip(before, moved))

    train_step(model, records)
    frozen = {name for name, parameter in model.transferability.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in dict(model.transferability.named_parameters()) if "discriminators" not in name}
    for name, value in model.transferability.state_dict().items():  # batch statistics among them
        assert name == "_extra_state" or torch.equal(value, state[f"transferability.{name}"]), name


def test_inspect_tells_what_forward_did(build_tiny: Build, records: Records) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.3)
    seen = model.inspect(records)
    assert equal([result["sem_seg"] for result in seen["results"]], scores(model, records))
    assert [layer.level for layer in seen["layers"]] == [0, 1, 2, 0]
    for layer in seen["layers"]:
        level = seen["transferability"][layer.level]
        both = layer.positions.predicted & level.transferable(0.3)[:, None]
        everywhere = (
            (layer.positions.predicted == level.valid[:, None]).flatten(2).all(-1)
        )  # also: nothing was predicted
        obeyed = both.flatten(2).any(-1) & ~everywhere
        assert obeyed.any()
        assert torch.equal(layer.positions.allowed[obeyed], both[obeyed])
        blocked = ~layer.positions.allowed[:, None].expand_as(layer.attention)
        assert (layer.attention[blocked] == 0).all()
    plain = plain_twin(model, build_tiny).inspect(records)
    assert plain["transferability"] is None
    with pytest.raises(ValueError):
        model.train().inspect(records)


def agreement(first: Tensor, second: Tensor) -> float:
    return float(spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic)


def unsettled(model: nn.Module) -> nn.Module:
    """Running statistics as of data unlike these images, as those of a source model are on the target."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.3)
    return model


@pytest.mark.parametrize("features", ["source", "live"])
def test_before_the_first_step_t_is_the_estimators_whatever_the_batch(features: str, build_tiny: Build) -> None:
    changes = {"MODEL__TMT__FEATURES": features, "MODEL__MASK_FORMER__DROPOUT": 0.2}
    model = unsettled(build_tiny(**changes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics move with training, and T of live features with them
    first, second, third = make_records([(64, 96)] * 3)

    def t_of(batch: Records) -> list[Tensor]:
        images = model.preprocess(batch)
        encoded = model.encode(images)
        return [level.logits[0] for level in model.transferability_of(images, encoded)]

    with torch.no_grad():
        measured = t_of([first])
        model.train()
        for batch in ([first], [first, second], [first, third]):
            for before, now in zip(measured, t_of(batch)):
                assert agreement(before, now) >= 0.99
        assert model.backbone.training and model.sem_seg_head.pixel_decoder.training  # as it was
        images = model.preprocess([first, second])
        levels = model.encode(images).levels  # as they were used before: batch statistics and dropout
        old = [level.logits[0] for level in model.transferability(levels, None)]
    assert min(agreement(before, now) for before, now in zip(measured, old)) < 0.95


def test_controls_exclude_as_many_positions_but_others(build_tiny: Build) -> None:
    models = {
        by: build_tiny(MODEL__TMT__RANK_BY=by, MODEL__TMT__CELL_SIZES=[1, 1, 1]) for by in ("T", "random", "inverted")
    }
    records = make_records([(64, 96), (64, 96)])
    excluded = {}
    with torch.no_grad():
        for by, model in models.items():
            images = model.preprocess(records)
            encoded = model.encode(images)
            excluded[by] = ~model.run(images).inputs.key_mask.allowed[2]
    counts = {by: mask.sum().item() for by, mask in excluded.items()}
    assert len(set(counts.values())) == 1
    assert not (excluded["T"] & excluded["inverted"]).any()
    assert (excluded["T"] & excluded["random"]).sum() < 0.6 * counts["T"]
    assert torch.equal(excluded["random"][0], excluded["random"][1])  # in evaluation one pattern
    model = models["random"].train()
    level = model.estimate(images, encoded)[2]
    assert not torch.equal(model._ranked(level).logits, model._ranked(level).logits)  # in training a new one


def test_masks_in_training_only_predict_like_mask2former(build_tiny: Build, records: Records) -> None:
    tmt, model = build_tiny(), build_tiny(MODEL__TMT__TEST_ATTENTION=False)
    plain = plain_twin(model, build_tiny)
    model.transferability.register_forward_hook(lambda *_: pytest.fail("T is computed"))
    model.transferability.backbone.register_forward_hook(lambda *_: pytest.fail("the second encoder runs"))
    assert equal(scores(model, records), scores(plain, records))
    assert not equal(scores(tmt, records), scores(plain, records))  # control

    model = build_tiny(MODEL__TMT__TEST_ATTENTION=False)
    found, expected = train_step(model, records), train_step(tmt, records)
    assert found.keys() == expected.keys() and equal([*found.values()], [*expected.values()])
    for left, right in zip(model.parameters(), tmt.parameters(), strict=True):
        assert left.grad is right.grad is None or torch.equal(left.grad, right.grad)


def test_t_that_does_not_act_is_output_where_asked(build_tiny: Build, records: Records) -> None:
    model, tmt = build_tiny(MODEL__TMT__TEST_ATTENTION=False), build_tiny()
    with torch.no_grad(), output_transferability(model), output_transferability(tmt):
        results, expected = model(records), tmt(records)
    for left, right in zip(results, expected, strict=True):
        assert equal(left["transferability"], right["transferability"])
        assert not torch.equal(left["sem_seg"], right["sem_seg"])


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_masks_in_inference_only_are_the_training_of_full(tmp_path: Path, start: Path) -> None:
    run_stage(small_cfg("full", tmp_path / "full", start))
    run_stage(small_cfg("tmt-inference", tmp_path / "inference", start))
    full, inference = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("full", "inference")
    )
    assert all(torch.equal(full[name], inference[name]) for name in full)


def test_what_differs_in_training() -> None:
    for module in (nn.BatchNorm2d(3), nn.Dropout(0.1), StochasticDepth(0.1, "row"), DropPath(0.1)):
        assert differs_in_training(module.train())
        assert not differs_in_training(module.eval())
    for module in (nn.LayerNorm(3), nn.Dropout(0.0), StochasticDepth(0.0, "row"), DropPath(0.0), FrozenBatchNorm2d(3)):
        assert not differs_in_training(module.train())

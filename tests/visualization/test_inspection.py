"""Reports of one image, and statistics of a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.errors import refuses
from tmt_d2.data.datasets.label_spaces import CLASSES, TRAIN_ID
from tmt_d2.errors import UserError
from tmt_d2.modeling.masked_attention import MultiheadAttention
from tmt_d2.visualization.exclusion import collect, statistics_figure, table
from tmt_d2.visualization.inspection import attention_report, inspect_image
from tmt_d2.visualization.panels import to_array

pytestmark = pytest.mark.slow

SIZE = (37, 91)


def image_of(record: dict[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(record["image"].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_attention_equals_that_of_the_network(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], architecture: str
) -> None:
    model = build_tiny(architecture)
    record = records[0]
    used: list[torch.Tensor] = []

    def hook(module: MultiheadAttention, inputs: tuple[torch.Tensor, ...]) -> None:
        query, key, value, allowed = inputs
        _, weights = F.multi_head_attention_forward(
            query.transpose(0, 1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            query.shape[-1],
            module.num_heads,
            module.in_proj_weight,
            module.in_proj_bias,
            None,
            None,
            False,
            0.0,
            module.out_proj.weight,
            module.out_proj.bias,
            training=False,
            attn_mask=~allowed.repeat_interleave(module.num_heads, 0),
            average_attn_weights=False,
        )
        used.append(weights[0])  # (M, Q, K)

    layers = model.sem_seg_head.predictor.transformer_cross_attention_layers
    for layer in layers:
        layer.multihead_attn.register_forward_pre_hook(hook)
    report = attention_report(model, record, image_of(record), selectors=[0, 7], layers=range(len(layers)))
    assert len(used) == len(layers) == len(report.queries[0].layers)
    for query in report.queries:
        for layer, weights in zip(query.layers, used):
            whole = weights[:, query.selected.query].reshape(-1, *layer.grid.level_size).numpy()
            np.testing.assert_allclose(layer.attention, layer.grid.crop(whole), atol=1e-5)
            np.testing.assert_allclose(layer.attention.sum((1, 2)), 1, atol=1e-5)  # none of it on padding


def test_inference_computes_no_attention_weights(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny()
    calls = []
    weights = MultiheadAttention.weights
    monkeypatch.setattr(MultiheadAttention, "weights", lambda *args: calls.append(1) or weights(*args))
    with torch.no_grad():
        model(records)
    assert not calls
    inspect_image(model, records[0])
    assert len(calls) == 4


def test_t_is_shown_where_it_does_not_act(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model = build_tiny(MODEL__TMT__TEST_ATTENTION=False)
    view, acting = inspect_image(model, records[0]), inspect_image(build_tiny(), records[0])
    for level, other in zip(view.levels(), acting.levels(), strict=True):
        assert level.excluded is None and other.excluded is not None
        assert np.array_equal(level.logits, other.logits)
    assert not any(layer.positions.none_transferable.any() for layer in view.layers)
    assert not model.output_transferability


def test_the_prediction_equals_inference(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model = build_tiny()
    for record in records:
        report = attention_report(model, record, image_of(record), truth=record["sem_seg"].byte().numpy())
        with torch.no_grad():
            expected = model([record])[0]["sem_seg"].argmax(0).numpy()
        assert np.array_equal(report.prediction, expected)
        labeled = record["sem_seg"].numpy() != 255
        assert report.error == pytest.approx((expected != record["sem_seg"].numpy())[labeled].mean())


def test_the_query_of_a_pixel_adds_most_to_its_class(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    model, record = build_tiny(), records[0]
    with torch.no_grad():
        outputs = model.inspect([record])["outputs"]
    masks = F.interpolate(outputs["pred_masks"].dense(), size=(64, 96), mode="bilinear", align_corners=False)
    probabilities = outputs["pred_logits"][0].softmax(-1)[:, :-1]
    scores = torch.einsum("qn,qhw->qnhw", probabilities, masks[0, :, : SIZE[0], : SIZE[1]].sigmoid())
    for x, y in ((0, 0), (90, 36), (45, 18), (3, 30)):
        report = attention_report(model, record, image_of(record), selectors=[(x, y)])
        choice = report.queries[0].selected
        assert choice.train_id == report.prediction[y, x] == scores[:, :, y, x].sum(0).argmax()
        contributions = scores[:, choice.train_id, y, x]
        assert contributions[choice.query] >= contributions.max() - 1e-6
        shown = report.queries[0].mask
        assert shown.shape == SIZE
        assert np.array_equal(shown, (masks[0, choice.query, : SIZE[0], : SIZE[1]] >= 0).numpy())


def test_queries_by_number_class_and_confidence(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    model, record = build_tiny(), records[0]
    with torch.no_grad():
        logits = model.inspect([record])["outputs"]["pred_logits"][0]
    probabilities = logits.softmax(-1)[:, :-1]
    order = probabilities.max(1).values.argsort(descending=True).tolist()
    report = attention_report(model, record, image_of(record), selectors=[order[1], "car"], top=3)
    choices = [query.selected for query in report.queries]
    car = int(probabilities[:, TRAIN_ID["car"]].argmax())
    assert choices[0].query == order[1] and choices[0].reason == "number"
    assert choices[1].query == car and choices[1].train_id == TRAIN_ID["car"]
    others = [query for query in order[:3] if query not in (order[1], car)]
    assert [choice.query for choice in choices[2:]] == others
    assert report.queries[1].confidence == pytest.approx(float(probabilities[car, TRAIN_ID["car"]]))


def test_p_t_is_an_argument_of_the_pass(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model, record = build_tiny(MODEL__TMT__P_T=0.3), records[0]
    trained, other, again = (attention_report(model, record, image_of(record), top=2, p_t=p) for p in (None, 0.5, None))
    expected = attention_report(build_tiny(MODEL__TMT__P_T=0.5), record, image_of(record), top=2)
    assert (trained.p_t, other.p_t) == (0.3, 0.5)
    assert other.numbers() == expected.numbers() != trained.numbers() == again.numbers()
    assert attention_report(build_tiny("MaskFormer"), record, image_of(record), p_t=0.5).p_t is None


def test_a_plain_mask_former_has_no_transferability(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    report = attention_report(build_tiny("MaskFormer"), records[1], image_of(records[1]), selectors=[3], top=0)
    assert report.levels == [] and report.p_t is None
    for layer in report.queries[0].layers:
        assert not layer.removed.any() and not layer.none_transferable
    assert [layer.layer for layer in report.queries[0].layers] == [1, 2, 3]  # the last three of four


@pytest.mark.parametrize("rank_by", ["T", "inverted", "random"])
def test_excluded_positions_are_those_of_the_pass(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], rank_by: str
) -> None:
    model, record = build_tiny(MODEL__TMT__RANK_BY=rank_by, MODEL__TMT__P_T=0.5), records[0]
    with torch.no_grad():
        allowed = model.run(model.preprocess([record])).inputs.key_mask.allowed
    for level, mask in zip(inspect_image(model, record).levels(), allowed, strict=True):
        assert np.array_equal(level.excluded, level.grid.crop(~mask[0].numpy()))
    assert level.excluded.any()  # of the finest


def test_levels_and_layers_by_hand(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model, record = build_tiny(MODEL__TMT__P_T=0.5), records[0]
    report = attention_report(model, record, image_of(record), selectors=range(20), layers=[0, 1, 2, 3])
    assert [level.grid.valid for level in report.levels] == [(2, 3), (3, 6), (5, 12)]
    for level in report.levels:
        logits = np.sort(level.logits.ravel())
        threshold = logits[logits.size // 2]  # T above that of this logit: excluded
        assert np.array_equal(level.excluded, level.logits < threshold)
        np.testing.assert_allclose(level.t, 1 / (1 + np.exp(level.logits)), atol=1e-6)
        assert level.regions.min() >= 0
    seen = set()
    for query in report.queries:
        for layer in query.layers:
            excluded = report.levels[layer.level].excluded
            conjunction = layer.predicted & ~excluded
            expected = conjunction if conjunction.any() else layer.predicted
            assert np.array_equal(layer.allowed, np.ones_like(expected) if layer.mask_empty else expected)
            assert layer.none_transferable == (not layer.mask_empty and not conjunction.any())
            assert layer.mask_empty == (not layer.predicted.any())
            seen.add((layer.mask_empty, layer.none_transferable))
    assert (False, False) in seen


def test_fallbacks_are_distinguished(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model, record = build_tiny(), records[0]
    with torch.no_grad():  # no mask has a position
        model.sem_seg_head.predictor.lambda_m = 1.0
    view = inspect_image(model, record)
    assert all(
        layer.positions.mask_empty.all() and not layer.positions.none_transferable.any() for layer in view.layers
    )
    numbers = view.layer_report(0, 0).numbers()
    assert numbers["mask_empty"] and numbers["mask_positions"] == 0 and numbers["removed_share_of_mask"] is None
    model.sem_seg_head.predictor.lambda_m = 0.0  # every mask has every position
    view = inspect_image(model, record)
    assert not any(layer.positions.mask_empty.any() or layer.positions.none_transferable.any() for layer in view.layers)
    assert view.layer_report(0, 0).removed.any()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"selectors": [20]}, "query 20"),
        ({"selectors": ["tram"]}, "class"),
        ({"selectors": [(91, 0)]}, "pixel 91 0"),
        ({"top": 21}, "--top"),
        ({"layers": [4]}, "layer 4"),
    ],
)
def test_wrong_selectors(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], arguments: dict[str, Any], key: str
) -> None:
    with refuses(key):
        attention_report(build_tiny("MaskFormer"), records[0], image_of(records[0]), **arguments)


def test_statistics_by_hand(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.5)
    truths = [record["sem_seg"].byte().numpy() for record in records]
    result = collect(model, zip(records, truths))
    views = [inspect_image(model, record) for record in records]
    levels = [view.levels() for view in views]
    assert result["images"] == 2 and result["queries"] == 40 and result["p_t"] == 0.5
    for index, level in enumerate(result["levels"]):
        stride = level["stride"]
        for name in level["mean_t"]:
            values, excluded = [], []
            for reports, truth in zip(levels, truths):
                report = reports[index]
                for y, x in np.argwhere(truth == CLASSES.index(name)):
                    values.append(report.t[y // stride, x // stride])
                    excluded.append(report.excluded[y // stride, x // stride])
            assert level["mean_t"][name] == pytest.approx(np.mean(values), abs=1e-5)
            assert level["excluded_share"][name] == pytest.approx(np.mean(excluded))
    for layer in result["layers"]:
        counts = [int(view.layers[layer["layer"]].positions.mask_empty.sum()) for view in views]
        assert layer["mask_empty"] == sum(counts) / 40
    assert sum(result["share_of_pixels"].values()) == pytest.approx(1)
    assert all(name in table(result) for name in result["share_of_pixels"])
    assert to_array(statistics_figure(result, "heading")).std() > 0
    with pytest.raises(UserError, match="image"):
        collect(model, [])
    with pytest.raises(UserError, match="TransferableMaskFormer"):
        collect(build_tiny("MaskFormer"), zip(records, truths))

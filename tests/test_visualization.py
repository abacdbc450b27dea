from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from demo import visualize_attention as tool
from tests.small_runs import store_anew
from tmt_d2 import setup_cfg
from tmt_d2.data.label_spaces import CLASSES, PALETTE, TRAIN_ID, TRAIN_IDS
from tmt_d2.data.registration import register_split
from tmt_d2.engine.cli import one_line_errors
from tmt_d2.modeling.masked_attention import MultiheadAttention
from tmt_d2.visualization import (
    Grid,
    Panel,
    Row,
    attention_report,
    collect,
    draw,
    save,
    statistics_figure,
    table,
    to_array,
)
from tmt_d2.visualization.overlays import (
    BORDER,
    REMOVED,
    error_overlay,
    heat_overlay,
    label_overlay,
    mask_overlay,
    outlined,
    removed_overlay,
)
from tmt_d2.visualization.report import look

ROOT = Path(__file__).resolve().parents[1]
TMT, FULL = (str(ROOT / "configs" / "tiny" / f"{name}.yaml") for name in ("tmt", "full"))
SIZE = (37, 91)


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the figures of tests: few pixels draw faster."""
    monkeypatch.setattr("tmt_d2.visualization.panels.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.statistics.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.figures.DRAWN", 100)


def picture_of(record: dict[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(record["image"].permute(1, 2, 0).numpy())


# Geometry ---------------------------------------------------------------------------------------------------------


def test_each_pixel_gets_the_value_of_the_position_that_it_lies_in() -> None:
    grid = Grid(level=(2, 3), padded=(64, 96), image=SIZE)
    assert grid.stride == 32 and grid.valid == (2, 3)
    values = np.arange(6).reshape(2, 3)
    shown = grid.to_picture(values, SIZE)
    for y, x in ((0, 0), (31, 31), (31, 32), (32, 0), (36, 63), (36, 64), (36, 90)):
        assert shown[y, x] == values[y // 32, x // 32]
    double = grid.to_picture(values, (2 * SIZE[0], 2 * SIZE[1]))
    assert np.array_equal(double[::2, ::2], shown) and np.array_equal(double[1::2, 1::2], shown)


def test_padding_is_cut_off_and_never_interpolated_into_the_picture() -> None:
    grid = Grid(level=(4, 6), padded=(64, 96), image=(30, 50))  # stride 16: rows 0-1 and columns 0-3 see the image
    assert grid.valid == (2, 4)
    level = np.full((4, 6), 1000.0)
    level[:2, :4] = np.random.default_rng(0).random((2, 4))
    valid = grid.crop(level)
    for smooth in (False, True):
        for size in ((30, 50), (7, 11), (301, 499)):
            shown = grid.to_picture(valid, size, smooth)
            assert shown.shape == size and shown.max() <= valid.max() + 1e-6 and shown.min() >= valid.min() - 1e-6
    with pytest.raises(ValueError, match=r"shape \(4, 6\), the grid has \(2, 4\)"):
        grid.to_picture(level, (30, 50))


def test_smooth_interpolation_is_linear_between_the_centres_of_positions() -> None:
    grid = Grid(level=(1, 2), padded=(4, 8), image=(4, 8))
    shown = grid.to_picture(np.array([[0.0, 4.0]]), (4, 8), smooth=True)
    # Centres at pixels 2 and 6; pixel centres at 0.5, 1.5, ...: one unit per pixel between them.
    np.testing.assert_allclose(shown[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])


# Overlays and panels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (37, 91), (129, 64)])
def test_overlays_have_the_size_of_the_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, size).astype(np.uint8)
    mask = rng.random(size) < 0.5
    for result in (
        label_overlay(picture, labels),
        heat_overlay(picture, rng.random(size), "viridis"),
        mask_overlay(picture, mask),
        mask_overlay(picture, mask, ~mask),
        removed_overlay(picture, mask),
        error_overlay(picture, labels, labels),
        outlined(picture, labels),
    ):
        assert result.shape == picture.shape and result.dtype == np.uint8


def test_overlays_show_what_they_say() -> None:
    picture = np.full((4, 6, 3), 100, np.uint8)
    labels = np.full((4, 6), 13, np.uint8)
    labels[:, 3:] = 255
    overlay = label_overlay(picture, labels, strength=1.0)
    assert tuple(overlay[0, 0]) == PALETTE[13] and tuple(overlay[0, 5]) == (0, 0, 0)
    heat = heat_overlay(picture, np.linspace(0, 1, 24).reshape(4, 6), "viridis", strength=1.0)
    assert tuple(heat[0, 0]) == (68, 1, 84) and tuple(heat[-1, -1]) == (253, 231, 37)  # viridis from end to end
    prediction = np.full((4, 6), 13, np.uint8)
    prediction[2:] = 0
    errors = error_overlay(picture, prediction, labels)
    assert errors[0, 0, 0] == errors[0, 0, 1] == errors[0, 0, 2]  # right: grey
    assert np.abs(errors[3, 0].astype(int) - REMOVED).max() < 40
    assert not errors[:, 3:].any()  # not labelled, whatever is predicted
    borders = outlined(picture, labels)
    assert (borders == BORDER).all(-1).any(0).tolist() == [False, False, False, True, False, False]
    assert np.array_equal(outlined(picture, np.zeros((4, 6), int)), picture)


def test_a_figure_holds_every_panel(tmp_path: Path) -> None:
    blue = np.zeros((20, 31, 3), np.uint8)
    blue[..., 2] = 255
    one = to_array(draw([Row([Panel(blue, "one")])]))
    three = to_array(draw([Row([Panel(blue, "one"), None]), Row([Panel(blue, "two"), Panel(blue, "three")], "row")]))
    pixels = [int((figure == (0, 0, 255)).all(-1).sum()) for figure in (one, three)]
    assert pixels[1] == pytest.approx(3 * pixels[0], rel=0.02)
    figure = draw([Row([Panel(blue, "one", "numbers")])], "heading", [("road", PALETTE[0])])
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save(figure, tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match=r"figure.gif: figures are written as .png or .pdf"):
        save(figure, tmp_path / "figure.gif")
    with pytest.raises(ValueError, match="at least one panel"):
        draw([Row([None])])


# Reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_attention_is_what_the_network_used(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], architecture: str
) -> None:
    model = build_tiny(architecture)
    record = records[0]
    used: list[torch.Tensor] = []

    def hook(module: MultiheadAttention, inputs: tuple[torch.Tensor, ...]) -> None:
        query, key, value, allowed, bias = inputs
        assert bias is None
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
    report = attention_report(model, record, picture_of(record), wanted=[0, 7], layers=range(len(layers)))
    assert len(used) == len(layers) == len(report.queries[0].layers)
    for query in report.queries:
        for layer, weights in zip(query.layers, used):
            whole = weights[:, query.choice.query].reshape(-1, *layer.grid.level).numpy()
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
    look(model, records[0])
    assert len(calls) == 4


def test_the_prediction_is_that_of_inference(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    model = build_tiny()
    for record in records:
        report = attention_report(model, record, picture_of(record), truth=record["sem_seg"].byte().numpy())
        with torch.no_grad():
            expected = model([record])[0]["sem_seg"].argmax(0).numpy()
        assert np.array_equal(report.prediction, expected)
        labelled = record["sem_seg"].numpy() != 255
        assert report.error == pytest.approx((expected != record["sem_seg"].numpy())[labelled].mean())


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
        report = attention_report(model, record, picture_of(record), wanted=[(x, y)])
        choice = report.queries[0].choice
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
    report = attention_report(model, record, picture_of(record), wanted=[order[1], "car"], top=3)
    choices = [query.choice for query in report.queries]
    car = int(probabilities[:, TRAIN_ID["car"]].argmax())
    assert choices[0].query == order[1] and choices[0].reason == "number"
    assert choices[1].query == car and choices[1].train_id == TRAIN_ID["car"]
    others = [query for query in order[:3] if query not in (order[1], car)]
    assert [choice.query for choice in choices[2:]] == others
    assert report.queries[1].confidence == pytest.approx(float(probabilities[car, TRAIN_ID["car"]]))


def test_a_plain_mask_former_has_no_transferability(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]
) -> None:
    report = attention_report(build_tiny("MaskFormer"), records[1], picture_of(records[1]), wanted=[3], top=0)
    assert report.levels == [] and report.p_t is None
    for layer in report.queries[0].layers:
        assert not layer.removed.any() and not layer.left_with_nothing
    assert [layer.layer for layer in report.queries[0].layers] == [1, 2, 3]  # the last three of four


def test_levels_and_layers_by_hand(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model, record = build_tiny(MODEL__TMT__P_T=0.5), records[0]
    report = attention_report(model, record, picture_of(record), wanted=range(20), layers=[0, 1, 2, 3])
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
            assert layer.left_with_nothing == (not layer.mask_empty and not conjunction.any())
            assert layer.mask_empty == (not layer.predicted.any())
            seen.add((layer.mask_empty, layer.left_with_nothing))
    assert (False, False) in seen


def test_fallbacks_are_told_apart(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model, record = build_tiny(), records[0]
    with torch.no_grad():  # masks that are nowhere: the last layer of the mask embedding answers with nothing
        model.sem_seg_head.predictor.lambda_m = 1.0
    view = look(model, record)
    assert all(layer.mask_empty.all() and not layer.left_with_nothing.any() for layer in view.layers)
    numbers = view.layer_report(0, 0).numbers()
    assert numbers["mask_empty"] and numbers["mask_positions"] == 0 and numbers["removed_share_of_mask"] is None
    model.sem_seg_head.predictor.lambda_m = 0.0  # masks that are everywhere
    view = look(model, record)
    assert not any(layer.mask_empty.any() or layer.left_with_nothing.any() for layer in view.layers)
    assert view.layer_report(0, 0).removed.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wanted": [20]}, "query 20 does not exist: the model has queries 0 to 19"),
        ({"wanted": ["tram"]}, "class 'tram' is not known: choose from road, sidewalk"),
        ({"wanted": [(91, 0)]}, "pixel 91 0 lies outside the image, which is 91 wide and 37 high"),
        ({"top": 21}, "21 most confident queries were asked for: the model has 20"),
        ({"layers": [4]}, "layer 4 does not exist: the decoder has layers 0 to 3"),
    ],
)
def test_what_does_not_exist(
    build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention_report(build_tiny("MaskFormer"), records[0], picture_of(records[0]), **arguments)


def test_statistics_by_hand(build_tiny: Callable[..., nn.Module], records: list[dict[str, Any]]) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.5)
    truths = [record["sem_seg"].byte().numpy() for record in records]
    result = collect(model, zip(records, truths))
    views = [look(model, record) for record in records]
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
        counts = [int(view.layers[layer["layer"]].mask_empty.sum()) for view in views]
        assert layer["mask_empty"] == sum(counts) / 40
    assert sum(result["share_of_pixels"].values()) == pytest.approx(1)
    text = table(result)
    assert all(name in text for name in result["share_of_pixels"])
    assert to_array(statistics_figure(result, "heading")).std() > 0
    with pytest.raises(ValueError, match="no image"):
        collect(model, [])
    with pytest.raises(ValueError, match="need a TransferableMaskFormer"):
        collect(build_tiny("MaskFormer"), zip(records, truths))


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models as checkpoints, images of odd sizes, and a registered split of one labelled image."""
    folder = tmp_path_factory.mktemp("visualization")
    torch.manual_seed(0)
    for config in (TMT, FULL):
        torch.save({"model": build_model(setup_cfg(config)).state_dict()}, folder / f"{Path(config).stem}.pth")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name, size in (("wide.png", (61, 143)), ("tall.jpg", (90, 57))):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / name), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
    (folder / "images" / "notes.txt").write_text("not an image")
    cv2.imwrite(str(folder / "label.png"), rng.integers(0, 19, (61, 143), dtype=np.uint8))
    record = {
        "file_name": str(folder / "images" / "wide.png"),
        "sem_seg_file_name": str(folder / "label.png"),
        "image_id": "wide",
        "dataset": "pictures_val",
    }
    register_split("pictures_val", lambda: [record], TRAIN_IDS)
    yield folder
    DatasetCatalog.remove("pictures_val")
    MetadataCatalog.remove("pictures_val")


def run(folder: Path, output: Path, *arguments: str, config: str = TMT) -> None:
    weights = str(folder / f"{Path(config).stem}.pth")
    smaller = ["INPUT.MIN_SIZE_TEST", "64"]
    tool.main(["--config-file", config, "--weights", weights, "--output", str(output), *arguments, *smaller])


def test_a_folder_of_images(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "pictures"
    run(folder, output, "--input", str(folder / "images"), "--queries", "3", "--layers", "2", "--json")
    names = sorted(file.name for file in output.iterdir())
    assert len(names) == 8 and {"wide.json", "wide_prediction.png", "tall_transferability.png"} <= set(names)
    assert any(name.startswith("wide_query03_") for name in names)
    for file in output.glob("*.png"):
        assert cv2.imread(str(file)).std() > 0
    assert "2 images, 1 other files left out" in capsys.readouterr().out

    numbers = json.loads((output / "wide.json").read_text())
    (model,) = numbers["models"]
    assert numbers["size"] == [61, 143] and model["model"] == "tmt" and model["pixel_error"] is None
    assert sum(model["predicted_share"].values()) == pytest.approx(1)
    for level in model["levels"]:
        positions = level["size"][0] * level["size"][1]
        assert level["excluded_share"] == pytest.approx(level["excluded_positions"] / positions)
        assert level["excluded_positions"] <= int(0.3 * positions)
        assert level["t"]["minimum"] <= level["t"]["median"] <= level["t"]["maximum"]
    (query,) = model["queries"]
    (layer,) = query["layers"]
    assert query["query"] == 3 and query["chosen_by"] == "number" and layer["layer"] == 2
    if not layer["mask_empty"]:
        assert layer["mask_positions"] - layer["removed_positions"] == layer["allowed_positions"]
    inside, outside = layer["attention_inside_final_mask"], layer["attention_outside_final_mask"]
    assert inside + outside == pytest.approx(1, abs=1e-4)


def test_a_split_with_two_models_side_by_side_as_pdf(folder: Path, tmp_path: Path) -> None:
    other = ["--compare", FULL, str(folder / "full.pth")]
    stays = tmp_path / "kept.txt"
    stays.write_text("kept")
    arguments = ["--input", "pictures_val", "--classes", "car", "sky", "--layers", "1", "--format", "pdf", "--json"]
    run(folder, tmp_path, *arguments, *other)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"wide_prediction.pdf", "wide_transferability_tmt.pdf", "wide.json", "kept.txt"} < names
    assert len([name for name in names if "_query" in name]) == 2
    assert all(file.read_bytes().startswith(b"%PDF") for file in tmp_path.glob("*.pdf"))
    first, second = json.loads((tmp_path / "wide.json").read_text())["models"]
    assert second["levels"] == [] and second["p_t"] is None and first["p_t"] == 0.3
    assert [query["class"] for query in first["queries"]] == [query["class"] for query in second["queries"]]
    assert first["pixel_error"] > 0


def test_a_picture_on_its_side_is_shown_as_its_label_has_it_and_alone_as_stored(folder: Path, tmp_path: Path) -> None:
    records = []
    for on_its_side in (False, True):
        path = tmp_path / f"{on_its_side}.png"
        shutil.copy(folder / "images" / "wide.png", path)
        store_anew(path, on_its_side)
        records.append({**DatasetCatalog.get("pictures_val")[0], "file_name": str(path)})
    loaded = tool.load(FULL, str(folder / "full.pth"), ["INPUT.MIN_SIZE_TEST", "64"])
    upright, turned = (tool.report_image(loaded, record, [], 1, [0]) for record in records)
    assert np.array_equal(upright.picture, turned.picture) and np.array_equal(upright.prediction, turned.prediction)
    alone = tool.report_image(loaded, {"file_name": records[1]["file_name"]}, [], 1, [0])
    assert alone.picture.shape == (143, 61, 3) and alone.prediction.shape == (143, 61)


def test_a_plain_model_alone_and_overrides(folder: Path, tmp_path: Path) -> None:
    arguments = ["--input", str(folder / "images" / "wide.png"), "--top", "1", "--heads", "0", "2", "--layers", "2"]
    run(folder, tmp_path, *arguments, "MODEL.TMT.P_T", "0.1", config=FULL)
    names = {file.name for file in tmp_path.iterdir()}
    assert len(names) == 2 and "wide_prediction.png" in names
    args = tool.parse(["--config-file", FULL, "--output", "x", "--classes", "car", "sky", "MODEL.DEVICE", "cpu"])
    assert args.classes == ["car", "sky"] and args.opts == ["MODEL.DEVICE", "cpu"]


def test_statistics_of_a_split(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "estimator.json").write_text(json.dumps({"proxy_a_distance": [0.5, 1.0, 1.5]}))
    run(folder, tmp_path, "--statistics", "pictures_val")
    assert {file.name for file in tmp_path.iterdir()} == {
        "statistics_pictures_val.json",
        "statistics_pictures_val.png",
    }
    result = json.loads((tmp_path / "statistics_pictures_val.json").read_text())
    assert result["images"] == 1 and result["proxy_a_distance"] == [0.5, 1.0, 1.5] and len(result["layers"]) == 3
    assert "proxy A-distance" in capsys.readouterr().out


def test_images_of_one_name_do_not_share_files(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        (tmp_path / name).touch()
    names = [picture.name for picture in tool.find_pictures(str(tmp_path), None)]
    assert names == [f"{tmp_path.name}_a.jpg", f"{tmp_path.name}_a.png", "b"]
    assert [picture.name for picture in tool.find_pictures(str(tmp_path), 2)] == names[:2]


def test_large_images_are_shown_smaller() -> None:
    assert tool.shown_size((1024, 2048)) == (1024, 2048)
    assert tool.shown_size((3936, 5248)) == (1536, 2048)
    assert tool._scaled((5247, 0), (3936, 5248), (1536, 2048)) == (2047, 0)
    assert tool._scaled("car", (3936, 5248), (1536, 2048)) == "car"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.png"], "--input missing.png: no such image, folder or registered split"),
        (["--input", "{folder}/images/notes.txt"], "notes.txt: cannot be decoded"),
        (["--input", "{folder}/images/wide.png", "--classes", "tram"], "class 'tram' is not known"),
        (["--input", "{folder}/images/wide.png", "--heads", "4"], "head 4 does not exist"),
        (["--input", "{folder}/images/wide.png", "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (["--statistics", "nowhere_val"], "data set 'nowhere_val' is not known"),
        (["--input", "{folder}/empty"], "this folder has no image"),
        ([], "nothing to show"),
    ],
)
def test_one_line_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        run(folder, tmp_path, *(argument.format(folder=folder) for argument in arguments))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and message in error
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_is_needed(folder: Path, tmp_path: Path) -> None:
    image = str(folder / "images" / "wide.png")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty: name a checkpoint"):
        tool.main(["--config-file", TMT, "--input", image, "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="has no estimator"):
        weights = str(folder / "full.pth")
        tool.main(["--config-file", TMT, "--weights", weights, "--input", image, "--output", str(tmp_path)])


def test_it_runs_as_a_script_from_the_checkout() -> None:
    command = [sys.executable, "demo/visualize_attention.py", "--help"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Files of these names are overwritten" in answer.stdout

"""The commands in demo/: pictures of attention and transferability, and the figures of the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from demo import figures, showcase
from tests.helpers.checkout import CONFIGS
from tests.helpers.small_runs import store_anew
from tmt_d2 import setup_cfg
from tmt_d2.cli import show_attention as tool
from tmt_d2.cli.common import parse
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.errors import one_line_errors
from tmt_d2.inference import Predictor
from tmt_d2.inference.attention import report_image, scaled
from tmt_d2.inference.images import InputImage, find_images

pytestmark = pytest.mark.slow

TMT, FULL = (str(CONFIGS / f"{name}.yaml") for name in ("tmt", "full"))


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the figures of tests: few pixels draw faster."""
    monkeypatch.setattr("tmt_d2.visualization.panels.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.exclusion.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.sizes.ENLARGED", 100)


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
    (folder / "images" / "notes.md").write_text("not an image")
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


def test_a_plain_model_alone_and_overrides(folder: Path, tmp_path: Path) -> None:
    arguments = ["--input", str(folder / "images" / "wide.png"), "--top", "1", "--heads", "0", "2", "--layers", "2"]
    run(folder, tmp_path, *arguments, "MODEL.TMT.P_T", "0.1", config=FULL)
    names = {file.name for file in tmp_path.iterdir()}
    assert len(names) == 2 and "wide_prediction.png" in names
    words = ["--config-file", FULL, "--output", "x", "--classes", "car", "sky", "MODEL.DEVICE", "cpu"]
    args = parse(tool.parser(), words)
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


def test_a_pixel_of_the_file_is_that_of_the_smaller_picture() -> None:
    assert scaled((5247, 0), (3936, 5248), (1536, 2048)) == (2047, 0)
    assert scaled("car", (3936, 5248), (1536, 2048)) == "car"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.png"], "missing.png"),
        (["--input", "{folder}/images/notes.md"], "notes.md"),
        (["--input", "{folder}/images/wide.png", "--classes", "tram"], "class 'tram' is not known"),
        (["--input", "{folder}/images/wide.png", "--heads", "4"], "head 4 does not exist"),
        (["--input", "{folder}/images/wide.png", "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (["--statistics", "nowhere_val"], "--statistics is 'nowhere_val'"),
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


def test_the_figures_of_the_readme(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmt, full = (
        Predictor.from_config(config, str(folder / f"{Path(config).stem}.pth"), ["INPUT.MIN_SIZE_TEST", "64"])
        for config in (TMT, FULL)
    )
    (image,) = find_images("pictures_val")
    found, report = showcase.most_interesting(tmt, [image])
    (query,) = report.queries
    others = report_image(tmt, image, showcase.CLASSES).queries
    assert found is image and showcase.interest(query) == max(map(showcase.interest, others))
    other = report_image(full, image, [query.name])
    for figure in (showcase.transferability(report), showcase.attention(report, other)):
        line = showcase.save_jpeg(figure, tmp_path / "figure.jpg")
        assert "quality 92" in line and Image.open(tmp_path / "figure.jpg").format == "JPEG"
    monkeypatch.setattr(showcase, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="even at quality 50, the limit is 100"):
        showcase.save_jpeg(figure, tmp_path / "figure.jpg")


def test_the_figures_need_a_finished_demo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_final.pth: run `make demo` first"):
        figures.main(["--demo", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_picture_on_its_side_is_shown_as_its_label_has_it_and_alone_as_stored(folder: Path, tmp_path: Path) -> None:
    records = []
    for on_its_side in (False, True):
        path = tmp_path / f"{on_its_side}.png"
        shutil.copy(folder / "images" / "wide.png", path)
        store_anew(path, on_its_side)
        records.append({**DatasetCatalog.get("pictures_val")[0], "file_name": str(path)})
    loaded = Predictor.from_config(FULL, str(folder / "full.pth"), ["INPUT.MIN_SIZE_TEST", "64"])
    upright, turned = (report_image(loaded, InputImage.of(record), [], 1, [0]) for record in records)
    assert np.array_equal(upright.picture, turned.picture) and np.array_equal(upright.prediction, turned.prediction)
    alone = report_image(loaded, InputImage.of({"file_name": records[1]["file_name"]}), [], 1, [0])
    assert alone.picture.shape == (143, 61, 3) and alone.prediction.shape == (143, 61)

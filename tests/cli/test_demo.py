"""The commands in demo/: figures of attention and transferability, and those of the README."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from demo import figures, showcase
from tmt_d2.cli import show_attention as tool
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.errors import UserError
from tmt_d2.inference import Predictor
from tmt_d2.inference.attention import report_image
from tmt_d2.inference.images import find_images

pytestmark = pytest.mark.slow

TMT, FULL = "tmt", "full"


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels, which is faster."""
    monkeypatch.setattr("tmt_d2.visualization.panels.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.exclusion.DPI", 40)
    monkeypatch.setattr("tmt_d2.visualization.sizes.ENLARGED", 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[Path]:
    """Two random models, images of odd sizes, and a registered split of one labeled image."""
    folder = tmp_path_factory.mktemp("visualization")
    shutil.copytree(model_files, folder, dirs_exist_ok=True)
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
        "dataset": "demo_val",
    }
    register_split("demo_val", lambda: [record], TRAIN_IDS)
    yield folder
    DatasetCatalog.remove("demo_val")
    MetadataCatalog.remove("demo_val")


def run(folder: Path, output: Path, *arguments: str, model: str = TMT) -> None:
    files = ["--config-file", str(folder / f"{model}.yaml"), "--weights", str(folder / f"{model}.pth")]
    tool.main([*files, "--output", str(output), *arguments])


def test_a_folder_of_images(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "figures"
    run(folder, output, "--input", str(folder / "images"), "--queries", "3", "--layers", "2", "--json")
    names = sorted(file.name for file in output.iterdir())
    assert len(names) == 8 and {"wide.json", "wide_prediction.png", "tall_transferability.png"} <= set(names)
    assert any(name.startswith("wide_query03_") for name in names)
    for file in output.glob("*.png"):
        assert cv2.imread(str(file)).std() > 0
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
    other = ["--compare", str(folder / "full.yaml"), str(folder / "full.pth")]
    stays = tmp_path / "kept.txt"
    stays.write_text("kept")
    arguments = ["--input", "demo_val", "--classes", "car", "sky", "--layers", "1", "--format", "pdf", "--json"]
    run(folder, tmp_path, *arguments, *other)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"wide_prediction.pdf", "wide_transferability_tmt.pdf", "wide.json", "kept.txt"} < names
    assert len([name for name in names if "_query" in name]) == 2
    assert all(file.read_bytes().startswith(b"%PDF") for file in tmp_path.glob("*.pdf"))
    first, second = json.loads((tmp_path / "wide.json").read_text())["models"]
    assert second["levels"] == [] and second["p_t"] is None and first["p_t"] == 0.3
    assert [query["class"] for query in first["queries"]] == [query["class"] for query in second["queries"]]
    assert first["pixel_error"] > 0


def test_statistics_of_a_split(folder: Path, tmp_path: Path) -> None:
    (folder / "estimator.json").write_text(json.dumps({"proxy_a_distance": [0.5, 1.0, 1.5]}))
    run(folder, tmp_path, "--statistics", "demo_val")
    assert {file.name for file in tmp_path.iterdir()} == {
        "statistics_demo_val.json",
        "statistics_demo_val.png",
    }
    result = json.loads((tmp_path / "statistics_demo_val.json").read_text())
    assert result["images"] == 1 and result["proxy_a_distance"] == [0.5, 1.0, 1.5] and len(result["layers"]) == 3


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--input", "missing.png"], "missing.png"),
        (["--input", "{folder}/images/notes.md"], "notes.md"),
        (["--input", "{folder}/images/wide.png", "--classes", "tram"], "tram"),
        (["--input", "{folder}/images/wide.png", "--heads", "9"], "head 9"),
        (["--input", "{folder}/images/wide.png", "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (["--statistics", "nowhere_val"], "--statistics"),
        ([], "--input"),
    ],
)
def test_wrong_arguments(folder: Path, tmp_path: Path, arguments: list[str], name: str) -> None:
    with pytest.raises((UserError, FileNotFoundError), match=name):
        run(folder, tmp_path, *(argument.format(folder=folder) for argument in arguments))
    assert not list(tmp_path.glob(".*"))


def test_the_figures_of_the_readme(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmt, full = (
        Predictor.from_config(str(folder / f"{name}.yaml"), str(folder / f"{name}.pth")) for name in (TMT, FULL)
    )
    (image,) = find_images("demo_val")
    found, report = showcase.most_interesting(tmt, [image])
    (query,) = report.queries
    others = report_image(tmt, image, showcase.CLASSES).queries
    assert found is image and query.selected.query == max(others, key=showcase.interest).selected.query
    other = report_image(full, image, [query.name])
    for figure in (showcase.transferability(report), showcase.attention(report, other)):
        showcase.save_jpeg(figure, tmp_path / "figure.jpg")
        assert Image.open(tmp_path / "figure.jpg").format == "JPEG"
    monkeypatch.setattr(showcase, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="figure.jpg"):
        showcase.save_jpeg(figure, tmp_path / "figure.jpg")


def test_the_figures_need_a_finished_demo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_final.pth"):
        figures.main(["--demo", str(tmp_path)])
    assert not list(tmp_path.iterdir())

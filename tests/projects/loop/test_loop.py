"""The whole way on rendered scenes: start, propose, label, import, train, status, predict."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image

import tmt_d2
from tests.helpers.checkout import TINY_CONFIG, run_python
from tests.helpers.errors import refuses
from tests.helpers.small_runs import Killed, differences, exif, options, small_cfg
from tests.projects.label_selection.test_selection import saved_lists
from tmt_d2.config import replace_keys, setup_cfg
from tmt_d2.data.datasets.custom import register_custom
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES
from tmt_d2.data.datasets.registration import labeled_records
from tmt_d2.data.reader import exif_orientation
from tmt_d2.engine.checkpoint.classes import encode_classes
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.errors import UserError
from tmt_d2.estimation.estimate import Estimation
from tmt_d2.projects.annotation.writers import write_cvat_masks
from tmt_d2.projects.loop import proposing, state, training
from tmt_d2.projects.loop.command import main
from tmt_d2.projects.loop.project import Project, write_config
from tmt_d2.projects.loop.state import interval_text, next_command, sample_of, status
from tmt_d2.utils.lock import folder_lock

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root", "clean_catalogs")]

SMALL = [word for pair in zip(*[iter(options(SOLVER__MAX_ITER=2))] * 2) if pair[0] != "DATASETS.TEST" for word in pair]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and the classes of Cityscapes."""
    path = tmp_path_factory.mktemp("source") / "source.pth"
    torch.manual_seed(0)
    model = build_model(small_cfg("full", path.parent))
    torch.save({"model": model.state_dict(), "classes": encode_classes(CITYSCAPES_CLASSES)}, path)
    return path


@pytest.fixture
def photos(scenes: Path, tmp_path: Path) -> Path:
    """Six images, in two folders of different depth."""
    folder = tmp_path / "photos"
    (folder / "more" / "night").mkdir(parents=True)
    for index, file in enumerate(sorted((scenes / "bdd100k").rglob("images/**/train/*.jpg"))):
        shutil.copy(file, folder / "more" / "night" if index % 3 == 2 else folder)
    return folder


@pytest.fixture
def city(photos: Path, source: Path, tmp_path: Path) -> Path:
    """A project with a source model and source data."""
    words = ["--model", str(source), "--config-file", str(TINY_CONFIG), "--images", str(photos)]
    output = tmp_path / "city"
    assert main(["start", *words, "--output", str(output), "--source-data", "cityscapes", *SMALL]) == 0
    return output


def adapt(city: Path, *words: str) -> int:
    return main([words[0], "--project", str(city), *words[1:]])


def truth(scenes: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(next((scenes / "bdd100k" / "labels").rglob(f"{Path(name).stem}*.png"))))


def killed(*arguments: object, **options: object) -> None:
    raise Killed


def label(city: Path, scenes: Path, number: str) -> Path:
    """Stands for an annotator: the export of CVAT with the true labels of a round."""
    project = Project(city)
    names = project.proposed(city / "rounds" / number)
    export = city.parent / f"export{number}.zip"
    labels = [(name, truth(scenes, name)) for name in names]
    write_cvat_masks(export, project.classes().classes, labels)
    return export


def names_in(file: Path) -> set[str]:
    """File names in a list."""
    return {Path(line).name for line in file.read_text().splitlines()} if file.is_file() else set()


def test_the_whole_way(city: Path, scenes: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapt(city, "propose", "--budget", "2", "--purpose", "test", "--tool", "files") == 0
    assert adapt(city, "propose", "--budget", "2") == 0
    test, proposed = (names_in(city / "rounds" / number / "selected.txt") for number in ("01", "02"))
    assert len(test) == len(proposed) == 2 and not test & proposed
    assert {path.name for path in (city / "rounds/02/images").rglob("*.jpg")} == proposed
    assert not (city / "rounds/01/files/labels").exists()  # no pre-labels where the model is measured
    assert (city / "rounds/02/cvat/prelabels.zip").is_file()
    assert status(Project(city)).next.startswith("import")
    for number in ("01", "02"):
        assert adapt(city, "import", str(label(city, scenes, number))) == 0
    assert names_in(city / "labeled.txt") == proposed and names_in(city / "test.txt") == test
    assert names_in(city / "unlabeled.txt") == {path.name for path in photos.rglob("*.jpg")} - test - proposed
    assert status(Project(city)).next == "train"
    assert adapt(city, "train") == 0
    state = status(Project(city))
    assert [(model.number, model.labels) for model in state.models] == [(0, 0), (1, 2)]
    for model in state.models:
        assert model.measured and model.measured.low <= model.measured.value <= model.measured.high
        assert model.estimated and model.more > 0
    assert state.next == "propose --budget 2"
    with (city / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["image"]).name for row in rows if row["round"]} == test
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(2)
    assert adapt(city, "propose", "--budget", "2", "--tool", "label-studio") == 0  # all that are left
    assert not names_in(city / "rounds/03/selected.txt") & (test | proposed)
    assert len(json.loads((city / "rounds/03/label-studio/tasks.json").read_text())) == 2
    assert (
        "<img" in (city / "rounds/03/round.html").read_text()
        and "<polyline" in (city / "rounds/03/round.html").read_text()
    )
    assert adapt(city, "predict", str(photos), "--output", str(city.parent / "out")) == 0
    assert len([*(city.parent / "out" / "labels").rglob("*.png")]) == 6
    capsys.readouterr()
    assert adapt(city, "status") == 0
    assert "rounds/03" in capsys.readouterr().out
    adapt(city, "import", str(label(city, scenes, "03")))
    assert next_command(Project(city)) == "train"
    (city / "models/01/labels.csv").write_text(Project(city).label_digests())  # as if it were trained on all
    assert next_command(Project(city)).startswith("predict")


def test_train_equals_train_net_and_continues(
    city: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    step = Trainer.run_step

    def killed_later(trainer: Trainer) -> None:
        if trainer.iter == 1:
            raise Killed
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", killed_later)
        with pytest.raises(Killed):
            adapt(city, "train")
    first = city / "models/01/model_0000000.pth"
    written = first.stat().st_mtime_ns
    assert status(Project(city)).next.startswith("train") and len(status(Project(city)).models) == 1
    assert adapt(city, "train", "--time", "1h") == 0  # keeps what was decided
    assert first.stat().st_mtime_ns == written
    other = setup_cfg(city / "config.yaml", ["OUTPUT_DIR", str(tmp_path / "by_hand")])
    run_stage(other)
    assert not [
        key
        for key in differences(city / "models/01/model_final.pth", tmp_path / "by_hand/model_final.pth")
        if key.startswith("model")
    ]
    assert training.train(Project(city)) is None  # nothing new
    assert training.train(Project(city), opts=["SOLVER.MAX_ITER", "1"]) == city.resolve() / "models/02"


def test_time_sets_the_iterations(city: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    monkeypatch.setattr(training, "seconds_a_step", lambda cfg: 10.0)
    assert adapt(city, "train", "--time", "0.5m") == 0
    assert setup_cfg(city / "config.yaml").SOLVER.MAX_ITER == 3
    monkeypatch.undo()
    cfg = setup_cfg(city / "config.yaml")
    assert 0 < training.seconds_a_step(cfg) < 60
    assert not [*(city / "models").glob("*.timing")]


def test_without_a_source_model(photos: Path, scenes: Path, tmp_path: Path) -> None:
    city, classes = tmp_path / "city", tmp_path / "classes.yaml"
    names = [*CITYSCAPES_CLASSES.names, "tent"]
    classes.write_text(yaml.safe_dump(names))
    words = ["--model", "none", "--config-file", str(TINY_CONFIG), "--images", str(photos), "--output", str(city)]
    for key, more in {
        "--classes": [],
        "--source-data": ["--classes", str(classes), "--source-data", "cityscapes"],
    }.items():
        with refuses(key):
            main(["start", *words, *more, *SMALL])
    for text in ("[road, {", "[road, road]", "[]", "road"):
        (tmp_path / "damaged.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            main(["start", *words, "--classes", str(tmp_path / "damaged.yaml"), *SMALL])
        assert error.value.key.startswith(str(tmp_path / "damaged.yaml")) and "\n" not in str(error.value)
    assert not city.exists()
    assert main(["start", *words, "--classes", str(classes), *SMALL]) == 0
    assert adapt(city, "propose", "--budget", "2", "--purpose", "test") == 0
    assert adapt(city, "propose", "--budget", "2") == 0
    for number in ("01", "02"):
        assert not (city / f"rounds/{number}/cvat/prelabels.zip").exists()
        assert adapt(city, "import", str(label(city, scenes, number))) == 0
    with refuses("--project"):
        adapt(city, "predict", str(photos), "--output", str(tmp_path / "out"))
    assert adapt(city, "train") == 0
    (model,) = status(Project(city)).models
    assert model.number == 1 and model.measured and model.estimated is None


def test_test_images_stay_test_images(city: Path, scenes: Path, photos: Path) -> None:
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    first = names_in(city / "rounds/01/selected.txt")
    adapt(city, "propose", "--budget", "1", "--purpose", "test")
    (second,) = names_in(city / "rounds/02/selected.txt")
    assert second not in first
    for number in ("01", "02"):
        adapt(city, "import", str(label(city, scenes, number)))
    assert not (city / "labeled.txt").exists() and len(names_in(city / "test.txt")) == 3
    with refuses("--project"):
        adapt(city, "train")
    rows = Project(city).frame()
    assert len(rows) == 6 and {row["probability"] for row in rows} == {"0.500000"}
    # A new image with the name of a test image does not rename it.
    (photos / "new").mkdir()
    shutil.copy(next(photos.rglob(second)), photos / "new" / second)
    assert {Path(name).name for name in Project(city).test()} == {*first, second}
    with refuses("--budget", 5):
        adapt(city, "propose", "--budget", "5")  # four are left
    adapt(city, "propose", "--budget", "4")
    assert not {*Project(city).proposed(city / "rounds/03")} & {*Project(city).test()}


def test_a_photo_with_an_orientation_is_labeled_as_it_is_stored(city: Path, scenes: Path, photos: Path) -> None:
    for file in photos.rglob("*.jpg"):
        with Image.open(file) as image:
            image.save(file, exif=exif(3))
    adapt(city, "propose", "--budget", "2", "--tool", "files")
    names = Project(city).proposed(city / "rounds/01")
    for name in names:
        assert exif_orientation(str(photos / name)) == 3
        assert exif_orientation(str(city / "rounds/01/images" / name)) == 1
    assert adapt(city, "import", str(label(city, scenes, "01"))) == 0
    shutil.rmtree(city / "rounds/01/images")  # not known what was labeled
    shutil.rmtree(city / "labels")
    with refuses(str(label(city, scenes, "01"))):
        adapt(city, "import", str(label(city, scenes, "01")))


def test_a_killed_proposal_is_made_again(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(proposing, "write_page", killed)
        with pytest.raises(Killed):
            adapt(city, "propose", "--budget", "2", "--purpose", "test")
    assert not Project(city).rounds() and not Project(city).test()
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    assert [path.name for path in (city / "rounds").iterdir()] == ["01"]


def test_mistakes_change_nothing(city: Path, scenes: Path, photos: Path, source: Path, tmp_path: Path) -> None:
    new = ["--config-file", str(TINY_CONFIG), "--images", str(photos), "--output", str(tmp_path / "new")]
    for key, words in {
        "--classes": ["--model", str(source), "--classes", "classes.yaml"],
        "--model": ["--model", str(save_without_classes(source, tmp_path))],
        "--source-data": ["--model", str(source), "--source-data", "paris"],
    }.items():
        with refuses(key):
            main(["start", *new, *words])
    (tmp_path / "{a}").mkdir()
    shutil.copy(next(photos.glob("*.jpg")), tmp_path / "{a}")
    with refuses("--output"):
        main(["start", *new[:3], str(tmp_path / "{a}"), *new[4:], "--model", str(source)])
    with refuses("--output"):
        main(["start", *new[:-1], str(city), "--model", str(source)])
    with refuses("--output"):
        main(["start", *new[:-1], str(photos / "city"), "--model", str(source)])
    assert not (tmp_path / "new").exists() and not (photos / "city").exists()
    adapt(city, "propose", "--budget", "2")
    export = label(city, scenes, "01")
    (tmp_path / "cut.zip").write_bytes(export.read_bytes()[:-99])
    with refuses(str(tmp_path / "cut.zip")):
        adapt(city, "import", str(tmp_path / "cut.zip"))
    assert not (city / "labels").exists() or not [*(city / "labels").rglob("*.png")]
    adapt(city, "import", str(export))
    before = (city / "config.yaml").read_text()
    for key, words in {
        "--time": ["--time", "soon"],
        "SELF_TRAINING.SOURCE_RATIO": ["SELF_TRAINING.SOURCE_RATIO", "0.3"],
    }.items():
        with refuses(key):
            adapt(city, "train", *words)
    assert (city / "config.yaml").read_text() == before and not (city / "models").exists()
    with folder_lock(city), refuses("--project"):
        adapt(city, "propose", "--budget", "1")
    with folder_lock(city):  # a training, for example
        assert adapt(city, "status") == 0


def test_files_of_others_are_neither_overwritten_nor_removed(photos: Path, source: Path, tmp_path: Path) -> None:
    """Lists that would be empty are removed, and some names are those that anybody would choose."""
    output = tmp_path / "work"
    output.mkdir()
    words = [
        "--config-file",
        str(TINY_CONFIG),
        "--images",
        str(photos),
        "--output",
        str(output),
        "--model",
        str(source),
    ]
    for name in ("config.yaml", "classes.json", "test.txt", "labels"):
        (output / name).write_text("mine")
        with refuses("--output"):
            main(["start", *words, *SMALL])
        assert [file.read_text() for file in output.iterdir()] == ["mine"]
        (output / name).unlink()
    assert main(["start", *words, *SMALL]) == 0


def test_only_a_trained_model_is_estimated_as_an_adapted_one(
    city: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source model's config is that of the last training, but it has seen no image of the city."""
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    adapt(city, "train")
    shutil.rmtree(city / "results")
    values: list[bool] = []

    def estimation(*arguments: Any, adapted: bool) -> Estimation:
        values.append(adapted)
        return Estimation(*arguments, adapted=adapted)

    monkeypatch.setattr(state, "Estimation", estimation)
    status(Project(city))
    assert values == [False, True]


def test_an_accuracy_follows_the_settings_of_testing(city: Path) -> None:
    (before,) = status(Project(city)).models
    file = city / "config.yaml"
    cfg = replace_keys(setup_cfg(file), {"TEST.SLIDING_WINDOW.ENABLED": True, "INPUT.MIN_SIZE_TEST": 48})
    write_config(file, cfg)
    (after,) = status(Project(city)).models
    assert before.estimated and after.estimated and before.estimated != after.estimated


def test_statistics_are_computed_by_one_process_at_a_time(city: Path) -> None:
    lock = f"file_lock(Path({str(city / 'cache/a.lock')!r}))"
    script = f"from pathlib import Path; from tmt_d2.utils.lock import file_lock; print({lock}.__enter__())"
    process = Project(city).cached("a", lambda folder: run_python("-c", script))
    assert str(os.getpid()) in process.stdout


def test_an_image_that_comes_during_a_training_is_in_the_status_after_it(
    city: Path, scenes: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    first = next(photos.glob("*.jpg"))
    monkeypatch.setattr(training, "run_stage", lambda *_, **__: shutil.copy(first, photos / "new.jpg"))
    adapt(city, "train")
    assert "7 images" in capsys.readouterr().out and "new.jpg" in names_in(city / "unlabeled.txt")


def test_an_image_is_proposed_once(city: Path, scenes: Path) -> None:
    """Also while its labels are not there yet: a test image must not come with pre-labels of an earlier round."""
    adapt(city, "propose", "--budget", "2")
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    adapt(city, "propose", "--budget", "1")
    with refuses("--budget", 2):
        adapt(city, "propose", "--budget", "2")
    project = Project(city)
    rounds = [project.proposed(folder) for folder in project.rounds()]
    assert len({name for names in rounds for name in names}) == 5
    assert {row["image"] for row in project.frame()} == {*project.files} - {*rounds[0]}
    shutil.rmtree(city / "rounds/03")  # to give up a round
    adapt(city, "propose", "--budget", "2")


def test_an_image_that_was_removed_is_no_other_of_the_same_name(city: Path, photos: Path) -> None:
    folder = city / "rounds/01"
    folder.mkdir(parents=True)
    (photos / "day").mkdir()
    first, second = sorted(photos.glob("*.jpg"))[:2]
    shutil.copy(first, photos / "day" / first.name)
    lines = [f"day/{first.name}", second.name, str(next((photos / "more/night").iterdir()))]
    (folder / "selected.txt").write_text("\n".join(lines))
    night = Path(lines[2]).relative_to(photos).as_posix()
    assert Project(city).proposed(folder) == [*lines[:2], night]  # names, and a path that the page saved
    (photos / "day" / first.name).unlink()
    project = Project(city)
    assert project.proposed(folder) == [second.name, night] and first.name in project.free()
    shutil.move(second, photos / "day")
    assert Project(city).proposed(folder) == [f"day/{second.name}", night]  # a file name that only one image has


def test_a_label_of_an_image_that_is_gone_is_no_label_of_another(city: Path, scenes: Path, photos: Path) -> None:
    folder = city / "rounds/01"
    folder.mkdir(parents=True)
    (photos / "day").mkdir()
    first, second = sorted(photos.glob("*.jpg"))[:2]
    removed = photos / "day" / first.name
    shutil.copy(first, removed)
    (folder / "selected.txt").write_text(f"{removed}\n{second.name}\n")
    export = label(city, scenes, "01")
    removed.unlink()
    assert adapt(city, "import", str(export)) == 1
    assert Project(city).with_label() == [second.name]
    shutil.copy(first, removed.with_suffix(".jpeg"))  # in another format, or of another suffix
    assert adapt(city, "import", str(export)) == 0
    assert {*Project(city).with_label()} == {second.name, f"day/{first.stem}.jpeg"}


def test_images_that_are_missing_are_not_forgotten(
    city: Path, scenes: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is offline for a while changes neither test nor labels."""
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    first = Project(city).test()
    assert adapt(city, "import", str(label(city, scenes, "01"))) == 0
    assert Project(city).missing() == {}
    gone = photos.parent / first[0].replace("/", "_")
    (photos / first[0]).rename(gone)
    label_file = Project(city).label_of(first[0])
    missing = {"label files": [label_file.relative_to(city.resolve() / "labels/labels").as_posix()]}
    assert Project(city).missing() == missing | {"test images": [first[0]]}
    capsys.readouterr()
    adapt(city, "status")
    assert first[0] in capsys.readouterr().out
    adapt(city, "propose", "--budget", "1", "--purpose", "test")
    assert first[0] not in Project(city).test() and len(Project(city).test()) == 2
    gone.rename(photos / first[0])
    assert len({*Project(city).test()}) == 3 and {*first} < {*Project(city).test()}
    assert len(Project(city).frame()) == 6


def test_an_interrupted_training_outlives_an_image_that_is_missing(
    city: Path, scenes: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "run_stage", killed)
        adapt(city, "train")
    saved = city / "models/01/model_0000000.pth"
    saved.write_text("hours of work")
    name = Project(city).labeled()[0]
    (photos / name).rename(photos.parent / "gone")
    config = (city / "config.yaml").read_text()
    with refuses(str(city.resolve() / "models/01")):
        adapt(city, "train")
    assert saved.is_file() and (city / "config.yaml").read_text() == config
    shutil.rmtree(city / "models/01")  # to do without it
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "run_stage", killed)
        adapt(city, "train")
    assert len((city / "models/01/labels.csv").read_text().splitlines()) == 2
    (photos.parent / "gone").rename(photos / name)  # a label more: begins again
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "run_stage", killed)
        adapt(city, "train")
    assert len((city / "models/01/labels.csv").read_text().splitlines()) == 3


def test_labels_may_be_removed(city: Path, scenes: Path) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    shutil.rmtree(city / "labels")
    project = Project(city)
    project.refresh()
    assert not any(project.splits().values()) and not (city / "data.yaml").exists()
    assert adapt(city, "import", str(label(city, scenes, "01"))) == 0


def test_an_image_that_comes_later_gets_no_label_of_another(city: Path, scenes: Path, photos: Path) -> None:
    adapt(city, "propose", "--budget", "6")
    adapt(city, "import", str(label(city, scenes, "01")))
    first = next(photos.glob("*.jpg"))
    Image.open(first).rotate(180).save(first.with_suffix(".png"))
    with refuses(first.with_suffix(".png").name):
        adapt(city, "train")


def save_without_classes(source: Path, folder: Path) -> Path:
    path = folder / "without.pth"
    torch.save({"model": torch.load(source)["model"]}, path)
    return path


def test_without_test_images_a_model_is_measured_on_what_is_labeled_after_it(
    city: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(city, "propose", "--budget", "2")
    first = Project(city).proposed(city / "rounds/01")
    adapt(city, "import", str(label(city, scenes, "01")))
    (source,) = status(Project(city)).models
    assert source.measured and not source.drawn
    adapt(city, "train")
    before, newest = status(Project(city)).models
    assert before == source and newest.measured is None and newest.estimated  # it has seen all labels
    project = Project(city)
    assert sample_of(project, project.models()[1]) == (dict.fromkeys({*project.files} - {*first}, 0), [], False)
    adapt(city, "propose", "--budget", "2")
    second = Project(city).proposed(city / "rounds/02")
    page = (city / "rounds/02/round.html").read_text()
    assert "IoU of classes, estimated" in page and "<td>road</td>" in page
    adapt(city, "import", str(label(city, scenes, "02")))
    project = Project(city)
    assert {*sample_of(project, project.models()[0])[1]} == {*first, *second}
    assert {*sample_of(project, project.models()[1])[1]} == {*second}
    capsys.readouterr()
    adapt(city, "status")
    before, newest = status(Project(city)).models
    assert interval_text(before.measured) in (out := capsys.readouterr().out) and interval_text(newest.measured) in out
    assert newest.measured and not newest.drawn and {*newest.measured_iou} <= {*CITYSCAPES_CLASSES.names}
    mean = np.mean([iou.value for iou in newest.measured_iou.values()])
    assert mean == pytest.approx(newest.measured.value)
    # Drawn images count from when they have labels.
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    assert not status(Project(city)).models[-1].drawn
    adapt(city, "import", str(label(city, scenes, "03")))
    assert all(model.drawn and model.measured for model in status(Project(city)).models)


def test_prelabels_are_cut_by_confidence(city: Path) -> None:
    project = Project(city)
    (model,) = project.models()
    predictor = project.predictor(model)
    limit = float(predictor(project.files[next(iter(project.files))]).confidence().median())
    folder = proposing.propose(project, 2, confidence=limit)
    for name in project.proposed(folder):
        prediction = predictor(project.files[name])
        is_sure = prediction.confidence().numpy() >= limit
        prelabel = np.asarray(Image.open(proposing.prelabel_file(folder, name)))
        assert np.array_equal(prelabel, np.where(is_sure, prediction.labels.numpy(), 255))
        assert 0 < is_sure.mean() < 1
    with refuses("--confidence", 1):
        proposing.propose(project, 2, confidence=1)


def test_without_scikit_learn_only_proposals_by_a_model_are_refused(
    city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with refuses("strategy"):
        adapt(city, "propose", "--budget", "1")
    assert not (city / "cache").exists() and not (city / "rounds").exists()  # before the pass over the images
    assert adapt(city, "propose", "--budget", "1", "--purpose", "test") == 0


def test_adapt_opens_or_starts(city: Path, photos: Path, source: Path, tmp_path: Path) -> None:
    words = (str(photos), str(TINY_CONFIG), str(source))
    assert tmt_d2.adapt(city).folder == tmt_d2.adapt(city, *words).folder == Project(city).folder
    project = tmt_d2.adapt(tmp_path / "new", *words, source_data="cityscapes", opts=SMALL)
    assert (tmp_path / "new/project.yaml").read_text() == (city / "project.yaml").read_text()
    assert [*project.files] == [*Project(city).files]
    with refuses("images", str(tmp_path)):
        tmt_d2.adapt(city, str(tmp_path))
    with refuses("model", str(photos)):
        tmt_d2.adapt(city, *words[:2], str(photos))
    with refuses("--project"):
        tmt_d2.adapt(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_moved_project_continues(city: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapt(city, "propose", "--budget", "2", "--purpose", "test")
    adapt(city, "propose", "--budget", "1")
    for number in ("01", "02"):
        adapt(city, "import", str(label(city, scenes, number)))
    adapt(city, "train")
    before = status(Project(city)).models
    moved = tmp_path / "far" / "away" / "town"
    moved.parent.mkdir(parents=True)
    shutil.move(city, moved)
    assert status(Project(moved)).models == before
    assert adapt(moved, "propose", "--budget", "1") == 0
    assert adapt(moved, "import", str(label(moved, scenes, "03"))) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "run_stage", killed)
        adapt(moved, "train")
    again = moved.with_name("village")  # within a training
    shutil.move(moved, again)
    assert adapt(again, "train") == 0
    models = status(Project(again)).models
    assert models[:2] == before and models[2].labels == 2 and models[2].measured
    assert str(again.resolve() / "models/02") == setup_cfg(again / "config.yaml").OUTPUT_DIR
    assert adapt(again, "predict", Project(again).place, "--output", str(tmp_path / "out")) == 0
    assert not city.exists() and not moved.exists()


def test_images_and_model_in_the_folder_of_the_project_move_with_it(
    photos: Path, source: Path, scenes: Path, tmp_path: Path
) -> None:
    city, town = tmp_path / "inside", tmp_path / "town"
    city.mkdir()
    shutil.move(photos, city)
    shutil.copy(source, city)
    tmt_d2.adapt(city, str(city / "photos"), str(TINY_CONFIG), str(city / "source.pth"), opts=SMALL)
    shutil.move(city, town)
    adapt(town, "propose", "--budget", "2")
    assert adapt(town, "import", str(label(town, scenes, "01"))) == 0
    assert adapt(town, "train") == 0 and len(status(Project(town)).models) == 2
    assert Project(town).place == str(town.resolve() / "photos")


def test_a_copy_leaves_the_original_alone(city: Path, scenes: Path, tmp_path: Path) -> None:
    adapt(city, "propose", "--budget", "2")
    adapt(city, "import", str(label(city, scenes, "01")))
    adapt(city, "train")
    copy = tmp_path / "deep" / "er" / "city"  # of the same name
    shutil.copytree(city, copy)
    before = {path: path.stat().st_mtime_ns for path in city.rglob("*")}
    process = run_python("-m", "tmt_d2.projects.loop.command", "train", "--project", str(copy), "SOLVER.MAX_ITER", "1")
    assert process.returncode == 0, process.stderr
    assert (copy / "models/02/model_final.pth").is_file()
    assert {path: path.stat().st_mtime_ns for path in city.rglob("*")} == before


def test_a_project_without_its_images_is_refused_until_they_are_named(city: Path, photos: Path, tmp_path: Path) -> None:
    names = [*Project(city).files]
    photos.rename(tmp_path / "elsewhere")
    file = city / "project.yaml"
    with refuses(f"{file}: images", str(photos)):
        adapt(city, "status")
    file.write_text(file.read_text().replace(f"images: {photos}", "images: ../elsewhere"))
    project = Project(city)
    assert [*project.files] == names and all(Path(path).is_file() for path in project.files.values())


def test_images_of_one_name_in_folders_of_several_depths(
    city: Path, photos: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in sorted((photos / "more/night").iterdir()):
        Image.open(file).rotate(180).save(photos / file.name)
    assert adapt(city, "propose", "--budget", "8") == 0
    assert len(Project(city).proposed(city / "rounds/01")) == 8
    saved = saved_lists(city / "rounds/01/selected.html", lambda name: True)
    assert saved == {"selected.txt": (city / "rounds/01/selected.txt").read_text().splitlines()}
    # Labels of one folder first: the data set has labels at one depth, then at both.
    names = Project(city).proposed(city / "rounds/01")
    for depth in (0, 2):
        export = city.parent / f"depth{depth}.zip"
        labels = [(name, truth(scenes, name)) for name in names if name.count("/") == depth]
        write_cvat_masks(export, Project(city).classes().classes, labels)
        assert adapt(city, "import", str(export)) == 0
    project = Project(city)
    assert project.splits() == {
        "train": ["own_city_sem_seg_train_0", "own_city_sem_seg_train_2"],
        "unlabeled": [],
        "test": [],
    }
    caplog.clear()
    for file in project.data_set_files():
        register_custom(file)
    assert len(labeled_records(project.splits()["train"])) == 8
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert adapt(city, "train") == 0  # without an unlabeled image
    assert [model.labels for model in status(Project(city)).models] == [0, 8]

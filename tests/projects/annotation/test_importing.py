"""Import: matched and renamed images, what is kept, bad input, training on the result, round trips of pre-labels."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.errors import refuses
from tests.helpers.small_runs import exif
from tests.projects.annotation import exports
from tests.projects.annotation.exports import CLASSES, COLORS, IDS, NAMES, SIZE, blobs, write_folder, write_zip
from tmt_d2.data.class_lists import ClassList
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.image_lists import listed_names
from tmt_d2.data.reader import exif_orientation, read_image, read_pair
from tmt_d2.errors import UserError
from tmt_d2.inference.images import find_images
from tmt_d2.projects.annotation import archive
from tmt_d2.projects.annotation import command as import_command
from tmt_d2.projects.annotation.archive import open_export
from tmt_d2.projects.annotation.brush import encode_brush
from tmt_d2.projects.annotation.importing import ImportReport, import_labels
from tmt_d2.projects.annotation.labels import LabelClasses, read_classes
from tmt_d2.projects.annotation.matching import ImageNames
from tmt_d2.projects.annotation.orientation import copy_as_stored
from tmt_d2.projects.annotation.writers import labeling_config, write_cvat_masks, write_label_studio
from tmt_d2.projects.label_selection import prelabels
from tmt_d2.projects.label_selection.prelabels import MASKS, POLYGONS, mask_annotations

OWN = LabelClasses(ClassList(tuple(CLASSES), ((1, 2, 3), (4, 5, 6), (7, 8, 9))), tuple(CLASSES.values()))
PHOTOS = ("a.jpg", "day/b.jpg", "night/b.jpg", "night/c.PNG")


def photos(folder: Path, names: tuple[str, ...] = PHOTOS, size: tuple[int, int] = SIZE) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def run(folder: Path, export: Path, **options: Any) -> ImportReport:
    return import_labels(export, find_images(str(folder / "photos")), OWN, folder / "out", **options)


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def label(folder: Path, name: str) -> np.ndarray:
    return cv2.imread(str(folder / "out" / "labels" / f"{name}.png"), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("night/b.jpg", [2]),
        ("night/b", [2]),
        ("images/day/b.jpg", [1]),
        ("b.jpg", [1, 2]),
        ("other/a.png", [0]),
        ("c", [3]),
        ("night_c.png", [3]),
        ("day-b.png", [1]),
        ("/data/upload/2/01234567-a.jpg", [0]),
        ("01234567-night_b.jpg", [2]),
        ("images/89abcdef-c.PNG", [3]),
        ("photos/night/b", [2]),
        ("other/b.jpg", []),
        ("other/c.PNG", []),
        ("other/night/c", [3]),
        ("night/a", [0]),
        ("other/89abcdef-c.PNG", []),
        ("d.jpg", []),
        ("aa.jpg", []),
        ("a.b", []),
    ],
)
def test_images_by_the_names_that_tools_give_them(name: str, indices: list[int]) -> None:
    assert ImageNames(PHOTOS).find(name) == indices


def test_files_of_an_import(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    labels = {"a.jpg": blobs(1), "images/night/b.jpg": blobs(2), "gone.jpg": blobs(3), "b.jpg": blobs(4)}
    labels |= {"day_b.jpg": np.full(SIZE, 255, np.uint8), "c.png": blobs(5, (SIZE[1], SIZE[0]))}
    report = run(tmp_path, write_zip(tmp_path / "e.zip", exports.cvat_coco(labels)))
    assert not report.is_complete and len(report.lines()) == 7
    assert {kind: names for kind, names in report.names.items() if names} == {
        "written": ["a.jpg", "night/b.jpg"],
        "renamed": ["images/night/b.jpg -> night/b.jpg", "day_b.jpg -> day/b.jpg"],
        "empty": ["day/b.jpg"],
        "additional": ["gone.jpg"],
        "ambiguous": ["b.jpg"],
        "wrong_size": [f"c.png ({SIZE[0]}x{SIZE[1]}, not {SIZE[1]}x{SIZE[0]})"],
        "missing": ["day/b.jpg", "night/c.PNG"],
    }
    assert np.array_equal(label(tmp_path, "a"), IDS[blobs(1)])
    assert np.array_equal(label(tmp_path, "night/b"), IDS[blobs(2)])
    others = {"classes.json", "dataset.yaml", "labeled.txt"}
    assert files_below(tmp_path / "out") == {"labels/a.png", "labels/night/b.png"} | others
    assert read_classes(str(tmp_path / "out" / "classes.json")) == OWN


@pytest.mark.parametrize("names", [("b", "other/b"), ("other/b", "b")])
def test_a_label_of_a_removed_image_replaces_no_other(tmp_path: Path, names: tuple[str, str]) -> None:
    """Neither of another folder, nor beside the label of the same path, whichever comes first."""
    photos(tmp_path / "photos", ("b.jpg", "day/c.jpg"))
    labels = {name: blobs(1 if name == "b" else 2) for name in names}
    report = run(tmp_path, write_zip(tmp_path / "e.zip", exports.cvat_coco(labels | {"night/c.jpg": blobs(3)})))
    assert report.names["additional"] == ["other/b", "night/c.jpg"] and not report.is_complete
    assert not report.names["repeated"] and report.names["missing"] == ["day/c.jpg"]
    assert np.array_equal(label(tmp_path, "b"), IDS[blobs(1)])
    alone = write_zip(tmp_path / "a.zip", exports.cvat_coco({"other/b.jpg": blobs(2), "day/c.jpg": blobs(3)}))
    report = run(tmp_path, alone, gone=["other/b.jpg"])
    assert report.names["additional"] == ["other/b.jpg"] and report.names["written"] == ["day/c.jpg"]
    assert run(tmp_path, alone).names["renamed"] == ["other/b.jpg -> b.jpg"]  # "other" may be the folder of the images
    update = write_zip(tmp_path / "u.zip", exports.cvat_coco({"night/c.jpg": blobs(4), "day/c.jpg": blobs(5)}))
    assert run(tmp_path, update, replace=True).names["written"] == ["day/c.jpg"]
    assert np.array_equal(label(tmp_path, "day/c"), IDS[blobs(5)])


def test_the_data_set_has_labeled_and_unlabeled_images(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    run(tmp_path, write_zip(tmp_path / "e.zip", exports.cvat_masks({"a": blobs(1), "day/b": blobs(2)})))
    data_set = read_custom(tmp_path / "out" / "dataset.yaml")
    assert data_set.label_space.classes == OWN.classes and list(data_set.splits) == ["train_0", "train_1"]
    deep = data_set.listing("train_1")
    assert sorted(deep.unlabeled) == ["night_b", "night_c"] and list(deep.pairs) == ["day_b"]
    image, own = deep.pairs["day_b"]
    _, train_ids = read_pair({"file_name": image, "sem_seg_file_name": own}, data_set.label_space)
    assert np.array_equal(train_ids, np.array([0, 1, 2, *[255] * 253])[blobs(2)])  # positions in the class list
    listed = listed_names("", tmp_path / "out" / "labeled.txt")
    assert listed == ["a.jpg", str(tmp_path / "photos" / "day" / "b.jpg")]


def test_names_are_paths_below_the_folder_of_the_images(tmp_path: Path) -> None:
    """Also where all of them are in one folder of it: images of another folder that come later rename none."""
    (tmp_path / "classes.json").write_text(str(exports.id_files({})["classes.json"]))
    for number, name in enumerate(("day/a", "night/b")):
        photos(tmp_path / "photos", (f"{name}.jpg",))
        export = write_zip(tmp_path / f"{number}.zip", exports.cvat_masks({name: blobs(number)}))
        assert command(tmp_path, "--export", str(export)) == 0
    assert files_below(tmp_path / "out" / "labels") == {"day/a.png", "night/b.png"}
    assert listed_names("", tmp_path / "out" / "labeled.txt") == ["a.jpg", "b.jpg"]


def test_two_images_of_one_name_or_one_file(tmp_path: Path) -> None:
    """A label file, or a line of a list, would mean both."""
    export = write_zip(tmp_path / "e.zip", exports.cvat_masks({"a": blobs()}))
    photos(tmp_path / "photos", ("a.jpg", "a.png"))
    with refuses("a.png"):
        run(tmp_path, export)
    (tmp_path / "photos" / "a.png").unlink()
    (tmp_path / "photos" / "b.jpg").symlink_to(tmp_path / "photos" / "a.jpg")
    with refuses("b.jpg"):
        run(tmp_path, export)
    (tmp_path / "photos" / "a.jpg").replace(tmp_path / "c.jpg")
    (tmp_path / "photos" / "b.jpg").unlink()
    (tmp_path / "photos" / "a.jpg").symlink_to(tmp_path / "c.jpg")  # a single link is an image
    assert run(tmp_path, export).is_complete


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"a\tb.jpg", b"\xff.jpg"])
def test_names_that_no_list_or_archive_can_hold(tmp_path: Path, name: bytes) -> None:
    photos(tmp_path / "photos", ("a.jpg", "\u202f\u00fc #1,'.jpg"))
    export = write_zip(tmp_path / "e.zip", exports.cvat_masks({"a": blobs()}))
    assert run(tmp_path, export).is_complete  # odd, but allowed
    shutil.copy(tmp_path / "photos" / "a.jpg", os.fsencode(tmp_path / "photos") + b"/" + name)
    with refuses(repr(os.fsdecode(name))):
        run(tmp_path, export)


def test_a_class_with_the_name_of_pixels_without_a_label(tmp_path: Path) -> None:
    photos(tmp_path / "photos", ("a.jpg",))
    images, own = (
        find_images(str(tmp_path / "photos")),
        LabelClasses(ClassList(("background", "road"), COLORS[:2]), (0, 1)),
    )
    labels = np.where(blobs() == 2, np.uint8(255), blobs())
    write_cvat_masks(tmp_path / "cvat.zip", own.classes, [("a.jpg", labels)])
    with refuses("--map"):
        import_labels(tmp_path / "cvat.zip", images, own, tmp_path / "1")
    chosen = {"background": np.where(labels == 255, 0, labels), "ignore": np.where(labels == 0, 255, labels)}
    for name, expected in chosen.items():
        import_labels(tmp_path / "cvat.zip", images, own, tmp_path / name, mapping={"background": name})
        assert np.array_equal(np.asarray(Image.open(tmp_path / name / "labels" / "a.png")), expected)
    rows = [{"id": value, "name": name, "color": [0, 0, 0]} for name, value in own.by_name().items()]
    files = {"classes.json": json.dumps({"classes": rows}), "labels/a.png": exports.png(labels)}
    import_labels(write_zip(tmp_path / "ids.zip", files), images, own, tmp_path / "ids")  # nothing is ambiguous
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ids" / "labels" / "a.png")), labels)


def test_a_later_import_keeps_what_differs(tmp_path: Path) -> None:
    photos(tmp_path / "photos", ("a.jpg", "b.jpg", "c.jpg"))
    run(tmp_path, write_zip(tmp_path / "1.zip", exports.cvat_masks({"a": blobs(1), "b": blobs(2)})))
    later = write_zip(tmp_path / "2.zip", exports.id_files({"a": blobs(1), "b": blobs(3), "c": blobs(4)}))
    report = run(tmp_path, later)
    assert [report.names[kind] for kind in ("unchanged", "kept", "written")] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    assert np.array_equal(label(tmp_path, "b"), IDS[blobs(2)]) and not report.is_complete
    assert len(listed_names("", tmp_path / "out" / "labeled.txt")) == 3
    assert run(tmp_path, later, replace=True).names["written"] == ["b.jpg"]
    assert np.array_equal(label(tmp_path, "b"), IDS[blobs(3)])
    other = LabelClasses(OWN.classes, (0, 1, 2))
    with refuses("--output"):
        import_labels(later, find_images(str(tmp_path / "photos")), other, tmp_path / "out")


def test_the_data_set_follows_later_imports(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    file = tmp_path / "out" / "dataset.yaml"
    for name, splits in (("a", ["train_0"]), ("day/b", ["train_0", "train_1"])):
        report = run(tmp_path, write_zip(tmp_path / "e.zip", exports.cvat_masks({name: blobs(1)})))
        data_set = read_custom(file)
        assert report.is_complete and [split for split in data_set.splits if data_set.listing(split).pairs] == splits
    own = file.read_text().partition("\n")[2]
    file.write_text(own)
    assert run(tmp_path, tmp_path / "e.zip").names["kept"] == ["dataset.yaml"] and file.read_text() == own


def test_of_two_annotators_the_last_counts(tmp_path: Path) -> None:
    photos(tmp_path / "photos", ("a.jpg",))
    results = []
    for seed in (1, 2):
        values = [(name, blobs(seed) == index) for index, name in enumerate(NAMES)]
        results.append([exports.region("brushlabels", n, {"rle": encode_brush(mask)}) for n, mask in values])
    task = exports.task("a.jpg", *results)
    task["annotations"][0]["updated_at"] = "2026-02-01T10:00:00Z"
    task["annotations"][1]["updated_at"] = "2026-01-01T10:00:00Z"
    (tmp_path / "e.json").write_text(json.dumps([task]))
    report = run(tmp_path, tmp_path / "e.json")
    assert report.names["repeated"] == ["a.jpg"] and np.array_equal(label(tmp_path, "a"), IDS[blobs(1)])


def turn(file: Path, orientation: int) -> None:
    """Give an image an EXIF orientation."""
    with Image.open(file) as image:
        image.save(file, exif=exif(orientation))


def test_labels_of_an_image_turned_by_its_orientation(tmp_path: Path) -> None:
    photos(tmp_path / "photos", ("a.jpg",))
    turn(tmp_path / "photos" / "a.jpg", 6)
    turned = blobs(1, (SIZE[1], SIZE[0]))
    run(tmp_path, write_zip(tmp_path / "e.zip", exports.cvat_masks({"a": turned})))
    data_set = read_custom(tmp_path / "out" / "dataset.yaml")
    image_file, own = data_set.listing("train").pairs["a"]
    pixels, _ = read_pair({"file_name": image_file, "sem_seg_file_name": own}, data_set.label_space)
    assert pixels.shape[:2] == turned.shape


@pytest.mark.parametrize(("orientation", "size"), [(2, SIZE), (3, SIZE), (4, SIZE), (5, (32, 32)), (8, (32, 32))])
def test_a_label_whose_size_does_not_tell_the_orientation_is_left_out(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    """Unless a copy without the orientation was labeled."""
    photos(tmp_path / "photos", ("a.jpg", "b.jpg"), size)
    shutil.copytree(tmp_path / "photos", tmp_path / "copies")
    turn(tmp_path / "photos" / "a.jpg", orientation)
    export = write_zip(tmp_path / "e.zip", exports.cvat_masks({name: blobs(1, size) for name in "ab"}))
    report = run(tmp_path, export)
    assert report.names["turned"] == [f"a.jpg ({orientation})"] and report.names["written"] == ["b.jpg"]
    assert not report.is_complete and files_below(tmp_path / "out" / "labels") == {"b.png"}
    report = run(tmp_path, export, copies={"a.jpg": str(tmp_path / "copies" / "a.jpg")})
    assert report.is_complete and report.names["written"] == ["a.jpg"]


def with_other_tags(orientation: int, order: str) -> bytes:
    """An EXIF block of either byte order, with the orientation between other tags."""
    entries = [
        (0x010E, 2, 4, b"cam\0"),
        (0x0112, 3, 1, struct.pack(f"{order}HH", orientation, 0)),
        (0x0131, 2, 4, b"x.y\0"),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    rows = [struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries]
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(rows)) + b"".join(rows) + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_copy_is_shown_as_the_image_is_stored(tmp_path: Path, name: str, order: str) -> None:
    photos(tmp_path, (name,))
    plain, copy = tmp_path / name, tmp_path / f"copy-{name}"
    copy_as_stored(str(plain), copy)
    assert copy.read_bytes() == plain.read_bytes()
    with Image.open(plain) as image:
        image.save(plain, exif=with_other_tags(3, order))
    assert exif_orientation(str(plain)) == 3
    copy_as_stored(str(plain), copy)
    with Image.open(copy) as shown, Image.open(plain) as stored:
        assert {**shown.getexif()} == {**stored.getexif()} | {0x0112: 1}
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(shown)), np.asarray(stored))
    assert np.array_equal(read_image(str(copy), oriented=True), read_image(str(plain)))
    changed = [a != b for a, b in zip(copy.read_bytes(), plain.read_bytes(), strict=True)]
    assert sum(changed) <= 1 + 4 * (name == "a.png")  # and the checksum of a chunk


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_copy_of_an_image_with_a_damaged_exif_block(tmp_path: Path) -> None:
    """Readers skip repeated prefixes, and read what there is of a list of tags that ends early."""
    photos(tmp_path, ("a.jpg", "a.png"))
    plain, copy, good = tmp_path / "a.jpg", tmp_path / "copy.jpg", with_other_tags(3, "<")
    uncounted = good.replace(struct.pack("<IH", 8, 3), struct.pack("<IH", 8, 99))
    for block in (b"Exif\0\0" + good, uncounted, uncounted[:-10]):
        with Image.open(plain) as image:
            image.save(plain, exif=block)
        assert exif_orientation(str(plain)) == 3
        copy_as_stored(str(plain), copy)
        assert exif_orientation(str(copy)) == 1
        assert np.array_equal(read_image(str(copy), oriented=True), read_image(str(plain)))
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "a.png", exif=b"Exif\0\0" + good)
    with refuses(str(tmp_path / "a.png")):  # its chunk holds a prefix, and is left as it is
        copy_as_stored(str(tmp_path / "a.png"), tmp_path / "copy.png")


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("SegmentationClass/b.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return path


def with_two_files_of_one_name(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MASK, b"")
    return path


def with_damaged_bytes(path: Path) -> Path:
    """The names remain, the checksum of the first file is wrong."""
    data = bytearray(path.read_bytes())
    start = data.index(b"SegmentationClass/a.png") + len("SegmentationClass/a.png")
    data[start + 20] ^= 255
    path.write_bytes(bytes(data))
    return path


GOOD = exports.cvat_masks({"a": blobs()})
MASK = "SegmentationClass/a.png"
BAD: dict[str, Callable[[Path], Path]] = {
    "another project": lambda path: write_zip(path, exports.cvat_masks({"x": blobs()})),
    "other sizes": lambda path: write_zip(path, exports.cvat_masks({"a": blobs(0, (9, 9))})),
    "other classes": lambda path: write_zip(path, GOOD | {"labelmap.txt": "background:0,0,0::\ncat:128,64,128::\n"}),
    "two labels of one color": lambda path: write_zip(
        path, GOOD | {"labelmap.txt": str(GOOD["labelmap.txt"]) + "sky:128,64,128::"}
    ),
    "a wrong label map": lambda path: write_zip(path, GOOD | {"labelmap.txt": "road 1 2 3"}),
    "another encoding": lambda path: write_zip(path, GOOD | {"labelmap.txt": "straße:1,2,3::".encode("latin-1")}),
    "no label map": lambda path: write_zip(path, {MASK: GOOD[MASK]}),
    "a truncated image": lambda path: write_zip(path, GOOD | {MASK: bytes(GOOD[MASK][:80])}),  # type: ignore[arg-type]
    "no image": lambda path: write_zip(path, GOOD | {MASK: b"text"}),
    "nothing labeled": lambda path: write_zip(path, exports.cvat_masks({"a": np.full(SIZE, 255, np.uint8)})),
    "no images": lambda path: write_zip(path, exports.cvat_masks({})),
    "no files": lambda path: write_zip(path, {}),
    "another format": lambda path: write_zip(path, {"annotations.xml": "<annotations/>"}),
    "no JSON": lambda path: write_zip(path, {"instances.json": '{"images": ['}),
    "half a zip": lambda path: truncated(write_zip(path, GOOD)),
    "damaged bytes": lambda path: with_damaged_bytes(write_zip(path, GOOD)),
    "a path outside": lambda path: write_zip(path, GOOD | {"SegmentationClass/../../evil.png": GOOD[MASK]}),
    "a path outside of Windows": lambda path: write_zip(path, GOOD | {"..\\evil.png": GOOD[MASK]}),
    "an absolute path": lambda path: write_zip(path, GOOD | {"/tmp/evil.png": GOOD[MASK]}),
    "a link": lambda path: with_link(write_zip(path, GOOD)),
    "two files of one name": lambda path: with_two_files_of_one_name(write_zip(path, GOOD)),
    "a bomb": lambda path: write_zip(path, GOOD | {"SegmentationClass/b.png": bytes(3_000_000)}),
    "no such file": lambda path: path,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_error_and_writes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LIMIT", 2**20)
    photos(tmp_path / "photos", ("a.jpg", "b.jpg"))
    export = BAD[kind](tmp_path / "in" / "e.zip")
    before = files_below(tmp_path)
    with pytest.raises(UserError) as error:
        run(tmp_path, export)
    assert error.value.key.startswith(str(export)) and "\n" not in str(error.value)
    assert files_below(tmp_path) == before


def test_the_command_leaves_no_folder_after_an_error(tmp_path: Path) -> None:
    photos(tmp_path / "photos", ("a.jpg",))
    (tmp_path / "classes.json").write_text(str(exports.id_files({})["classes.json"]))
    other = write_zip(tmp_path / "e.zip", exports.cvat_masks({"x": blobs()}))
    for created in (False, True):
        with refuses(str(other)):
            command(tmp_path, "--export", str(other))
        assert (tmp_path / "out").exists() == created
        (tmp_path / "out").mkdir(exist_ok=True)  # an empty folder of the user stays
    assert command(tmp_path, "--export", str(write_zip(tmp_path / "a.zip", GOOD))) == 0


def test_a_header_that_hides_the_size_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LIMIT", 2**20)
    path = write_zip(tmp_path / "e.zip", {"a.json": bytes(3_000_000)})
    data = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    with open_export(path) as files, refuses(f"{path}: a.json"):
        files.read(*files.select(lambda name: True))


def test_reading_counts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LIMIT", 1000)
    folder = write_folder(tmp_path / "e", {"a.json": bytes(600), "b.json": bytes(600)})
    with open_export(folder) as files:
        files.read("a.json")
        with refuses(str(folder)):
            files.read("b.json")
        with refuses(str(folder)):
            files.select(lambda name: True)


def command(folder: Path, *more: str) -> int:
    words = ["--images", str(folder / "photos"), "--output", str(folder / "out"), "--classes"]
    return import_command.main([*words, str(folder / "classes.json"), *more])


def labels_to_write() -> tuple[ClassList, list[tuple[str, np.ndarray]]]:
    return ClassList(NAMES, COLORS), [("a.jpg", blobs(1)), ("day/b.jpg", blobs(2))]


def prelabels_json(folder: Path, segmentation: str, labels: Mapping[str, np.ndarray]) -> Path:
    content = exports.coco(labels) | {"annotations": []}
    for number, own in enumerate(labels.values(), 1):
        for each in mask_annotations(own, np.ones(own.shape), segmentation):
            content["annotations"].append({"image_id": number, **each})
    (folder / "prelabels.json").write_text(json.dumps(content))
    return folder / "prelabels.json"


def cvat_zip(folder: Path) -> Path:
    write_cvat_masks(folder / "cvat.zip", *labels_to_write())
    return folder / "cvat.zip"


def accepted_tasks(folder: Path) -> Path:
    """Predictions that an annotator accepted as they are."""
    write_label_studio(folder / "tasks.json", *labels_to_write())
    tasks = json.loads((folder / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder / "tasks.json"


ROUND_TRIPS: dict[str, Callable[[Path], Path]] = {
    "COCO masks": lambda folder: prelabels_json(folder, MASKS, dict(labels_to_write()[1])),
    "CVAT masks": cvat_zip,
    "Label Studio brush": accepted_tasks,
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_prelabels_come_back_to_the_pixel(tmp_path: Path, name: str) -> None:
    photos(tmp_path / "photos")
    rows = [{"id": value, "name": key, "color": [value, 0, 0]} for key, value in CLASSES.items()]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows}))
    assert command(tmp_path, "--export", str(ROUND_TRIPS[name](tmp_path))) == 0
    for image, own in labels_to_write()[1]:
        assert np.array_equal(label(tmp_path, image.removesuffix(".jpg")), IDS[own])
    with refuses("--map", "road"):
        command(tmp_path, "--export", str(tmp_path), "--map", "road")


def class_map(seed: int) -> np.ndarray:
    """(H, W) uint8 of any size: smooth regions and rings of indices of NAMES and 255, with dots."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 100, 2).tolist()
    small = rng.random((4, height // 9 + 2, width // 9 + 2))
    values = np.array([0, 1, 2, 255], np.uint8)
    labels = values[
        np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in small]).argmax(0)
    ]
    for value in rng.permutation(np.repeat(values, 2)).tolist():
        center, radius = (int(rng.integers(width)), int(rng.integers(height))), int(rng.integers(1, 30))
        cv2.circle(labels, center, radius, value, int(rng.choice([-1, 1, 3])))
    dots = rng.random(labels.shape) < 0.02
    labels[dots] = rng.choice(values, dots.sum())
    return labels


def beyond_a_pixel(found: np.ndarray, expected: np.ndarray) -> int:
    """Count the pixels that differ, and have only neighbors of their own class."""
    flat = cv2.erode(expected, np.ones((3, 3))) == cv2.dilate(expected, np.ones((3, 3)))
    return int((flat & (found != expected)).sum())


def test_polygons_come_back_within_a_pixel_of_an_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {f"{seed}.png": class_map(seed) for seed in range(80)}
    for name, own in labels.items():
        photos(tmp_path / "photos", (name,), own.shape)

    def import_polygons() -> dict[str, np.ndarray]:
        run(tmp_path, prelabels_json(tmp_path, POLYGONS, labels), replace=True)
        return {name: label(tmp_path, name.removesuffix(".png")) for name in labels}

    found = import_polygons()
    assert [name for name, own in labels.items() if beyond_a_pixel(found[name], IDS[own])] == []
    assert any((found[name] != IDS[own]).any() for name, own in labels.items())
    monkeypatch.setattr(prelabels, "TOLERANCE", 0.0)
    exact = import_polygons()
    assert all(np.array_equal(exact[name], IDS[own]) for name, own in labels.items())
    # Control: outlines that are not exact along cuts and the border of the image.
    simplify = prelabels._simplify
    monkeypatch.setattr(prelabels, "TOLERANCE", 1.0)
    monkeypatch.setattr(prelabels, "_simplify", lambda corners, fixed: simplify(corners, np.zeros_like(fixed)))
    slanted = import_polygons()
    assert any(beyond_a_pixel(slanted[name], IDS[own]) for name, own in labels.items())


def test_colors_that_cvat_could_not_tell_apart(tmp_path: Path) -> None:
    classes = ClassList(NAMES, ((0, 0, 0), (5, 5, 5), (5, 5, 5)))
    photos(tmp_path / "photos", ("a.jpg",))
    write_cvat_masks(tmp_path / "e.zip", classes, [("a.jpg", blobs(1))])
    run(tmp_path, tmp_path / "e.zip")
    assert np.array_equal(label(tmp_path, "a"), IDS[blobs(1)])
    assert labeling_config(classes).count("<Label ") == 3


def test_classes_of_a_data_set() -> None:
    assert read_classes("cityscapes").by_name()["sidewalk"] == 1
    with refuses("--classes", "citty"):
        read_classes("citty")

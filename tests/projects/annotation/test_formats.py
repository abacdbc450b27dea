"""Exports of each format, made by hand, and run lengths of Label Studio's own encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.errors import refuses
from tests.projects.annotation import exports
from tests.projects.annotation.exports import CLASSES, IDS, SIZE, blobs, region, task, write_folder, write_zip
from tmt_d2.errors import UserError
from tmt_d2.projects.annotation.brush import decode_brush, encode_brush
from tmt_d2.projects.annotation.formats import read_export

# label_studio_sdk.converter.brush.mask2rle of a (7, 9) mask that is 255 in rows 2-4 of columns 3-6.
THEIRS = [0, 0, 0, 252, 57, 27, 254, 83, 0, 191, 255, 132, 192, 47, 255, 225, 48, 11, 255, 249, 60, 0]


def read(path: Path, mapping: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    return {each.name: each.paint(each.size or SIZE) for each in read_export(path, CLASSES, mapping)}


FORMATS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "CVAT masks": (exports.cvat_masks, {}, ""),
    "Cityscapes ids": (exports.cityscapes, {}, ""),
    "Cityscapes colors": (exports.cityscapes, {"kind": "color"}, ""),
    "COCO": (exports.cvat_coco, {}, ".jpg"),
    "COCO of Label Studio": (exports.cvat_coco, {"first": 0, "compressed": False}, ".jpg"),
    "id files": (exports.id_files, {}, ""),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_labels_of_each_format(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    make, options, suffix = FORMATS[name]
    labels = {f"a.b{suffix}": blobs(1), f"day 1/ü_{suffix}": blobs(2, (5, 3))}
    found = read(write(tmp_path / "export.zip", make(labels, **options)))
    assert found.keys() == labels.keys()
    for image, label in labels.items():
        assert np.array_equal(found[image], IDS[label]), image


@pytest.mark.parametrize("prefix", ["", "task 7/"])
def test_a_folder_around_the_files_does_not_matter(tmp_path: Path, prefix: str) -> None:
    content = {prefix + name: data for name, data in exports.cvat_masks({"n/1": blobs()}).items()}
    assert list(read(write_zip(tmp_path / "e.zip", content | {"__MACOSX/SegmentationClass/._1.png": b""}))) == ["n/1"]


def test_cityscapes_ids_depend_on_the_label_map(tmp_path: Path) -> None:
    labels = blobs()
    ids, colors = exports.cityscapes({"1": labels}), exports.cityscapes({"1": labels}, "color")
    first, *others = str(ids["label_colors.txt"]).splitlines()
    expected = IDS[labels]
    without = ids | {"label_colors.txt": "\n".join(others)}
    assert np.array_equal(read(write_zip(tmp_path / "1.zip", without))["1"], expected)
    last = "\n".join([*others, first])
    with refuses(str(tmp_path / "2.zip")):
        read(write_zip(tmp_path / "2.zip", ids | {"label_colors.txt": last}))
    both = ids | colors | {"label_colors.txt": last}
    assert np.array_equal(read(write_zip(tmp_path / "3.zip", both))["1"], expected)


def test_gray_and_palette_masks(tmp_path: Path) -> None:
    content, labels = exports.cvat_masks({}), blobs()
    palette = [0, 0, 0] * 40 + [value for color in exports.COLORS for value in color] + [0, 0, 0] * 213
    content["SegmentationClass/palette.png"] = exports.png(
        np.where(labels < 255, labels + 40, 0).astype(np.uint8), palette
    )
    content["SegmentationClass/gray.png"] = exports.png(labels + np.uint8(1))  # position in the label map
    for label in read(write_zip(tmp_path / "e.zip", content)).values():
        assert np.array_equal(label, IDS[labels])
    map_file = "\n".join(str(content["labelmap.txt"]).splitlines()[2:])  # without background
    with refuses(f"{tmp_path / 'e.zip'}: SegmentationClass/gray.png"):
        read(write_zip(tmp_path / "e.zip", content | {"labelmap.txt": map_file}))


def test_brush_masks_of_label_studio() -> None:
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:7] = True
    assert np.array_equal(decode_brush(THEIRS, (7, 9)), mask)
    for odd in (mask, ~mask, mask[:1, :1], blobs() == 1, np.ones((300, 301), bool)):  # the last run is split
        assert np.array_equal(decode_brush(encode_brush(odd), odd.shape), odd)
    for wrong, size in ((THEIRS, (9, 8)), (THEIRS[:-6], (7, 9)), ([], (7, 9))):
        with pytest.raises(ValueError):
            decode_brush(wrong, size)


def test_blocks_of_different_values_by_hand() -> None:
    pixels = [(1, 2, 3, 0), (9, 0, 0, 200)]
    values = "".join(f"{value:08b}" for pixel in pixels for value in pixel)
    bits = f"{8:032b}" + f"{7:05b}" + "0010" * 4 + "0" + "00" + "111" + values  # lengths of 3 bits, 8 values
    data = [int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8)]
    assert decode_brush(data, (1, 2)).tolist() == [[False, True]]


def test_label_studio_json(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[3:20, 10:30] = True
    brush = region("brushlabels", "road", {"format": "rle", "rle": encode_brush(mask)})
    corners = [[20, 0], [40, 0], [40, 100], [20, 100]]
    points = {"points": [[100 * x / SIZE[1], y] for x, y in corners], "closed": True}
    box = region("rectanglelabels", "road", {"x": 0, "y": 0, "width": 9, "height": 9})
    relation = {"type": "relation", "from_id": "1", "to_id": "2"}
    content = [
        task("/data/local-files/?d=day%201/1.jpg", [brush, region("polygonlabels", "SKY", points), box, relation]),
        task("/data/upload/3/0a1b2c3d-2%23.jpg", [region("polygonlabels", "SKY", points), brush]),
        task("s3://bucket/photos/3.jpg?v=1", [brush]) | {"predictions": [{"result": [brush]}]},
        task("4.jpg") | {"predictions": [{"result": [brush]}]},
    ]
    content[2]["annotations"][0]["was_cancelled"] = True
    file = tmp_path / "project.json"
    file.write_text(json.dumps(content))
    found = list(read_export(file, CLASSES))
    assert [each.name for each in found] == ["day 1/1.jpg", "/data/upload/3/0a1b2c3d-2#.jpg"]
    assert [each.without_area for each in found] == [1, 0] and found[0].size == SIZE
    expected = np.full(SIZE, 255)
    expected[mask] = 3
    expected[:, 20:40] = 0
    assert np.array_equal(found[0].paint(SIZE), expected)
    expected[mask] = 3  # the later region covers the other
    assert np.array_equal(found[1].paint(SIZE), expected)


def polygons(*areas: tuple[int, list[Any], dict[str, Any]], size: tuple[int, int] = (6, 8)) -> dict[str, Any]:
    annotations = [{"image_id": 0, "category_id": index, "segmentation": each, **more} for index, each, more in areas]
    categories = [{"id": index, "name": name} for index, name in enumerate(exports.NAMES)]
    image = {"id": 0, "file_name": "1.jpg", "height": size[0], "width": size[1]}
    return {"images": [image], "categories": categories, "annotations": annotations}


LEFT, RIGHT = [0, 0, 5, 0, 5, 6, 0, 6], [3, 0, 8, 0, 8, 6, 3, 6]


def test_overlapping_polygons(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    for areas, row in (
        ([(0, [LEFT], {}), (1, [RIGHT], {})], [3] * 3 + [0] * 5),
        ([(1, [RIGHT], {}), (0, [LEFT], {})], [3] * 5 + [0] * 3),
        ([(0, [LEFT], {"attributes": {"z_order": 2}}), (1, [RIGHT], {})], [3] * 5 + [0] * 3),
        ([(2, [[0, 0, 1, 0, 1, 6, 0, 6], [7, 0, 8, 0, 8, 6, 7, 6], [1, 1, 2, 2]], {})], [7] + [255] * 6 + [7]),
        ([(0, [LEFT], {}), (1, [], {"bbox": [0, 0, 3, 3]})], [3] * 5 + [255] * 3),
    ):
        file.write_text(json.dumps(polygons(*areas)))
        assert np.array_equal(read(file)["1.jpg"], [row] * 6)


def test_an_image_without_its_size(tmp_path: Path) -> None:
    content = polygons((0, [LEFT], {}))
    content["images"][0] |= {"height": None, "file_name": "images\\1.jpg"}
    (tmp_path / "result.json").write_text(json.dumps(content))
    (found,) = read_export(tmp_path / "result.json", CLASSES)
    assert found.name == "images/1.jpg" and found.size is None
    assert np.array_equal(found.paint((6, 8)), [[3] * 5 + [255] * 3] * 6)


def test_unlabeled_pixels_and_labels_of_other_names(tmp_path: Path) -> None:
    labels = blobs()
    for make in (exports.cvat_masks, exports.cityscapes, exports.cvat_coco):
        file = write_zip(tmp_path / "e.zip", make({"1": labels, "2": np.full(SIZE, 255, np.uint8)}))
        found = read(file, {"background": "sky"})
        assert np.array_equal(found["1"], np.where(labels == 255, 0, IDS[labels]))
        assert (found["2"] == 255).all()  # nobody has labeled it
        assert np.array_equal(read(file, {"Road": "ignore"})["1"], np.where(labels == 0, 255, IDS[labels]))
        with refuses("--map", "Road=rod"):
            read(file, {"Road": "rod"})
        with pytest.raises(UserError) as error:
            [each.paint(SIZE) for each in read_export(file, {"sky": 0, "lamp": 1})]
        assert all(name in error.value.message for name in ("Road", "traffic light"))
        assert all(name in error.value.hint for name in ("sky", "lamp"))


def test_a_label_that_no_pixel_has_may_be_unknown(tmp_path: Path) -> None:
    labels = np.where(blobs() == 2, 255, blobs()).astype(np.uint8)
    for make in (exports.cvat_masks, exports.cityscapes, exports.cvat_coco):
        file = write_zip(tmp_path / "e.zip", make({"1": labels}))
        (found,) = read_export(file, {"road": 3, "sky": 0})
        assert np.array_equal(found.paint(SIZE), IDS[labels])


DAMAGED_COCO: dict[str, Callable[[dict[str, Any]], object]] = {
    "an image_id without image": lambda content: content["annotations"][0].update(image_id=9),
    "a category_id without category": lambda content: content["annotations"][0].update(category_id=9),
    "an odd polygon": lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "no numbers": lambda content: content["annotations"][0].update(segmentation=[["x"] * 6]),
    "a far polygon": lambda content: content["annotations"][0].update(segmentation=[[0, 0, 1e9, 0, 1e9, 5]]),
    "not a number": lambda content: content["annotations"][0].update(segmentation=[[0, 0, float("nan"), 0, 3, 5]]),
    "run lengths of another size": lambda content: content["annotations"][0].update(
        segmentation={"size": [8, 6], "counts": [48]}
    ),
    "too few run lengths": lambda content: content["annotations"][0].update(
        segmentation={"size": [6, 8], "counts": [3]}
    ),
    "damaged run lengths": lambda content: content["annotations"][0].update(
        segmentation={"size": [6, 8], "counts": "zz~~"}
    ),
    "no file name": lambda content: content["images"][0].pop("file_name"),
    "a list for a mapping": lambda content: content.update(categories=[[1]]),
}


@pytest.mark.parametrize("kind", DAMAGED_COCO)
def test_damaged_coco_files(tmp_path: Path, kind: str) -> None:
    file, content = tmp_path / "instances.json", polygons((0, [LEFT], {}))
    DAMAGED_COCO[kind](content)
    file.write_text(json.dumps(content))
    with refuses(str(file)):
        read(file)

"""Exported files agree with the model, adaptive clustering and transferable attention included."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from tests.helpers.errors import refuses
from tests.helpers.models import tiny_cfg
from tmt_d2.cli.export import main
from tmt_d2.data.class_lists import with_colors
from tmt_d2.errors import UserError
from tmt_d2.inference.export import Agreement, FixedSizeModel, export_model, sample_image
from tmt_d2.inference.predictor import Predictor

pytestmark = pytest.mark.slow

SIZE = (40, 60)  # padded to 64 x 64
SMALL = {
    "MODEL__MASK_FORMER__DEC_LAYERS": 2,
    "MODEL__TMT__ITERATIONS": 1,
    "MODEL__TMT__OUTPUT_TRANSFERABILITY": True,
    "MODEL__TMT__TEST_ATTENTION": True,
    "INPUT__MIN_SIZE_TEST": 0,
}


def small_model(architecture: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_cfg(MODEL__META_ARCHITECTURE=architecture, **{**SMALL, **changes})).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and checkpoint of a small TMT model: tmt.yaml, tmt.pth."""
    folder = tmp_path_factory.mktemp("export")
    cfg = tiny_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer", **SMALL)
    (folder / "tmt.yaml").write_text(cfg.dump())
    torch.save({"model": small_model("TransferableMaskFormer").state_dict()}, folder / "tmt.pth")
    return folder


def test_the_exported_function_equals_the_predictor(files: Path) -> None:
    predictor = Predictor.from_config(str(files / "tmt.yaml"), str(files / "tmt.pth"))
    image = sample_image(SIZE, 0)
    assert image.shape == (1, 3, *SIZE)
    assert 0 <= image.min() < image.max() <= 255
    prediction = predictor(image[0].permute(1, 2, 0).byte().numpy())
    fixed = FixedSizeModel(predictor.model)
    outputs = dict(zip(fixed.names, fixed(image)))
    assert outputs["labels"].shape == (1, *SIZE)
    assert torch.equal(outputs["labels"][0], prediction.labels.long())
    assert torch.allclose(outputs["scores"][0], prediction.scores, atol=1e-6)
    assert torch.allclose(outputs["transferability"][0], prediction.transferability, atol=1e-6)
    assert outputs["class_logits"].shape == (1, 20, 20)
    assert outputs["mask_logits"].shape == (1, 20, 16, 16)


def test_a_model_that_outputs_no_t_is_exported_without_it() -> None:
    changes = {"MODEL__TMT__TEST_ATTENTION": False, "MODEL__TMT__OUTPUT_TRANSFERABILITY": False}
    quick = small_model("TransferableMaskFormer", **changes)
    for model, has_t in ((quick, False), (small_model("TransferableMaskFormer"), True)):
        fixed = FixedSizeModel(model)
        assert len(fixed(sample_image(SIZE, 0))) == len(fixed.names)
        assert ("transferability" in fixed.names) == has_t


def test_pt2_file_of_mask2former(tmp_path: Path) -> None:
    model = small_model("MaskFormer", MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    model.classes = with_colors(["lawn", "pond"], {"pond": (0, 90, 255)})
    agreement = export_model(model, (64, 64), tmp_path / "plain.pt2", "pt2", channels="BGR")
    assert agreement.logits < 1e-3
    assert agreement.labels > 0.999
    assert min(agreement.model_seconds, agreement.file_seconds) > 0
    image = sample_image((64, 64), 99)
    extra = {"classes.json": "", "input.json": ""}
    exported = torch.export.load(tmp_path / "plain.pt2", extra_files=extra).module()(image)
    assert len(exported) == 4 and exported[1].shape[1] == 2
    assert json.loads(extra["input.json"])["channels"] == "BGR"
    classes = json.loads(extra["classes.json"])
    assert classes["names"] == ["lawn", "pond"] and classes["colors"][1] == [0, 90, 255]
    assert torch.allclose(exported[1], FixedSizeModel(model)(image)[1], atol=1e-5)


def test_a_file_that_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FixedSizeModel):
        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            shift = 0.01 * torch.compiler.is_exporting()
            return image.argmax(1), image, image.mean(1) + shift, image

    monkeypatch.setattr("tmt_d2.inference.export.FixedSizeModel", Wrong)
    with pytest.raises(UserError, match="bad.pt2"):
        export_model(small_model("MaskFormer"), (32, 32), tmp_path / "bad.pt2", "pt2", channels="RGB")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments(tmp_path: Path, files: Path) -> None:
    model, config = small_model("MaskFormer"), ["--config-file", str(files / "tmt.yaml")]
    for arguments, key in (((32, 32), "--format"), ((0, 32), "--size")):
        with refuses(key):
            export_model(model, arguments, tmp_path / "a", "trt" if key == "--format" else "pt2", channels="RGB")
    for option, size in (("--size", "32"), ("--image", "0x32")):
        with refuses(option):
            main([*config, option, size, "--output", "a.onnx"])
    with pytest.raises(UserError, match=r"MODEL\.TMT\.P_X"):
        main(["MODEL.TMT.P_X", "1", *config, "--size", "32x32", "--output", "a.onnx"])


@pytest.mark.parametrize(
    ("option", "value", "size", "named"),
    [
        ("--size", "32x48", (32, 48), None),
        ("--size", "64x96", (64, 96), "32x48"),  # half of it is what Predictor reads
        ("--size", "20x90", (20, 90), "14x64"),  # the longest edge counts: 90 -> 64
        ("--image", "80x120", (32, 48), None),
        ("--image", "photo.png", (32, 48), None),
    ],
)
def test_the_size_is_that_of_the_predictor(
    option: str,
    value: str,
    size: tuple[int, int],
    named: str | None,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40)).save("photo.png")
    sizes = []

    def export(model: nn.Module, size: tuple[int, int], path: str, file_format: str, *, channels: str) -> Agreement:
        sizes.append(size)
        Path(path).touch()
        assert channels == "RGB"
        return Agreement(0, 0, 1, 0, 0)

    monkeypatch.setattr("tmt_d2.inference.export.export_model", export)
    words = ["--config-file", str(files / "tmt.yaml"), "--weights", str(files / "tmt.pth"), option, value]
    with caplog.at_level(logging.WARNING, "tmt_d2.cli"):
        main([*words, "--output", "a.onnx", "INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64"])
    assert sizes == [size]
    assert [named in message for message in caplog.messages if named] == [True] * len(caplog.messages)
    assert len(caplog.messages) == (named is not None)

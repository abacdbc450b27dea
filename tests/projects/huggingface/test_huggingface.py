"""Hugging Face's Mask2Former and ours give the same answers after conversion, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

import tmt_d2
from tests.helpers.checkout import BASE_CONFIG
from tests.helpers.models import TINY, tiny_cfg
from tmt_d2.data.class_lists import unnamed
from tmt_d2.data.datasets.label_spaces import PALETTE
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.checkpoint.classes import read_classes
from tmt_d2.errors import UserError
from tmt_d2.projects.huggingface.checkpoint import from_huggingface, read_huggingface, to_huggingface
from tmt_d2.projects.huggingface.config import classes_of, config_of, processor_of, settings_of_processor
from tmt_d2.projects.huggingface.convert import main as convert

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-3
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 7, "dim_feedforward": 64}


def swin(depths: tuple[int, ...] = (2, 2, 6, 2), **changes: Any) -> Any:
    values = {"embed_dim": 96, "num_heads": [3, 6, 12, 24], "window_size": 7, **changes}
    return transformers.SwinConfig(depths=list(depths), out_features=STAGES, **values)


def resnet(**changes: Any) -> Any:
    return transformers.ResNetConfig(out_features=STAGES, **changes)


def small_swin() -> Any:
    return swin((1, 1, 2, 1), embed_dim=24, num_heads=[1, 1, 2, 4], window_size=5)


def small_resnet() -> Any:
    return resnet(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=16)


def random_model(backbone: Any, **changes: Any) -> nn.Module:
    """Every entry is moved away from its initial value: zeros and ones agree with anything."""
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **{"num_labels": 19, **changes})
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) if name.endswith("running_var") else 0.02 * torch.randn_like(value))
    return model


def answers(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits and mask logits."""
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            outputs = model(pixel_values=image)
            return outputs.class_queries_logits, outputs.masks_queries_logits
        outputs = model.sem_seg_head(model.backbone(image))
        return outputs["pred_logits"], outputs["pred_masks"]


def difference(first: nn.Module, second: nn.Module) -> float:
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    return max(float((a - b).abs().max()) for a, b in zip(answers(first, image), answers(second, image)))


def ours(config_file: Path, weights: Path) -> nn.Module:
    model = build_model(tmt_d2.setup_cfg(str(config_file), ["MODEL.DEVICE", "cpu"])).eval()
    TMTCheckpointer(model).load(str(weights))
    return model


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        (swin, {}),
        (lambda: swin((2, 2, 18, 2)), SMALL),
        (resnet, {}),
        (small_swin, {**SMALL, "feature_size": 64, "mask_feature_size": 32, "hidden_dim": 96}),
        (small_resnet, SMALL),
    ],
    ids=["swin_tiny", "swin_small", "resnet50", "other_widths", "resnet18"],
)
def test_both_directions(backbone: Callable[[], Any], changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = random_model(backbone(), **changes)
    theirs.save_pretrained(tmp_path / "hub")
    checkpoint = tmp_path / "ours.pth"
    convert(["from-hf", str(tmp_path / "hub"), str(checkpoint)])
    config_file = tmp_path / "ours.yaml"
    model = ours(config_file, checkpoint)
    assert difference(theirs, model) < TOLERANCE

    convert(["to-hf", "--config-file", str(config_file), "--weights", str(checkpoint), str(tmp_path / "back")])
    back, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all("layernorm" in name for name in info["missing_keys"])  # Swin's for image classification
    assert difference(back.eval(), model) < TOLERANCE
    assert back.config.id2label[0] == "road"


def test_the_classes_of_a_checkpoint_go_along() -> None:
    cfg = tiny_cfg(MODEL__META_ARCHITECTURE="MaskFormer")  # it says 19
    config = config_of(cfg, unnamed(3))
    assert config["id2label"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
    assert config_of(cfg)["id2label"]["18"] == "bicycle"


def test_names_of_classes_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"num_labels": 2, "id2label": {0: "road", 1: "pond"}, "label2id": {"road": 0, "pond": 1}}
    theirs = random_model(small_swin(), **SMALL, **labels)
    theirs.save_pretrained(tmp_path / "hub")
    convert(["from-hf", str(tmp_path / "hub"), str(tmp_path / "a.pth")])
    assert "a.yaml; it names 2 classes (road, pond)" in capsys.readouterr().out
    classes = read_classes(str(tmp_path / "a.pth"))
    assert classes is not None and classes.names == ("road", "pond") and classes.colors[0] == PALETTE[0]


@pytest.mark.parametrize(
    "labels",
    [None, {}, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "1": "a"}, {"0": "a", "2": "b"}, {"0": "a", "1": 3}],
)
def test_labels_that_name_no_classes(labels: Any) -> None:
    assert classes_of({"id2label": labels}, 2) is None
    assert classes_of({"id2label": {"0": "a", "1": "LABEL_1"}}, 2) is not None


def test_a_small_mistake_would_be_seen() -> None:
    """Query and key exchanged in one of the decoder's layers."""
    theirs = random_model(small_swin(), **SMALL)
    attention = theirs.model.transformer_module.decoder.layers[0].self_attn
    wrong = random_model(small_swin(), **SMALL)
    other = wrong.model.transformer_module.decoder.layers[0].self_attn
    other.q_proj.load_state_dict(attention.v_proj.state_dict())
    other.v_proj.load_state_dict(attention.q_proj.state_dict())
    assert difference(theirs, wrong) > TOLERANCE


def test_sharded_weights_and_names_inside_transformers(tmp_path: Path) -> None:
    """Large models come in several files; names inside a model differ from those of the files."""
    theirs = random_model(small_swin(), **SMALL)
    theirs.save_pretrained(tmp_path, max_shard_size="5MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config, tensors, _ = read_huggingface(str(tmp_path))
    state = from_huggingface(config, tensors).state
    inside = from_huggingface(config, theirs.state_dict()).state
    assert set(state) == set(inside)
    assert all(torch.equal(state[name], inside[name]) for name in state)


def test_the_estimator_stays_behind(build_tiny: Callable[..., nn.Module]) -> None:
    tmt = build_tiny("TransferableMaskFormer")
    # ResNet-18 of Detectron2's usual widths
    config, tensors = to_huggingface(tiny_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer"), tmt.state_dict())
    assert not any("transferability" in name for name in tensors)
    assert config["backbone_config"]["layer_type"] == "basic"
    state, settings = from_huggingface(json.loads(json.dumps(config)), tensors)
    plain = {name: value for name, value in tmt.state_dict().items() if not name.startswith("transferability.")}
    assert set(state) == set(plain)
    assert all(torch.equal(state[name], value) for name, value in plain.items())
    for key in ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "MODEL.RESNETS.DEPTH", "MODEL.SEM_SEG_HEAD.CONVS_DIM"):
        assert settings[key] == TINY[key]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub")
    random_model(small_swin(), **SMALL).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "maskformer"}, "model_type is 'maskformer', not 'mask2former'"),
        ({"backbone_config": {"model_type": "convnext"}}, "the backbone is 'convnext': only swin and resnet"),
        ({"encoder_feedforward_dim": 512}, "encoder_feedforward_dim is 512: only 1024 is built here"),
        (
            {"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}},
            "use_absolute_embeddings is True",
        ),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, r"no ResNet .* layers \(1, 1, 1, 1\)"),
    ],
)
def test_models_that_are_not_built(change: dict[str, Any], message: str, folder: Path) -> None:
    config, tensors, _ = read_huggingface(str(folder))
    with pytest.raises(ValueError, match=message):
        from_huggingface({**config, **change}, tensors)


def test_entries_without_a_counterpart(folder: Path) -> None:
    config, tensors, _ = read_huggingface(str(folder))
    with pytest.raises(ValueError, match=r"model.adapter.weight has no counterpart"):
        from_huggingface(config, {**tensors, "model.adapter.weight": torch.zeros(1)})
    key = "model.transformer_module.decoder.layers.0.self_attn.k_proj.weight"
    with pytest.raises(ValueError, match=r"in_proj_weight is made of 3 entries .*, the file has 2"):
        from_huggingface(config, {name: value for name, value in tensors.items() if name != key})
    del tensors["class_predictor.weight"]
    with pytest.raises(ValueError, match="class_predictor.weight is missing"):
        from_huggingface(config, tensors)


def test_config_and_weights_of_different_models(folder: Path, tmp_path: Path) -> None:
    config, *_ = read_huggingface(str(folder))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_queries": 8}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"config.json and weights do not belong together, see .*query_"):
        convert(["from-hf", str(tmp_path), str(tmp_path / "out" / "a.pth")])
    assert not list((tmp_path / "out").glob("*"))


def test_sources_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder nor a name on the hub"):
        read_huggingface("nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json with model\*.safetensors"):
        read_huggingface(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="cannot be read"):
        read_huggingface(str(tmp_path))
    with pytest.raises(ValueError, match=r"out.bin: write a .pth file"):
        convert(["from-hf", str(folder), str(tmp_path / "out.bin")])


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.TMT.MASK_RULE", "uncertain"), ("MODEL.SEM_SEG_HEAD.NORM", "BN"), ("MODEL.RESNETS.NUM_GROUPS", 32)],
)
def test_variants_that_transformers_does_not_have(key: str, value: Any) -> None:
    values = {**TINY, key: value}
    cfg = tmt_d2.setup_cfg(str(BASE_CONFIG), [item for pair in values.items() for item in pair])
    with pytest.raises(ValueError, match=key.rsplit(".", 1)[0]):
        to_huggingface(cfg, {})


def test_it_says_that_the_processor_stretches(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(["from-hf", str(folder), str(tmp_path / "a.pth")])
    words = ["--config-file", str(tmp_path / "a.yaml"), "--weights", str(tmp_path / "a.pth"), str(tmp_path / "back")]
    convert(["to-hf", *words])
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["size"]["shortest_edge"] != 96
    convert(["to-hf", words[0], words[1], "INPUT.MIN_SIZE_TEST", "96", *words[2:]])
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["size"]["shortest_edge"] == 96
    with pytest.raises(ValueError, match=r"SEED: KEY VALUE overrides are of to-hf alone, strip takes no config"):
        convert(["strip", "a.pth", "SEED", "1", "b.pth"])
    assert "the processor of transformers stretches images to multiples of 32 pixels" in capsys.readouterr().out


def test_a_processor_for_images_as_they_are() -> None:
    pixels = np.zeros((37, 91, 3), np.uint8)
    for edge, size in ((0, (37, 91)), (32, (32, 96))):
        values = processor_of(tiny_cfg(INPUT__MIN_SIZE_TEST=edge))
        processor = transformers.Mask2FormerImageProcessor(**{k: v for k, v in values.items() if "type" not in k})
        assert processor(images=[pixels], return_tensors="pt")["pixel_values"].shape[-2:] == size


def test_the_processor_comes_along(folder: Path, tmp_path: Path) -> None:
    convert(["from-hf", str(folder), str(tmp_path / "a.pth")])
    words = ["--config-file", str(tmp_path / "a.yaml"), "--weights", str(tmp_path / "a.pth"), str(tmp_path / "back")]
    given = {"MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0], "MODEL.PIXEL_STD": [4.0, 5.0, 6.5], "INPUT.MIN_SIZE_TEST": 1024}
    given |= {"INPUT.MAX_SIZE_TEST": 2048}
    convert(["to-hf", *words, *(str(item) for pair in given.items() for item in pair)])
    convert(["from-hf", str(tmp_path / "back"), str(tmp_path / "b.pth")])
    cfg = tmt_d2.setup_cfg(str(tmp_path / "b.yaml"))
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.5])
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1024, 2048)


IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    ("processor", "normalization", "edges"),
    [
        ({}, IMAGENET, (800, 1333)),
        ({"size": 512, "max_size": 2048}, IMAGENET, (512, 2048)),
        ({"size": {"shortest_edge": 96, "longest_edge": 640}}, IMAGENET, (96, 640)),
        ({"do_resize": False}, IMAGENET, (0, None)),
        ({"size": {"height": 384, "width": 384}}, IMAGENET, (None, None)),
        ({"do_normalize": False}, ([0.0] * 3, [255.0] * 3), (800, 1333)),
        ({"do_rescale": False, "image_mean": [9, 8, 7], "image_std": [1, 1, 1]}, ([9, 8, 7], [1] * 3), (800, 1333)),
        ({"rescale_factor": 0.5, "image_mean": [1, 2, 3], "image_std": [1, 1, 2]}, ([2, 4, 6], [2, 2, 4]), (800, 1333)),
    ],
)
def test_settings_of_processors(processor: dict[str, Any], normalization: Any, edges: Any) -> None:
    settings = settings_of_processor(processor)
    assert (settings["MODEL.PIXEL_MEAN"], settings["MODEL.PIXEL_STD"]) == normalization
    assert (settings.get("INPUT.MIN_SIZE_TEST"), settings.get("INPUT.MAX_SIZE_TEST")) == edges


def test_a_processor_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    for wrong in ("{", '{"image_mean": 3}', '{"rescale_factor": 0}'):
        for file in ("config.json", "model.safetensors"):
            (tmp_path / file).write_bytes((folder / file).read_bytes())
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(UserError, match="preprocessor_config.json"):
            convert(["from-hf", str(tmp_path), str(tmp_path / "a.pth")])
        assert not (tmp_path / "a.pth").exists()

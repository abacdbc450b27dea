"""Hugging Face's Mask2Former and ours give the same outputs after conversion, in both directions."""

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
from tests.helpers.errors import refuses
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


def logits(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits and mask logits."""
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            outputs = model(pixel_values=image)
            return outputs.class_queries_logits, outputs.masks_queries_logits
        mask_features, levels = model.sem_seg_head.pixel_decoder(model.backbone(image))
        outputs = model.sem_seg_head.predictor(levels, mask_features)
        return outputs["pred_logits"], outputs["pred_masks"].dense()


def difference(first: nn.Module, second: nn.Module) -> float:
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    return max(float((a - b).abs().max()) for a, b in zip(logits(first, image), logits(second, image)))


def ours(config_file: Path, weights: Path) -> nn.Module:
    model = build_model(tmt_d2.setup_cfg(str(config_file), ["MODEL.DEVICE", "cpu"])).eval()
    TMTCheckpointer(model).load(str(weights))
    return model


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        (lambda: resnet(hidden_sizes=[32, 64, 128, 256], embedding_size=16), SMALL),
        (small_swin, {**SMALL, "feature_size": 64, "mask_feature_size": 32, "hidden_dim": 96}),
        (small_resnet, SMALL),
    ],
    ids=["resnet50", "other_widths", "resnet18"],
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


def test_config_json_has_the_classes_of_the_checkpoint() -> None:
    cfg = tiny_cfg(MODEL__META_ARCHITECTURE="MaskFormer")  # 19 classes
    config = config_of(cfg, unnamed(3))
    assert config["id2label"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
    assert config_of(cfg)["id2label"]["18"] == "bicycle"


def test_class_names_are_read(tmp_path: Path) -> None:
    labels = {"num_labels": 2, "id2label": {0: "road", 1: "pond"}, "label2id": {"road": 0, "pond": 1}}
    theirs = random_model(small_swin(), **SMALL, **labels)
    theirs.save_pretrained(tmp_path / "hub")
    convert(["from-hf", str(tmp_path / "hub"), str(tmp_path / "a.pth")])
    classes = read_classes(str(tmp_path / "a.pth"))
    assert classes is not None and classes.names == ("road", "pond") and classes.colors[0] == PALETTE[0]


@pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "1": "a"}, {"0": "a", "2": "b"}])
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


def test_sharded_weights(tmp_path: Path) -> None:
    theirs = random_model(small_swin(), **SMALL)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="5MB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    whole, parts = (read_huggingface(str(tmp_path / name))[1] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_estimator_is_left_out_and_the_rest_returns_exactly(build_tiny: Callable[..., nn.Module]) -> None:
    tmt = build_tiny("TransferableMaskFormer")
    config, tensors = to_huggingface(tiny_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer"), tmt.state_dict())
    assert not any("transferability" in name for name in tensors)
    assert config["backbone_config"]["layer_type"] == "bottleneck"
    state, settings = from_huggingface(json.loads(json.dumps(config)), tensors)
    plain = {name: value for name, value in tmt.state_dict().items() if not name.startswith("transferability.")}
    assert set(state) == set(plain)
    assert all(torch.equal(state[name], value) for name, value in plain.items())
    assert TINY["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == settings.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    assert TINY["MODEL.RESNETS.DEPTH"] == settings.MODEL.RESNETS.DEPTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub")
    random_model(small_swin(), **SMALL).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model_type": "maskformer"}, "model_type"),
        ({"backbone_config": {"model_type": "convnext"}}, "backbone_config.model_type"),
        ({"encoder_feedforward_dim": 512}, "encoder_feedforward_dim"),
        ({"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}}, "use_absolute_embeddings"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, "backbone_config"),
    ],
)
def test_models_that_are_not_built(change: dict[str, Any], key: str, folder: Path) -> None:
    config, tensors, _ = read_huggingface(str(folder))
    with refuses(f"config.json: {key}"):
        from_huggingface({**config, **change}, tensors)


def test_weights_that_do_not_fit_the_config(folder: Path, tmp_path: Path) -> None:
    config, tensors, _ = read_huggingface(str(folder))
    key = "model.transformer_module.decoder.layers.0.self_attn.k_proj.weight"
    for values, weights, name in (
        (config, {**tensors, "model.adapter.weight": torch.zeros(1)}, "model.adapter.weight"),
        (config, {name: value for name, value in tensors.items() if name != key}, key),
        (config, {"model.adapter.weight": torch.zeros(1)}, "class_predictor.weight"),
        ({**config, "num_queries": 8}, tensors, "model.transformer_module.queries_features.weight"),
    ):
        with refuses(name):
            from_huggingface(values, weights)


def test_files_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    for source in ("nowhere", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=source):
            read_huggingface(source)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with refuses(str(tmp_path)):
        read_huggingface(str(tmp_path))
    with refuses(str(tmp_path / "out.bin")):
        convert(["from-hf", str(folder), str(tmp_path / "out.bin")])


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.TMT.MASK_RULE", "uncertain"), ("MODEL.SEM_SEG_HEAD.NORM", "BN"), ("MODEL.RESNETS.NUM_GROUPS", 32)],
)
def test_variants_that_transformers_does_not_have(key: str, value: Any) -> None:
    values = {**TINY, key: value}
    cfg = tmt_d2.setup_cfg(str(BASE_CONFIG), [item for pair in values.items() for item in pair])
    with pytest.raises(UserError) as error:
        to_huggingface(cfg, {})
    assert key.startswith(error.value.key)


def test_a_processor_for_images_as_they_are() -> None:
    pixels = np.zeros((37, 91, 3), np.uint8)
    for edge, size in ((0, (37, 91)), (32, (32, 96))):
        values = processor_of(tiny_cfg(INPUT__MIN_SIZE_TEST=edge))
        processor = transformers.Mask2FormerImageProcessor(**{k: v for k, v in values.items() if "type" not in k})
        assert processor(images=[pixels], return_tensors="pt")["pixel_values"].shape[-2:] == size


def test_the_processor_is_converted(folder: Path, tmp_path: Path) -> None:
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
        ({"rescale_factor": 0.5, "image_mean": [1, 2, 3], "image_std": [1, 1, 2]}, ([2, 4, 6], [2, 2, 4]), (800, 1333)),
    ],
)
def test_settings_of_processors(processor: dict[str, Any], normalization: Any, edges: Any) -> None:
    settings = settings_of_processor(processor)
    assert (settings["MODEL.PIXEL_MEAN"], settings["MODEL.PIXEL_STD"]) == normalization
    assert (settings.get("INPUT.MIN_SIZE_TEST"), settings.get("INPUT.MAX_SIZE_TEST")) == edges


def test_a_processor_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    for wrong in ("{", '{"image_mean": 3}', '{"rescale_factor": 0}'):
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(UserError, match="preprocessor_config.json"):
            convert(["from-hf", str(tmp_path), str(tmp_path / "a.pth")])
        assert not (tmp_path / "a.pth").exists()

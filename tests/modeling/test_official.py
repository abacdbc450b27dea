"""Official Mask2Former configs and checkpoints, used as they are, and checkpoints that the official code can use."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from torch import nn

import tmt_d2
from tests.helpers.models import make_records, tiny_cfg
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer, read_state
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import plain_state, unused_settings, upgrade_names, write_official
from tmt_d2.projects.huggingface.convert import main as convert

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parent / "reference"

# What the official semantic configs say, by data set: (training scale, crop, classes, ignore value, ...).
DATASETS: dict[str, dict[str, Any]] = {
    "cityscapes": {"scale": 1024, "crop": "(512, 1024)", "classes": 19, "ignore": 255, "divisible": -1},
    "ade20k": {"scale": 512, "crop": "(512, 512)", "classes": 150, "ignore": 255, "divisible": 512},
    "mapillary_vistas": {"scale": 2048, "crop": "(1024, 1024)", "classes": 65, "ignore": 65, "divisible": 1024},
}
SWINS = {  # EMBED_DIM, DEPTHS, first of NUM_HEADS, WINDOW_SIZE, weights
    "swin_tiny": (96, [2, 2, 6, 2], 3, 7, "swin_tiny_patch4_window7_224.pkl"),
    "swin_small": (96, [2, 2, 18, 2], 3, 7, "swin_small_patch4_window7_224.pkl"),
    "swin_base_IN21k": (128, [2, 2, 18, 2], 4, 12, "swin_base_patch4_window12_384_22k.pkl"),
    "swin_large_IN21k": (192, [2, 2, 18, 2], 6, 12, "swin_large_patch4_window12_384_22k.pkl"),
}
PUBLISHED = [
    *[("cityscapes", name) for name in ("R50", "R101", *SWINS)],
    ("ade20k", "R101"),
    ("mapillary_vistas", "R50"),
]


def official_yaml(folder: Path, dataset: str, backbone: str) -> Path:
    """Base, R50 and backbone files as the official repository layers them, with its keys and values."""
    data = DATASETS[dataset]
    scales = f'!!python/object/apply:eval ["[int(x * 0.1 * {data["scale"]}) for x in range(5, 21)]"]'
    norm = '    NORM: "SyncBN"\n' if dataset == "cityscapes" else ""
    (folder / "Base.yaml").write_text(f"""\
MODEL:
  BACKBONE: {{FREEZE_AT: 0, NAME: "build_resnet_backbone"}}
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: "basic"
    STEM_OUT_CHANNELS: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
{norm}    RES5_MULTI_GRID: [1, 1, 1]
DATASETS:
  TRAIN: ("{dataset}_sem_seg_train",)
  TEST: ("{dataset}_sem_seg_val",)
SOLVER:
  {{IMS_PER_BATCH: 16, BASE_LR: 0.0001, MAX_ITER: 90000, WARMUP_FACTOR: 1.0, WARMUP_ITERS: 0, WEIGHT_DECAY: 0.05,
   OPTIMIZER: "ADAMW", LR_SCHEDULER_NAME: "WarmupPolyLR", BACKBONE_MULTIPLIER: 0.1, AMP: {{ENABLED: True}},
   CLIP_GRADIENTS: {{ENABLED: True, CLIP_TYPE: "full_model", CLIP_VALUE: 0.01, NORM_TYPE: 2.0}}}}
INPUT:
  MIN_SIZE_TRAIN: {scales}
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  MIN_SIZE_TEST: {data["scale"]}
  MAX_SIZE_TRAIN: {4 * data["scale"]}
  MAX_SIZE_TEST: 2048
  CROP:
    ENABLED: True
    TYPE: "absolute"
    SIZE: {data["crop"]}
    SINGLE_CATEGORY_MAX_AREA: 1.0
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: {data["divisible"]}
  FORMAT: "RGB"
  DATASET_MAPPER_NAME: "mask_former_semantic"
TEST:
  EVAL_PERIOD: 5000
  AUG: {{ENABLED: False, MIN_SIZES: [512, 768, 1024, 1280, 1536, 1792], MAX_SIZE: 4096, FLIP: True}}
DATALOADER: {{FILTER_EMPTY_ANNOTATIONS: True, NUM_WORKERS: 4}}
VERSION: 2
""")
    (folder / "R50.yaml").write_text(f"""\
_BASE_: Base.yaml
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    IGNORE_VALUE: {data["ignore"]}
    NUM_CLASSES: {data["classes"]}
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: "GN"
    PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: ["res3", "res4", "res5"]
    COMMON_STRIDE: 4
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_DECODER_NAME: "MultiScaleMaskedTransformerDecoder"
    TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    CLASS_WEIGHT: 2.0
    MASK_WEIGHT: 5.0
    DICE_WEIGHT: 5.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    PRE_NORM: False
    ENFORCE_INPUT_PROJ: False
    SIZE_DIVISIBILITY: 32
    DEC_LAYERS: 10
    TRAIN_NUM_POINTS: 12544
    OVERSAMPLE_RATIO: 3.0
    IMPORTANCE_SAMPLE_RATIO: 0.75
    TEST:
      {{SEMANTIC_ON: True, INSTANCE_ON: False, PANOPTIC_ON: False, OVERLAP_THRESHOLD: 0.8, OBJECT_MASK_THRESHOLD: 0.8}}
""")
    if backbone == "R50":
        return folder / "R50.yaml"
    (folder / "swin").mkdir(exist_ok=True)
    path = folder / "swin" / f"{backbone}.yaml"
    if backbone == "R101":
        model: dict[str, Any] = {"WEIGHTS": "R-101.pkl", "RESNETS": {"DEPTH": 101, "NORM": "SyncBN"}}
    else:
        dim, depths, heads, window, weights = SWINS[backbone]
        swin = {"EMBED_DIM": dim, "DEPTHS": depths, "NUM_HEADS": [heads * 2**i for i in range(4)], "APE": False}
        swin |= {"WINDOW_SIZE": window, "DROP_PATH_RATE": 0.3, "PATCH_NORM": True}
        if window == 12:
            swin["PRETRAIN_IMG_SIZE"] = 384
        model = {"BACKBONE": {"NAME": "D2SwinTransformer"}, "SWIN": swin, "WEIGHTS": weights}
    path.write_text("_BASE_: ../R50.yaml\n" + yaml.safe_dump({"MODEL": model}))
    return path


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def official_shapes(backbone: str, classes: int, batch_norm: bool) -> dict[str, list[int]]:
    """The recorded official R50 list, with the backbone's part exchanged by the published naming of Swin."""
    recorded = {name: shape for name, (shape, _) in json.loads((REFERENCE / "r50_state_dict.json").read_text()).items()}
    recorded["criterion.empty_weight"] = [classes + 1]
    for part in ("weight", "bias"):
        shape = recorded[f"sem_seg_head.predictor.class_embed.{part}"]
        shape[0] = classes + 1
    if not backbone.startswith("swin"):
        if backbone == "R101":  # res4 has 23 blocks: 6 to 22 are like block 5
            for index in range(6, 23):
                block = {n: s for n, s in recorded.items() if n.startswith("backbone.res4.5.")}
                recorded |= {name.replace("res4.5.", f"res4.{index}."): shape for name, shape in block.items()}
        if not batch_norm:  # frozen normalization counts no batches
            recorded = {
                n: s
                for n, s in recorded.items()
                if not (n.startswith("backbone.") and n.endswith("num_batches_tracked"))
            }
        return recorded
    dim, depths, heads, window, _ = SWINS[backbone]
    shapes = {name: shape for name, shape in recorded.items() if not name.startswith("backbone.")}
    shapes |= {"backbone.patch_embed.proj.weight": [dim, 3, 4, 4], "backbone.patch_embed.proj.bias": [dim]}
    shapes |= {"backbone.patch_embed.norm.weight": [dim], "backbone.patch_embed.norm.bias": [dim]}
    for layer, depth in enumerate(depths):
        c = dim * 2**layer
        shapes |= {f"backbone.norm{layer}.weight": [c], f"backbone.norm{layer}.bias": [c]}
        for block in range(depth):
            prefix = f"backbone.layers.{layer}.blocks.{block}."
            for norm in ("norm1", "norm2"):
                shapes |= {f"{prefix}{norm}.weight": [c], f"{prefix}{norm}.bias": [c]}
            for linear, (rows, columns) in {
                "attn.qkv": (3 * c, c),
                "attn.proj": (c, c),
                "mlp.fc1": (4 * c, c),
                "mlp.fc2": (c, 4 * c),
            }.items():
                shapes |= {f"{prefix}{linear}.weight": [rows, columns], f"{prefix}{linear}.bias": [rows]}
            shapes[f"{prefix}attn.relative_position_bias_table"] = [(2 * window - 1) ** 2, heads * 2**layer]
            shapes[f"{prefix}attn.relative_position_index"] = [window**2, window**2]
        if layer < 3:
            prefix = f"backbone.layers.{layer}.downsample."
            shapes[f"{prefix}reduction.weight"] = [2 * c, 4 * c]
            shapes |= {f"{prefix}norm.weight": [4 * c], f"{prefix}norm.bias": [4 * c]}
    for index, c in enumerate((8 * dim, 4 * dim, 2 * dim)):
        shapes[f"sem_seg_head.pixel_decoder.input_proj.{index}.0.weight"] = [256, c, 1, 1]
    shapes["sem_seg_head.pixel_decoder.adapter_1.weight"] = [256, dim, 1, 1]
    return shapes


@pytest.mark.parametrize(("dataset", "backbone"), PUBLISHED)
def test_official_configs_build_the_official_model(
    dataset: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tmt_d2.setup_cfg(str(official_yaml(tmp_path, dataset, backbone)), ["MODEL.DEVICE", "meta"])
    scale = DATASETS[dataset]["scale"]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [int(x * 0.1 * scale) for x in range(5, 21)]
    assert list(cfg.DATASETS.TRAIN) == [f"{dataset}_sem_seg_train"]
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # Swin reads its values
    with torch.device("meta"):
        model = build_model(cfg)
    batch_norm = cfg.MODEL.RESNETS.NORM != "FrozenBN"
    assert shapes_of(model) == official_shapes(backbone, DATASETS[dataset]["classes"], batch_norm)
    assert model.sem_seg_head.ignore_value == DATASETS[dataset]["ignore"]
    assert "MODEL.RESNETS.STEM_TYPE basic" in unused_settings(cfg) and unused_settings(tiny_cfg()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "PerPixelBaseline"),
        ("MODEL.BACKBONE.NAME", "D2ConvNeXt"),
        ("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
        ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
    ],
)
def test_parts_that_are_not_built(key: str, value: str) -> None:
    with pytest.raises(UserError, match=key):
        build_model(tiny_cfg(**{key.replace(".", "__"): value}))


def old_names(state: dict[str, Any]) -> dict[str, Any]:
    """As the first official checkpoints had them."""
    return {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): value
        for name, value in state.items()
    }


def scores(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(make_records([(64, 64)]))[0]["sem_seg"]


def test_old_names(build_tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = build_tiny("MaskFormer")
    nn.init.normal_(model.sem_seg_head.predictor.query_feat.weight)
    path = tmp_path / "old.pth"
    state = old_names(model.state_dict())
    assert "sem_seg_head.predictor.static_query.weight" in state
    assert "sem_seg_head.mask_features.weight" in state
    torch.save({"model": state}, path)
    other = build_tiny("MaskFormer")
    TMTCheckpointer(other).load(str(path))
    assert torch.equal(scores(model), scores(other))
    assert not upgrade_names(model.state_dict())  # present names stay


def test_load_report(build_tiny: Callable[..., nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, tmt = build_tiny("MaskFormer"), build_tiny("TransferableMaskFormer")
    path = tmp_path / "plain.pth"
    torch.save({"model": {**plain.state_dict(), "backbone.fc.bias": torch.zeros(3)}}, path)
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"backbone\.fc\.bias"):
        TMTCheckpointer(tmt).load(str(path))
    torch.save({"model": plain.state_dict()}, path)
    caplog.clear()
    TMTCheckpointer(tmt).load(str(path))
    (report,) = [record.getMessage() for record in caplog.records if "entries loaded" in record.getMessage()]
    missing = sum(name.startswith("transferability.discriminators.") for name in tmt.state_dict())
    assert str(path) in report and f"{missing} missing" in report and "transferability." in report


def test_class_head_of_another_size(build_tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    source = build_tiny("MaskFormer", MODEL__SEM_SEG_HEAD__NUM_CLASSES=150)
    path = tmp_path / "ade.pth"
    torch.save({"model": source.state_dict()}, path)
    model = build_tiny("MaskFormer")
    with pytest.raises(UserError, match=r"ade\.pth.*TRANSFER.REINIT_CLASS_HEAD"):
        TMTCheckpointer(model).load(str(path))
    head = model.sem_seg_head.predictor.class_embed.weight.clone()
    TMTCheckpointer(model, reinit_class_head=True).load(str(path))
    assert torch.equal(model.sem_seg_head.predictor.class_embed.weight, head)
    assert torch.equal(
        model.sem_seg_head.predictor.query_embed.weight, source.sem_seg_head.predictor.query_embed.weight
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which this machine serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_checkpoints_by_url(
    build_tiny: Callable[..., nn.Module],
    server: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder, url = server
    source, model = build_tiny("MaskFormer"), build_tiny("MaskFormer")
    nn.init.normal_(source.sem_seg_head.predictor.class_embed.weight)
    write_official(source.state_dict(), folder / "zoo.pkl")
    TMTCheckpointer(model).load(f"{url}/zoo.pkl")
    assert torch.equal(scores(model), scores(source))
    with pytest.raises(FileNotFoundError, match=r"/gone\.pkl"):
        TMTCheckpointer(model).load(f"{url}/gone.pkl")


def official_load(state: OrderedDict[str, Any]) -> set[str]:
    """The names that the official modules would see: below version 2 they rename what has no ``predictor`` in front."""
    versions = getattr(state, "_metadata", {})
    names = set(state)
    if versions.get("sem_seg_head", {}).get("version", 1) < 2:
        names = {
            name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.")
            if name.startswith("sem_seg_head.") and not name.startswith("sem_seg_head.predictor")
            else name
            for name in names
        }
    return names


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_strip_for_the_official_code(suffix: str, build_tiny: Callable[..., nn.Module], tmp_path: Path) -> None:
    tmt, plain = build_tiny("TransferableMaskFormer"), build_tiny("MaskFormer")
    torch.save({"model": tmt.state_dict(), "iteration": 7}, tmp_path / "tmt.pth")
    output = tmp_path / f"plain{suffix}"
    convert(["strip", str(tmp_path / "tmt.pth"), str(output)])

    if suffix == ".pth":
        state = torch.load(output, weights_only=True)["model"]
    else:
        data = pickle.loads(output.read_bytes())
        assert data["__author__"] == "tmt_d2"
        assert b"numpy._core" not in output.read_bytes()[:4096]  # NumPy 1, which the official code needs, has no such
        state = data["model"]
    assert official_load(state) == set(plain.state_dict())
    assert official_load(OrderedDict(state)) != set(plain.state_dict())  # without versions it would be renamed
    TMTCheckpointer(plain).load(str(output))
    assert torch.equal(plain.sem_seg_head.predictor.query_embed.weight, tmt.sem_seg_head.predictor.query_embed.weight)


def test_strip_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        plain_state({"stem.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"plain\.onnx"):
        write_official({"sem_seg_head.x": torch.zeros(1)}, tmp_path / "plain.onnx")
    assert not list(tmp_path.iterdir())


def test_pickled_tensors_of_the_official_swin_converter(tmp_path: Path) -> None:
    weights = {"patch_embed.proj.bias": torch.arange(3.0), "norm.weight": torch.ones(2)}
    path = tmp_path / "swin.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "third_party", "matching_heuristics": True}))
    assert torch.equal(read_state(str(path))["patch_embed.proj.bias"], torch.arange(3.0))

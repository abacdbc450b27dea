"""Models of a few percent of the size, and records and noise for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

import tmt_d2
from tests.helpers.checkout import BASE_CONFIG

Build = Callable[..., nn.Module]  # the fixture build_tiny
Records = list[dict[str, Any]]
TINY: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.TMT.CELL_SIZES": [1, 2, 4],
}
ODD_SIZES = ((37, 91), (64, 50))  # padded to 64 x 96, so that every level has padding at the bottom or right


def tiny_cfg(**changes: Any) -> CfgNode:
    """The R50 base config at a few percent of its size; changes are spelled MODEL__TMT__P_T=0.5."""
    values = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return tmt_d2.setup_cfg(str(BASE_CONFIG), [item for pair in values.items() for item in pair])


def make_records(sizes: Sequence[tuple[int, int]] = ODD_SIZES, seed: int = 0) -> Records:
    """Detectron2 records of noise with a few blocks of color, and labels with some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for height, width in sizes:
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        image = nn.functional.interpolate(coarse, size=(height, width))[0] * 200
        image = image + torch.rand(3, height, width, generator=generator) * 55
        classes = torch.randint(0, 19, (1, 1, 2, 2), generator=generator).float()
        labels = nn.functional.interpolate(classes, size=(height, width))[0, 0].long()
        labels[:3] = 255
        records.append({"image": image.to(torch.uint8), "sem_seg": labels, "height": height, "width": width})
    return records


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_twin(model: nn.Module, build_tiny: Build, **changes: Any) -> nn.Module:
    """Mask2Former with the weights that ``model`` has besides its estimator."""
    plain = build_tiny("MaskFormer", **changes)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("transferability.")}
    plain.load_state_dict(state)
    return plain


def scores(model: nn.Module, records: Records) -> list[Tensor]:
    with torch.no_grad():
        return [result["sem_seg"] for result in model(records)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def train_step(model: nn.Module, records: Records) -> dict[str, Tensor]:
    torch.manual_seed(0)
    losses = model.train()(records)
    sum(losses.values()).backward()
    return losses

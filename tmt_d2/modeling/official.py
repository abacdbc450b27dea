"""Compatibility with the official Mask2Former: config keys, state-dict names, checkpoint files."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from tmt_d2.config.access import get_key
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

HEAD = "sem_seg_head."
CLASS_HEAD = ("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias")
ESTIMATOR = "transferability."

# Official keys that are not read, with their neutral value: instance and panoptic inference, the
# stem and dilation of DeepLab's ResNet, the mapper's name, large-scale jittering, decoders without masked attention.
UNUSED = {
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
}
SHOWN = 8  # names or prefixes in a line of the load report

# Versions that the official modules write into a state dict; below 2 the official code renames the entries.
_VERSIONS = {"sem_seg_head": 2, "sem_seg_head.predictor": 2}


def unused_settings(cfg: CfgNode) -> list[str]:
    """Return ``KEY value`` of the official keys that are not read and have another value than the neutral one."""
    values = {key: get_key(cfg, key) for key in UNUSED}
    return [f"{key} {value}" for key, value in values.items() if value != UNUSED[key]]


def upgrade_names(names: Iterable[str]) -> dict[str, str]:
    """Return {old name: present name} of entries that the official code has renamed since its first checkpoints.

    The pixel decoder's entries were directly below ``sem_seg_head.``, and ``query_feat`` was called ``static_query``.
    They are recognized by name, because converted files (``.pkl``, safetensors) have no version.
    """
    renamed = {}
    for name in names:
        new = name
        if name.startswith(HEAD):
            if not name.startswith((f"{HEAD}pixel_decoder.", f"{HEAD}predictor.")):
                new = f"{HEAD}pixel_decoder.{name[len(HEAD) :]}"
            new = new.replace("static_query", "query_feat")
        if new != name:
            renamed[name] = new
    return renamed


def load_report(
    file: str,
    loaded: int,
    missing: Iterable[str],
    unexpected: Iterable[str],
    reset: Iterable[str] = (),
    class_rows: Mapping[str, Sequence[str]] = {},
) -> str:
    """Return a summary of a loaded checkpoint, in which many names of one module are grouped.

    class_rows: {"copied", ...: names of classes} of the rows of the class head, if they were matched by name.
    """
    lines = [f"{file}: {loaded} entries loaded"]
    for what, classes in class_rows.items():
        shown = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
        lines.append(f"  class head, {what} ({len(classes)}): {shown or 'none'}")
    for what, names in (
        ("missing in the file, left as initialized", missing),
        ("initialized again (TRANSFER.REINIT_CLASS_HEAD)", reset),
        ("in the file only, not used", unexpected),
    ):
        names = sorted(names)
        if names:
            lines.append(f"  {len(names)} {what}: {', '.join(_grouped(names))}")
    return "\n".join(lines)


def _grouped(names: list[str]) -> list[str]:
    """Return the names, or if there are more than ``SHOWN``, the longest prefixes of which there are not."""
    if len(names) <= SHOWN:
        return names
    for depth in (4, 3, 2, 1):
        counts = Counter(".".join(name.split(".")[:depth]) for name in names)
        if len(counts) <= SHOWN:
            break
    return [f"{prefix}.* ({count})" if count > 1 else prefix for prefix, count in counts.items()]


def plain_state(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the entries of a plain Mask2Former, with the versions that the official code writes.

    Raises:
        UserError: there are no entries of a Mask2Former.
    """
    plain = OrderedDict((name, value) for name, value in state.items() if not name.startswith(ESTIMATOR))
    if not any(name.startswith(HEAD) for name in plain):
        raise UserError(f"no entry begins with {HEAD}: the checkpoint holds no Mask2Former")
    plain._metadata = OrderedDict((module, {"version": version}) for module, version in _VERSIONS.items())  # type: ignore[attr-defined]
    return plain


def write_official(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a plain Mask2Former for the official code: ``.pth``, or ``.pkl`` as in the model zoo. Atomic.

    Raises:
        UserError: another suffix, or no Mask2Former in ``state``.
    """
    path, plain = Path(path), plain_state(state)
    if path.suffix == ".pth":
        with atomic_write(path) as file:
            torch.save({"model": plain}, file)
    elif path.suffix == ".pkl":
        arrays = OrderedDict((name, value.detach().cpu().numpy()) for name, value in plain.items())
        arrays.__dict__.update(plain.__dict__)  # the versions
        with atomic_write(path) as file:
            _ZooPickler(file, protocol=3).dump({"model": arrays, "__author__": "tmt_d2"})
    else:
        raise UserError("must end in .pth or .pkl", key=path)


_PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]  # the C class cannot be overridden here


class _ZooPickler(_PythonPickler):
    """Pickler that names NumPy's array builder as NumPy 1 did: NumPy 2 reads both names, NumPy 1 only this one."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", "") == "numpy._core.multiarray":
            self.write(pickle.GLOBAL + f"numpy.core.multiarray\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

"""Access to configs by dotted keys such as "MODEL.TMT.P_T"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from tmt_d2.errors import UserError


def get_key(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key.

    Raises:
        UserError: there is no such key.
    """
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise UserError("no such config key", key=key)
        node = node[part]
    return node


def set_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Set the value of a key in place; missing sections are created."""
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg.setdefault(section, CfgNode())
    cfg[name] = value


def replace_keys(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """Return a frozen copy with other values of some keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        set_key(cfg, key, value)
    cfg.freeze()
    return cfg


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of all keys, without sections, by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in cfg.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat

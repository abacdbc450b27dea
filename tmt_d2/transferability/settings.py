"""What an estimator was trained under, kept beside its weights: with other regions its T would be another one.

Settings are the values of keys below MODEL.TMT, such as {"KAPPA": 10.0}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tmt_d2.errors import UserError


def encode_settings(settings: Mapping[str, Any]) -> Tensor:
    """-> (N,) uint8, the bytes of JSON: a checkpoint holds tensors only."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def decode_settings(state: Any) -> dict[str, Any]:
    """
    Raises:
        ValueError: ``state`` is nothing that ``encode_settings`` made.
    """
    try:
        settings = json.loads(bytes(torch.as_tensor(state).flatten().tolist()))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"settings of the estimator that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"settings of the estimator that are a {type(settings).__name__}")
    return settings


def refuse_other_settings(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> None:
    """
    Args:
        there: of the estimator in the checkpoint ``name``. here: of the run that wants to use it; only keys that both
            have are compared.

    Raises:
        UserError: they differ.
    """
    different = [key for key in here if key in there and there[key] != here[key]]
    if not different:
        return
    listed = "; ".join(f"MODEL.TMT.{key} {there[key]}, here it is {here[key]}" for key in different)
    anew = "fine-tune from the estimator stage's checkpoint" if different == ["FEATURES"] else "run the estimator stage"
    raise UserError(f"{name}: its estimator was trained with {listed}: set it so, or {anew} with yours")

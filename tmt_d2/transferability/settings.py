"""Settings of an estimator, stored with its weights, which are only valid for the regions it was trained on.

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
    """Return (N,) uint8, the bytes of JSON: a checkpoint holds tensors only."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def decode_settings(state: Any) -> dict[str, Any]:
    """Inverse of ``encode_settings``.

    Raises:
        ValueError: ``state`` is not encoded settings.
    """
    try:
        settings = json.loads(bytes(torch.as_tensor(state).flatten().tolist()))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"settings of the estimator that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"settings of the estimator that are a {type(settings).__name__}")
    return settings


def refuse_other_settings(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> None:
    """Compare settings of an estimator, ``there``, in the checkpoint ``name``, with those of a run, ``here``.

    Raises:
        UserError: they differ in a key that both have.
    """
    different = [key for key in here if key in there and there[key] != here[key]]
    if not different:
        return
    listed = ", ".join(f"MODEL.TMT.{key} {there[key]} (here {here[key]})" for key in different)
    retrain = "fine-tune from the estimator's checkpoint" if different == ["FEATURES"] else "train the estimator again"
    raise UserError(f"its estimator was trained with {listed}", key=name, hint=f"use the same values, or {retrain}")

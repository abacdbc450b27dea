"""Table of the project's own config keys: ``python -m tmt_d2.config.table > docs/config.md``."""

from __future__ import annotations

import sys
from typing import Any

from tmt_d2.config.keys import OWN, Key

INTRODUCTION = """# Config keys

The project's own keys, made by `python -m tmt_d2.config.table > docs/config.md` from
[`tmt_d2/config/keys.py`](../tmt_d2/config/keys.py). All other keys are those of
[Detectron2](https://detectron2.readthedocs.io/en/latest/modules/config.html) and of the official Mask2Former.
Files in `configs/methods/` override defaults: `self-training.yaml` sets `SOURCE_RATIO` and `WARM_UP`, for example.
"""


def page() -> str:
    """Return the page: the introduction and a table of all keys."""
    lines = [INTRODUCTION, "| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, key in OWN.items():
        lines.append(f"| `{name}` | `{_text(key.default)}` | {_allowed(key)} | {key.about} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else '""'


def _allowed(key: Key) -> str:
    if isinstance(key.allowed, tuple):
        return ", ".join(f"`{value}`" for value in key.allowed)
    return type(key.default).__name__ if key.allowed is None else str(key.allowed)


if __name__ == "__main__":
    sys.stdout.write(page())

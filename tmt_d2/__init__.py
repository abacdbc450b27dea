"""Transferable Mask Transformer (TMT, arXiv 2504.05774) as a Detectron2 project."""

import importlib
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("detectron2") is None:
    raise ImportError(
        "tmt_d2 needs Detectron2, which is not importable. Either run `make setup` in a checkout of tmt_d2 (a pinned "
        "wheel, no compiler), or install the official one: "
        "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'"
    )

# Detectron2 scripts some functions at import, which newer PyTorch calls deprecated; not the user's doing.
warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit", module="torch.jit")

if TYPE_CHECKING:
    from tmt_d2 import data, modeling, transferability  # noqa: F401
    from tmt_d2.config import add_tmt_config, setup_cfg
    from tmt_d2.projects.loop import adapt

__all__ = ["adapt", "add_tmt_config", "register", "setup_cfg"]


def register() -> None:
    """Register architectures and backbones with Detectron2, and the data sets in its catalogs."""
    importlib.import_module("tmt_d2.modeling")
    importlib.import_module("tmt_d2.data.datasets.registration")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name at its first use (PEP 562): PyTorch and Detectron2 take seconds, which --help need not wait."""
        if name in ("data", "modeling", "transferability"):
            return importlib.import_module(f"tmt_d2.{name}")
        if name == "adapt":  # of a project on top of the core, which imports none
            return importlib.import_module("tmt_d2.projects.loop").adapt
        if name in __all__:
            register()
            return getattr(importlib.import_module("tmt_d2.config"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

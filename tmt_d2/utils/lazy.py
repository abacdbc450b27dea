"""Names of a package that are imported at their first use (PEP 562), so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str, **exports: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: the ``__name__`` of the package.
        exports: for each module of the package the names that it exports, separated by spaces.
    """
    module_of = {name: module for module, names in exports.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get

"""Configuration: every key with its default and allowed values, config files, and checks of values."""

from typing import TYPE_CHECKING

from tmt_d2.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from tmt_d2.config.access import flatten, get_key, replace_keys, set_key
    from tmt_d2.config.keys import add_tmt_config
    from tmt_d2.config.setup import check_cfg, check_values, merge_cfg, model_settings, setup_cfg
else:
    __getattr__ = lazy_exports(
        __name__,
        access="flatten get_key replace_keys set_key",
        keys="add_tmt_config",
        setup="check_cfg check_values merge_cfg model_settings setup_cfg",
    )

__all__ = [
    "add_tmt_config",
    "check_cfg",
    "check_values",
    "flatten",
    "get_key",
    "merge_cfg",
    "model_settings",
    "replace_keys",
    "set_key",
    "setup_cfg",
]

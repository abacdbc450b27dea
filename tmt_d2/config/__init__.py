"""Configuration: every key with its default, config files, and checks of values."""

from tmt_d2.config.defaults import (
    NUM_CLASSES_UNSET,
    add_maskformer2_config,
    add_tmt_config,
    model_settings,
    setup_cfg,
    with_num_classes,
)

__all__ = [
    "NUM_CLASSES_UNSET",
    "add_maskformer2_config",
    "add_tmt_config",
    "model_settings",
    "setup_cfg",
    "with_num_classes",
]

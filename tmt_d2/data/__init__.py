"""Label spaces, registration, reading and batches; ``datasets.registration`` fills Detectron2's catalogs."""

from typing import TYPE_CHECKING

from tmt_d2.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from tmt_d2.data.datasets.custom import register_custom, register_data
    from tmt_d2.data.datasets.registration import label_space_of, register_all
else:
    __getattr__ = lazy_exports(
        __name__,
        **{
            "datasets.custom": "register_custom register_data",
            "datasets.registration": "label_space_of register_all",
        },
    )

__all__ = ["label_space_of", "register_all", "register_custom", "register_data"]

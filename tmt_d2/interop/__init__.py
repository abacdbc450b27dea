"""Exchange with the official Mask2Former code and with Hugging Face; ``convert`` is the command."""

from .huggingface import from_huggingface, read_huggingface, to_huggingface, write_huggingface
from .official import plain_state, unused_settings, upgrade_names, write_official

__all__ = [
    "from_huggingface",
    "plain_state",
    "read_huggingface",
    "to_huggingface",
    "unused_settings",
    "upgrade_names",
    "write_huggingface",
    "write_official",
]

"""Exchange with the official Mask2Former code and with Hugging Face; ``convert`` is the command."""

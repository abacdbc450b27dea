"""Conversion of checkpoints from and to Hugging Face and the official code. See README.md."""

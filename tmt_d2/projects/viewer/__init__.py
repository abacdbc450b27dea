"""Page that shows the attention and the transferability of a clicked pixel; see README.md."""

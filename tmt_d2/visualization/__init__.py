"""Images of a model's predictions, transferability and attention: overlays, panels, figures and their numbers."""

"""Pictures of what a model sees: overlays, panels, and reports of attention and transferability."""

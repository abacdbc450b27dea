"""Self-training: a teacher labels the images that have no label. One ingredient per file."""

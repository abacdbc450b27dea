"""Self-training: a teacher labels the pictures that nobody has labelled; one ingredient a file."""

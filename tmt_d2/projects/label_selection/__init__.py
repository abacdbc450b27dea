"""Selection of unlabeled images for annotation. See README.md."""

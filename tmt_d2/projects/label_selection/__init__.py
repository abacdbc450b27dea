"""Which unlabelled pictures to label next: what a model says of them, strategies, and what a person is shown."""

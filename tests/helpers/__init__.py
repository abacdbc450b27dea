"""What tests share: where the checkout is, tiny models, small runs, hostile inputs, processes, weights by name."""

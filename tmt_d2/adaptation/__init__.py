"""How a target is adapted: one idea a file, and one table of them all."""

"""The commands: each parses arguments, calls a room and prints; installed, ``tmt-train-pair`` is ``train_pair``."""

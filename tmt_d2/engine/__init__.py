"""Trainer, step, optimizer, hooks, checkpoints and run folders; ``run_stage`` runs a task."""

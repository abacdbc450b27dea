"""What every stage shares: trainer, step, optimiser, checkpoints; ``stages`` runs one."""

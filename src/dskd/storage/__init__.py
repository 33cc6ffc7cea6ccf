"""Files: atomic writes, locks, checkpoints, weights and run directories."""

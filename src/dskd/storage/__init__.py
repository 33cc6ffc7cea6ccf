"""Atomic writes, folder locks, checkpoints, weight files and run folders."""

"""Segmentation: images with masks, mixed supervision, and distillation at every pixel."""

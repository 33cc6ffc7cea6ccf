"""Devices, processes, signals, compilation and numeric checks."""

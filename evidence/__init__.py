"""Computes the evidence in docs/results, by the rules of docs/results/protocol.md."""

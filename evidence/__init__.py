"""The evidence: what is computed for docs/results, by docs/results/protocol.md."""

"""Finished runs as one page: what was compared, what it came to, and where students differ."""

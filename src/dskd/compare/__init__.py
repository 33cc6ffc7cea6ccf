"""Methods side by side: the same pictures in the same order, several seeds, one table."""

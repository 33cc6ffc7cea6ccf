"""Methods side by side: the same images in the same order, several seeds, one table."""

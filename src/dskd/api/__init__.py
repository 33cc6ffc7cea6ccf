"""The package from Python: models of images, and a module for each other task."""

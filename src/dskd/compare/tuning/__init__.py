"""Tune the settings of a recipe: trials on the validation images, and one run of the best."""

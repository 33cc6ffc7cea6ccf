"""Tasks other than image classification. Each is a folder, and an extra of the package."""

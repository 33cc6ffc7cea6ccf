"""Without MONAI, which is an extra, the tests of segmentation are left out."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("monai") is None:
    collect_ignore_glob = ["test_*.py"]

"""``python -m dskd`` is ``dskd``."""

from dskd.cli import main

main()

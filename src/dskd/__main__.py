"""``python -m dskd`` is ``dskd``."""

from dskd.cli.commands import main

main()

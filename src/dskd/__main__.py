"""Runs the command line: ``python -m dskd`` does the same as ``dskd``."""

from dskd.cli.commands import main

main()

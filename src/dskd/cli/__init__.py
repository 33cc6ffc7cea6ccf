"""The command line: commands, the lists they print, the demo, and tables on stdout.

Importing this package does not import torch. A command imports what it needs when it runs.
"""

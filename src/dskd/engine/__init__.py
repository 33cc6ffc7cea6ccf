"""The training engine. Start at `dskd.engine.run`."""

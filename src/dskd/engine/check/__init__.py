"""Check a run before it starts: `dskd.engine.check.run.check`."""

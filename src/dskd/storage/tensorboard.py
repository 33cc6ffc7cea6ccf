"""Metrics for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from dskd.storage.atomic import PROBE, make_folder, telling


class TensorBoardLog:
    """A file of metrics, each epoch's written when it is given.

    Not through tensorboardX's own writer: that one hands everything to a thread, which a full disk
    or a clock that is set back ends, and then waits for it for ever.

    Args:
        folder: For TensorBoard; made where it is missing.
        epochs: Before the first that will be written; later ones of another file are void.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.path = folder / f"events.out.tfevents.{epochs:05d}"
        with telling(self.path, lambda: PROBE):
            make_folder(folder)
            self.path.unlink(missing_ok=True)  # it may be a link
            self._file = RecordWriter(str(self.path))
        self._write(
            Event(file_version="brain.Event:2"),
            Event(step=epochs + 1, session_log=SessionLog(status=SessionLog.START)),
        )

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Writes an epoch's values."""
        self._write(*(Event(step=epoch, summary=scalar(*value)) for value in values.items()))

    def _write(self, *events: Event) -> None:
        records = []
        for event in events:
            event.wall_time = time.time()
            records.append(event.SerializeToString())
        with telling(self.path, lambda: sum(map(len, records))):
            for record in records:
                self._file.write(record)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with suppress(OSError):  # whatever was given has been written, or its failure told
            self._file.close()

"""Write metrics for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from dskd.storage.atomic import PROBE_BYTES, explain_disk_errors, make_folder


class TensorBoardLog:
    """An event file; each epoch's metrics are on the disk when `add` returns.

    The writer of tensorboardX is not used. It passes events to a thread; a full disk, or a clock
    that is set back, ends that thread, and the writer then waits for it forever.

    Args:
        folder: The log folder of TensorBoard; created if it is missing.
        epochs: Number of epochs that are done. TensorBoard drops later ones of earlier files.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.path = folder / f"events.out.tfevents.{epochs:05d}"
        with explain_disk_errors(self.path, lambda: PROBE_BYTES):
            make_folder(folder)
            self.path.unlink(missing_ok=True)  # it may be a link
            self._file = RecordWriter(str(self.path))
        self._write(
            Event(file_version="brain.Event:2"),
            Event(step=epochs + 1, session_log=SessionLog(status=SessionLog.START)),
        )

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of an epoch."""
        self._write(*(Event(step=epoch, summary=scalar(*value)) for value in values.items()))

    def _write(self, *events: Event) -> None:
        records = []
        for event in events:
            event.wall_time = time.time()
            records.append(event.SerializeToString())
        with explain_disk_errors(self.path, lambda: sum(map(len, records))):
            for record in records:
                self._file.write(record)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with suppress(OSError):  # every event was flushed already, or its failure was reported
            self._file.close()

"""TensorBoard's event files: TFRecord frames around protobuf events, on disk as soon as they are written."""

import itertools
import pathlib
import socket
import struct
import time

_numbers = itertools.count()


class EventFile:
    """One event file in `folder`, made if absent.

    tensorboardX's own writer queues events for a thread that writes them every two minutes: a run that is killed loses
    them, and a full disk ends the thread with a traceback, not the run with an error. So only its events and
    checksums are used.

    Args:
      folder: where TensorBoard looks.
      purge_step: TensorBoard hides what earlier files say from this step on; 0 hides nothing.
    """

    def __init__(self, folder, purge_step=0):
        # Imported late: it takes a quarter of a second, which `--help` and the tests need not pay.
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # Files are read in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{next(_numbers)}"
        self._file, self._checksum = open(folder / name, "wb"), masked_crc32c
        self._write(file_version="brain.Event:2", step=purge_step)
        if purge_step:
            self._write(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step, wall_time, scalars):
        """Adds {tag: number} of one step."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(wall_time=wall_time, step=step, summary=self._summary(value=values))

    def close(self):
        self._file.close()

    def _write(self, wall_time=None, **fields):
        event = self._event(wall_time=time.time() if wall_time is None else wall_time, **fields)
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, data)]
        self._file.write(length + checksums[0] + data + checksums[1])
        self._file.flush()

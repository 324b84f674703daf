"""How a pool, its fork servers and their children speak: one letter, the length, the bytes."""

import os
import select
import struct
import time

HEADER = struct.Struct("=cI")

READY, TASK, TAKEN = b"R", b"T", b"t"
VALUE, ERROR, CRASH, TIMEOUT = b"=", b"!", b"x", b"0"


class TooLongError(Exception):
    """A frame is longer than its sender may write."""


def send(descriptor: int, kind: bytes, payload: bytes = b"", within_s: float | None = None) -> None:
    """Write a frame.

    Raises:
        OSError: the other side is gone.
        TimeoutError: it has not taken the frame in `within_s` seconds.
    """
    deadline = None if within_s is None else time.monotonic() + within_s
    data = memoryview(HEADER.pack(kind, len(payload)) + payload)
    while data:
        piece = data
        if deadline is not None:
            _wait(descriptor, select.POLLOUT, deadline)
            piece = data[: select.PIPE_BUF]  # a pipe that is ready takes so many bytes without blocking
        data = data[os.write(descriptor, piece) :]


def receive(descriptor: int, within_s: float | None = None, limit: int | None = None) -> tuple[bytes, bytes]:
    """The next letter and its bytes.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the frame is not complete `within_s` seconds.
        TooLongError: it has more than `limit` bytes.
    """
    deadline = None if within_s is None else time.monotonic() + within_s
    kind, length = HEADER.unpack(_exactly(descriptor, HEADER.size, deadline))
    if limit is not None and length > limit:
        raise TooLongError
    return kind, _exactly(descriptor, length, deadline)


def _exactly(descriptor: int, n: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < n:
        if deadline is not None:
            _wait(descriptor, select.POLLIN, deadline)
        piece = os.read(descriptor, n - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not poll.poll(1000 * left_s):
        raise TimeoutError

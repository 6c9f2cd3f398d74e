"""HTTP/2's frames (RFC 9113, 4 and 6), and what of a server's no connection outlives."""

from __future__ import annotations

import struct
from collections.abc import Iterator

FRAME = struct.Struct(">BHBBI")  # 24 bits of length, kind, flags, stream
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8
MOST_STREAMS, INITIAL_WINDOW, MOST_BYTES = 3, 4, 5  # settings
LARGEST = (1 << 31) - 1
LEAST_BYTES, MOST_BYTES_EVER = 1 << 14, (1 << 24) - 1  # of a frame, as settings may say
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 1, 3, 6
NAMES = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION",
}
SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
OF_STREAMS = {DATA, HEADERS, RST_STREAM, CONTINUATION}
OF_CONNECTION = {SETTINGS, PING, GOAWAY}


class Violation(Exception):
    """The other side does not keep to the protocol: `code` is what it is told, the message what is written down."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's payload of `size` bytes, less than 2**24 (RFC 9113, 4.1)."""
    return FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A whole frame, head and payload."""
    return head(len(payload), kind, flags, stream) + payload


class Frames:
    """The frames of a server, of which one has at most `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._received = b""
        self._greeted = False  # it has said its settings, as it has to before all else
        self._unfinished = 0  # the stream whose header fields go on in the next frame

    def of(self, data: bytes, next_stream: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each that is whole with `data`; the rest waits for more.

        Raises Violation for what no server may send while our streams are those below `next_stream`.
        """
        data, at = self._received + data, 0
        while len(data) - at >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            start, size, stream = at + FRAME.size, high << 16 | low, stream & LARGEST
            if size > self._most_bytes:
                raise Violation(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if len(data) < start + size:
                break
            at = start + size
            payload = data[start:at]
            self._require_place(kind, flags, stream, next_stream)
            _require_sound(kind, flags, payload)
            yield kind, flags, stream, payload
        self._received = data[at:]

    def _require_place(self, kind: int, flags: int, stream: int, next_stream: int) -> None:
        """What ends a stream by RFC 9113 ends the connection too, which it allows (5.4.1)."""
        name = NAMES.get(kind, "")
        if not self._greeted and (kind != SETTINGS or flags & ACK):
            raise Violation(PROTOCOL_ERROR, "no SETTINGS at its beginning")
        if (self._unfinished or kind == CONTINUATION) and (kind, stream) != (CONTINUATION, self._unfinished):
            raise Violation(PROTOCOL_ERROR, "header fields that another frame interrupts, or without a beginning")
        if kind == PUSH_PROMISE:
            raise Violation(PROTOCOL_ERROR, "a push, which was refused")
        if (kind in OF_CONNECTION and stream) or (kind in OF_STREAMS and not stream):
            raise Violation(PROTOCOL_ERROR, f"{name} of stream {stream}")
        if name and stream and (stream >= next_stream or not stream & 1):
            raise Violation(PROTOCOL_ERROR, f"{name} of a stream that nobody has opened")
        self._greeted = True
        if kind in (HEADERS, CONTINUATION):
            self._unfinished = 0 if flags & END_HEADERS else stream


def _require_sound(kind: int, flags: int, payload: bytes) -> None:
    size, name = len(payload), NAMES.get(kind, "")
    if size != SIZES.get(kind, size) or (kind == GOAWAY and size < 8):
        raise Violation(FRAME_SIZE_ERROR, f"{name} of {size} bytes")
    if kind == SETTINGS and (size if flags & ACK else size % 6):
        raise Violation(FRAME_SIZE_ERROR, f"SETTINGS of {size} bytes")
    if kind in (DATA, HEADERS) and flags & PADDED and not (size and payload[0] < size):
        raise Violation(PROTOCOL_ERROR, f"{name} with more padding than it holds")
    if kind == WINDOW_UPDATE and not int.from_bytes(payload, "big") & LARGEST:
        raise Violation(PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")


def settings_of(payload: bytes) -> dict[int, int]:
    """What SETTINGS say, of each the last. Raises Violation for values out of their range (6.5.2)."""
    said = dict(struct.iter_unpack(">HI", payload))
    if said.get(INITIAL_WINDOW, 0) > LARGEST:
        raise Violation(FLOW_CONTROL_ERROR, "SETTINGS with a window of more than 2 GiB")
    if not LEAST_BYTES <= said.get(MOST_BYTES, LEAST_BYTES) <= MOST_BYTES_EVER:
        raise Violation(PROTOCOL_ERROR, f"SETTINGS with frames of {said[MOST_BYTES]} bytes")
    return said

"""What of a server's frames ends a connection, beside what RFC 9113 asks."""

from __future__ import annotations

import struct

import pytest
from eca_service import frames as h2
from eca_service.frames import Frames, Violation, frame, head, settings_of

HELLO = frame(h2.SETTINGS, 0, 0, b"")
OPEN = frame(h2.HEADERS, 0, 1, b"")  # its fields go on


def setting(name: int, value: int) -> bytes:
    return frame(h2.SETTINGS, 0, 0, struct.pack(">HI", name, value))


VIOLATIONS = {
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", h2.FRAME_SIZE_ERROR),
    "no settings": (frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),
    "settings of ours alone": (frame(h2.SETTINGS, h2.ACK, 0, b""), h2.PROTOCOL_ERROR),
    "larger than we take": (HELLO + head(1025, h2.DATA, 0, 1), h2.FRAME_SIZE_ERROR),
    "fields that begin nowhere": (HELLO + frame(h2.CONTINUATION, 4, 1, b""), h2.PROTOCOL_ERROR),
    "fields that are interrupted": (HELLO + OPEN + frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),
    "fields that go on in another stream": (HELLO + OPEN + frame(h2.CONTINUATION, 4, 3, b""), h2.PROTOCOL_ERROR),
    "a push": (HELLO + frame(h2.PUSH_PROMISE, 4, 1, bytes(4)), h2.PROTOCOL_ERROR),
    "data of no stream": (HELLO + frame(h2.DATA, 0, 0, b"x"), h2.PROTOCOL_ERROR),
    "fields of no stream": (HELLO + frame(h2.HEADERS, 4, 0, b""), h2.PROTOCOL_ERROR),
    "an end of no stream": (HELLO + frame(h2.RST_STREAM, 0, 0, bytes(4)), h2.PROTOCOL_ERROR),
    "settings of a stream": (HELLO + frame(h2.SETTINGS, 0, 1, b""), h2.PROTOCOL_ERROR),
    "a stream of its own": (HELLO + frame(h2.DATA, 0, 2, b"x"), h2.PROTOCOL_ERROR),
    "a stream to come": (HELLO + frame(h2.WINDOW_UPDATE, 0, 5, b"\0\0\0\1"), h2.PROTOCOL_ERROR),
    "an end that is cut off": (HELLO + frame(h2.RST_STREAM, 0, 1, bytes(3)), h2.FRAME_SIZE_ERROR),
    "a ping that is cut off": (HELLO + frame(h2.PING, 0, 0, bytes(7)), h2.FRAME_SIZE_ERROR),
    "a last stream that is cut off": (HELLO + frame(h2.GOAWAY, 0, 0, bytes(4)), h2.FRAME_SIZE_ERROR),
    "settings that are cut off": (frame(h2.SETTINGS, 0, 0, bytes(5)), h2.FRAME_SIZE_ERROR),
    "settings that are ours": (HELLO + frame(h2.SETTINGS, h2.ACK, 0, bytes(6)), h2.FRAME_SIZE_ERROR),
    "padding alone": (HELLO + frame(h2.DATA, h2.PADDED, 1, b""), h2.PROTOCOL_ERROR),
    "more padding than there is": (HELLO + frame(h2.HEADERS, 4 | h2.PADDED, 1, b"\4\0\0\0"), h2.PROTOCOL_ERROR),
    "no more room": (HELLO + frame(h2.WINDOW_UPDATE, 0, 0, b"\x80\0\0\0"), h2.PROTOCOL_ERROR),
    "too much room": (setting(h2.INITIAL_WINDOW, 1 << 31), h2.FLOW_CONTROL_ERROR),
    "frames without room": (setting(h2.MOST_BYTES, 0), h2.PROTOCOL_ERROR),
    "frames of more than their length says": (setting(h2.MOST_BYTES, 1 << 24), h2.PROTOCOL_ERROR),
}


def take(sent: bytes) -> None:
    for kind, flags, _, payload in Frames(1024).of(sent, next_stream=5):
        if kind == h2.SETTINGS and not flags & h2.ACK:
            settings_of(payload)


@pytest.mark.parametrize(("sent", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_no_server_may_send(sent: bytes, code: int) -> None:
    with pytest.raises(Violation) as found:
        take(sent)
    assert found.value.code == code


def test_what_a_server_may_send() -> None:
    """Whole or byte by byte."""
    sent = [
        (h2.SETTINGS, 0, 0, struct.pack(">HIHI", h2.MOST_BYTES, 1 << 14, h2.INITIAL_WINDOW, h2.LARGEST)),
        (h2.SETTINGS, h2.ACK, 0, b""),
        (h2.HEADERS, h2.PADDED, 1, b"\2x\0\0"),
        (h2.CONTINUATION, 0, 1, b""),
        (h2.CONTINUATION, h2.END_HEADERS, 1, b"y"),
        (h2.DATA, h2.PADDED, 3, b"\0"),
        (h2.PING, 0, 0, bytes(8)),
        (200, 255, 9, b"of a kind that nobody knows"),
        (h2.WINDOW_UPDATE, 0, 0, b"\x80\0\0\1"),
        (h2.GOAWAY, 0, 0, bytes(8) + b"why"),
    ]
    data = b"".join(frame(*each) for each in sent)
    assert list(Frames(1024).of(data, next_stream=5)) == sent
    frames = Frames(1024)
    assert [each for byte in data for each in frames.of(bytes([byte]), next_stream=5)] == sent

"""Header fields as HTTP/2 writes them (RFC 7541), where neither side keeps a table: literals, one after the other."""

from __future__ import annotations

from collections.abc import Iterable

LITERALS = {0x40, 0x00, 0x10}  # to be kept, not kept, never to be kept: without a table the same
NO_TABLE = 0x20  # its size, which is said first
OF_ALL = range(0x81, 0xBE)  # fields that everybody knows, such as `:status: 200`
SEVEN_BITS = 127


def block_of(fields: Iterable[tuple[str, str]]) -> bytes:
    """The fields, each as a literal that is not to be kept (6.2.2)."""
    return b"".join(b"\0" + _literal(name.lower().encode()) + _literal(value.encode()) for name, value in fields)


def fields_of(block: bytes) -> dict[bytes, bytes]:
    """The fields that are written as two literals without Huffman's code, as gRPC's servers do; up to the first that is
    written in another way, but for those which everybody knows.
    """
    fields, at = {}, 0
    try:
        while at < len(block):
            if block[at] == NO_TABLE or block[at] in OF_ALL:
                at += 1
            elif block[at] in LITERALS:
                start, at = _ends(block, at + 1)
                value_start, end = _ends(block, at)
                fields[block[start:at]] = block[value_start:end]
                at = end
            else:
                break
    except (IndexError, ValueError):
        pass
    return fields


def _literal(text: bytes) -> bytes:
    """With its length before it, in seven bits or in more bytes (5.1, 5.2)."""
    if (size := len(text)) < SEVEN_BITS:
        return bytes([size]) + text
    out, size = bytearray([SEVEN_BITS]), size - SEVEN_BITS
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + text


def _ends(block: bytes, at: int) -> tuple[int, int]:
    """Where the literal begins whose length is at `at`, and where it ends. Raises IndexError, ValueError."""
    if block[at] > SEVEN_BITS:
        raise ValueError("it is in Huffman's code")
    size, at = block[at], at + 1
    if size == SEVEN_BITS:
        shift, more = 0, True
        while more:
            size += (block[at] & 127) << shift
            shift, more, at = shift + 7, block[at] > 127, at + 1
    if at + size > len(block):
        raise IndexError("it is cut off")
    return at, at + size

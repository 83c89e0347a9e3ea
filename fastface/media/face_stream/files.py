"""Face streams as files: the header, then every packet behind its length."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastface._files import replacing
from fastface.media.face_stream.coding import unseal
from fastface.media.face_stream.header import StreamHeader
from fastface.media.image import check_parent

_LENGTH = struct.Struct(">H")
_LENGTH_NUMBER = struct.Struct(">HH")  # a packet begins with its sequence number
_NEAR = 1024


@dataclass(frozen=True)
class FaceStream:
    """A file's content.

    Attributes:
        header: of the session.
        packets: as they were sent; damaged ones too, for the decoder to count.
        broken: where the file breaks off, or None.
    """

    header: StreamHeader
    packets: list[bytes]
    broken: str | None = None


def write_face_stream(path: str | Path, header: StreamHeader, packets: Iterable[bytes]) -> None:
    """Write a stream, whole or not at all; the packets may still be in the making.

    Raises:
        ValueError: a directory, or a place without access.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected a file name, got the directory {path}")
    check_parent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.data)
        for packet in packets:
            file.write(_LENGTH.pack(len(packet)) + packet)


def read_face_stream(path: str | Path) -> FaceStream:
    """Read a stream as far as it goes.

    Raises:
        ValueError: a directory, no such file, or a header that is not one; one line that says which.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected a face stream, got the directory {path}")
    if not path.exists():
        raise ValueError(f"no such face stream: {path}")
    data = path.read_bytes()
    try:
        header = StreamHeader.read(data)
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from error
    packets: list[bytes] = []
    at, sequence = len(header.data), -1
    while at < len(data):
        found = _find(data, at, header.session, sequence)
        if found is None:
            broken = f"the last {len(data) - at} bytes, after {len(packets)} packets, hold no whole packet: {path}"
            return FaceStream(header, packets, broken)
        start, end, sequence = found
        if start > at:
            packets.append(data[at + _LENGTH.size : start])
        packets.append(data[start + _LENGTH.size : end])
        at = end
    return FaceStream(header, packets)


def _find(data: bytes, at: int, session: int, sequence: int) -> tuple[int, int, int] | None:
    """The next intact packet: where its length stands, its end and its number.

    Damage may have hit a length, so the search goes byte by byte; once off the path it also asks for a number that
    follows soon after the latest, since among so many places one checksum may match by chance.
    """
    for start in range(at, len(data) - _LENGTH_NUMBER.size + 1):
        length, number = _LENGTH_NUMBER.unpack_from(data, start)
        body, end = start + _LENGTH.size, start + _LENGTH.size + length
        near = start == at or 0 < number - sequence & 0xFFFF <= _NEAR
        if near and end <= len(data) and unseal(data[body:end], session) is not None:
            return start, end, number
    return None

"""Packets, bits and the coding of levels: whole numbers only, so every machine agrees.

A key frame's levels are Exp-Golomb codes. In the others each coefficient's difference from the frame before is a Rice
code whose parameter follows the size of that coefficient's latest differences (as in LOCO-I, Weinberger, Seroussi and
Sapiro 2000, with an exponential mean); a long one escapes to Exp-Golomb. A key frame forgets all of it.
"""

from __future__ import annotations

import binascii
import struct
from typing import NamedTuple

from fastface.media.face_stream.quantizer import MAX_LEVEL

MAX_FRAMES = 16  # that one packet holds
_HEAD = struct.Struct(">HIB")  # sequence number, timestamp of the first frame, flags
_KEY, _GAPS, _COUNT = 0x80, 0x40, 0x0F
_CHECKSUM = struct.Struct(">H")
_KEY_ORDER = 5
_ESCAPE = 12  # a unary part this long announces an Exp-Golomb code
_MEMORY = 2  # the mean forgets a quarter a frame
_START = 2 << _MEMORY  # a difference of 2 is expected after a key frame


class Packet(NamedTuple):
    """`gaps`: some of its frames have no face, and a bit for each says which."""

    sequence: int
    timestamp: int
    key: bool
    gaps: bool
    frames: int
    payload: bytes


def seal(packet: Packet, session: int) -> bytes:
    """The packet as it is sent, CRC-16 at the end."""
    flags = _KEY * packet.key | _GAPS * packet.gaps | packet.frames - 1
    data = _HEAD.pack(packet.sequence, packet.timestamp, flags) + packet.payload
    return data + _CHECKSUM.pack(_crc(data, session))


def unseal(data: bytes, session: int) -> Packet | None:
    """The inverse of `seal`; None where the packet is damaged or belongs to another session."""
    body, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
    if len(body) < _HEAD.size or checksum != _CHECKSUM.pack(_crc(body, session)):
        return None
    sequence, timestamp, flags = _HEAD.unpack_from(body)
    if flags & ~(_KEY | _GAPS | _COUNT):
        return None
    return Packet(
        sequence, timestamp, bool(flags & _KEY), bool(flags & _GAPS), (flags & _COUNT) + 1, body[_HEAD.size :]
    )


def _crc(data: bytes, session: int) -> int:
    """CRC-16 (CCITT), inverted, since otherwise zeros might follow a packet unnoticed."""
    return binascii.crc_hqx(data, session) ^ 0xFFFF


class BitWriter:
    """Bits, the most significant first."""

    def __init__(self) -> None:
        self._value = 0
        self.length = 0

    def bits(self, value: int, count: int) -> None:
        self._value = self._value << count | value
        self.length += count

    def golomb(self, value: int, order: int, escape: int = 0) -> None:
        """A Rice code of parameter `order`; from `escape` on, so always by default, an Exp-Golomb code of that order.

        Rice: ``value >> order`` zeros, a one, the low `order` bits. Exp-Golomb: `escape` zeros and as many more as
        bits follow the first of ``(value >> order) - escape + 1``, then that number, then the low bits.
        """
        high = value >> order
        if high < escape:
            self.bits(1, high + 1)
        else:
            rest = high - escape + 1
            self.bits(rest, escape + 2 * rest.bit_length() - 1)
        self.bits(value & (1 << order) - 1, order)

    def signed(self, value: int, order: int, escape: int = 0) -> None:
        """`golomb` of 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ..."""
        self.golomb(2 * value if value >= 0 else -2 * value - 1, order, escape)

    def to_bytes(self) -> bytes:
        """The bits, and zeros up to a whole byte."""
        padding = -self.length % 8
        return (self._value << padding).to_bytes((self.length + padding) // 8, "big")


class BitReader:
    """The inverse of `BitWriter`. Raises ValueError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def bits(self, count: int) -> int:
        if count > self.left:
            raise ValueError("the packet ends within a frame")
        self.left -= count
        return self._value >> self.left & (1 << count) - 1

    def golomb(self, order: int, escape: int = 0) -> int:
        zeros = self.left - (self._value & (1 << self.left) - 1).bit_length()
        self.bits(zeros + 1)
        if zeros < escape:
            high = zeros
        else:
            extra = zeros - escape
            high = escape + (1 << extra | self.bits(extra)) - 1
        return high << order | self.bits(order)

    def signed(self, order: int, escape: int = 0) -> int:
        value = self.golomb(order, escape)
        return -(value + 1 >> 1) if value & 1 else value >> 1


class FrameCoder:
    """Codes the levels of frame after frame; a writer and a reader that started together stay together.

    Attributes:
        spent: the bits read so far of each coefficient.
        key_bits: how many of them were a key frame's.
    """

    def __init__(self, coefficients: int) -> None:
        self.spent = [0] * coefficients
        self.key_bits = 0
        self.reset()

    def reset(self) -> None:
        """The next frame is a key frame."""
        self._previous: list[int] | None = None
        self._activity = [_START] * len(self.spent)  # the mean size of the latest differences, 2^_MEMORY times

    def write(self, bits: BitWriter, levels: list[int]) -> None:
        for level, (expected, order, escape) in zip(levels, self._plan(), strict=True):
            bits.signed(level - expected, order, escape)
        self._learn(levels)

    def read(self, bits: BitReader) -> list[int]:
        """Raises ValueError for what no writer writes."""
        levels, start = [], bits.left
        for index, (expected, order, escape) in enumerate(self._plan()):
            before = bits.left
            levels.append(expected + bits.signed(order, escape))
            self.spent[index] += before - bits.left
        if max(map(abs, levels)) > MAX_LEVEL:
            raise ValueError(f"levels must lie within {MAX_LEVEL}, got {max(map(abs, levels))}")
        if self._previous is None:
            self.key_bits += start - bits.left
        self._learn(levels)
        return levels

    def _plan(self) -> list[tuple[int, int, int]]:
        """For each coefficient the expected level, the order of the code and where it escapes."""
        if self._previous is None:
            return [(0, _KEY_ORDER, 0)] * len(self.spent)
        return [
            (before, (activity >> _MEMORY).bit_length(), _ESCAPE)
            for before, activity in zip(self._previous, self._activity, strict=True)
        ]

    def _learn(self, levels: list[int]) -> None:
        if self._previous is not None:
            self._activity = [
                activity - (activity >> _MEMORY) + abs(level - before)
                for activity, level, before in zip(self._activity, levels, self._previous, strict=True)
            ]
        self._previous = levels

"""Vectors in, packets out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastface.media.face_stream.coding import MAX_FRAMES, BitWriter, FrameCoder, Packet, seal
from fastface.media.face_stream.header import TIME_BASE, StreamHeader


class FaceStreamEncoder:
    """Turns frames into packets, a few frames each.

    Args:
        header: of the session.
        frames_per_packet: 1 to 16. Each one beyond the first adds a frame to the latency and spares 40 bytes of
            IP, UDP and RTP headers.

    Attributes:
        reconstructed: ``[E + 7]`` float32, what the receiver has after the latest frame, to the bit: draw the
            sender's own preview from it.

    Raises:
        ValueError: `frames_per_packet` out of range.
    """

    def __init__(self, header: StreamHeader, *, frames_per_packet: int = 2) -> None:
        if not 1 <= frames_per_packet <= MAX_FRAMES:
            raise ValueError(f"frames_per_packet must be 1 to {MAX_FRAMES}, got {frames_per_packet}")
        self.header = header
        self.reconstructed: NDArray[np.float32] = header.quantizer.vector([0] * len(header.quantizer.step))
        self._frames_per_packet = frames_per_packet
        self._coder = FrameCoder(len(header.quantizer.step))
        self._waiting: list[tuple[int, list[int] | None]] = []  # ticks, levels
        self._last_ticks = -1
        self._sequence = 0
        self._since_key = header.key_interval  # the first packet has a key frame

    def push(self, vector: ArrayLike | None, seconds: float) -> list[bytes]:
        """The next frame: its vector ``[E + 7]`` (`FaceParameters.vector`), or None where no face was found.

        Returns the packet that it completes, if any.

        Raises:
            ValueError: a vector that the quantiser cannot take, or a time that is negative or does not grow.
        """
        levels = None if vector is None else self.header.quantizer.levels(vector)
        ticks = round(seconds * TIME_BASE)
        if ticks <= self._last_ticks:
            raise ValueError(f"seconds must grow from 0, got {seconds:g} after {self._last_ticks / TIME_BASE:g}")
        self._last_ticks = ticks
        if levels is not None:
            self.reconstructed = self.header.quantizer.vector(levels)
        self._waiting.append((ticks, levels))
        return [self._packet()] if len(self._waiting) == self._frames_per_packet else []

    def finish(self) -> list[bytes]:
        """The packet of the frames that still wait for it, if any."""
        return [self._packet()] if self._waiting else []

    def request_key(self) -> None:
        """Begin the next packet with a key frame: the receiver lost one, or came late."""
        self._since_key = self.header.key_interval

    def _packet(self) -> bytes:
        times, frames = zip(*self._waiting, strict=True)
        self._waiting = []
        key = self._since_key >= self.header.key_interval
        if key:
            self._coder.reset()
            self._since_key = 0
        self._since_key += len(frames)
        bits = BitWriter()
        for before, after in pairwise(times):
            bits.signed(after - before - self.header.frame_ticks, 0)
        gaps = None in frames
        if gaps:
            for levels in frames:
                bits.bits(levels is not None, 1)
        for levels in frames:
            if levels is not None:
                self._coder.write(bits, levels)
        packet = Packet(self._sequence, times[0] & 0xFFFFFFFF, key, gaps, len(frames), bits.to_bytes())
        self._sequence = self._sequence + 1 & 0xFFFF
        return seal(packet, self.header.session)


def encode_face_stream(
    header: StreamHeader, frames: Iterable[tuple[ArrayLike | None, float]], *, frames_per_packet: int = 2
) -> Iterator[bytes]:
    """The packets of a recording: (vector or None, seconds) for each frame. Errors are those of `FaceStreamEncoder`."""
    encoder = FaceStreamEncoder(header, frames_per_packet=frames_per_packet)
    for vector, seconds in frames:
        yield from encoder.push(vector, seconds)
    yield from encoder.finish()

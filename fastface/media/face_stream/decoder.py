"""Packets in, frames out, whatever the network does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import FaceParameters
from fastface.media.face_stream.coding import BitReader, FrameCoder, Packet, unseal
from fastface.media.face_stream.header import TIME_BASE, StreamHeader


@dataclass(frozen=True)
class DecodedFrame:
    """A frame to draw.

    Attributes:
        seconds: its time.
        vector: ``[E + 7]`` float32, the vector of `FaceParameters`.
        state: "decoded"; "no face" (the sender saw none, the vector is the latest one); "concealed" (its packet was
            lost, or cannot be read before the next key frame).
    """

    seconds: float
    vector: NDArray[np.float32]
    state: Literal["decoded", "no face", "concealed"]

    def parameters(self, identity: Tensor) -> FaceParameters:
        """With an identity ``[1, I]``, as a batch of one."""
        return FaceParameters.of_vector(torch.from_numpy(self.vector)[None], identity)


@dataclass
class DecoderCounts:
    """What happened to a stream.

    Attributes:
        packets: that arrived.
        decoded, no_face, concealed: frames, by their state.
        lost: packets missing when a later one arrived, damaged and late ones among them.
        damaged: packets whose checksum or content is wrong.
        late: packets that arrived after a later one, or twice; they are left out.
        unreadable: intact packets that came between a loss, or the start, and the next key frame.
        resyncs: key frames that ended such a stretch after a loss.
    """

    packets: int = 0
    decoded: int = 0
    no_face: int = 0
    concealed: int = 0
    lost: int = 0
    damaged: int = 0
    late: int = 0
    unreadable: int = 0
    resyncs: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in vars(self).items())


class FaceStreamDecoder:
    """Turns packets, in the order of their arrival, into frames in the order of their times.

    What is missing is concealed: the latest vector is held, then its expressions fade to neutral. Nothing of a damaged
    packet is used. Frames start with the first key frame.

    Args:
        header: of the session.
        hold: seconds for which a missing face keeps its expression.
        decay: seconds over which it then becomes neutral.

    Attributes:
        counts: what happened so far.
        coder: with the bits that each coefficient took.

    Raises:
        ValueError: a negative `hold`, or a `decay` that is not positive.
    """

    def __init__(self, header: StreamHeader, *, hold: float = 0.2, decay: float = 1.0) -> None:
        if not (hold >= 0 and decay > 0):
            raise ValueError(f"hold must be at least 0 and decay above 0, got {hold} and {decay}")
        self.header = header
        self.counts = DecoderCounts()
        self.coder = FrameCoder(len(header.quantizer.step))
        self._hold, self._decay = hold, decay
        self._vector = header.quantizer.vector([0] * len(header.quantizer.step))
        self._vector_ticks = 0  # when it was last the sender's own
        self._sequence: int | None = None  # of the next packet
        self._ticks = 0  # of the latest frame, wherever from
        self._started = self._in_step = False

    def push(self, data: bytes) -> list[DecodedFrame]:
        """The frames of a packet, before them those that were lost, as far as concealment has anything to change."""
        self.counts.packets += 1
        packet = unseal(data, self.header.session)
        if packet is None:
            self.counts.damaged += 1
            return []
        ahead = 0 if self._sequence is None else packet.sequence - self._sequence & 0xFFFF
        if ahead >= 0x8000:
            self.counts.late += 1
            return []
        if self._sequence is None:
            self._ticks = packet.timestamp
        self._sequence = packet.sequence + 1 & 0xFFFF
        self.counts.lost += ahead
        self._in_step = self._in_step and ahead == 0
        ticks = self._ticks + _signed32(packet.timestamp - self._ticks)
        frames = self._missing(ticks) if ahead else []
        self._ticks = ticks
        try:
            frames += self._read(packet, ticks)
        except ValueError:  # a checksum that is right by chance, or a sender that is not ours
            self.counts.damaged += 1
            self._in_step = False
        return frames

    def conceal(self, seconds: float) -> DecodedFrame:
        """What to draw at a time whose packet has not come; for a player that goes by its clock and waits for none."""
        vector = self._vector.copy()
        faded = (seconds - self._vector_ticks / TIME_BASE - self._hold) / self._decay
        vector[: self.header.quantizer.expressions] *= np.float32(1 - min(max(faded, 0.0), 1.0))
        return DecodedFrame(seconds, vector, "concealed")

    def _read(self, packet: Packet, ticks: int) -> list[DecodedFrame]:
        bits = BitReader(packet.payload)
        intervals = [self.header.frame_ticks + bits.signed(0) for _ in range(packet.frames - 1)]
        if min(intervals, default=1) <= 0:
            raise ValueError(f"times must grow, got an interval of {min(intervals)}")
        times = list(accumulate(intervals, initial=ticks))
        self._ticks = times[-1]
        faces = [bool(bits.bits(1)) if packet.gaps else True for _ in times]
        if packet.key:
            self.coder.reset()
        elif not self._in_step:
            self.counts.unreadable += 1
            return self._concealed(times)
        levels = [self.coder.read(bits) if face else None for face in faces]
        if bits.left >= 8:
            raise ValueError(f"a packet ends with less than 8 bits of padding, got {bits.left}")
        self.counts.resyncs += self._started and not self._in_step
        self._started = self._in_step = True
        return [self._frame(time, each) for time, each in zip(times, levels, strict=True)]

    def _frame(self, ticks: int, levels: list[int] | None) -> DecodedFrame:
        if levels is None:
            self.counts.no_face += 1
        else:
            self._vector = self.header.quantizer.vector(levels)
            self.counts.decoded += 1
        self._vector_ticks = ticks
        return DecodedFrame(ticks / TIME_BASE, self._vector.copy(), "no face" if levels is None else "decoded")

    def _missing(self, until: int) -> list[DecodedFrame]:
        """Frames at the usual rate between the latest one and a time, as long as concealment changes them."""
        step = self.header.frame_ticks
        still = self._vector_ticks + round((self._hold + self._decay) * TIME_BASE) + step
        return self._concealed(range(self._ticks + step, min(until - step // 2, still), step))

    def _concealed(self, times: Sequence[int]) -> list[DecodedFrame]:
        if not self._started:
            return []
        self.counts.concealed += len(times)
        return [self.conceal(ticks / TIME_BASE) for ticks in times]


def _signed32(difference: int) -> int:
    """A difference of timestamps modulo 2^32, as the nearest one to 0."""
    return (difference + (1 << 31)) % (1 << 32) - (1 << 31)

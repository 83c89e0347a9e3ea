"""What a stream costs, and what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastface.media.face_stream.decoder import FaceStreamDecoder
from fastface.media.face_stream.header import TIME_BASE, StreamHeader

WIRE_HEADERS = 40  # bytes a packet: IPv4 20, UDP 8, RTP 12


@dataclass(frozen=True)
class FaceStreamReport:
    """Costs and errors of a stream.

    Attributes:
        frames, packets, seconds: how much it is.
        header_bytes: sent once, with the reference.
        payload_bytes: of all packets.
        bits: of each kind of coefficient, over all frames.
        key_bits: those of them in key frames.
        largest_error, mean_error: of the reconstruction, as a share of the coefficient's range (max - min) over the
            stream; coefficients that do not move are left out.
        worst: the coefficient that the largest error is of.
    """

    frames: int
    packets: int
    seconds: float
    header_bytes: int
    payload_bytes: int
    bits: dict[str, int]
    key_bits: int
    largest_error: float
    mean_error: float
    worst: str

    @property
    def payload_kbps(self) -> float:
        """kbit/s of the packets."""
        return 0.008 * self.payload_bytes / self.seconds

    @property
    def wire_kbps(self) -> float:
        """kbit/s with 40 bytes of IP, UDP and RTP headers a packet."""
        return 0.008 * (self.payload_bytes + WIRE_HEADERS * self.packets) / self.seconds

    def __str__(self) -> str:
        groups = ", ".join(f"{name} {count / self.frames:.1f}" for name, count in self.bits.items())
        framing = 8 * self.payload_bytes - sum(self.bits.values())
        return "\n".join(
            [
                f"{self.frames} frames in {self.packets} packets, {self.seconds:.2f} s",
                f"header with reference {self.header_bytes} bytes, once: "
                f"{0.008 * self.header_bytes / self.seconds:.2f} kbit/s over this stream",
                f"payload {self.payload_kbps:.2f} kbit/s, with IP, UDP and RTP {self.wire_kbps:.2f} kbit/s",
                f"bits per frame: {groups}, packets' framing {framing / self.frames:.1f}",
                f"key frames take {self.key_bits / (8 * self.payload_bytes):.1%} of the payload",
                f"error as share of the range: largest {self.largest_error:.2%} ({self.worst}), mean "
                f"{self.mean_error:.2%}",
            ]
        )


def measure(header: StreamHeader, packets: Sequence[bytes], vectors: Sequence[ArrayLike | None]) -> FaceStreamReport:
    """Decode a whole stream and compare it with the vectors that it was made from, None where there was no face.

    Raises:
        ValueError: a stream that is not whole, another number of frames, or none with a face.
    """
    decoder = FaceStreamDecoder(header)
    frames = [frame for packet in packets for frame in decoder.push(packet)]
    if len(frames) != len(vectors) or decoder.counts.decoded + decoder.counts.no_face != len(frames):
        raise ValueError(f"the stream must give all {len(vectors)} frames, got: {decoder.counts}")
    pairs = [(vector, frame.vector) for vector, frame in zip(vectors, frames, strict=True) if vector is not None]
    if not pairs:
        raise ValueError("the stream must have at least one frame with a face, got none")
    wanted, got = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    span = np.ptp(wanted, 0)
    moving = np.flatnonzero(span)
    shares = np.abs(got - wanted)[:, moving] / span[moving]
    largest = shares.max(0, initial=0.0)
    spent = np.array(decoder.coder.spent)
    return FaceStreamReport(
        frames=len(frames),
        packets=len(packets),
        seconds=frames[-1].seconds - frames[0].seconds + header.frame_ticks / TIME_BASE,
        header_bytes=len(header.data),
        payload_bytes=sum(map(len, packets)),
        bits={name: int(spent[place].sum()) for name, place in header.quantizer.groups.items()},
        key_bits=decoder.coder.key_bits,
        largest_error=float(largest.max(initial=0.0)),
        mean_error=float(shares.mean()) if shares.size else 0.0,
        worst=header.quantizer.name(int(moving[largest.argmax()])) if moving.size else "none",
    )

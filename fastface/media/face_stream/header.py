"""The session header: sent once, reliably, before any packet; it says what the numbers of the stream mean."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fastface.face import FaceParameters, MorphableModel
from fastface.media.face_stream.quantizer import CAMERA, Quantizer, float32_tuple

TIME_BASE = 90_000  # ticks per second
_VERSION = 1
_ORTHOGRAPHIC = 1
_SYNTHETIC, _WEIGHTS, _REFERENCE = 1, 2, 4
_PREFIX = struct.Struct(">4sHI")  # magic, version, length of the whole header
_MAGIC = b"FFS1"
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


@dataclass(frozen=True)
class Reference:
    """The portrait that the stream moves.

    Attributes:
        image: a PNG or JPEG file.
        identity: ``I`` coefficients, kept as float32.
        vector: expression and camera of the portrait, ``E + 7`` numbers in its own pixels, kept as float32.

    Raises:
        ValueError: an image of another kind, or numbers that are not finite.
    """

    image: bytes
    identity: tuple[float, ...]
    vector: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.image.startswith(_IMAGES):
            raise ValueError(f"the reference image must be a PNG or JPEG file, got bytes {self.image[:8]!r}")
        for name in ("identity", "vector"):
            object.__setattr__(self, name, float32_tuple(name, getattr(self, name)))

    @classmethod
    def of(cls, image: bytes, parameters: FaceParameters) -> Reference:
        """From a fit of one face. Raises ValueError for a batch of more."""
        if len(parameters.camera) != 1:
            raise ValueError(f"parameters must be one face, got {len(parameters.camera)}")
        return cls(image, tuple(parameters.identity[0].tolist()), tuple(parameters.vector[0].tolist()))

    @property
    def parameters(self) -> FaceParameters:
        """The fit, as a batch of one."""
        return FaceParameters.of_vector(torch.tensor([self.vector]), torch.tensor([self.identity]))


@dataclass(frozen=True)
class StreamHeader:
    """What sender and receiver must agree on.

    Attributes:
        model_id: the model that draws the frames, such as "headgan".
        basis_hash: `MorphableModel.content_hash`; coefficients mean nothing on another basis.
        quantizer: steps, offsets and the image's size.
        fps: the usual frame rate; each frame has its own time all the same.
        key_interval: frames from one key frame to the next.
        weights_hash: the SHA-256 of the model's weights, where it matters.
        synthetic: that what is drawn from the stream is synthetic media.
        reference: the portrait, where the receiver does not have it already.

    Raises:
        ValueError: a hash that is not 64 hexadecimal digits, a number out of range, or a reference with another number
            of expressions than the quantiser.
    """

    model_id: str
    basis_hash: str
    quantizer: Quantizer
    fps: float = 25.0
    key_interval: int = 25
    weights_hash: str | None = None
    synthetic: bool = True
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.model_id.encode()) <= 255:
            raise ValueError(f"model_id must be 1 to 255 bytes, got {self.model_id!r}")
        for name, digest in (("basis_hash", self.basis_hash), ("weights_hash", self.weights_hash)):
            if digest is not None and (len(digest) != 64 or not set(digest) <= set("0123456789abcdef")):
                raise ValueError(f"{name} must be 64 hexadecimal digits, got {digest!r}")
        if not 1 <= self.fps <= 1000:
            raise ValueError(f"fps must be between 1 and 1000, got {self.fps}")
        if not 1 <= self.key_interval <= 65535:
            raise ValueError(f"key_interval must be between 1 and 65535, got {self.key_interval}")
        count = len(self.quantizer.step)
        if self.reference is not None and len(self.reference.vector) != count:
            raise ValueError(f"the reference's vector must be [{count}], got [{len(self.reference.vector)}]")

    @property
    def frame_ticks(self) -> int:
        """The usual time between two frames, in 1/90000 s."""
        return round(TIME_BASE / self.fps)

    def check(self, model: MorphableModel, *, weights_hash: str | None = None) -> None:
        """Raises ValueError where the stream belongs to another morphable model, or to other weights (both given)."""
        _same("morphable model", self.basis_hash, model.content_hash)
        if self.weights_hash is not None and weights_hash is not None:
            _same("weights", self.weights_hash, weights_hash)

    @cached_property
    def data(self) -> bytes:
        """The header as it is sent, CRC-32 at the end; docs/face_stream.md lists the fields."""
        quantizer, name = self.quantizer, self.model_id.encode()
        flags = _SYNTHETIC * self.synthetic | _WEIGHTS * bool(self.weights_hash) | _REFERENCE * bool(self.reference)
        body = [
            struct.pack(">BB", flags, len(name)),
            name,
            bytes.fromhex(self.basis_hash),
            bytes.fromhex(self.weights_hash or ""),
            struct.pack(">BHHIdH", _ORTHOGRAPHIC, *quantizer.image_size, TIME_BASE, self.fps, self.key_interval),
            struct.pack(">B", quantizer.expressions),
            _floats(quantizer.step + quantizer.offset),
        ]
        if self.reference is not None:
            body += [
                struct.pack(">HI", len(self.reference.identity), len(self.reference.image)),
                _floats(self.reference.identity + self.reference.vector),
                self.reference.image,
            ]
        length = _PREFIX.size + sum(map(len, body)) + 4
        start = b"".join([_PREFIX.pack(_MAGIC, _VERSION, length), *body])
        return start + struct.pack(">I", zlib.crc32(start))

    @property
    def session(self) -> int:
        """Where the packets' checksums start, so that a packet of another stream is not taken for one of this."""
        return int.from_bytes(self.data[-2:], "big")

    @classmethod
    def read(cls, data: bytes) -> StreamHeader:
        """The header that `data` begins with; ``len(header.data)`` bytes are its.

        Raises:
            ValueError: not a face stream, another version, cut off or damaged; one line that says which.
        """
        if data[:4] != _MAGIC:
            raise ValueError(f"not a face stream: it must begin with {_MAGIC!r}, got {data[:4]!r}")
        if len(data) < _PREFIX.size:
            raise ValueError(f"the face stream ends within its header, after {len(data)} bytes")
        _, version, length = _PREFIX.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"the face stream must be version {_VERSION}, got {version}: a newer fastface may read it")
        if len(data) < length:
            raise ValueError(f"the face stream ends within its header: {len(data)} of {length} bytes")
        start, checksum = data[_PREFIX.size : length - 4], data[length - 4 : length]
        if checksum != struct.pack(">I", zlib.crc32(data[: length - 4])):
            raise ValueError("the face stream's header is damaged: its checksum does not match")
        try:
            header = cls._parse(io.BytesIO(start))
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"the face stream's header is not valid: {error}") from error
        if header.data != data[:length]:
            raise ValueError("the face stream's header has fields that this fastface does not know")
        return header

    @classmethod
    def _parse(cls, body: io.BytesIO) -> StreamHeader:
        def unpack(layout: str) -> tuple[Any, ...]:
            return struct.unpack(layout, body.read(struct.calcsize(layout)))

        flags, name_length = unpack(">BB")
        name, basis = body.read(name_length).decode(), body.read(32).hex()
        weights = body.read(32).hex() if flags & _WEIGHTS else None
        camera, width, height, time_base, fps, key_interval, expressions = unpack(">BHHIdHB")
        if camera != _ORTHOGRAPHIC or time_base != TIME_BASE:
            raise ValueError(
                f"the face stream must have camera {_ORTHOGRAPHIC} (scaled orthographic) and {TIME_BASE} ticks per "
                f"second, got camera {camera} and {time_base}"
            )
        count = expressions + CAMERA
        numbers = unpack(f">{2 * count}f")
        reference = None
        if flags & _REFERENCE:
            identities, size = unpack(">HI")
            values = unpack(f">{identities + count}f")
            reference = Reference(body.read(size), values[:identities], values[identities:])
        return cls(
            name,
            basis,
            Quantizer((width, height), numbers[:count], numbers[count:]),
            fps,
            key_interval,
            weights,
            bool(flags & _SYNTHETIC),
            reference,
        )


def _floats(values: tuple[float, ...]) -> bytes:
    return struct.pack(f">{len(values)}f", *values)


def _same(what: str, wanted: str, got: str) -> None:
    if wanted != got:
        raise ValueError(f"the face stream needs the {what} {wanted[:12]}, got {got[:12]}")

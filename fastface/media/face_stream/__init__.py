"""Face parameters as a loss-tolerant stream of a few kbit/s (FFS1): what a video call sends in place of a picture.

docs/face_stream.md has the wire format and the measurements.
"""

from fastface.media.face_stream.decoder import DecodedFrame, DecoderCounts, FaceStreamDecoder
from fastface.media.face_stream.encoder import FaceStreamEncoder, encode_face_stream
from fastface.media.face_stream.files import FaceStream, read_face_stream, write_face_stream
from fastface.media.face_stream.header import Reference, StreamHeader
from fastface.media.face_stream.quantizer import Quantizer
from fastface.media.face_stream.report import FaceStreamReport, measure

__all__ = [
    "DecodedFrame",
    "DecoderCounts",
    "FaceStream",
    "FaceStreamDecoder",
    "FaceStreamEncoder",
    "FaceStreamReport",
    "Quantizer",
    "Reference",
    "StreamHeader",
    "encode_face_stream",
    "measure",
    "read_face_stream",
    "write_face_stream",
]

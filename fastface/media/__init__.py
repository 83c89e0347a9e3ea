"""Reading and writing images and video."""

from fastface.media.image import (
    check_image_output,
    contact_sheet,
    from_bytes,
    read_image,
    synthetic_tag,
    to_jpeg,
    write_image,
)
from fastface.media.video import VideoReader, VideoWriter, check_output

__all__ = [
    "VideoReader",
    "VideoWriter",
    "check_image_output",
    "check_output",
    "contact_sheet",
    "from_bytes",
    "read_image",
    "synthetic_tag",
    "to_jpeg",
    "write_image",
]

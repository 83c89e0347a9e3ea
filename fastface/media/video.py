"""Video: read any file frame by frame with its times; write mp4, gif or a folder of PNGs, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastface._files import partial
from fastface.media.image import check_parent, first_line, synthetic_tag

Image = NDArray[np.uint8]

CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv")
_INSTALL = "PyAV is not installed: pip install 'fastface-kernels[video]'"
_CLOCK = 90_000  # ticks per second; holds 24, 25, 30, 29.97 and 60 fps exactly enough


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return av


class VideoReader:
    """The frames of a video file: iterate over ``(frame [H, W, 3] uint8 RGB, seconds from the first frame)``.

    Phone rotation and non-square pixels are applied. Times are the file's own, so a variable frame rate stays what it
    is. A file that breaks off gives the frames before the break and sets `broken`.

    Raises:
        ValueError: a directory, no such file, not a video, or a video without a frame; one line that says which.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        av = _av()
        self.path = Path(path)
        self.broken: str | None = None
        if self.path.is_dir():
            raise ValueError(f"expected a video file, got the directory {self.path}")
        if not self.path.exists():
            raise ValueError(f"no such video: {self.path}")
        if self.path.stat().st_size == 0:
            raise ValueError(f"the video is an empty file: {self.path}")
        try:
            self._container = av.open(str(self.path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"cannot read a video from {self.path}: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"the file has no video stream: {self.path}")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else 25.0
        self.has_audio = bool(self._container.streams.audio)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        # How many frames there are, as far as the header tells; 0 when it does not.
        self.expected_frames = int(stream.frames) or (round(float(duration) * self.fps) if duration else 0)
        self.start = 0.0  # seconds on the file's clock of the first frame
        self._frames = self._decode(stream)
        try:
            self._first: tuple[Image, float] | None = next(self._frames)
        except StopIteration:
            self._container.close()
            why = f" ({self.broken})" if self.broken else ""
            raise ValueError(f"the video has no readable frame{why}: {self.path}") from None
        self.size = (self._first[0].shape[1], self._first[0].shape[0])

    def __iter__(self) -> Iterator[tuple[Image, float]]:
        """Once: a reader reads its file from front to back."""
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _decode(self, stream: Any) -> Iterator[tuple[Image, float]]:
        av = _av()
        count, last = 0, -1.0
        try:
            for frame in self._container.decode(stream):
                time = frame.time
                if count == 0:
                    self.start = float(time or 0.0)
                seconds = float(time) - self.start if time is not None else last + 1 / self.fps
                if seconds <= last:  # a clock that stands still or jumps back
                    seconds = last + 1 / self.fps
                last = seconds
                count += 1
                yield self._image(frame, stream), seconds
        except (av.FFmpegError, OSError, ValueError) as error:
            self.broken = _reason(error)

    @staticmethod
    def _image(frame: Any, stream: Any) -> Image:
        import cv2

        image = frame.to_ndarray(format="rgb24")
        aspect = stream.sample_aspect_ratio
        if aspect and aspect != 1 and 0.25 < float(aspect) < 4:
            image = cv2.resize(image, (max(1, round(image.shape[1] * float(aspect))), image.shape[0]))
        quarter = round(int(getattr(frame, "rotation", 0) or 0) / 90) % 4  # counterclockwise
        return np.ascontiguousarray(np.rot90(image, quarter)) if quarter else np.asarray(image)


def _reason(error: BaseException) -> str:
    """FFmpeg's words without the number and the path."""
    return str(getattr(error, "strerror", None) or first_line(error))


def check_output(path: str | Path) -> str:
    """What a path will be written as: "container", "gif" or "folder".

    Raises:
        ValueError: an extension that cannot be written, a folder where a file is wanted, a folder that holds other
            things, or a place without access.
    """
    path = Path(path)
    check_parent(path)
    suffix = path.suffix.lower()
    if suffix in CONTAINERS or suffix == ".gif":
        if path.is_dir():
            raise ValueError(f"expected a file name, got the directory {path}")
        return "gif" if suffix == ".gif" else "container"
    if suffix == "":
        if path.exists() and not path.is_dir():
            raise ValueError(f"a folder of PNGs is to be written, but a file is there: {path}")
        if path.is_dir() and any(not _is_frame(entry) for entry in path.iterdir()):
            raise ValueError(f"the folder of PNGs must be new or hold nothing else, got {path}")
        return "folder"
    known = ", ".join((*CONTAINERS, ".gif"))
    raise ValueError(f"the extension must be one of {known}, or none for a folder of PNGs, got {path.suffix}: {path}")


def _is_frame(path: Path) -> bool:
    """Whether `_Folder` wrote it: by the name, and by the tag and the time in its metadata."""
    from PIL import Image as Pillow

    if not re.fullmatch(r"frame_\d{5,}\.png", path.name) or path.is_symlink() or not path.is_file():
        return False
    try:
        with Pillow.open(path) as opened:
            return str(opened.info.get("Comment", "")).startswith("synthetic media; ") and "Time" in opened.info
    except (OSError, SyntaxError, ValueError):
        return False


class _Sink(Protocol):
    def write(self, frame: Image, seconds: float) -> None: ...

    def finish(self, end: float) -> None: ...

    def abort(self) -> None: ...


class VideoWriter:
    """Write frames to a file by its extension, or to a folder of PNGs where there is none; use it in a ``with`` block.

    Everything goes to a temporary name beside the target, which takes its place when the block ends without an error.

    Args:
        path: .mp4, .m4v, .mov, .mkv, .gif, or a name without extension.
        fps: the rate for frames written without a time, and of the last frame's length.
        audio: a file whose sound is carried over, copied where the container takes it; containers only.
        audio_start: seconds into that file at which our first frame lies.

    Attributes:
        notes: what a user should know, such as an encoder other than H.264.
    """

    def __init__(
        self, path: str | Path, *, fps: float = 25.0, audio: str | Path | None = None, audio_start: float = 0.0
    ) -> None:
        kind = check_output(path)
        if not 0 < fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {fps}")
        self.path = Path(path)
        self.fps = fps
        self.frames = 0
        self.notes: list[str] = []
        self._last = 0.0
        self._shape: tuple[int, ...] | None = None
        self._sink: _Sink
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "container":
            self._sink = _Container(self.path, fps, None if audio is None else Path(audio), audio_start, self.notes)
        elif kind == "gif":
            self._sink = _Gif(self.path)
        else:
            self._sink = _Folder(self.path)
        if audio is not None and kind != "container":
            self.notes.append(
                f"{'a gif' if kind == 'gif' else 'a folder of PNGs'} has no sound, that of {audio} is left out"
            )

    def write(self, frame: Image, seconds: float | None = None) -> None:
        """One ``[H, W, 3]`` uint8 RGB frame, at a time in seconds, or right after the last one.

        Raises:
            ValueError: another shape or type than the first frame's, or a time that does not grow.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frame must be [H, W, 3] uint8, got {list(frame.shape)} {frame.dtype}")
        if self._shape is not None and frame.shape != self._shape:
            raise ValueError(f"all frames must be {list(self._shape)} like the first, got {list(frame.shape)}")
        if seconds is None:
            seconds = self._last + 1 / self.fps if self.frames else 0.0
        if self.frames and seconds <= self._last:
            raise ValueError(f"seconds must grow, got {seconds:g} after {self._last:g}")
        with _one_line(self.path):
            self._sink.write(frame, seconds)
        self._shape, self._last = frame.shape, seconds
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. Raises ValueError where no frame was written."""
        if self.frames == 0:
            self._sink.abort()
            raise ValueError(f"no frame was written to {self.path}, expected at least one")
        try:
            with _one_line(self.path):
                self._sink.finish(self._last + 1 / self.fps)
        except BaseException:
            self._sink.abort()
            raise

    def abort(self) -> None:
        """Leave nothing behind."""
        self._sink.abort()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """FFmpeg's own errors, such as a full disk, as a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] == "av":
            raise ValueError(f"cannot write {path}: {_reason(error)}") from error
        raise


class _Container:
    """mp4 and its like: H.264 where FFmpeg has an encoder, else MPEG-4; a variable frame rate; sound."""

    def __init__(self, path: Path, fps: float, audio: Path | None, audio_start: float, notes: list[str]) -> None:
        av = _av()
        self._path, self._temporary = path, partial(path)
        self._notes = notes
        self._fps = fps
        options = {"movflags": "+faststart"} if path.suffix.lower() != ".mkv" else {}
        self._out = av.open(str(self._temporary), "w", options=options)
        self._out.metadata["comment"] = synthetic_tag()
        self._stream: Any = None
        self._sound = None if audio is None else _Sound(audio, audio_start)

    def write(self, frame: Image, seconds: float) -> None:
        av = _av()
        if self._stream is None:
            self._open(frame.shape[1], frame.shape[0])
        pad_x, pad_y = frame.shape[1] % 2, frame.shape[0] % 2  # 4:2:0 wants even sizes
        if pad_x or pad_y:
            frame = np.pad(frame, ((0, pad_y), (0, pad_x), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = round(seconds * _CLOCK)
        picture.time_base = Fraction(1, _CLOCK)
        self._out.mux(self._stream.encode(picture))
        if self._sound is not None:
            self._sound.carry(self._out, seconds)

    def _open(self, width: int, height: int) -> None:
        av = _av()
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        if codec == "mpeg4":
            self._notes.append("FFmpeg has no H.264 encoder here; written as MPEG-4 instead")
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._out.add_stream(codec, rate=rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        if codec == "libx264":
            self._stream.options = {"crf": "17", "preset": "veryfast"}
        else:
            self._stream.bit_rate = max(2_000_000, int(width * height * self._fps * 0.2))
        if self._sound is not None:
            note = self._sound.open(self._out)
            if note is not None:
                self._notes.append(note)
                self._sound = None

    def finish(self, end: float) -> None:
        self._out.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.carry(self._out, end)
            self._sound.finish(self._out)
        self._out.close()
        os.replace(self._temporary, self._path)

    def abort(self) -> None:
        av = _av()
        try:
            if self._sound is not None:
                self._sound.close()
            self._out.close()
        except (av.FFmpegError, OSError, ValueError):
            pass  # the file goes anyway
        self._temporary.unlink(missing_ok=True)


class _Sound:
    """The sound of another file, packet by packet as the picture advances; copied, or encoded anew as AAC."""

    def __init__(self, path: Path, start: float) -> None:
        av = _av()
        self._path, self._start = path, start
        try:
            self._in = av.open(str(path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"cannot read sound from {path}: {_reason(error)}") from error
        self._waiting: Any = None
        self._copy = True
        self._out_stream: Any = None
        self._packets: Iterator[Any] = iter(())
        self._resampler: Any = None

    def open(self, out: Any) -> str | None:
        """Add the stream; a note where there is no sound that can be carried."""
        av = _av()
        if not self._in.streams.audio:
            self.close()
            return f"{self._path} has no sound"
        stream = self._in.streams.audio[0]
        self._copy = stream.codec_context.name in ("aac", "mp3", "ac3", "alac")
        if self._copy:
            self._out_stream = out.add_stream_from_template(stream)
        else:
            rate = _aac_rate(stream.codec_context.sample_rate or 48_000)
            self._out_stream = out.add_stream("aac", rate=rate)
            self._resampler = av.AudioResampler("fltp", "stereo", rate, frame_size=1024)  # what AAC takes
        self._packets = self._read(stream)
        self._waiting = next(self._packets, None)
        return None

    def _read(self, stream: Any) -> Iterator[Any]:
        """Packets to mux (or frames to encode) whose `time` is on the file's clock."""
        av = _av()
        try:
            if self._copy:
                yield from (packet for packet in self._in.demux(stream) if packet.pts is not None)
            else:
                first = None
                for packet in self._in.demux(stream):
                    try:
                        frames = packet.decode()
                        parts = [part for frame in frames for part in self._resampler.resample(frame)]
                        first = first or next(iter(frames), None)
                    except (av.FFmpegError, ValueError):  # damaged: silence, so that the rest stays in its place
                        parts = self._resampler.resample(_silence(packet, first)) if first else []
                    yield from parts
                yield from self._resampler.resample(None)
        except (av.FFmpegError, OSError, ValueError):
            return  # broken sound ends where it breaks

    def carry(self, out: Any, until: float) -> None:
        while self._waiting is not None:
            item = self._waiting
            time = float(item.pts * item.time_base) - self._start
            if time >= until:
                return
            self._waiting = next(self._packets, None)
            if time < 0:
                continue
            shift = round(self._start / item.time_base)
            item.pts -= shift
            if self._copy:
                item.dts = item.pts if item.dts is None else item.dts - shift
                item.stream = self._out_stream
                out.mux(item)
            else:
                out.mux(self._out_stream.encode(item))

    def finish(self, out: Any) -> None:
        if not self._copy:
            out.mux(self._out_stream.encode(None))
        self.close()

    def close(self) -> None:
        self._waiting = None
        self._in.close()


def _silence(packet: Any, like: Any) -> Any:
    """A frame of silence as long as a packet of sound, in the format of another frame."""
    samples = round(float((packet.duration or 0) * packet.time_base) * like.sample_rate)
    frame = _av().AudioFrame(like.format.name, like.layout.name, samples)
    frame.sample_rate, frame.pts, frame.time_base = like.sample_rate, packet.pts, packet.time_base
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame


def _aac_rate(rate: int) -> int:
    """The nearest rate in Hz that AAC has."""
    return int(min(_av().Codec("aac", "w").audio_rates, key=lambda known: abs(known - rate)))


class _Gif:
    """One palette for all frames, from the first, and ordered dither: nothing shimmers where nothing moves."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, partial(path)
        self._frames: list[Any] = []
        self._times: list[float] = []
        self._palette: list[int] = []
        self._table: NDArray[np.uint8] | None = None
        self._dither: NDArray[np.int16] | None = None

    def write(self, frame: Image, seconds: float) -> None:
        from PIL import Image as Pillow

        if self._table is None:
            self._prepare(frame)
        assert self._table is not None and self._dither is not None
        shifted = np.clip(frame.astype(np.int16) + self._dither, 0, 255) >> 2
        index = self._table[(shifted[..., 0].astype(np.int32) << 12) | (shifted[..., 1] << 6) | shifted[..., 2]]
        picture = Pillow.fromarray(index, mode="P")
        picture.putpalette(self._palette)
        self._frames.append(picture)
        self._times.append(seconds)

    def _prepare(self, frame: Image) -> None:
        from PIL import Image as Pillow

        reduced = Pillow.fromarray(frame).quantize(240, method=Pillow.Quantize.MEDIANCUT).getpalette() or []
        colours = np.array(reduced, dtype=np.float32).reshape(-1, 3)[:240]
        # Colours that a first frame may lack: the dark of a mouth, teeth, and greys.
        extra = [
            (20, 8, 8),
            (45, 18, 17),
            (90, 50, 48),
            (150, 90, 85),
            (200, 190, 180),
            (0, 0, 0),
            (255, 255, 255),
            (128, 128, 128),
        ]
        colours = np.concatenate([colours, np.array(extra, dtype=np.float32)])
        self._palette = [int(value) for value in colours.ravel()]
        steps = np.arange(64, dtype=np.float32) * 4 + 2
        square = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        table = np.empty((64, 64 * 64), dtype=np.uint8)
        for row, red in zip(table, steps, strict=True):  # one red at a time: the whole cube would take 260 MB
            cube = np.concatenate([np.full((len(square), 1), red, dtype=np.float32), square], 1)
            row[:] = ((colours**2).sum(1)[None] - 2 * cube @ colours.T).argmin(1)
        self._table = table.ravel()
        bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float32)
        height, width = frame.shape[:2]
        tiled = np.tile((bayer / 16 - 0.47) * 7, (-(-height // 4), -(-width // 4)))[:height, :width]
        self._dither = np.rint(tiled).astype(np.int16)[..., None]

    def finish(self, end: float) -> None:
        ends = [*self._times[1:], end]
        ticks = [round(time * 100) for time in (self._times[0], *ends)]  # a gif counts hundredths
        durations = [10 * max(2, after - before) for before, after in zip(ticks, ticks[1:], strict=False)]
        self._frames[0].save(
            self._temporary,
            format="GIF",
            save_all=True,
            append_images=self._frames[1:],
            duration=durations,
            loop=0,
            optimize=False,
            comment=synthetic_tag().encode(),
        )
        os.replace(self._temporary, self._path)

    def abort(self) -> None:
        self._frames.clear()
        self._temporary.unlink(missing_ok=True)


class _Folder:
    """frame_00000.png and on."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, partial(path)
        self._count = 0
        self._temporary.mkdir()

    def write(self, frame: Image, seconds: float) -> None:
        from PIL import Image as Pillow
        from PIL import PngImagePlugin

        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", synthetic_tag())
        text.add_text("Time", f"{seconds:.6f} s")
        name = self._temporary / f"frame_{self._count:05d}.png"
        Pillow.fromarray(np.ascontiguousarray(frame)).save(name, pnginfo=text, compress_level=2)
        self._count += 1

    def finish(self, end: float) -> None:
        if self._path.is_dir():
            # Looked at anew: what came into the folder while the frames were made is not ours to delete.
            check_output(self._path)
            shutil.rmtree(self._path)
        os.replace(self._temporary, self._path)

    def abort(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

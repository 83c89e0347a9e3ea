"""`fastface animate`: a portrait and a motion to a video, by the model `lifted` or one with trained weights."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastface.apps import _animators
from fastface.apps._common import (
    Clock,
    Image,
    Sampler,
    UserError,
    beside,
    check_places,
    check_seconds,
    demo_portrait,
    guarded,
    tell_notes,
    within,
)

HELP = "make a photo move: a portrait and a motion, or a driving video, to mp4, gif or PNGs"

_EPILOG = """\
examples:
  fastface animate me.jpg                              me_idle.mp4: breathing, blinking, looking about
  fastface animate me.jpg --motion talk --seconds 6    one of nod, shake, tilt, talk, blink, idle
  fastface animate me.jpg --driving clip.mp4           the head and face of clip.mp4 move the photo; its sound is kept
  fastface animate me.jpg --full -o out.mp4            the whole photo, not only the crop about the head
  fastface animate me.jpg --motion nod -o nod.gif      a gif; a name without extension makes a folder of PNGs
  fastface animate me.jpg --driving clip.mp4 --side-by-side --contact-sheet sheet.png
  fastface animate                                     the astronaut that scikit-image ships, talking
  fastface animate me.jpg --model live_portrait --weights liveportrait/ --driving clip.mp4
  fastface animate me.jpg --model live_portrait --weights liveportrait/ --driving motions.safetensors
  fastface animate me.jpg --model style_mapping --weights vox.safetensors --driving clip.mp4

A driving video moves the photo relative to its first frame, so let it begin with a calm face looking as the photo
looks. Every file says in its metadata that it is synthetic. Needs: pip install 'fastface-kernels[face,video]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = parser.description or HELP
    parser.epilog = _EPILOG
    parser.add_argument(
        "portrait", nargs="?", metavar="PORTRAIT", help="a photo with a face; without it, a public-domain portrait"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--driving", metavar="VIDEO", help="a video of a face to follow; for live_portrait also a motion template"
    )
    what.add_argument(
        "--motion",
        choices=("nod", "shake", "tilt", "talk", "blink", "idle"),
        help="a made motion (default: idle; talk for the demo)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs (default: named after the portrait)",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="length (default: 4; a driving video: all of it)")
    parser.add_argument(
        "--fps", type=float, metavar="N", help="frames per second (default: 25; a driving video: its own times)"
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="side of the rendered crop (default: 512; other models have their own)"
    )
    parser.add_argument("--full", action="store_true", help="paste the moving head back into the whole photo")
    parser.add_argument(
        "--side-by-side", action="store_true", help="show the portrait, or the driving video, to the left"
    )
    parser.add_argument("--contact-sheet", metavar="PATH", help="also write a picture of eight frames, .png or .jpg")
    parser.add_argument("--face", type=int, metavar="N", help="which face, 1 being the largest (default: 1)")
    parser.add_argument(
        "--pose-strength", type=float, default=1.0, metavar="X", help="multiply the turning of the head (default: 1)"
    )
    parser.add_argument(
        "--expression-strength", type=float, default=1.0, metavar="X", help="multiply the expression (default: 1)"
    )
    parser.add_argument(
        "--smoothing", type=float, default=1.0, metavar="X", help="of a driving video, 0 is none (default: 1)"
    )
    parser.add_argument(
        "--backend", choices=("reference", "cpu", "triton", "cuda"), help="of the ops (default: the fastest)"
    )
    _animators.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 when the video is written, 2 with one line on stderr for bad input, 130 when interrupted."""
    return guarded("animate", _run, args)


def _run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    _check(args)
    from fastface import media

    demo = args.portrait is None
    name = args.motion or ("talk" if demo else "idle")
    stem = "astronaut" if demo else Path(args.portrait).stem
    output = Path(args.output or f"{stem}_{Path(args.driving).stem if args.driving else name}.mp4")
    sheet = None if args.contact_sheet is None else Path(args.contact_sheet)
    if sheet is None and demo:
        sheet = output.with_name(f"{output.stem}_sheet.png") if output.suffix else Path(f"{output}_sheet.png")
    media.check_output(output)
    if sheet is not None:
        media.check_image_output(sheet)
    check_places([args.portrait, args.driving, args.weights], output, sheet)
    animator = _animators.open_animator(args)
    model, clip = animator.model, animator.clip
    photo = demo_portrait() if demo else media.read_image(args.portrait, max_side=1920 if args.full else 4096)
    say = (lambda line: None) if args.json else print
    loaded = time.perf_counter()

    with ExitStack() as stack:
        reader = stack.enter_context(media.VideoReader(args.driving)) if args.driving and clip is None else None
        faces = model.detect(photo)
        if not faces:
            raise UserError(f"no face found in {args.portrait}, expected a photo with a face")
        wanted = args.face or 1
        if wanted > len(faces):
            raise UserError(f"--face must be from 1 to {len(faces)} (the faces found), got {wanted}")
        if len(faces) > 1:
            x0, y0, x1, y1 = (round(value) for value in faces[wanted - 1].box)
            which = "the largest" if args.face is None else f"number {wanted}"
            hint = "; choose with --face" if args.face is None else ""
            print(f"{len(faces)} faces found, taking {which}, at x {x0}-{x1}, y {y0}-{y1}{hint}", file=sys.stderr)
        detected = time.perf_counter()
        source = model.prepare(photo, face=faces[wanted - 1])
        prepared = time.perf_counter()
        detector_ms, prepare_ms = (detected - loaded) * 1e3, (prepared - detected) * 1e3
        say(f"prepared in {prepare_ms:.0f} ms, after {detector_ms:.0f} ms for the detector, its start included")

        fps = args.fps or (reader.fps if reader else clip.fps if clip else 25.0)
        clock = Clock()
        driver = None
        if reader is not None:
            driver = animator.driver()
            ticks: Iterator[tuple[Image | None, float]] = _resampled(reader, args.fps, args.seconds)
            total = reader.expected_frames
            if args.fps and total:
                total = round(total * args.fps / reader.fps)
            if args.seconds is not None:
                total = min(total or 10**9, round(args.seconds * fps))
        else:
            whole = 4.0 if clip is None else len(clip) / clip.fps
            total = max(1, round((args.seconds if args.seconds is not None else whole) * fps))
            ticks = ((None, index / fps) for index in range(total))

        moving = clip.at if clip is not None else animator.preset(name, source)
        paste = animator.paste(source) if args.full else None
        sampler = Sampler(8)
        from tqdm import tqdm

        audio = args.driving if reader is not None and reader.has_audio else None
        writer = media.VideoWriter(output, fps=fps, audio=audio, audio_start=reader.start if reader else 0.0)
        looping = time.perf_counter()
        with (
            writer,
            tqdm(
                total=total or None, unit="frame", desc="animating", disable=not sys.stderr.isatty(), leave=False
            ) as bar,
        ):
            for image, seconds in ticks:
                if driver is not None and image is not None:
                    motion = clock.time("track", driver, image, seconds)
                else:
                    motion = clock.time("motion", moving, seconds)
                motion = motion.scaled(pose=args.pose_strength, expression=args.expression_strength)
                frame = clock.time("render", model.render_uint8, source, motion)[0].numpy()
                if paste is not None:
                    frame = clock.time("paste", paste, frame)
                if args.side_by_side:
                    left = image if image is not None else (source.photo if args.full else source.portrait).numpy()
                    frame = beside(left, frame)
                sampler.add(frame)
                clock.time("write", writer.write, frame, seconds)
                bar.update()
            if driver is not None and driver.frames == 1 and args.seconds is None:
                raise UserError(f"the driving video must have at least 2 frames, got 1: {args.driving}")
            if driver is not None and driver.missed == driver.frames:
                raise UserError(f"no face found in any of the {driver.frames} frames of {args.driving}, expected one")
        looped = time.perf_counter() - looping

    if sheet is not None:
        media.write_image(sheet, media.contact_sheet(sampler.frames()))
    notes = list(writer.notes)
    if driver is not None and driver.missed:
        notes.append(f"no face in {driver.missed} of {driver.frames} driving frames; the last motion was held there")
    if reader is not None and reader.broken:
        notes.append(f"the driving video breaks off after {writer.frames} frames: {reader.broken}")
    medians = clock.medians()
    summary = {
        "output": str(output),
        "contact_sheet": None if sheet is None else str(sheet),
        "frames": writer.frames,
        "seconds": round(looped, 3),
        "fps_render": round(1e3 / max(medians["render"], 1e-6), 1),
        "fps_all": round(writer.frames / max(looped, 1e-9), 1),
        "milliseconds": {stage: round(value, 2) for stage, value in medians.items()},
        "prepare_ms": round(prepare_ms, 1),
        "detect_ms": round(detector_ms, 1),
        "total_seconds": round(time.perf_counter() - started, 2),
        "missed_frames": driver.missed if driver else 0,
        "notes": notes,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    tell_notes(notes)
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in medians.items())
    print(f"{writer.frames} frames in {looped:.1f} s; ms per frame (median): {stages}")
    print(f"rendering alone: {summary['fps_render']:g} fps; all stages: {summary['fps_all']:g} fps")
    print(f"video: {output}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    return 0


def _check(args: argparse.Namespace) -> None:
    check_seconds(args.seconds)
    within("--fps", args.fps, 1, 240)
    _animators.check(args)
    if args.face is not None and args.face < 1:
        raise UserError(f"--face counts from 1, got {args.face}")
    within("--pose-strength", args.pose_strength, 0, 3)
    within("--expression-strength", args.expression_strength, 0, 3)
    within("--smoothing", args.smoothing, 0, 100)


def _resampled(reader: Any, fps: float | None, limit: float | None) -> Iterator[tuple[Image, float]]:
    """The reader's frames at its own times, or at a fixed rate, each the latest frame there is."""
    count, held = 0, None
    for image, seconds in reader:
        if fps is None:
            if limit is not None and seconds >= limit:
                return
            yield image, seconds
            continue
        while held is not None and count / fps < seconds:
            if limit is not None and count / fps >= limit:
                return
            yield held, count / fps
            count += 1
        held = image
    if fps is not None and held is not None and (limit is None or count / fps < limit):
        yield held, count / fps

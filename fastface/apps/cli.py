"""The command line, `fastface` or `python -m fastface`. Each command is a module of this package, imported when it is
called.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from fastface._version import __version__

COMMANDS = {
    "animate": "move the face in a photo: by a preset motion or by a driving video",
    "reenact": "move the face in a photo by a driving video, through a 3D face (HeadGAN)",
    "reconstruct": "make a video again from its first frame and 35 numbers a frame, and measure how close it comes",
    "edit": "a picture of a portrait with other poses and expressions",
    "frontalize": "a portrait that looks straight ahead",
    "stylize": "a portrait with the poses and expressions of four style references (Style Mapping)",
    "speak": "a portrait and sound, to a video of the portrait saying it (PoseGAN and PGFace)",
    "fit": "videos of a person talking to clips to train on: sound, and per frame the parameters of the 3D face",
    "train": "PGFace or PoseGAN trained on such clips, or measured on those held out",
    "dub": "a video of a person and other sound, to the video of that person saying it (PIR)",
    "fit-triplane": "a tri-plane fitted to a portrait, a mesh or the built-in head: something to see without weights",
    "orbit": "a turntable video of a fitted tri-plane or of an EG3D generator",
    "encode": "a video of a face to a stream of a few kbit/s: 35 numbers a frame",
    "decode": "such a stream to video again",
    "convert": "a public checkpoint to a checked .safetensors file; a pickled motion template too",
    "doctor": "report the environment, the build and the backends, and what to do where something is missing",
    "selftest": "run every backend that can run here against the reference",
    "bench": "time the kernels against eager PyTorch and torch.compile; print a table, write CSV rows",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 for success, 1 for a failed check, 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable():
            args = _parse(argv)
            return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fastface ... | head`
        sys.stderr.close()
        return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fastface",
        description="Talking heads in real time: one portrait plus motion in, frames out.",
        epilog="fastface COMMAND --help tells more. To begin: fastface animate photo.jpg --motion talk -o talk.mp4",
    )
    parser.add_argument("--version", action="version", version=f"fastface {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"fastface.apps.{name.replace('-', '_')}")
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl+C does, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

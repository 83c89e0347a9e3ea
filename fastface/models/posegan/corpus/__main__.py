"""``python -m fastface.models.posegan.corpus OUT`` writes a corpus of synthetic speech; --picture looks at it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from fastface.models.posegan.corpus.format import read_corpus
from fastface.models.posegan.corpus.picture import draw_clip
from fastface.models.posegan.corpus.synthesis import FPS, Options, synthesize

_ABOUT = """
Synthetic speech to train PoseGAN and PGFace on. eSpeak NG (apt install espeak-ng) speaks sentences of a small grammar
with many voices; the times of its phonemes move the mouth of the built-in head, and the head drifts and nods with it.
Every clip is NAME.wav (16 kHz) and NAME.npz (pose, identity, expression, opening, closed); every tenth is held out,
with sentences, voices and rates of its own. The same options give the same corpus; what is there already is kept and
listed, also where --hours asks for less.
"""
_EXAMPLES = """
examples:
  python -m fastface.models.posegan.corpus corpus --hours 0.5
  python -m fastface.models.posegan.corpus corpus --hours 2      more of the same
  python -m fastface.models.posegan.corpus corpus --picture 00009 look.png
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastface.models.posegan.corpus", description=_ABOUT, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder")
    parser.add_argument("--hours", type=float, default=1.0, help="of speech (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    parser.add_argument("--fps", type=float, default=FPS, help="frames per second (default: 25)")
    parser.add_argument(
        "--augmented", type=float, default=0.0, metavar="SHARE",
        help="of the training clips that get noise, a room, a microphone or a telephone's band (default: 0; training "
        "may do it anew for every epoch)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="remove the clips that are there first")
    parser.add_argument(
        "--picture", nargs=2, metavar=("NAME", "PNG"), help="only draw a clip that is there: its curves and its mouth"
    )
    given = parser.parse_args(arguments)
    try:
        if given.picture:
            draw_clip(read_corpus(given.out).read(given.picture[0]), Path(given.picture[1]))
            return 0
        options = Options(3600 * given.hours, given.seed, given.fps, given.augmented)
        with tqdm(desc="speaking", total=round(options.seconds), unit="s", disable=not sys.stderr.isatty()) as bar:
            corpus = synthesize(
                given.out, options, force=given.force, progress=lambda seconds: bar.update(round(seconds))
            )
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    minutes = sum(clip["seconds"] for clip in corpus.clips) / 60
    print(f"{len(corpus.clips)} clips, {minutes:.1f} minutes, {len(corpus.names('held_out'))} held out: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

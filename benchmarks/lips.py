"""How well lips follow the sound: `fastface speak --measure` on portraits that say three passages, and, to compare, the
targets of the synthetic corpus, which follow the phonemes themselves.

python -m benchmarks.lips                 a public-domain photo; prints r and the lag
python -m benchmarks.lips me.jpg you.jpg  other portraits
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastface import media
from fastface.audio import SpectralSpeech
from fastface.audio.sound import SAMPLE_RATE, Samples
from fastface.models.posegan.corpus.espeak import Voice, synthesizer
from fastface.models.posegan.corpus.synthesis import Options, make_clip, plan
from fastface.models.posegan.sync import LipSync, lip_sync

# "The North Wind and the Sun", the passage of the International Phonetic Association, in voices held out of the corpus.
PASSAGES = (
    (
        Voice("en-us+f4"),
        "The North Wind and the Sun were disputing which was the stronger, when a traveler came along wrapped in a "
        "warm cloak. They agreed that the one who first succeeded in making the traveler take his cloak off should be "
        "considered stronger than the other.",
    ),
    (
        Voice("en+m5", rate=165),
        "Then the North Wind blew as hard as he could, but the more he blew, the more closely did the traveler fold "
        "his cloak around him; and at last the North Wind gave up the attempt.",
    ),
    (
        Voice("en-gb-scotland+f5", rate=165),
        "Then the Sun shined out warmly, and immediately the traveler took off his cloak. And so the North Wind was "
        "obliged to confess that the Sun was the stronger of the two.",
    ),
)
TARGETS = 30  # clips


def passages() -> list[Samples]:
    with synthesizer() as say:
        return [say(text, voice).samples for voice, text in PASSAGES]


def spoken(portrait: str, sound: Path) -> LipSync:
    """What `--measure` finds when a portrait says it. Raises RuntimeError with what the command says when it fails."""
    command = ["speak", portrait, str(sound), "-o", str(sound.with_suffix(".mp4")), "--measure", "--json"]
    done = subprocess.run([sys.executable, "-m", "fastface", *command], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["lips"] if done.returncode == 0 else None
    if found is None:
        raise RuntimeError(f"fastface {' '.join(command)}: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    lag = found["lag_ms"]  # None where r is so low that it is chance
    return LipSync(found["correlation"], float("nan") if lag is None else lag / 1e3, float("nan"))


def targets(count: int) -> Iterator[LipSync]:
    """Openings that follow the phonemes, of held-out clips of a corpus."""
    with synthesizer() as say:
        held_out = (each for index in itertools.count() if (each := plan(index, Options(1))).split == "held_out")
        for each in itertools.islice(held_out, count):
            clip = make_clip(each, say(each.text, each.voice))
            assert clip.opening is not None
            yield lip_sync(np.arange(len(clip.opening)) / clip.fps, clip.opening, SpectralSpeech()(clip.samples))


def line(name: str, found: list[LipSync]) -> str:
    r = np.array([each.correlation for each in found])
    late = 1e3 * np.array([each.lag for each in found])
    spread = f"{r.min():.2f} to {r.max():.2f} | {np.nanmin(late):.0f} to {np.nanmax(late):.0f}"
    return f"| {name} | {len(found)} | {r.mean():.2f} | {np.nanmean(late):.0f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits", nargs="*", metavar="PORTRAIT", help="photos (default: scikit-image's astronaut)")
    portraits = parser.parse_args().portraits
    print("| lips of | sounds | mean r | mean ms late | r | ms late |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if not portraits:
            from skimage.data import astronaut

            portraits = [str(Path(folder) / "astronaut.png")]
            media.write_image(portraits[0], astronaut())
        sounds = []
        for index, samples in enumerate(passages()):
            sounds.append(Path(folder) / f"{index}.wav")
            with wave.open(str(sounds[-1]), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
                file.writeframes((samples * 32767).astype("<i2").tobytes())
        for portrait in portraits:
            print(line(Path(portrait).stem, [spoken(portrait, sound) for sound in sounds]), flush=True)
    print(line("the targets of the corpus", list(targets(TARGETS))))


if __name__ == "__main__":
    main()

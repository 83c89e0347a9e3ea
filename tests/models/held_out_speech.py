"""Ten held-out clips of the synthetic corpus, as they lie in ``tests/models/data``: no speech is synthesised in tests.

``python -m tests.models.held_out_speech`` writes them anew, which needs eSpeak NG.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from fastface.audio.sound import SAMPLE_RATE, read_audio
from fastface.models.posegan.corpus import Clip

DATA = Path(__file__).parent / "data"
SOUND, TARGETS = DATA / "held_out_speech.opus", DATA / "held_out_speech.npz"
CLIPS, LONGEST = 10, 4.0  # seconds


def held_out_clips() -> list[Clip]:
    """The clips; their sound went through Opus at 24 kbit/s. Needs PyAV."""
    samples = read_audio(SOUND).samples
    with np.load(TARGETS) as stored:
        fps, frames = float(stored["fps"]), stored["frames"]
        per_frame = [
            np.split(stored[name], frames.cumsum()[:-1]) for name in ("pose", "expression", "opening", "closed")
        ]
        identity = stored["identity"]
    starts = (frames.cumsum() - frames) * round(SAMPLE_RATE / fps)
    sounds = [samples[a : a + n * round(SAMPLE_RATE / fps)] for a, n in zip(starts, frames, strict=True)]
    return [
        Clip(sound, fps, pose.astype("f4"), who.astype("f4"), face.astype("f4"), gap.astype("f4"), closed)
        for sound, who, pose, face, gap, closed in zip(sounds, identity, *per_frame, strict=True)
    ]


def main() -> None:
    import av

    from fastface.models.posegan.corpus.espeak import synthesizer
    from fastface.models.posegan.corpus.synthesis import Options, make_clip, plan

    clips: list[Clip] = []
    with synthesizer() as speak:
        for index in itertools.count():
            each = plan(index, Options(seconds=1, seed=1))
            if each.split != "held_out":
                continue
            clip = make_clip(each, speak(each.text, each.voice))
            if clip.seconds <= LONGEST:
                clips.append(clip)
            if len(clips) == CLIPS:
                break
    frames = [len(clip.pose) for clip in clips]
    sounds = [np.resize(np.pad(clip.samples, (0, 640)), round(clip.seconds * SAMPLE_RATE)) for clip in clips]
    with av.open(str(SOUND), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, bit_rate=24_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.concatenate(sounds)[None], "flt", "mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    np.savez_compressed(
        TARGETS,
        fps=clips[0].fps,
        frames=frames,
        identity=np.stack([clip.identity for clip in clips]).astype("f2"),
        pose=np.concatenate([clip.pose for clip in clips]).astype("f2"),
        expression=np.concatenate([clip.expression for clip in clips]).round(3).astype("f2"),
        opening=np.concatenate([clip.opening for clip in clips]).astype("f2"),
        closed=np.concatenate([clip.closed for clip in clips if clip.closed is not None]),
    )


if __name__ == "__main__":
    main()

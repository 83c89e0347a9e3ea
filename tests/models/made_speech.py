"""A corpus that costs nothing: bursts of noise for speech, and a jaw that follows how loud they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastface.face import built_in_head
from fastface.models.posegan.corpus import Clip, Corpus, mouth_opening, write_clip, write_corpus

FPS = 25.0


def made_clip(seed: int, frames: int = 60) -> Clip:
    """Syllables about four times a second."""
    rng, head = np.random.default_rng(seed), built_in_head()
    time = np.arange(frames) / FPS
    loud = np.sin(2 * np.pi * (4 * time + rng.uniform())).clip(min=0) * rng.uniform(0.5, 1)
    samples = 0.3 * np.repeat(loud, 640) * rng.standard_normal(640 * frames)
    expression = np.zeros((frames, head.expressions), dtype=np.float32)
    expression[:, head.expression_names.index("jaw_open")] = 0.4 * loud
    pose = np.cumsum(rng.normal(0, 0.1, (frames, 6)) * [0.1, 0.1, 0.1, 5, 5, 5], axis=0)
    return Clip(
        samples.clip(-1, 1).astype(np.float32), FPS, pose.astype(np.float32),
        rng.standard_normal(head.identities).astype(np.float32), expression,
        mouth_opening(expression).astype(np.float32), loud == 0,
    )  # fmt: skip


def made_corpus(folder: Path, train: int = 4, held_out: int = 2) -> Corpus:
    """A folder of such clips, all written."""
    splits = ["train"] * train + ["held_out"] * held_out
    for index in range(len(splits)):
        write_clip(folder, f"{index:03}", made_clip(index, 60 + 7 * index))
    clips = [{"name": f"{index:03}", "split": split} for index, split in enumerate(splits)]
    corpus = Corpus(folder, FPS, built_in_head().content_hash, clips, {"by": "a test"})
    write_corpus(corpus)
    return corpus

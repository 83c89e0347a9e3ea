"""Clips to train on: their format, and a corpus of synthetic speech with the mouth and the head that go with it.

``python -m fastface.models.posegan.corpus OUT`` writes one.
"""

from fastface.models.posegan.corpus.augment import Augmentation, augment
from fastface.models.posegan.corpus.format import Clip, Corpus, read_clip, read_corpus, write_clip, write_corpus
from fastface.models.posegan.corpus.synthesis import Options, synthesize
from fastface.models.posegan.corpus.visemes import mouth_opening

__all__ = [
    "Augmentation",
    "Clip",
    "Corpus",
    "Options",
    "augment",
    "mouth_opening",
    "read_clip",
    "read_corpus",
    "synthesize",
    "write_clip",
    "write_corpus",
]

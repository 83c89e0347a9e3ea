"""``python -m fastface.face.synthetic`` writes the built-in head; --measure its face first, --picture a sheet of it."""

from __future__ import annotations

import argparse

import torch

from fastface.face.loaders import BUILT_IN, built_in_head, save_face_model
from fastface.face.synthetic import build_head
from fastface.face.synthetic.measure import write_face
from fastface.face.synthetic.picture import draw_sheet

parser = argparse.ArgumentParser(prog="python -m fastface.face.synthetic", description="Write the built-in head.")
parser.add_argument("--measure", action="store_true", help="measure its face anew (MediaPipe and scikit-image)")
parser.add_argument("--picture", metavar="FILE", help="also draw it")
arguments = parser.parse_args()
if arguments.measure:
    write_face()
save_face_model(build_head(), BUILT_IN, dtype=torch.float16)
if arguments.picture:
    draw_sheet(built_in_head(), arguments.picture)

"""`fastface fit-triplane`: planes and a decoder fitted to a head, so that tri-planes are seen without any weights."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastface.apps._common import UserError, check_places, guarded, within
from fastface.apps._headgan import to_image

if TYPE_CHECKING:
    from fastface.models.pir import ColouredMesh, FitConfig, FittedHead, Views

_EPILOG = """\
examples:
  fastface fit-triplane                           the built-in head, as clay
  fastface fit-triplane me.jpg                    that head, fitted to the face of the photo and coloured by it
  fastface fit-triplane scan.obj -o scan.safetensors
  fastface orbit --weights head_triplane.safetensors     then a turntable video of it

Pictures of the head are drawn from all sides, planes and decoder are fitted to them by gradients through the reference
of the kernel `triplane`, and the result is measured by pictures from sides that the fit has not seen. One thread, a
minute or two. A mesh stands upright (y up) and looks along +z; an .obj may have colours behind its vertices, and any
morphable model is shown by its mean. A photo needs: pip install 'fastface-kernels[face]'
"""
_MESHES = (".obj", ".safetensors", ".mat", ".h5", ".npz", ".pkl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="PORTRAIT_OR_MESH",
        help="a photo with a face, or a mesh (default: the built-in head)",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="out.safetensors (default: named after the portrait or mesh)"
    )
    parser.add_argument("--contact-sheet", metavar="PATH", help="truth above, fit below (default: beside the output)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of pictures (default: %(default)s)")
    parser.add_argument("--views", type=int, default=96, metavar="N", help="to fit to (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=8, metavar="N", help="to measure by (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of the fit (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=240.0,
        metavar="S",
        help="fewer steps where a machine is too slow for all of them (default: %(default)g)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("fit-triplane", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.media.image import check_parent
    from fastface.models.pir import FitConfig, draw_views, held_out_cameras, training_cameras

    _check(args)
    stem = Path(args.subject).resolve().stem if args.subject else "head"
    output = Path(args.output or f"{stem}_triplane.safetensors")
    if output.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, got {output}")
    check_parent(output)
    sheet = Path(args.contact_sheet or output.with_name(f"{output.stem}_sheet.png"))
    media.check_image_output(sheet)
    check_places([args.subject], output, sheet)
    config = FitConfig(steps=args.steps, seconds=args.seconds, seed=args.seed)
    mesh = _mesh(args.subject).placed()
    cameras = training_cameras(args.views)
    held_out = draw_views(mesh, held_out_cameras(args.held_out, cameras), args.size)
    started = time.perf_counter()
    head = _fit(draw_views(mesh, cameras, args.size), config, held_out)
    seconds = time.perf_counter() - started
    head.save(output)
    rendered = head.render(held_out.cam2world, args.size)
    tiles = [to_image(picture) for picture in torch.cat([held_out.pictures[:, :3], rendered])]
    media.write_image(sheet, media.contact_sheet(tiles, columns=args.held_out))
    summary = {
        "output": str(output),
        "contact_sheet": str(sheet),
        "psnr_db": round(head.psnr(held_out), 2),
        "covered_psnr_db": round(head.psnr(held_out, covered=True), 2),
        "held_out_views": args.held_out,
        "views": args.views,
        "seconds": round(seconds, 1),
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    print(f"fitted to {args.views} views in {seconds:.0f} s")
    print(
        f"held-out PSNR: {summary['psnr_db']:.2f} dB, {summary['covered_psnr_db']:.2f} dB of the covered pixels alone, "
        f"means over {args.held_out} views of {args.size}x{args.size}"
    )
    print(f"tri-plane: {output}, see it turn: fastface orbit --weights {output}")
    print(f"contact sheet, truth above: {sheet}")
    return 0


def _check(args: argparse.Namespace) -> None:
    within("--size", args.size, 16, 512)
    within("--views", args.views, 1, 1000)
    within("--held-out", args.held_out, 1, 100)
    within("--steps", args.steps, 1, 1_000_000)
    within("--seconds", args.seconds, 0.1, 86_400)


def _mesh(subject: str | None) -> ColouredMesh:
    from fastface.face import built_in_head
    from fastface.media import read_image
    from fastface.models.pir import portrait_mesh, read_mesh, shaded_mesh

    if subject is None:
        model = built_in_head()
        return shaded_mesh(model.mean, model.triangles.long())
    path = Path(subject)
    if path.is_dir() or path.suffix.lower() in _MESHES:
        return read_mesh(path)
    photo = read_image(path, max_side=1024)
    try:
        return portrait_mesh(photo)
    except ValueError as error:
        raise UserError(f"{error}: {path}") from error


def _fit(views: Views, config: FitConfig, held_out: Views) -> FittedHead:
    """With a progress bar on a terminal, which shows the loss and, a few times, the PSNR."""
    from tqdm import tqdm

    from fastface.models.pir import fit_head

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(desc="fitting", total=1.0, bar_format=form, disable=not sys.stderr.isatty(), leave=False) as bar:
        told = {"psnr": "-"}

        def watch(done: float, loss: float, head: FittedHead) -> None:
            if int(20 * done) > int(20 * bar.n):
                told["psnr"] = f"{head.psnr(held_out):.1f} dB"
            bar.set_postfix(loss=f"{loss:.4f}", **told, refresh=False)
            bar.update(done - bar.n)

        return fit_head(views, config, None if bar.disable else watch)

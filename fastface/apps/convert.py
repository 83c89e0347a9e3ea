"""`fastface convert`: a public checkpoint to a checked .safetensors file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from fastface.apps._common import UserError, check_places, guarded

_EPILOG = """\
examples:
  fastface convert warping_module.pth warping_module.safetensors
  fastface convert 00000189-checkpoint.pth.tar vox.safetensors      face-vid2vid: all of its networks
  fastface convert d0.pkl d0.safetensors                            a motion template of LivePortrait
  fastface convert ffhqrebalanced512-64.pkl ffhq.safetensors        EG3D: G_ema with its rendering options
  fastface convert weights.pth out.safetensors --layout headgan.generator

The layout is told by the entries; spectral norm is folded into weights; they are loaded once before they are written.
Files are read without running what is in them: a pickle that asks for more than tensors (or, in a template, arrays) is
refused; of EG3D's, which hold source code, parameters and options are read and nothing else.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "input", metavar="IN", help="a file of torch.save, a .safetensors file, a template or EG3D's (.pkl)"
    )
    parser.add_argument("output", metavar="OUT", help="out.safetensors")
    parser.add_argument("--layout", metavar="NAME", help="what the input is (default: its entries tell)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 when the file is written, 2 with one line on stderr for bad input."""
    return guarded("convert", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import checkpoints

    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise UserError(f"the output must end in .safetensors, got {output}")
    check_places([args.input], output)
    if Path(args.input).suffix == ".pkl" and args.layout is None:
        return _convert_pickle(args, output)
    done = checkpoints.convert(args.input, output, args.layout)
    if args.json:
        print(json.dumps({"output": str(output), "parts": [asdict(each) for each in done]}))
        return 0
    for each in done:
        if each.layout is None:
            print(f"{each.part}: left out, its {each.entries} entries are of no known layout")
            continue
        print(f"{each.layout}{f', part {each.part}' if each.part else ''}")
        print(
            f"  {each.entries} entries, {each.parameters / 1e6:.2f} million numbers, "
            f"{each.folded} spectral norms folded"
        )
        if each.config:
            print(f"  {', '.join(f'{name} {value}' for name, value in each.config.items())}")
    print(f"checked, written: {output}")
    return 0


def _convert_pickle(args: argparse.Namespace, output: Path) -> int:
    from fastface.models.pir import holds_networks

    return _convert_eg3d(args, output) if holds_networks(args.input) else _convert_template(args, output)


def _convert_eg3d(args: argparse.Namespace, output: Path) -> int:
    from fastface.models.pir import convert_pickle, load_generator

    network = convert_pickle(args.input, output)
    config = load_generator(output).config
    parameters = sum(tensor.numel() for tensor in network.state.values())
    if args.json:
        part = {"part": network.name, "layout": "eg3d.ffhq512", "config": asdict(config), "parameters": parameters}
        print(json.dumps({"output": str(output), "parts": [part]}))
        return 0
    rendering = config.rendering
    print(f"eg3d.ffhq512, network {network.name}")
    print(
        f"  {len(network.state)} entries, {parameters / 1e6:.2f} million numbers, images {config.image}x{config.image}"
    )
    print(
        f"  rays from {rendering.near} to {rendering.far}, {rendering.coarse} + {rendering.fine} samples, "
        f"box {rendering.box:g}, axes {rendering.axes}"
    )
    print(f"checked, written: {output}")
    return 0


def _convert_template(args: argparse.Namespace, output: Path) -> int:
    from fastface.models.live_portrait import load_template, save_template

    try:
        template = load_template(args.input)
    except ValueError as error:
        raise UserError(f"expected a motion template or a pickle of EG3D: {error}") from error
    save_template(template, output)
    frames, fps = len(template), template.fps
    if args.json:
        print(json.dumps({"output": str(output), "frames": frames, "fps": fps}))
    else:
        print(f"a motion template of {frames} frames at {fps:g} fps\nwritten: {output}")
    return 0

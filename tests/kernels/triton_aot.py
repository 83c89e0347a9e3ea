"""Compiles a Triton kernel ahead of time for a GPU that is not here, and reads what the compiler says of it.

Run as a script it prints what the READMEs of the kernels tell of registers: ``python tests/kernels/triton_aot.py
[warp spade raster triplane] [80 90 100]``.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_PROCESSORS = 132  # of an H200
# A kernel, its arguments, constants and options.
Launch = tuple[Any, list[Any], dict[str, Any], dict[str, Any]]
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Report:
    """One compiled kernel: what it holds per thread and per program, and its PTX."""

    registers: int
    stack: int  # bytes per thread of local memory that are not spills or that hold them
    spill_instructions: int
    shared: int  # bytes per program
    ptx: str
    sass: str


def source(kernel: Any, arguments: list[Any], constants: dict[str, Any]) -> ASTSource:
    """The source of a launch, specialised as the launcher would: a 1 becomes a constant, a multiple of 16 is known to
    be one.
    """
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    names = kernel.arg_names
    for index, (parameter, value) in enumerate(zip(kernel.params, [*arguments, *constants.values()], strict=True)):
        name = names[index]
        if name in constants:
            signature[name], constexprs[index,] = "constexpr", constants[name]
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[index,] = _POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[name], constexprs[index,] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs, attributes)


def compile_for(
    capability: int, kernel: Any, arguments: list[Any], constants: dict[str, Any], options: dict[str, Any]
) -> Report:
    """Compile a launch for a compute capability (90 for 9.0) and take its resources from the binary."""
    compiled = triton.compile(source(kernel, arguments, constants), GPUTarget("cuda", capability, 32), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    spills = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return Report(found["REG"], found["STACK"], spills, compiled.metadata.shared, compiled.asm["ptx"], sass)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def launches(slug: str, capability: int) -> Iterator[tuple[str, Launch]]:
    """Name and launch of every kernel variant of a hot path, at the shapes of real models."""
    yield from {"warp": _warp, "spade": _spade, "raster": _raster, "triplane": _triplane}[slug](capability)


def _new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _warp(capability: int) -> Iterator[tuple[str, Launch]]:
    from fastface.kernels.warp import warp_triton

    for name, call in _live_portrait_calls():
        layout = warp_triton._layout(call)
        cut = warp_triton.config(call.op, layout, capability)
        _, arguments, constants = warp_triton.plan(call, cut, layout, _PROCESSORS)
        yield name, (warp_triton._KERNELS[call.op], arguments, constants, warp_triton.options(call, cut))


def _live_portrait_calls() -> Iterator[tuple[str, Any]]:
    from fastface.ops.warp import WarpCall

    batch, keypoints, depth, height, width = 2, 21, 16, 64, 64
    points = (_new(batch, keypoints, 3), _new(batch, keypoints, 3))
    matrices = {"translation": None, "linear": _new(batch, 3, 3), "linear per keypoint": _new(batch, keypoints, 3, 3)}
    for dtype, (kind, linear) in itertools.product((torch.float32, torch.float16), matrices.items()):
        label = f"{str(dtype).removeprefix('torch.')}, {kind}"
        small = _new(batch, 4, depth, height, width, dtype=dtype)
        out = _new(batch, 110, depth, height, width, dtype=dtype)
        yield f"pack_motions, {label}", WarpCall("pack_motions", out, *points, feature=small, linear=linear)
        feature = _new(batch, 32, depth, height, width, dtype=dtype)
        logits = _new(batch, keypoints + 1, depth, height, width, dtype=dtype)
        flow = _new(batch, depth, height, width, 3)
        yield f"motion_field, {label}", WarpCall("motion_field", flow, *points, logits=logits, linear=linear)
        for op, layout in itertools.product(("compose_flow", "compose_volumes"), ("first", "last")):
            order = torch.channels_last_3d if layout == "last" else torch.contiguous_format
            laid = feature.to(memory_format=order)
            shade = _new(batch, 1, height, width, dtype=dtype)
            yield (
                f"{op}, {label}, channels {layout}",
                WarpCall(
                    op, torch.empty_like(laid), *points, feature=laid, logits=logits, linear=linear, occlusion=shade
                ),
            )


def _spade(capability: int) -> Iterator[tuple[str, Launch]]:
    from fastface.kernels.spade import spade_triton
    from fastface.ops import spade
    from fastface.ops._verify import arrange

    # One image small enough for the registers of a program, simple and not, then one that is not.
    cases = [(64, 1, "contiguous"), (128, 1, "contiguous"), (90, 2, "contiguous"), (64, 1, "sliced")]
    cases += [(256, 1, "contiguous"), (256, 2, "contiguous"), (256, 1, "channels_last"), (256, 2, "channels_last")]
    cases += [(1, 1, "contiguous")]  # a size of 1 becomes a constant
    for dtype, (size, scale, layout) in itertools.product((torch.float32, torch.float16), cases):
        x = arrange(_new(2, 64, size, size, dtype=dtype), layout)
        maps = arrange(_new(2, 64, size // scale, size // scale, dtype=dtype), layout)
        arguments = {"gamma": maps, "beta": maps, "residual": x, "activation": "leaky_relu"}
        call = spade.registry.build("modulated_norm", x, **arguments)
        for kernel, _, *launch, constants, options in spade_triton.launches(call, _PROCESSORS, spade_triton.Config()):
            label = f"{str(dtype).removeprefix('torch.')}, {size}x{size}, scale {scale}, {layout}"
            yield f"{kernel.__name__}, {label}", (kernel, *launch, constants, options)


def _raster(capability: int) -> Iterator[tuple[str, Launch]]:
    from fastface.kernels.raster import raster_triton
    from fastface.ops import raster

    vertices, triangles = _new(1, 25000, 3), _new(50000, 3, dtype=torch.int32)
    for dtype, per in itertools.product((torch.float32, torch.float16), ("triangle", "vertex")):
        attributes = _new(50000 if per == "triangle" else 25000, 3, dtype=dtype)
        call = raster.registry.build("rasterize", vertices, triangles, attributes, (256, 256), cull="back", per=per)
        for kernel, _, *launch, constants, options in raster_triton.launches(call, _PROCESSORS):
            name = f"{kernel.__name__}, {str(dtype).removeprefix('torch.')}, attributes per {per}"
            yield name, (kernel, *launch, constants, options)


def _triplane(capability: int) -> Iterator[tuple[str, Launch]]:
    from fastface.kernels.triplane import triplane_triton
    from fastface.ops import triplane

    rays, hidden, outputs = 4096, 64, 33
    decoder = triplane.PlaneDecoder(_new(hidden, 32), _new(hidden), _new(outputs, hidden), _new(outputs))
    for dtype in (torch.float32, torch.float16):
        planes = _new(1, 3, 256, 256, 32, dtype=dtype).movedim(-1, 2)
        points = _new(1, rays, 3)
        label = str(dtype).removeprefix("torch.")
        calls = {
            f"{reduce or 'each'}": triplane.registry.build("sample_planes", planes, points, reduce=reduce)
            for reduce in ("sum", None)
        }
        for samples in ((48, 48), (48, 0), (96, 96)):
            limits = {"near": _new(1, rays), "far": _new(1, rays), "coarse": samples[0], "fine": samples[1]}
            calls[f"{samples[0]}+{samples[1]}"] = triplane.registry.build(
                "render_planes", planes, points, points, decoder, **limits
            )
        deep = planes.unsqueeze(3).expand(-1, -1, -1, 3, -1, -1)
        calls["trigrid"] = triplane.registry.build("render_planes", deep, points, points, decoder, near=2.25, far=3.3)
        for variant, call in calls.items():
            for kernel, _, *launch, constants, options in triplane_triton.launches(call):
                yield f"{kernel.__name__}, {label}, {variant}", (kernel, *launch, constants, options)


if __name__ == "__main__":
    slugs = [a for a in sys.argv[1:] if not a.isdigit()] or ["warp", "spade", "raster", "triplane"]
    capabilities = [int(a) for a in sys.argv[1:] if a.isdigit()] or [80, 90, 100]
    print(f"triton {triton.__version__}; registers / shared bytes / stack bytes / LDL+STL on {capabilities}")
    for slug in slugs:
        for variants in zip(*(launches(slug, capability) for capability in capabilities), strict=True):
            cells = []
            for capability, (_, launch) in zip(capabilities, variants, strict=True):
                report = compile_for(capability, *launch)
                doubles = "f64!" if ".f64" in report.ptx else ""
                cells.append(f"{report.registers}/{report.shared}/{report.stack}/{report.spill_instructions}{doubles}")
            print(f"| {variants[0][0]} | {' | '.join(cells)} |", flush=True)

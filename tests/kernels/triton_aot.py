"""Compiles a Triton kernel ahead of time for a GPU that is not here, and reads what the compiler says of it.

Run as a script it prints the table that kernels/warp/README.md shows: ``python tests/kernels/triton_aot.py [80 90
100]``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
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


def live_portrait_calls() -> dict[str, Any]:
    """Launches of every kernel variant at the LivePortrait shape: name -> call (tensors on the meta device)."""
    from fastface.ops.warp import WarpCall

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    calls = {}
    batch, keypoints, depth, height, width = 2, 21, 16, 64, 64
    points = (new(batch, keypoints, 3), new(batch, keypoints, 3))
    matrices = {"translation": None, "linear": new(batch, 3, 3), "linear per keypoint": new(batch, keypoints, 3, 3)}
    for dtype in (torch.float32, torch.float16):
        for kind, linear in matrices.items():
            label = f"{str(dtype).removeprefix('torch.')}, {kind}"
            small = new(batch, 4, depth, height, width, dtype=dtype)
            out = new(batch, 110, depth, height, width, dtype=dtype)
            calls[f"pack_motions, {label}"] = WarpCall("pack_motions", out, *points, feature=small, linear=linear)
            feature = new(batch, 32, depth, height, width, dtype=dtype)
            logits = new(batch, keypoints + 1, depth, height, width, dtype=dtype)
            flow = new(batch, depth, height, width, 3)
            calls[f"motion_field, {label}"] = WarpCall("motion_field", flow, *points, logits=logits, linear=linear)
            for op in ("compose_flow", "compose_volumes"):
                for layout in ("first", "last"):
                    order = torch.channels_last_3d if layout == "last" else torch.contiguous_format
                    laid = feature.to(memory_format=order)
                    shade = new(batch, 1, height, width, dtype=dtype)
                    calls[f"{op}, {label}, channels {layout}"] = WarpCall(
                        op, torch.empty_like(laid), *points, feature=laid, logits=logits, linear=linear, occlusion=shade
                    )
    return calls


def compile_call(call: Any, capability: int) -> Report:
    """Compile the launch that `call` would make on a device of that compute capability."""
    from fastface.kernels.warp import warp_triton

    layout = warp_triton._layout(call)
    cut = warp_triton.config(call.op, layout, capability)
    _, arguments, constants = warp_triton.plan(call, cut, layout, processors=132)
    return compile_for(capability, warp_triton._KERNELS[call.op], arguments, constants, warp_triton.options(call, cut))


if __name__ == "__main__":
    capabilities = [int(a) for a in sys.argv[1:]] or [80, 90, 100]
    print(f"triton {triton.__version__}; registers / shared bytes / stack bytes / LDL+STL on {capabilities}")
    for name, call in live_portrait_calls().items():
        cells = []
        for capability in capabilities:
            report = compile_call(call, capability)
            doubles = "f64!" if ".f64" in report.ptx else ""
            cells.append(f"{report.registers}/{report.shared}/{report.stack}/{report.spill_instructions}{doubles}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

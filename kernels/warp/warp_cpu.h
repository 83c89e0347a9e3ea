// The CPU kernels of the `warp` hot path, one copy per instruction set tier, each in a namespace of its own.
#pragma once
#include "warp.h"

namespace fastface::warp {

enum class CpuOp : int32_t { kPackMotions, kComposeFlow, kComposeVolumes, kMotionField };

// Runs an op on at most `threads` threads. False if there is no memory for the scratch; the output is then untouched.
#define FASTFACE_WARP_TIER(tier)                         \
  namespace tier {                                       \
  bool run(CpuOp op, const Params& params, int threads); \
  }
FASTFACE_WARP_TIER(baseline)
FASTFACE_WARP_TIER(avx2)
FASTFACE_WARP_TIER(avx512)
#undef FASTFACE_WARP_TIER

}  // namespace fastface::warp

// The CPU kernels of the `triplane` hot path, one copy per instruction set tier, each in a namespace of its own.
#pragma once
#include "triplane.h"

namespace fastface::triplane {

enum class CpuOp : int32_t { kSamplePlanes, kRenderPlanes };

// Runs an op on at most `threads` threads. False if there is no memory for the scratch; the output is then untouched.
#define FASTFACE_TRIPLANE_TIER(tier)                     \
  namespace tier {                                       \
  bool run(CpuOp op, const Params& params, int threads); \
  }
FASTFACE_TRIPLANE_TIER(baseline)
FASTFACE_TRIPLANE_TIER(avx2)
FASTFACE_TRIPLANE_TIER(avx512)
#undef FASTFACE_TRIPLANE_TIER

}  // namespace fastface::triplane

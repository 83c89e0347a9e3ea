// The CPU kernels of the `spade` hot path, one copy per instruction set tier, each in a namespace of its own.
#pragma once
#include "spade.h"

namespace fastface::spade {

enum class CpuOp : int32_t { kModulatedNorm, kInstanceStats };

// Runs an op on at most `threads` threads. False if there is no memory for the scratch; the output is then untouched.
#define FASTFACE_SPADE_TIER(tier)                        \
  namespace tier {                                       \
  bool run(CpuOp op, const Params& params, int threads); \
  }
FASTFACE_SPADE_TIER(baseline)
FASTFACE_SPADE_TIER(avx2)
FASTFACE_SPADE_TIER(avx512)
#undef FASTFACE_SPADE_TIER

}  // namespace fastface::spade

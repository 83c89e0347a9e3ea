// The CPU kernel of the `raster` hot path, one copy per instruction set tier, each in a namespace of its own.
#pragma once
#include "raster.h"

namespace fastface::raster {

// Draws on at most `threads` threads. False if there is no memory for the scratch; the output is then untouched.
#define FASTFACE_RASTER_TIER(tier)             \
  namespace tier {                             \
  bool run(const Params& params, int threads); \
  }
FASTFACE_RASTER_TIER(baseline)
FASTFACE_RASTER_TIER(avx2)
FASTFACE_RASTER_TIER(avx512)
#undef FASTFACE_RASTER_TIER

}  // namespace fastface::raster

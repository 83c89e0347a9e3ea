// What the threads of a block do together. A host compiler may read this too: the tests run the threads of a block as
// fibers and define `synchronize` and `exchange` for them.
#pragma once
#include "cuda_numeric.h"

#ifdef __CUDACC__
#define FASTFACE_DEVICE __device__ __forceinline__
#else
#define FASTFACE_DEVICE inline
#endif

namespace fastface::cuda {

constexpr int kWarp = 32;

#ifdef __CUDACC__
FASTFACE_DEVICE void synchronize() { __syncthreads(); }
FASTFACE_DEVICE float exchange(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
#else
void synchronize();                     // waits for every thread of the block
float exchange(float value, int mask);  // the value of the lane whose number differs in the bits of the mask
#endif

// The sum over the lanes of a warp, in all of them, always added in the same order.
FASTFACE_DEVICE float warp_sum(float value) {
  FASTFACE_UNROLL
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += exchange(value, mask);
  return value;
}

// The sum over the threads of a block, in all of them, always added in the same order. `shared` holds one value per
// warp, and may be used again at once.
FASTFACE_DEVICE float block_sum(float value, int thread, int threads, float* shared) {
  value = warp_sum(value);
  if (thread % kWarp == 0) shared[thread / kWarp] = value;
  synchronize();
  value = warp_sum(thread % kWarp < threads / kWarp ? shared[thread % kWarp] : 0.0f);
  synchronize();
  return value;
}

}  // namespace fastface::cuda

// The CUDA entry points of the `spade` hot path, for csrc/bind_cuda.cpp.
#pragma once
#include <cstdint>
#include <string>

#include "spade.h"

namespace fastface::spade {

// Why a device cannot run `op` (a name of fastface.ops), or "" if it can.
std::string cuda_refuse(const std::string& op, const Params& params, int device);

// How many floats of scratch `op` needs, for statistics of parts of a channel.
int64_t cuda_scratch(const std::string& op, const Params& params, int device);

// Runs `op` on a stream of `device`; throws std::runtime_error with the name of a CUDA error.
void cuda_run(const std::string& op, const Params& params, float* scratch, int device, uintptr_t stream);

}  // namespace fastface::spade

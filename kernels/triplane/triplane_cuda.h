// The CUDA entry points of the `triplane` hot path, for csrc/bind_cuda.cpp.
#pragma once
#include <cstdint>
#include <string>

#include "triplane.h"

namespace fastface::triplane {

// Why a device cannot run `op` (a name of fastface.ops), or "" if it can.
std::string cuda_refuse(const std::string& op, const Params& params, int device);

// Runs `op` on a stream of `device`; throws std::runtime_error with the name of a CUDA error. The channels of the
// planes are next to each other.
void cuda_run(const std::string& op, const Params& params, int device, uintptr_t stream);

}  // namespace fastface::triplane

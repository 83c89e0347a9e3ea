// Launches the `warp` kernels of warp_cuda.cuh. Nothing here allocates or waits.
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda_device.h"
#include "warp_cuda.cuh"
#include "warp_cuda.h"

namespace fastface::warp {
namespace cuda {
namespace {

constexpr int64_t kGridLimit = 65535;
constexpr size_t kSharedLimit = 48 * 1024;  // what a kernel gets without asking the driver for more
constexpr int64_t kOffsetLimit = int64_t{1} << 31;

template <class Kernel>
__global__ __launch_bounds__(Kernel::kThreads,
                             Kernel::kBlocksPerProcessor) void fwd_kernel(const __grid_constant__ Plan plan) {
  extern __shared__ float4 shared_memory[];  // float4 for its alignment
  float* shared = reinterpret_cast<float*>(shared_memory);
  const Index block{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  const int thread = static_cast<int>(threadIdx.x);
  Kernel::template run<0>(plan, block, thread, shared);
  if constexpr (Kernel::kPhases > 1) {
    __syncthreads();
    Kernel::template run<1>(plan, block, thread, shared);
  }
  if constexpr (Kernel::kPhases > 2) {
    __syncthreads();
    Kernel::template run<2>(plan, block, thread, shared);
  }
  if constexpr (Kernel::kPhases > 3) {
    __syncthreads();
    Kernel::template run<3>(plan, block, thread, shared);
  }
}

struct Launch {
  const std::string& op;
  int device;
  cudaStream_t stream;

  template <class Kernel>
  void operator()(Kernel, Plan& plan) const {
    const Grid grid = Kernel::prepare(plan, processors(device));
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    void* arguments[] = {&plan};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(&fwd_kernel<Kernel>), blocks, dim3(Kernel::kThreads),
                           arguments, Kernel::shared_bytes(plan), stream),
          "launching " + op);
  }
};

// Whether a kernel's grid and shared memory fit.
struct Measure {
  int device;
  std::string& reason;

  template <class Kernel>
  void operator()(Kernel, Plan& plan) const {
    const Grid grid = Kernel::prepare(plan, processors(device));
    if (grid.x >= kOffsetLimit || grid.y > kGridLimit || grid.z > kGridLimit) {
      reason = "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
               " blocks, a device takes 2147483647 x 65535 x 65535";
    } else if (Kernel::shared_bytes(plan) > kSharedLimit) {
      reason = std::to_string(plan.p.keypoints) + " keypoints need " + std::to_string(Kernel::shared_bytes(plan)) +
               " bytes of shared memory, a block has " + std::to_string(kSharedLimit);
    }
  }
};

Op op_named(const std::string& name) {
  if (name == "pack_motions") return Op::kPackMotions;
  if (name == "compose_flow") return Op::kComposeFlow;
  if (name == "compose_volumes") return Op::kComposeVolumes;
  if (name == "motion_field") return Op::kMotionField;
  throw std::invalid_argument("unknown warp op '" + name + "'");
}

// The largest offset inside one channel of one image.
int64_t reach(const View<5>& view, const Params& p) {
  if (view.data == nullptr) return 0;
  return (p.depth - 1) * view.stride[2] + (p.height - 1) * view.stride[3] + (p.width - 1) * view.stride[4];
}

}  // namespace
}  // namespace cuda

std::string cuda_refuse(const std::string& name, const Params& params, int device) {
  using namespace cuda;
  const Op op = op_named(name);
  std::string reason = refuse_device(device);
  if (!reason.empty()) return reason;
  // The walk of pack_motions counts rows in fours, so the limit keeps a margin.
  if (params.depth * params.height * params.width >= kOffsetLimit - 1024) {
    return "a volume of " + std::to_string(params.depth * params.height * params.width) +
           " voxels, it takes fewer than 2^31";
  }
  for (const View<5>* view : {&params.feature, &params.logits, &params.out}) {
    if (reach(*view, params) >= kOffsetLimit) return "one channel of a tensor spans 2^31 elements or more";
  }
  Plan plan = make_plan(params);
  visit(op, plan, Measure{device, reason});
  return reason;
}

void cuda_run(const std::string& name, const Params& params, int device, uintptr_t stream) {
  using namespace cuda;
  Plan plan = make_plan(params);
  const DeviceGuard guard(device);
  visit(op_named(name), plan, Launch{name, device, reinterpret_cast<cudaStream_t>(stream)});
}

}  // namespace fastface::warp

// Launches the `spade` kernels of spade_cuda.cuh. Nothing here allocates or waits.
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda_device.h"
#include "spade_cuda.cuh"
#include "spade_cuda.h"

namespace fastface::spade {
namespace cuda {
namespace {

constexpr int64_t kGridLimit = 65535;
constexpr int64_t kOffsetLimit = int64_t{1} << 31;
constexpr int64_t kIndexLimit = kOffsetLimit - (1 << 20);  // with a margin for the packs of the last block

template <class Kernel>
__global__ __launch_bounds__(Kernel::kMostThreads,
                             Kernel::kBlocksPerProcessor) void fwd_kernel(const __grid_constant__ Plan plan) {
  __shared__ float shared[Kernel::kShared > 0 ? Kernel::kShared : 1];
  const Index block{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  Kernel::run(plan, block, static_cast<int>(threadIdx.x), shared);
}

struct Launch {
  const std::string& op;
  Plan& plan;
  cudaStream_t stream;

  template <class Kernel>
  void operator()(Kernel) const {
    const Grid grid = Kernel::grid(plan);
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    void* arguments[] = {&plan};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(&fwd_kernel<Kernel>), blocks, dim3(Kernel::threads(plan)),
                           arguments, 0, stream),
          "launching " + op);
  }
};

// The largest offset inside one channel of one image.
int64_t reach(const View<4>& view, const Params& p) {
  return view.data == nullptr ? 0 : (p.height - 1) * view.stride[2] + (p.width - 1) * view.stride[3];
}

Op op_named(const std::string& name) {
  if (name == "modulated_norm") return Op::kModulatedNorm;
  if (name == "instance_stats") return Op::kInstanceStats;
  throw std::invalid_argument("unknown spade op '" + name + "'");
}

}  // namespace
}  // namespace cuda

std::string cuda_refuse(const std::string& name, const Params& params, int device) {
  using namespace cuda;
  (void)op_named(name);
  if (params.batch > kGridLimit || params.channels > kGridLimit || planes(params) >= kIndexLimit) {
    return "batch " + std::to_string(params.batch) + " and " + std::to_string(params.channels) +
           " channels, it takes at most " + std::to_string(kGridLimit) + " of each and 2^31 of both";
  }
  if (params.height * params.width >= kIndexLimit) {
    return "an image of " + std::to_string(params.height) + "x" + std::to_string(params.width) +
           " pixels, it takes fewer than 2^31";
  }
  for (const View<4>* view : {&params.x, &params.gamma, &params.beta, &params.residual, &params.out}) {
    if (reach(*view, params) >= kOffsetLimit) return "one channel of a tensor spans 2^31 elements or more";
  }
  return refuse_device(device);
}

int64_t cuda_scratch(const std::string& name, const Params& params, int device) {
  using namespace cuda;
  return scratch_floats(make_plan(op_named(name), params, processors(device)));
}

void cuda_run(const std::string& name, const Params& params, float* scratch, int device, uintptr_t stream) {
  using namespace cuda;
  const Op op = op_named(name);
  const DeviceGuard guard(device);
  Plan plan = make_plan(op, params, processors(device));
  use_scratch(op, plan, scratch);
  visit(op, plan, Launch{name, plan, reinterpret_cast<cudaStream_t>(stream)});
}

}  // namespace fastface::spade

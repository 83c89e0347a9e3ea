// Launches the `triplane` kernels of triplane_cuda.cuh. Nothing here allocates or waits.
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda_device.h"
#include "triplane_cuda.cuh"
#include "triplane_cuda.h"

namespace fastface::triplane {
namespace cuda {
namespace {

constexpr int64_t kGridLimit = 65535;
constexpr int64_t kOffsetLimit = int64_t{1} << 31;

template <class Kernel>
__global__ __launch_bounds__(Kernel::kMostThreads) void fwd_kernel(const __grid_constant__ Plan plan) {
  extern __shared__ float4 shared[];  // for its alignment
  const Index block{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  Kernel::run(plan, block, static_cast<int>(threadIdx.x), reinterpret_cast<float*>(shared));
}

struct Launch {
  const std::string& op;
  Plan& plan;
  cudaStream_t stream;

  template <class Kernel>
  void operator()(Kernel) const {
    const Grid grid = Kernel::grid(plan);
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    const void* kernel = reinterpret_cast<const void*>(&fwd_kernel<Kernel>);
    const size_t bytes = static_cast<size_t>(Kernel::shared(plan)) * sizeof(float);
    if (bytes > 48 * 1024) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
            "asking for shared memory for " + op);
    }
    void* arguments[] = {&plan};
    check(cudaLaunchKernel(kernel, blocks, dim3(Kernel::threads(plan)), arguments, bytes, stream), "launching " + op);
  }
};

Op op_named(const std::string& name) {
  if (name == "sample_planes") return Op::kSamplePlanes;
  if (name == "render_planes") return Op::kRenderPlanes;
  throw std::invalid_argument("unknown triplane op '" + name + "'");
}

Plan plan_on(const Params& params, int device) {
  return make_plan(params, attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device), processors(device));
}

}  // namespace
}  // namespace cuda

std::string cuda_refuse(const std::string& name, const Params& params, int device) {
  using namespace cuda;
  const Op op = op_named(name);
  if (params.batch > kGridLimit) {
    return "a batch of " + std::to_string(params.batch) + ", it takes at most " + std::to_string(kGridLimit);
  }
  // Planes whose channels are not next to each other are copied, so only the size counts.
  const int64_t* stride = params.planes.stride;
  if (params.depth * params.height * params.width * params.channels >= kOffsetLimit ||
      (params.depth - 1) * stride[3] + (params.height - 1) * stride[4] + (params.width - 1) * stride[5] >=
          kOffsetLimit) {
    return "a plane that spans 2^31 elements or more";
  }
  const std::string reason = refuse_device(device);
  if (!reason.empty() || op == Op::kSamplePlanes) return reason;
  if (plan_on(params, device).warps == 0) {
    return std::to_string(params.coarse + params.fine) + " samples of a ray, " + std::to_string(params.hidden) +
           " hidden units and " + std::to_string(params.outputs - 1) +
           " colours, which do not fit the shared memory of a block";
  }
  return "";
}

void cuda_run(const std::string& name, const Params& params, int device, uintptr_t stream) {
  using namespace cuda;
  const Op op = op_named(name);
  const DeviceGuard guard(device);
  Plan plan = plan_on(params, device);
  visit(op, plan, Launch{name, plan, reinterpret_cast<cudaStream_t>(stream)});
}

}  // namespace fastface::triplane

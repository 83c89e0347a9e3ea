// Runs the CUDA kernels' arithmetic (kernels/warp/warp_cuda.cuh) on the CPU: every block, every phase, every thread in
// turn. Built and called by tests/kernels/test_warp_cuda.py.
#include "cuda_host.h"
#include "warp_cuda.cuh"

namespace {

using namespace fastface::warp;
using namespace fastface::warp::cuda;

template <class Kernel, int kPhase>
void run_phase(const Plan& plan, const Index& block, float* shared) {
  // Backwards, so that a phase that leans on the order of its threads shows.
  for (int thread = Kernel::kThreads - 1; thread >= 0; --thread)
    Kernel::template run<kPhase>(plan, block, thread, shared);
}

struct RunOnHost {
  int processors;

  template <class Kernel>
  void operator()(Kernel, Plan& plan) const {
    const Grid grid = Kernel::prepare(plan, processors);
    std::vector<float> shared(Kernel::shared_bytes(plan) / sizeof(float) + 1);
    for_each_block<Index>(grid, shared, [&](const Index& block) {
      run_phase<Kernel, 0>(plan, block, shared.data());
      if constexpr (Kernel::kPhases > 1) run_phase<Kernel, 1>(plan, block, shared.data());
      if constexpr (Kernel::kPhases > 2) run_phase<Kernel, 2>(plan, block, shared.data());
      if constexpr (Kernel::kPhases > 3) run_phase<Kernel, 3>(plan, block, shared.data());
    });
  }
};

}  // namespace

extern "C" void warp_on_host(int op, const Params* params, int processors) {
  Plan plan = make_plan(*params);
  visit(static_cast<Op>(op), plan, RunOnHost{processors});
}

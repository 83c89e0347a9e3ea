// Runs the CUDA kernels of kernels/spade/spade_cuda.cuh on the CPU. Built and called by
// tests/kernels/test_spade_cuda.py.
#include "cuda_host.h"
#include "spade_cuda.cuh"

namespace {

using namespace fastface::spade;
using namespace fastface::spade::cuda;

struct RunOnHost {
  const Plan& plan;
  bool& ok;

  template <class Kernel>
  void operator()(Kernel) const {
    std::vector<float> shared(Kernel::kShared);
    for_each_block<Index>(Kernel::grid(plan), shared, [&](const Index& block) {
      ok = run_block(Kernel::threads(plan), [&](int thread) { Kernel::run(plan, block, thread, shared.data()); }) && ok;
    });
  }
};

}  // namespace

extern "C" int64_t spade_scratch_on_host(int op, const Params* params, int processors) {
  return scratch_floats(make_plan(static_cast<Op>(op), *params, processors));
}

extern "C" bool spade_on_host(int op, const Params* params, float* scratch, int processors) {
  Plan plan = make_plan(static_cast<Op>(op), *params, processors);
  use_scratch(static_cast<Op>(op), plan, scratch);
  bool ok = true;
  visit(static_cast<Op>(op), plan, RunOnHost{plan, ok});
  return ok;
}

// How a call is cut: whole, last, vector, parts.
extern "C" void spade_plan_on_host(int op, const Params* params, int processors, int* cut) {
  const Plan plan = make_plan(static_cast<Op>(op), *params, processors);
  cut[0] = plan.whole, cut[1] = plan.last, cut[2] = plan.vector, cut[3] = plan.parts;
}

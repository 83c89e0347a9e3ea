// Runs the CUDA kernels of kernels/triplane/triplane_cuda.cuh on the CPU. Built and called by
// tests/kernels/test_triplane_cuda.py.
#include <random>

#include "cuda_host.h"
#include "triplane_cuda.cuh"

namespace fastface::triplane::cuda {

// As wrong as the manual allows, either way: two units in the last place, absolutely 2^-22 near ln 1.
static std::mt19937 generator(1);
static float wrong(float value, float relative, float absolute) {
  const float by = std::uniform_real_distribution<float>(-1, 1)(generator);
  return value + by * (std::fabs(value) * relative + absolute);
}
float exp2_fast(float x) { return wrong(std::exp2(x), 0x1p-22f, 0); }
float log2_fast(float x) { return wrong(std::log2(x), 0, 0x1p-22f); }
float divide_fast(float a, float b) { return wrong(a / b, 0x1p-22f, 0); }

// The matrix instruction: it reads TF32 numbers, and its sums are cut off, not rounded.
static float cut_off(double sum) {
  const float rounded = static_cast<float>(sum);
  return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

static float number(uint32_t bits) { return as_float(bits & 0xffffe000u); }

// What the lanes hold; two in turn, as a lane may give the next before another has read this.
struct Held {
  uint32_t a[kWarp][4], b[kWarp][2];
};
static Held held[2];
static bool turn[kWarp];

void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const int self = static_cast<int>(current - fibers.data()) % kWarp, g = self / 4, t = self % 4;
  Held& all = held[turn[self] = !turn[self]];
  std::copy(a, a + 4, all.a[self]);
  std::copy(b, b + 2, all.b[self]);
  warp_synchronize();
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 8; ++k) {
      const double left = number(all.a[4 * g + k % 4][row + 2 * (k / 4)]);
      sum += left * number(all.b[4 * column + k % 4][k / 4]);
    }
    c[i] = cut_off(sum);
  }
}

}  // namespace fastface::triplane::cuda

namespace {

using namespace fastface::triplane;
using namespace fastface::triplane::cuda;

struct RunOnHost {
  const Plan& plan;
  bool& ok;

  template <class Kernel>
  void operator()(Kernel) const {
    std::vector<float> memory(Kernel::shared(plan) + 4);
    const size_t past = reinterpret_cast<uintptr_t>(memory.data()) % 16 / 4;
    float* shared = memory.data() + (past == 0 ? 0 : 4 - past);
    for_each_block<Index>(Kernel::grid(plan), memory, [&](const Index& block) {
      ok = run_block(Kernel::threads(plan), [&](int thread) { Kernel::run(plan, block, thread, shared); }) && ok;
    });
  }
};

}  // namespace

extern "C" bool triplane_on_host(int op, const Params* params, int64_t bytes, int processors) {
  const Plan plan = make_plan(*params, bytes, processors);
  bool ok = true;
  visit(static_cast<Op>(op), plan, RunOnHost{plan, ok});
  return ok;
}

// How a call is cut: warps of a block, blocks, whole, room.
extern "C" void triplane_plan_on_host(const Params* params, int64_t bytes, int processors, int* cut) {
  const Plan plan = make_plan(*params, bytes, processors);
  cut[0] = plan.warps, cut[1] = plan.blocks, cut[2] = plan.whole, cut[3] = static_cast<int>(plan.room);
}

// Runs CUDA kernels on the CPU, for the tests: the blocks of a grid in turn, and the threads of a block as fibers that
// take turns at its barriers.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda_block.h"

namespace fastface::cuda {

// Calls `run` for every block. `shared` starts as NaN in each.
template <class Index, class Grid, class Run>
void for_each_block(const Grid& grid, std::vector<float>& shared, const Run& run) {
  for (int z = 0; z < grid.z; ++z) {
    for (int y = 0; y < grid.y; ++y) {
      for (int x = 0; x < grid.x; ++x) {
        std::fill(shared.begin(), shared.end(), std::numeric_limits<float>::quiet_NaN());
        run(Index{x, y, z});
      }
    }
  }
}

enum class Waiting { kForTurn, kForBlock, kForWarp, kForNothing };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  Waiting waiting;
  float value;
  int mask;
};

// The block that runs; a library of its own per test, so one is enough.
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline Fiber* current;
inline void (*body)(int thread, const void* context);
inline const void* body_context;

inline void start(int thread) {
  body(thread, body_context);
  current->waiting = Waiting::kForNothing;
}

inline void wait(Waiting what) {
  Fiber* self = current;
  self->waiting = what;
  swapcontext(&self->context, &scheduler);
}

inline void synchronize() { wait(Waiting::kForBlock); }

inline float exchange(float value, int mask) {
  Fiber* self = current;
  self->value = value;
  self->mask = mask;
  wait(Waiting::kForWarp);
  return self->value;
}

template <class Iterator>
bool all_wait(Iterator begin, Iterator end, Waiting what) {
  return std::all_of(begin, end, [what](const Fiber& fiber) { return fiber.waiting == what; });
}

template <class Iterator>
void release(Iterator begin, Iterator end) {
  for (; begin != end; ++begin) begin->waiting = Waiting::kForTurn;
}

// Lets a warp run, its last lane first, until its lanes wait; swaps their values if that is what all wait for. False if
// none could run.
inline bool run_warp(Fiber* warp) {
  bool ran = false;
  for (Fiber* lane = warp + kWarp; lane-- != warp;) {
    if (lane->waiting != Waiting::kForTurn) continue;
    current = lane;
    swapcontext(&scheduler, &lane->context);
    ran = true;
  }
  if (all_wait(warp, warp + kWarp, Waiting::kForWarp)) {
    float values[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) values[lane] = warp[lane].value;
    for (int lane = 0; lane < kWarp; ++lane) warp[lane].value = values[lane ^ warp[lane].mask];
    release(warp, warp + kWarp);
  }
  return ran;
}

// Runs the threads of a block; false where some wait for others that never come.
template <class Run>
bool run_block(int threads, const Run& run) {
  if (static_cast<int>(fibers.size()) < threads) fibers = std::vector<Fiber>(threads);
  const auto begin = fibers.begin(), end = begin + threads;
  body = [](int thread, const void* context) { (*static_cast<const Run*>(context))(thread); };
  body_context = &run;
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.waiting = Waiting::kForTurn;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&start), 1, thread);
  }
  while (!all_wait(begin, end, Waiting::kForNothing)) {
    // A warp runs as far as it can before the next, and the last one first, so that code shows which leans on the order
    // of its threads or lacks a barrier.
    bool ran = false;
    for (int first = threads - kWarp; first >= 0; first -= kWarp) {
      while (run_warp(&fibers[first])) ran = true;
    }
    if (all_wait(begin, end, Waiting::kForBlock)) {
      release(begin, end);
    } else if (!ran) {
      return false;
    }
  }
  return true;
}

}  // namespace fastface::cuda

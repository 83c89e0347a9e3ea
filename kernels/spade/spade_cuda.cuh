// The arithmetic of the `spade` kernels for CUDA. Formulas, costs and the reasons for each cut: README.md.
//
// Each kernel is a struct: its threads and what one of them does. A host compiler can run it too (csrc/cuda_block.h),
// so the tests check this file without a GPU; spade_cuda.cu adds the launch.
//
// A pack is what one thread moves at once: V adjacent pixels of a row of a channel or, with the channels last, V
// adjacent channels of a pixel; 16 bytes where sizes and strides allow, else one value.
//
// Statistics are sums relative to the first pixel of the channel and sums of squared deviations, merged by the rule of
// Chan, Golub and LeVeque (1983): no square of a mean is ever subtracted. A mean has two parts, its float and what that
// leaves over, so that a channel far from zero loses nothing. Sums, not means, are carried along, because infinities of
// one sign then stay infinite. Everything is added in a fixed order.
#pragma once
#include <algorithm>

#include "cuda_block.h"
#include "spade.h"

namespace fastface::spade::cuda {

using namespace fastface::cuda;

enum class Op { kModulatedNorm, kInstanceStats };

// Statistics of [B, C] channels, as the kernels leave them to one another.
struct Stats {
  float* mean;
  float* low;  // what the float of the mean leaves over; null where nothing is known of it
  float* rstd;
};

struct Plan {
  Params p;
  float eps;
  Stats stats;
  float* partials;           // [B, C, parts, 2]: sum and sum of squared deviations
  bool last;                 // packs run along the channels, else along a row
  bool whole;                // a block takes a channel from its statistics to its output
  int vector;                // values of a pack
  int height, width, scale;  // rows that follow one another are seen as one
  int packs;                 // of a channel; with the channels last, of a pixel
  int threads;               // of a block to a channel
  int parts;                 // pieces of a channel whose statistics are taken apart
  int part_size;             // packs of a part; with the channels last, pixels
  int lanes, rows;           // channels last: a block's threads are packs of a pixel times pixels
  int pixels_each;           // channels last: pixels that a thread writes
};

struct Index {
  int x, y, z;
};

struct Grid {
  int64_t x, y, z;
};

constexpr int kThreads = 256;
constexpr int kLanes = 32;  // channels last: packs of a pixel in a block, at most
constexpr int kRows = 32;   // channels last: pixels whose statistics a block adds up in the end, at most

inline int64_t planes(const Params& p) { return p.batch * p.channels; }

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

inline bool aligned(const void* address, int bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

inline bool rows_follow(const View<4>& view, const Params& p) {
  return view.data == nullptr || p.height == 1 || view.stride[2] == p.width * view.stride[3];
}

// Whether packs of `vector` values along an axis are adjacent and aligned.
inline bool packs_fit(const Plan& plan, const View<4>& view, int axis, int vector, int bytes) {
  if (view.data == nullptr) return true;
  const int64_t size[] = {plan.p.batch, plan.p.channels, plan.height, plan.width};
  bool ok = view.stride[axis] == 1 && aligned(view.data, vector * bytes);
  for (int other = 0; other < 4; ++other) {
    ok = ok && (other == axis || size[other] == 1 || view.stride[other] % vector == 0);
  }
  return ok;
}

// 16 bytes where everything that a pack is read from or written to allows it.
inline int pack_size(const Plan& plan) {
  const Params& p = plan.p;
  const int bytes = p.x.dtype == DType::kFloat32 ? 4 : 2, vector = 16 / bytes, axis = plan.last ? 1 : 3;
  bool fits = (plan.last ? p.channels : plan.width) % vector == 0;
  for (const View<4>* view : {&p.x, &p.residual, &p.out}) fits = fits && packs_fit(plan, *view, axis, vector, bytes);
  // Along a row, maps of fewer pixels are read one by one.
  for (const View<4>* view : {&p.gamma, &p.beta}) {
    fits = fits && ((!plan.last && p.scale > 1) || packs_fit(plan, *view, axis, vector, bytes));
  }
  if (plan.last) {
    const void* channels[] = {p.gamma_channel, p.beta_channel, p.mean, p.rstd};
    for (const void* values : channels) fits = fits && aligned(values, 16);
  }
  return fits ? vector : 1;
}

inline Plan make_plan(Op op, const Params& p, int processors) {
  Plan plan{};
  plan.p = p;
  plan.eps = static_cast<float>(p.eps);
  plan.stats = {p.mean, nullptr, p.rstd};
  plan.scale = static_cast<int>(p.scale);
  plan.height = static_cast<int>(p.height);
  plan.width = static_cast<int>(p.width);
  bool one_row = p.scale <= 1;
  for (const View<4>* view : {&p.x, &p.gamma, &p.beta, &p.residual, &p.out}) one_row = one_row && rows_follow(*view, p);
  if (one_row) {
    plan.width *= plan.height;
    plan.height = 1;
  }
  plan.last = p.x.stride[1] == 1 && p.channels > 1 && p.x.stride[3] != 1;
  plan.vector = pack_size(plan);

  const int64_t pixels = static_cast<int64_t>(plan.height) * plan.width;
  plan.packs = static_cast<int>((plan.last ? p.channels : pixels) / plan.vector);
  int64_t groups = planes(p);  // blocks side by side
  if (plan.last) {
    plan.lanes = std::min(plan.packs, kLanes);
    plan.rows = kThreads / plan.lanes;
    groups = p.batch * ceil_div(plan.packs, plan.lanes);
    const int64_t each = pixels * groups / (8LL * processors * plan.rows);
    plan.pixels_each = static_cast<int>(std::min<int64_t>(std::max<int64_t>(each, 1), 16));
  }
  if (op == Op::kModulatedNorm && p.mean != nullptr) return plan;
  // A block to a channel, unless that leaves most processors idle while few have much to do.
  plan.whole = op == Op::kModulatedNorm && !plan.last && (2 * planes(p) > processors || plan.packs <= 4096);
  if (plan.whole) {
    plan.threads = plan.packs <= 1024 ? 256 : plan.packs <= 4096 ? 512 : 1024;
    return plan;
  }
  const int64_t size = plan.last ? pixels : plan.packs;
  const int least = plan.last ? 8 * std::min(plan.rows, kRows) : 4 * kThreads;  // of a part
  const int wanted = std::min({ceil_div(8LL * processors, groups), ceil_div(size, least), 1024});
  plan.part_size = ceil_div(size, wanted);
  plan.parts = ceil_div(size, plan.part_size);
  return plan;
}

inline int64_t scratch_floats(const Plan& plan) {
  return plan.parts == 0 ? 0 : planes(plan.p) * (3 + 2 * static_cast<int64_t>(plan.parts));
}

inline void use_scratch(Op op, Plan& plan, float* scratch) {
  if (plan.parts == 0) return;
  const int64_t count = planes(plan.p);
  if (op == Op::kModulatedNorm) plan.stats = {scratch, scratch + count, scratch + 2 * count};
  plan.partials = scratch + 3 * count;
}

// Offsets inside a channel fit 32 bits (checked before the launch), those between channels and images need not.
template <class T>
FASTFACE_DEVICE T* place(const View<4>& view, int b, int c, int y, int x) {
  return static_cast<T*>(view.data) + (b * view.stride[0] + c * view.stride[1]) +
         (y * static_cast<int>(view.stride[2]) + x * static_cast<int>(view.stride[3]));
}

template <class T, int V>
FASTFACE_DEVICE Words<T, V> load(const T* from) {
  return *reinterpret_cast<const Words<T, V>*>(from);
}

// Something near the mean of a channel, to be subtracted: its first pixel, or 0 where that is not finite.
template <class T>
FASTFACE_DEVICE float first_pixel(const Plan& plan, int b, int c) {
  const float value = to_float(*place<const T>(plan.p.x, b, c, 0, 0));
  return fabsf(value) < INFINITY ? value : 0.0f;
}

struct Site {
  int b, c, y, x;
};

// Pack i of a channel of `plan.packs`, along its rows.
template <int V>
FASTFACE_DEVICE Site along_row(const Plan& plan, int b, int c, int i) {
  if (plan.height == 1) return {b, c, 0, i * V};
  const unsigned row = static_cast<unsigned>(plan.width / V), index = i;
  return {b, c, static_cast<int>(index / row), static_cast<int>(index % row) * V};
}

FASTFACE_DEVICE Site at_pixel(const Plan& plan, int b, int c, int i) {
  if (plan.height == 1) return {b, c, 0, i};
  const unsigned width = plan.width, index = i;
  return {b, c, static_cast<int>(index / width), static_cast<int>(index % width)};
}

template <class T, int V>
FASTFACE_DEVICE Words<T, V> load_at(const View<4>& view, const Site& site) {
  return load<T, V>(place<const T>(view, site.b, site.c, site.y, site.x));
}

// Where the maps of gamma and beta are read for a pack of x: `phase` pixels of x before it share its first entry.
struct MapSite {
  Site site;
  int phase;
};

FASTFACE_DEVICE MapSite in_maps(const Plan& plan, const Site& site) {
  if (plan.scale <= 1) return {site, 0};
  const int x = site.x / plan.scale;
  return {{site.b, site.c, site.y / plan.scale, x}, site.x - x * plan.scale};
}

template <class T, int V, bool kLast>
FASTFACE_DEVICE Words<T, V> load_map(const Plan& plan, const View<4>& view, const MapSite& at) {
  if (kLast || plan.scale == 1) return load_at<T, V>(view, at.site);
  const T* from = place<const T>(view, at.site.b, at.site.c, at.site.y, at.site.x);
  int phase = at.phase;
  T values[V];
  FASTFACE_UNROLL
  for (int j = 0; j < V; ++j) {
    values[j] = *from;
    if (++phase == plan.scale) from += view.stride[3], phase = 0;
  }
  return Words<T, V>::of(values);
}

// What a channel is normalised and modulated by: of N channels, those of a pack.
template <int N>
struct Coefficients {
  float mean[N], low[N], rstd[N], gamma[N], beta[N];  // low times rstd; one plus gamma
};

template <int N>
FASTFACE_DEVICE void load_floats(const float* from, float (&values)[N]) {
  if constexpr (N % 4 == 0) {
    FASTFACE_UNROLL
    for (int i = 0; i < N; i += 4) {
      const Words<float, 4> four = load<float, 4>(from + i);
      FASTFACE_UNROLL
      for (int j = 0; j < 4; ++j) values[i + j] = four.get(j);
    }
  } else {
    FASTFACE_UNROLL
    for (int i = 0; i < N; ++i) values[i] = from[i];
  }
}

// Modulation per channel; both are 0 before, as where there is none.
template <int N>
FASTFACE_DEVICE void load_modulation(const Plan& plan, int64_t plane, Coefficients<N>& to) {
  if (plan.p.gamma_channel != nullptr) load_floats(plan.p.gamma_channel + plane, to.gamma);
  if (plan.p.beta_channel != nullptr) load_floats(plan.p.beta_channel + plane, to.beta);
  FASTFACE_UNROLL
  for (int j = 0; j < N; ++j) to.gamma[j] += 1;
}

template <int N>
FASTFACE_DEVICE Coefficients<N> load_coefficients(const Plan& plan, int64_t plane) {
  Coefficients<N> to{};
  load_floats(plan.stats.mean + plane, to.mean);
  load_floats(plan.stats.rstd + plane, to.rstd);
  if (plan.stats.low != nullptr) {
    load_floats(plan.stats.low + plane, to.low);
    FASTFACE_UNROLL
    for (int j = 0; j < N; ++j) to.low[j] *= to.rstd[j];
  }
  load_modulation(plan, plane, to);
  return to;
}

// Lets NaN through.
FASTFACE_DEVICE float activate(float value, const Params& p) {
  if (p.activation == Activation::kRelu) return value < 0 ? 0.0f : value;
  if (p.activation == Activation::kLeakyRelu) return value > 0 ? value : value * p.slope;
  return value;
}

// Normalises, modulates and stores a pack of x.
template <class T, int V, bool kLast>
FASTFACE_DEVICE void finish(const Plan& plan, const Site& site, const Coefficients<kLast ? V : 1>& by,
                            const Words<T, V>& x) {
  const Params& p = plan.p;
  Words<T, V> gamma, beta, residual;
  T result[V];
  const MapSite maps = in_maps(plan, site);
  if (p.gamma.data != nullptr) gamma = load_map<T, V, kLast>(plan, p.gamma, maps);
  if (p.beta.data != nullptr) beta = load_map<T, V, kLast>(plan, p.beta, maps);
  if (p.residual.data != nullptr) residual = load_at<T, V>(p.residual, site);
  FASTFACE_UNROLL
  for (int j = 0; j < V; ++j) {
    const int c = kLast ? j : 0;
    float value = fmaf(x.get(j) - by.mean[c], by.rstd[c], -by.low[c]);
    value = fmaf(value, p.gamma.data != nullptr ? 1 + gamma.get(j) : by.gamma[c],
                 p.beta.data != nullptr ? beta.get(j) : by.beta[c]);
    value = activate(value, p);
    assign(result[j], p.residual.data != nullptr ? value + residual.get(j) : value);
  }
  *reinterpret_cast<Words<T, V>*>(place<T>(p.out, site.b, site.c, site.y, site.x)) = Words<T, V>::of(result);
}

// Running statistics of one channel, pack by pack, relative to `shift`.
template <class T, int V>
struct Running {
  float shift;
  float sum = 0, squares = 0;
  int packs = 0;
  float inverse = 0;  // 1 / packs

  FASTFACE_DEVICE void add(const Words<T, V>& pack) {
    float value[V], total = 0, inner = 0;
    FASTFACE_UNROLL
    for (int j = 0; j < V; ++j) {
      value[j] = pack.get(j) - shift;
      total += value[j];
    }
    const float mean = total / V;
    FASTFACE_UNROLL
    for (int j = 0; j < V; ++j) inner = fmaf(value[j] - mean, value[j] - mean, inner);
    const float before = static_cast<float>(packs);
    const float away = mean - sum * inverse / V;
    inverse = 1 / (before + 1);
    squares += fmaf(away * away, V * before * inverse, inner);
    sum += total;
    ++packs;
  }
};

// Squared deviations of `count` values with this sum from a mean of others, beside those from their own.
FASTFACE_DEVICE float between(float count, float sum, float mean) {
  const float away = sum / fmaxf(count, 1.0f) - mean;
  return count * away * away;
}

struct Moments {
  float mean, low, rstd;
};

// From sums over `count` values relative to `shift`. The two parts of the mean are the exact sum of both addends.
FASTFACE_DEVICE Moments moments(float shift, float count, float sum, float squares, float eps) {
  const float further = sum / count, whole = shift + further;
  const float low = fabsf(shift) > fabsf(further) ? (shift - whole) + further : (further - whole) + shift;
  return {whole, low, 1 / sqrtf(squares / count + eps)};
}

// A channel to a block: what fits stays in registers between statistics and output, the rest is read twice.
template <class T, int V>
struct Whole {
  static constexpr int kMostThreads = 1024;
  static constexpr int kBlocksPerProcessor = 1;
  static constexpr int kShared = kMostThreads / kWarp;   // floats
  static constexpr int kPacks = sizeof(T) == 4 ? 8 : 7;  // more would not fit the registers

  static int threads(const Plan& plan) { return plan.threads; }
  static Grid grid(const Plan& plan) { return {planes(plan.p), 1, 1}; }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const int channels = static_cast<int>(plan.p.channels), b = block.x / channels, c = block.x % channels;
    const int threads = plan.threads;
    Running<T, V> running{first_pixel<T>(plan, b, c)};
    Words<T, V> kept[kPacks];
    FASTFACE_UNROLL
    for (int k = 0; k < kPacks; ++k) {
      const int i = thread + k * threads;
      if (i < plan.packs) kept[k] = load_at<T, V>(plan.p.x, along_row<V>(plan, b, c, i));
    }
    FASTFACE_UNROLL
    for (int k = 0; k < kPacks; ++k) {
      if (thread + k * threads < plan.packs) running.add(kept[k]);
    }
    FASTFACE_UNROLL_BY(4)
    for (int i = thread + kPacks * threads; i < plan.packs; i += threads) {
      running.add(load_at<T, V>(plan.p.x, along_row<V>(plan, b, c, i)));
    }

    const float count = static_cast<float>(plan.packs) * V;
    const float sum = block_sum(running.sum, thread, threads, shared);
    const float own = running.squares + between(static_cast<float>(running.packs) * V, running.sum, sum / count);
    const float squares = block_sum(own, thread, threads, shared);
    const Moments found = moments(running.shift, count, sum, squares, plan.eps);
    Coefficients<1> by{};
    by.mean[0] = found.mean;
    by.low[0] = found.low * found.rstd;
    by.rstd[0] = found.rstd;
    load_modulation(plan, block.x, by);

    // Else the compiler keeps floats and addresses beside the packs, to save computing them again, and spills.
    forget(thread);
    FASTFACE_UNROLL
    for (int k = 0; k < kPacks; ++k) forget(kept[k]);
    FASTFACE_UNROLL
    for (int k = 0; k < kPacks; ++k) {
      const int i = thread + k * threads;
      if (i < plan.packs) finish<T, V, false>(plan, along_row<V>(plan, b, c, i), by, kept[k]);
    }
    FASTFACE_UNROLL_BY(2)
    for (int i = thread + kPacks * threads; i < plan.packs; i += threads) {
      const Site site = along_row<V>(plan, b, c, i);
      finish<T, V, false>(plan, site, by, load_at<T, V>(plan.p.x, site));
    }
  }
};

FASTFACE_DEVICE float* partial(const Plan& plan, int64_t plane, int part) {
  return plan.partials + (plane * plan.parts + part) * 2;
}

// How many values of a channel a part has.
FASTFACE_DEVICE float part_count(const Plan& plan, int part) {
  const int64_t size = plan.last ? static_cast<int64_t>(plan.height) * plan.width : plan.packs;
  const int64_t left = size - static_cast<int64_t>(part) * plan.part_size;
  return static_cast<float>((left < plan.part_size ? left : plan.part_size) * (plan.last ? 1 : plan.vector));
}

// Statistics of a part of a channel, to a block.
template <class T, int V>
struct PartFirst {
  static constexpr int kMostThreads = kThreads;
  static constexpr int kBlocksPerProcessor = 6;
  static constexpr int kShared = kThreads / kWarp;

  static int threads(const Plan&) { return kThreads; }
  static Grid grid(const Plan& plan) { return {plan.parts, plan.p.channels, plan.p.batch}; }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    Running<T, V> running{first_pixel<T>(plan, block.z, block.y)};
    const int first = block.x * plan.part_size;
    const int end = plan.packs - first < plan.part_size ? plan.packs : first + plan.part_size;
    FASTFACE_UNROLL_BY(4)
    for (int i = first + thread; i < end; i += kThreads) {
      running.add(load_at<T, V>(plan.p.x, along_row<V>(plan, block.z, block.y, i)));
    }
    const float sum = block_sum(running.sum, thread, kThreads, shared);
    const float mean = sum / part_count(plan, block.x);
    const float own = running.squares + between(static_cast<float>(running.packs) * V, running.sum, mean);
    const float squares = block_sum(own, thread, kThreads, shared);
    if (thread != 0) return;
    float* to = partial(plan, block.z * plan.p.channels + block.y, block.x);
    to[0] = sum;
    to[1] = squares;
  }
};

// The same with the channels last: threads side by side take channels, those behind one another pixels.
template <class T, int V>
struct PartLast {
  static constexpr int kMostThreads = kThreads;
  static constexpr int kBlocksPerProcessor = 4;
  static constexpr int kShared = 2 * kThreads * V;

  static int threads(const Plan&) { return kThreads; }
  static Grid grid(const Plan& plan) { return {plan.parts, ceil_div(plan.packs, plan.lanes), plan.p.batch}; }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const int lane = thread % plan.lanes, row = thread / plan.lanes;
    const int rows = plan.rows < kRows ? plan.rows : kRows;
    const int channels = static_cast<int>(plan.p.channels), c = (block.y * plan.lanes + lane) * V;
    const int first = block.x * plan.part_size, size = static_cast<int>(part_count(plan, block.x));
    if (row < rows && c < channels) {
      float shift[V], sum[V] = {}, squares[V] = {};
      FASTFACE_UNROLL
      for (int j = 0; j < V; ++j) shift[j] = first_pixel<T>(plan, block.z, c + j);
      float before = 0, inverse = 0;
      FASTFACE_UNROLL_BY(4)
      for (int i = row; i < size; i += rows) {
        const Words<T, V> pack = load_at<T, V>(plan.p.x, at_pixel(plan, block.z, c, first + i));
        const float next = 1 / (before + 1), weight = before * next;
        FASTFACE_UNROLL
        for (int j = 0; j < V; ++j) {
          const float value = pack.get(j) - shift[j], away = value - sum[j] * inverse;
          squares[j] = fmaf(away * away, weight, squares[j]);
          sum[j] += value;
        }
        before += 1;
        inverse = next;
      }
      FASTFACE_UNROLL
      for (int j = 0; j < V; ++j) {
        shared[(row * plan.lanes + lane) * V + j] = sum[j];
        shared[kThreads * V + (row * plan.lanes + lane) * V + j] = squares[j];
      }
    }
    synchronize();
    const int width = plan.lanes * V;
    for (int i = thread; i < width; i += kThreads) {
      const int channel = block.y * width + i;
      if (channel >= channels) return;
      float sum = 0, squares = 0;
      for (int r = 0; r < rows; ++r) sum += shared[r * width + i];
      const float mean = sum / static_cast<float>(size);
      for (int r = 0; r < rows; ++r) {
        const float count = static_cast<float>(r < size ? (size - r - 1) / rows + 1 : 0);
        squares += shared[kThreads * V + r * width + i] + between(count, shared[r * width + i], mean);
      }
      float* to = partial(plan, static_cast<int64_t>(block.z) * channels + channel, block.x);
      to[0] = sum;
      to[1] = squares;
    }
  }
};

// Merges the parts of a channel, a warp to each.
template <class T>
struct Merge {
  static constexpr int kMostThreads = kThreads;
  static constexpr int kBlocksPerProcessor = 4;
  static constexpr int kShared = 0;

  static int threads(const Plan&) { return kThreads; }
  static Grid grid(const Plan& plan) { return {ceil_div(planes(plan.p), kThreads / kWarp), 1, 1}; }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float*) {
    const int channels = static_cast<int>(plan.p.channels), plane = block.x * (kThreads / kWarp) + thread / kWarp;
    if (plane >= plan.p.batch * channels) return;
    float sum = 0, squares = 0;
    for (int part = thread % kWarp; part < plan.parts; part += kWarp) sum += partial(plan, plane, part)[0];
    sum = warp_sum(sum);
    const float count = static_cast<float>(plan.p.height * plan.p.width);
    for (int part = thread % kWarp; part < plan.parts; part += kWarp) {
      const float* from = partial(plan, plane, part);
      squares += from[1] + between(part_count(plan, part), from[0], sum / count);
    }
    squares = warp_sum(squares);
    if (thread % kWarp != 0) return;
    const float shift = first_pixel<T>(plan, plane / channels, plane % channels);
    const Moments found = moments(shift, count, sum, squares, plan.eps);
    plan.stats.mean[plane] = found.mean;
    plan.stats.rstd[plane] = found.rstd;
    if (plan.stats.low != nullptr) plan.stats.low[plane] = found.low;
  }
};

// The output of known statistics.
template <class T, int V>
struct NormFirst {
  static constexpr int kMostThreads = kThreads;
  static constexpr int kBlocksPerProcessor = 4;
  static constexpr int kShared = 0;
  static constexpr int kPacks = 4;

  static int threads(const Plan&) { return kThreads; }
  static Grid grid(const Plan& plan) {
    return {ceil_div(plan.packs, kThreads * kPacks), plan.p.channels, plan.p.batch};
  }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float*) {
    const Coefficients<1> by = load_coefficients<1>(plan, block.z * plan.p.channels + block.y);
    const int first = block.x * kThreads * kPacks + thread;
    FASTFACE_UNROLL_BY(2)
    for (int k = 0; k < kPacks; ++k) {
      const int i = first + k * kThreads;
      if (i >= plan.packs) return;
      const Site site = along_row<V>(plan, block.z, block.y, i);
      finish<T, V, false>(plan, site, by, load_at<T, V>(plan.p.x, site));
    }
  }
};

template <class T, int V>
struct NormLast {
  static constexpr int kMostThreads = kThreads;
  static constexpr int kBlocksPerProcessor = 2;
  static constexpr int kShared = 0;

  static int threads(const Plan&) { return kThreads; }
  static Grid grid(const Plan& plan) {
    const int64_t pixels = static_cast<int64_t>(plan.height) * plan.width;
    return {ceil_div(pixels, plan.rows * plan.pixels_each), ceil_div(plan.packs, plan.lanes), plan.p.batch};
  }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float*) {
    const int row = thread / plan.lanes;
    const int channels = static_cast<int>(plan.p.channels), c = (block.y * plan.lanes + thread % plan.lanes) * V;
    if (row >= plan.rows || c >= channels) return;
    const Coefficients<V> by = load_coefficients<V>(plan, static_cast<int64_t>(block.z) * channels + c);
    const int first = block.x * plan.rows * plan.pixels_each + row;
    for (int k = 0; k < plan.pixels_each; ++k) {
      const int i = first + k * plan.rows;
      if (i >= plan.height * plan.width) return;
      const Site site = at_pixel(plan, block.z, c, i);
      finish<T, V, true>(plan, site, by, load_at<T, V>(plan.p.x, site));
    }
  }
};

// Calls `launch(Kernel{})` for the kernels of an op, in order.
template <class T, int V, class Launch>
void visit_kernels(Op op, const Plan& plan, Launch&& launch) {
  if (plan.whole) return launch(Whole<T, V>{});
  if (plan.parts > 0) {
    plan.last ? launch(PartLast<T, V>{}) : launch(PartFirst<T, V>{});
    launch(Merge<T>{});
  }
  if (op == Op::kModulatedNorm) plan.last ? launch(NormLast<T, V>{}) : launch(NormFirst<T, V>{});
}

template <class T, class Launch>
void visit_vector(Op op, const Plan& plan, Launch&& launch) {
  if (plan.vector > 1) return visit_kernels<T, 16 / sizeof(T)>(op, plan, launch);
  visit_kernels<T, 1>(op, plan, launch);
}

template <class Launch>
void visit(Op op, const Plan& plan, Launch&& launch) {
  by_dtype<Half, BFloat16>(plan.p.x.dtype, [&](auto zero) { visit_vector<decltype(zero)>(op, plan, launch); });
}

}  // namespace fastface::spade::cuda

// The arithmetic of the `triplane` kernels for CUDA. Formulas, costs and the reasons for each cut: README.md.
//
// A warp takes a ray from its depths to its colours; 16 samples at a time go through the decoder on the tensor cores. A
// sample's channels are gathered into the registers in which the matrix instruction wants them, and what the first
// layer leaves there is what the second one reads: units are numbered so that nothing has to move between lanes.
//
// That is `Render`, for up to 32 channels and colours. `RenderLarge` takes all sizes, in blocks of as many.
//
// The instruction multiplies TF32 numbers. Each operand is split into two of them, and all products but that of the two
// small parts are added up in float32, which is float32's precision.
//
// A host compiler can run it too (csrc/cuda_block.h), so the tests check this file without a GPU; triplane_cuda.cu adds
// the launch.
#pragma once
#include <algorithm>

#include "cuda_block.h"
#include "triplane.h"

namespace fastface::triplane::cuda {

using namespace fastface::cuda;

constexpr int kRows = 16;      // samples of a tile
constexpr int kUnits = 8;      // hidden units or colours of a tile
constexpr int kChannels = 32;  // gathered at once
constexpr int kColours = 32;   // computed at once
constexpr int kSteps = kChannels / 8;
constexpr int kColourTiles = kColours / kUnits;
constexpr int kColourStride = kColours + 8;  // rows of a tile then fall on different banks
constexpr int kMostWarps = 16;
constexpr int kFewWarps = 4;  // a processor has as many schedulers
constexpr int kPack = 8;      // channels that a lane gathers
constexpr int kNumbers = 5;   // of a sample, beside its colours

// What shared memory has room for.
enum class Room {
  kColours,  // the decoder, and the colours of a ray's samples until their weights are known
  kDecoder,  // the decoder, and the hidden layer of a tile of samples
  kHidden,   // that alone: the decoder is read from memory
};

struct Plan {
  Params p;
  int samples;       // coarse and fine
  int held;          // samples that there is room for: the last tile of a pass may reach beyond
  int hidden_tiles;  // of kUnits
  int steps;         // of 8 channels, whole blocks of kChannels
  int colour_tiles;  // of kUnits, whole blocks of kColours
  int stored_tiles;  // hidden tiles whose weights are in shared memory, all or none
  int ray_floats;    // of shared memory, a ray's
  int warps;         // of a block, a ray to each
  int blocks;
  int64_t rays;  // of all images
  Room room;
  bool whole;  // packs of channels are aligned, and nothing is left over
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a colour waits in for its weight: its error is one rounding of the output, before an average over the ray.
template <class T>
struct Waiting {
  using type = Half;
};
template <>
struct Waiting<float> {
  using type = float;
};

// Floats of a block's shared memory: the decoder, and what each warp knows of its ray.
inline int64_t decoder_floats(const Plan& plan) {
  const int64_t fragment = 4 * kWarp;  // of 8 x 8 weights, both parts
  return plan.stored_tiles * fragment * (plan.steps + plan.colour_tiles) +
         (int64_t{2} * plan.hidden_tiles + plan.colour_tiles) * kUnits;
}

inline int64_t ray_floats(const Plan& plan) {
  const int64_t numbers = int64_t{kNumbers} * plan.held;
  if (plan.room != Room::kColours) return numbers + int64_t{4} * kWarp * plan.hidden_tiles + kUnits * plan.colour_tiles;
  return numbers + plan.held * (plan.p.planes.dtype == DType::kFloat32 ? kColourStride : kColourStride / 2);
}

inline int64_t shared_floats(const Plan& plan) { return decoder_floats(plan) + plan.warps * plan.ray_floats; }

inline bool packs_fit(const Params& p) {
  const int64_t bytes = p.planes.dtype == DType::kFloat32 ? 4 : 2;
  bool fits = p.channels % kPack == 0 && reinterpret_cast<uintptr_t>(p.planes.data) % 16 == 0;
  const int64_t size[] = {p.batch, 3, 1, p.depth, p.height, p.width};
  for (int i : {0, 1, 3, 4, 5}) fits = fits && (size[i] == 1 || p.planes.stride[i] * bytes % 16 == 0);
  return fits;
}

// For rays, as many warps as fit `bytes` of shared memory and have a ray each on all processors; none where not one
// fits. Of the ways to use shared memory the first is the fastest that has room for a few.
inline Plan make_plan(const Params& p, int64_t bytes, int processors) {
  Plan plan{};
  plan.p = p;
  plan.samples = static_cast<int>(p.coarse + p.fine);
  plan.held = static_cast<int>(ceil_div(plan.samples, kRows) * kRows + kRows);
  plan.hidden_tiles = static_cast<int>(ceil_div(p.hidden, kUnits));
  plan.steps = static_cast<int>(ceil_div(p.channels, kChannels)) * kSteps;
  plan.colour_tiles = static_cast<int>(ceil_div(p.outputs - 1, kColours)) * kColourTiles;
  plan.rays = p.batch * p.count;
  plan.whole = packs_fit(p);
  const bool wide = plan.steps > kSteps || plan.colour_tiles > kColourTiles;
  for (Room room : {Room::kColours, Room::kDecoder, Room::kHidden}) {
    if (wide && room == Room::kColours) continue;
    plan.room = room;
    plan.stored_tiles = room == Room::kHidden ? 0 : plan.hidden_tiles;
    const int64_t most = std::max<int64_t>(0, bytes / 4 - decoder_floats(plan)) / ray_floats(plan);
    plan.warps = static_cast<int>(std::min<int64_t>({kMostWarps, most, ceil_div(plan.rays, processors)}));
    if (most >= kFewWarps) break;
  }
  if (plan.warps == 0) return plan;
  plan.ray_floats = static_cast<int>(ray_floats(plan));
  const int64_t resident = processors * (bytes / 4 / shared_floats(plan));
  plan.blocks = static_cast<int>(std::min(ceil_div(plan.rays, plan.warps), resident));
  return plan;
}

// ---- Functions of numbers ----

#ifdef __CUDACC__
FASTFACE_DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
FASTFACE_DEVICE float log2_fast(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
FASTFACE_DEVICE float divide_fast(float a, float b) { return __fdividef(a, b); }
#else
float exp2_fast(float x);  // the tests are as wrong here as a GPU may be
float log2_fast(float x);
float divide_fast(float a, float b);
#endif

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// ln(1 + e^x). NaN stays NaN.
FASTFACE_DEVICE float softplus(float x) {
  return (x > 0 ? x : 0.0f) + kLn2 * log2_fast(1 + exp2_fast(-fabsf(x) * kLog2e));
}

// 1 / (1 + e^-x). NaN stays NaN.
FASTFACE_DEVICE float sigmoid(float x) {
  const float e = exp2_fast(-fabsf(x) * kLog2e);
  return divide_fast(x < 0 ? e : 1.0f, 1 + e);
}

// 1 - e^-x. The exponential's last place would be most of a small difference, so that is a series; below 2^-25 it is 0,
// as where 1 is rounded.
FASTFACE_DEVICE float absorbed(float x) {
  if (!(fabsf(x) < 0.25f)) return 1 - expf(-x);
  float series = 1 - x * (1.0f / 7);
  FASTFACE_UNROLL
  for (int n = 6; n > 1; --n) series = 1 - x * series * (1.0f / static_cast<float>(n));
  return fabsf(x) < 0x1p-25f ? 0.0f : x * series;
}

// ---- Products ----

// A float as the sum of two numbers of 11 significant bits, and a little.
struct Split {
  uint32_t high, low;
};

FASTFACE_DEVICE uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTFACE_DEVICE float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Cuts where the instruction would round: an infinity stays one, and its rest is 0.
FASTFACE_DEVICE Split split(float value) {
  const uint32_t high = as_bits(value) & 0xffffe000u;
  const float rest = fabsf(value) < INFINITY ? value - as_float(high) : 0.0f;
  return {value != value ? as_bits(value) : high, as_bits(rest)};
}

// 8 x 8 weights as a lane holds them: rows (inputs) t and t + 4, column (unit) g of its number 4 g + t.
struct alignas(16) Weights {
  uint32_t high[2], low[2];
};

#ifdef __CUDACC__
// c += a b for a of 16 x 8: rows g and g + 8, columns t and t + 4; c: rows g and g + 8, columns 2 t and 2 t + 1.
FASTFACE_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FASTFACE_DEVICE void warp_synchronize() { __syncwarp(); }
#else
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
inline void warp_synchronize() { (void)exchange(0.0f, 1); }
#endif

// c += a b with float32's precision; the small products first.
FASTFACE_DEVICE void multiply(float (&c)[4], const float (&a)[4], const Weights& b) {
  uint32_t high[4], low[4];
  FASTFACE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Split parts = split(a[i]);
    high[i] = parts.high;
    low[i] = parts.low;
  }
  multiply(c, low, b.high);
  multiply(c, high, b.low);
  multiply(c, high, b.high);
}

// ---- Shared memory ----

// The decoder, its weights split and in the order in which lanes read it.
struct Decoder {
  Weights* first;   // [stored tiles, steps, lane]
  Weights* second;  // [stored tiles, colour tiles, lane]
  float* bias;      // [hidden tiles, kUnits]
  float* density;   // [hidden tiles, kUnits]
  float* colour;    // [colour tiles, kUnits], biases
};

// What a warp knows of its ray; samples lie in the order coarse, fine.
struct Ray {
  float* depths;
  float* density;
  float* weights;  // of the intervals, nearest first
  float* shares;   // of the samples; before that, the cumulated weights of the coarse pass
  int* order;      // numbers of the samples, nearest first
  float* rest;     // whatever else a kernel keeps
};

FASTFACE_DEVICE Decoder decoder_in(const Plan& plan, float* shared) {
  Decoder decoder;
  decoder.first = reinterpret_cast<Weights*>(shared);
  decoder.second = decoder.first + plan.stored_tiles * plan.steps * kWarp;
  decoder.bias = reinterpret_cast<float*>(decoder.second + plan.stored_tiles * plan.colour_tiles * kWarp);
  decoder.density = decoder.bias + plan.hidden_tiles * kUnits;
  decoder.colour = decoder.density + plan.hidden_tiles * kUnits;
  return decoder;
}

FASTFACE_DEVICE Ray ray_in(const Plan& plan, const Decoder& decoder, int warp) {
  float* const at = decoder.colour + plan.colour_tiles * kUnits + warp * plan.ray_floats;
  Ray ray;
  ray.depths = at;
  ray.density = at + plan.held;
  ray.weights = at + 2 * plan.held;
  ray.shares = at + 3 * plan.held;
  ray.order = reinterpret_cast<int*>(at + 4 * plan.held);
  ray.rest = at + kNumbers * plan.held;
  return ray;
}

// Columns `at` and `at + 1` of a row of [rows, columns], zeros where there is none.
FASTFACE_DEVICE Weights fragment(const float* matrix, int rows, int columns, int row, int at) {
  const float* from = matrix + static_cast<int64_t>(row) * columns + at;
  const Split a = split(row < rows && at < columns ? from[0] : 0.0f);
  const Split b = split(row < rows && at + 1 < columns ? from[1] : 0.0f);
  return {{a.high, b.high}, {a.low, b.low}};
}

// Input numbers of a fragment's rows are those that its lane holds: channels 8 t + 2 s and 8 t + 2 s + 1 of a block at
// its step s of the first layer, units 2 t and 2 t + 1 of a tile in the second.
FASTFACE_DEVICE Weights first_fragment(const Params& p, int tile, int step, int lane) {
  const int channel = step / kSteps * kChannels + 8 * (lane % 4) + 2 * (step % kSteps);
  return fragment(p.w1, static_cast<int>(p.hidden), static_cast<int>(p.channels), tile * kUnits + lane / 4, channel);
}

FASTFACE_DEVICE Weights second_fragment(const Params& p, int tile, int colour_tile, int lane) {
  const int row = 1 + colour_tile * kUnits + lane / 4;  // behind the density
  return fragment(p.w2, static_cast<int>(p.outputs), static_cast<int>(p.hidden), row, tile * kUnits + 2 * (lane % 4));
}

FASTFACE_DEVICE void load_decoder(const Plan& plan, const Decoder& decoder, int thread, int threads) {
  const Params& p = plan.p;
  const int hidden = static_cast<int>(p.hidden), colours = static_cast<int>(p.outputs) - 1;
  for (int i = thread; i < plan.stored_tiles * plan.steps * kWarp; i += threads) {
    decoder.first[i] = first_fragment(p, i / kWarp / plan.steps, i / kWarp % plan.steps, i % kWarp);
  }
  for (int i = thread; i < plan.stored_tiles * plan.colour_tiles * kWarp; i += threads) {
    const int tile = i / kWarp / plan.colour_tiles, colour_tile = i / kWarp % plan.colour_tiles;
    decoder.second[i] = second_fragment(p, tile, colour_tile, i % kWarp);
  }
  for (int i = thread; i < plan.hidden_tiles * kUnits; i += threads) {
    decoder.bias[i] = i < hidden ? p.b1[i] : 0.0f;
    decoder.density[i] = i < hidden ? p.w2[i] : 0.0f;
  }
  for (int i = thread; i < plan.colour_tiles * kUnits; i += threads) {
    decoder.colour[i] = i < colours ? p.b2[i + 1] : 0.0f;
  }
}

// ---- Reading planes ----

struct Point {
  float at[3];  // scaled to [-1, 1]
};

// The axis is the same for all lanes.
FASTFACE_DEVICE float coordinate(const Point& point, int axis) {
  return axis == 0 ? point.at[0] : axis == 1 ? point.at[1] : point.at[2];
}

// What is known of planes; constants in the kernels that are compiled for them.
struct Layout {
  bool whole;  // as in Plan
  bool flat;   // without a depth
};

// Adds `weight` times the channels at `from`, of which `count` exist, to `sum`.
template <class T>
FASTFACE_DEVICE void add_channels(const T* from, int count, float weight, bool whole, float (&sum)[kPack]) {
  if (whole) {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    FASTFACE_UNROLL
    for (int i = 0; i < kPack; i += kWidth) {
      const Words<T, kWidth> words = *reinterpret_cast<const Words<T, kWidth>*>(from + i);
      FASTFACE_UNROLL
      for (int j = 0; j < kWidth; ++j) sum[i + j] = fmaf(weight, words.get(j), sum[i + j]);
    }
  } else {
    FASTFACE_UNROLL
    for (int i = 0; i < kPack; ++i) {
      if (i < count) sum[i] = fmaf(weight, to_float(from[i]), sum[i]);
    }
  }
}

// Where a coordinate of a point lies between the pixels' centres of an axis.
FASTFACE_DEVICE float pixel(const Point& point, int axis, int size) {
  return ((coordinate(point, axis) + 1) * static_cast<float>(size) - 1) * 0.5f;
}

// Adds kPack channels from `channel` of plane k, bilinear or, of a trigrid, trilinear; zeros outside.
template <class T>
FASTFACE_DEVICE void add_plane(const Params& p, const T* image, int k, const Point& point, int channel, Layout layout,
                               float (&sum)[kPack]) {
  const int width = static_cast<int>(p.width), height = static_cast<int>(p.height);
  const int depth = layout.flat ? 1 : static_cast<int>(p.depth);
  const int count = static_cast<int>(p.channels) - channel;
  if (count <= 0) return;
  const float x = pixel(point, p.axes[3 * k], width), y = pixel(point, p.axes[3 * k + 1], height);
  const float z = !layout.flat && p.trigrid ? pixel(point, p.axes[3 * k + 2], depth) : 0.0f;
  // Elsewhere all corners are outside; NaN is, too.
  if (!(x > -1 && x < static_cast<float>(width) && y > -1 && y < static_cast<float>(height))) return;
  if (!(z > -1 && z < static_cast<float>(depth))) return;
  const float left = floorf(x), top = floorf(y), front = floorf(z);
  const float right = x - left, below = y - top, behind = z - front;
  const int column = static_cast<int>(left), row = static_cast<int>(top);
  const int x_stride = static_cast<int>(p.planes.stride[5]), y_stride = static_cast<int>(p.planes.stride[4]);
  const int z_stride = static_cast<int>(p.planes.stride[3]);
  const T* plane = image + k * p.planes.stride[1] + channel;
  FASTFACE_UNROLL_BY(1)
  for (int level = 0; level < (layout.flat ? 1 : 2); ++level) {
    const int n = static_cast<int>(front) + level;
    const float share = level == 0 ? 1 - behind : behind;
    if (n < 0 || n >= depth) continue;
    FASTFACE_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
      const int i = column + (corner & 1), j = row + (corner >> 1);
      const float weight = (corner & 1 ? right : 1 - right) * (corner >> 1 ? below : 1 - below) * share;
      if (i < 0 || i >= width || j < 0 || j >= height) continue;
      add_channels(plane + (n * z_stride + j * y_stride + i * x_stride), count, weight, layout.whole, sum);
    }
  }
}

// NaN where the point is not finite, else 0.
FASTFACE_DEVICE float spoilt(const Point& point) {
  return (point.at[0] - point.at[0]) + (point.at[1] - point.at[1]) + (point.at[2] - point.at[2]);
}

template <class T>
FASTFACE_DEVICE void gather(const Params& p, const T* image, const Point& point, int channel, Layout layout,
                            float (&sum)[kPack]) {
  const float start = spoilt(point);
  FASTFACE_UNROLL
  for (int i = 0; i < kPack; ++i) sum[i] = start;
  FASTFACE_UNROLL_BY(1)
  for (int k = 0; k < 3; ++k) add_plane(p, image, k, point, channel, layout, sum);
  const float factor = p.reduce == Reduce::kMean ? 1.0f / 3.0f : 1.0f;
  FASTFACE_UNROLL
  for (int i = 0; i < kPack; ++i) sum[i] *= factor;
}

// ---- A ray ----

struct Line {
  float origin[3], direction[3];
  float scale;  // of points

  FASTFACE_DEVICE Line(const Params& p, int64_t index) {
    FASTFACE_UNROLL
    for (int i = 0; i < 3; ++i) {
      origin[i] = p.points[3 * index + i];
      direction[i] = p.directions[3 * index + i];
    }
    scale = 2 / p.box;
  }

  FASTFACE_DEVICE Point at(float depth) const {
    Point point;
    FASTFACE_UNROLL
    for (int i = 0; i < 3; ++i) point.at[i] = (origin[i] + depth * direction[i]) * scale;
    return point;
  }
};

// The planes that ray `index` crosses.
template <class T>
FASTFACE_DEVICE const T* image_of(const Params& p, int64_t index) {
  return static_cast<const T*>(p.planes.data) + index / p.count * p.planes.stride[0];
}

// One depth in each stratum.
FASTFACE_DEVICE void stratify(const Params& p, int64_t index, int lane, const Ray& ray) {
  const float near = p.near[index], far = p.far[index];
  const int coarse = static_cast<int>(p.coarse);
  const float last = static_cast<float>(coarse - 1);
  for (int k = lane; k < coarse; k += kWarp) {
    const float offset = p.jitter == nullptr ? 0.5f : p.jitter[index * coarse + k];
    const float share = static_cast<float>(k) / last + offset / last;
    ray.depths[k] = p.disparity ? 1 / ((1 - share) / near + share / far) : near + share * (far - near);
  }
}

// Values of the lanes before this one taken together, from `none` on; `total` becomes that of all lanes.
template <class Join>
FASTFACE_DEVICE float scan(float value, float none, int lane, float& total, const Join& join) {
  float before = none;
  total = value;
  FASTFACE_UNROLL
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const float other = exchange(total, mask);
    if ((lane & mask) != 0) before = join(other, before);
    total = (lane & mask) != 0 ? join(other, total) : join(total, other);
  }
  return before;
}

// Weights of the intervals between `count` samples in their order; their sum, and that of their depths.
struct Composite {
  float opacity, depth;
};

FASTFACE_DEVICE Composite composite(int count, int lane, const Ray& ray) {
  float through = 1, sum = 0, depth = 0;
  for (int start = 0; start < count - 1; start += kWarp) {
    const int i = start + lane;
    const bool exists = i < count - 1;
    float alpha = 0, middle = 0;
    if (exists) {
      const int a = ray.order[i], b = ray.order[i + 1];
      // Few of these, and their errors add up: the exact functions.
      const float raw = (ray.density[a] + ray.density[b]) / 2 - 1;
      const float density = (raw > 0 ? raw : 0.0f) + log1pf(expf(-fabsf(raw)));
      alpha = absorbed(density * (ray.depths[b] - ray.depths[a]));
      middle = (ray.depths[a] + ray.depths[b]) / 2;
    }
    float all;
    const float before =
        scan(exists ? 1 - alpha + 1e-10f : 1.0f, 1.0f, lane, all, [](float a, float b) { return a * b; });
    const float weight = alpha * (before * through);
    if (exists) ray.weights[i] = weight;
    sum += weight;
    depth = fmaf(weight, middle, depth);
    through *= all;
  }
  return {warp_sum(sum), warp_sum(depth)};
}

// The fine depths behind the coarse ones: the inverse of the smoothed distribution of the coarse weights.
FASTFACE_DEVICE void resample(const Params& p, int64_t index, int lane, const Ray& ray) {
  const int coarse = static_cast<int>(p.coarse), fine = static_cast<int>(p.fine), count = coarse - 3;
  const float* w = ray.weights;
  float* cumulated = ray.shares;  // of the intervals but the first and the last
  float sum = 0;
  for (int j = lane; j < count; j += kWarp) {
    const float share = (fmaxf(w[j], w[j + 1]) + fmaxf(w[j + 1], w[j + 2])) / 2 + 0.01f + 1e-5f;
    cumulated[j] = share;
    sum += share;
  }
  sum = warp_sum(sum);
  float before = 0;
  for (int start = 0; start <= count; start += kWarp) {
    const int j = start + lane;
    float all;
    const float below =
        scan(j < count ? cumulated[j] / sum : 0.0f, 0.0f, lane, all, [](float a, float b) { return a + b; });
    if (j <= count) cumulated[j] = before + below;
    before += all;
  }
  warp_synchronize();
  for (int i = lane; i < fine; i += kWarp) {
    const float u = p.u == nullptr ? (static_cast<float>(i) + 0.5f) / static_cast<float>(fine) : p.u[index * fine + i];
    int low = 0, high = count + 1;  // the first entry above u
    while (low < high) {
      const int at = (low + high) / 2;
      if (cumulated[at] > u) {
        high = at;
      } else {
        low = at + 1;
      }
    }
    const int a = low > 0 ? low - 1 : 0, b = low < count ? low : count;
    const float width = cumulated[b] - cumulated[a];
    const float from = (ray.depths[a] + ray.depths[a + 1]) / 2, to = (ray.depths[b] + ray.depths[b + 1]) / 2;
    ray.depths[coarse + i] = from + (u - cumulated[a]) / (width < 1e-5f ? 1.0f : width) * (to - from);
  }
}

// Nearest first, of equal depths the one of the lower number; what is no number is the furthest.
FASTFACE_DEVICE void sort(int count, int lane, const Ray& ray) {
  for (int i = lane; i < count; i += kWarp) {
    const float depth = is_nan(ray.depths[i]) ? INFINITY : ray.depths[i];
    int rank = 0;
    for (int j = 0; j < count; ++j) {
      const float other = is_nan(ray.depths[j]) ? INFINITY : ray.depths[j];
      rank += other < depth || (other == depth && j < i);
    }
    ray.order[rank] = i;
  }
}

// The weights of all samples to ray.shares, and their sums.
FASTFACE_DEVICE Composite weigh(const Plan& plan, int lane, const Ray& ray) {
  const int count = plan.samples;
  const Composite seen = composite(count, lane, ray);
  warp_synchronize();
  for (int i = lane; i < count; i += kWarp) {
    // A colour belongs to the intervals on either side of its sample, so colours need no order.
    const float before = i > 0 ? ray.weights[i - 1] : 0.0f, after = i + 1 < count ? ray.weights[i] : 0.0f;
    ray.shares[ray.order[i]] = (before + after) / 2;
  }
  warp_synchronize();
  return seen;
}

// `colour` is the weighted sum of the samples' sigmoids.
template <class T>
FASTFACE_DEVICE void put_colour(const Params& p, int64_t index, int number, float colour, float opacity) {
  colour = 1.002f * colour - 0.001f * opacity + (p.white_back ? 1 - opacity : 0.0f);
  assign(static_cast<T*>(p.features)[index * (p.outputs - 1) + number], 2 * colour - 1);
}

// ---- The decoder ----

FASTFACE_DEVICE void start_colours(const Decoder& decoder, int block, int t, float (&colours)[kColourTiles][4]) {
  FASTFACE_UNROLL
  for (int n = 0; n < kColourTiles; ++n) {
    const float* bias = decoder.colour + block * kColours + n * kUnits + 2 * t;
    colours[n][0] = colours[n][2] = bias[0];
    colours[n][1] = colours[n][3] = bias[1];
  }
}

// A lane's part of neighbouring fragments, from `from` on.
template <int N>
FASTFACE_DEVICE void load(const Weights* from, Weights (&w)[N]) {
  FASTFACE_UNROLL
  for (int i = 0; i < N; ++i) w[i] = from[i * kWarp];
}

// hidden += x w for a tile of units; of `w`, the steps.
FASTFACE_DEVICE void add_features(const float (&x)[2][kPack], const Weights (&w)[kSteps], float (&hidden)[4]) {
  FASTFACE_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const float a[4] = {x[0][2 * step], x[1][2 * step], x[0][2 * step + 1], x[1][2 * step + 1]};
    multiply(hidden, a, w[step]);
  }
}

// The function of a tile of hidden units, from `unit` on, and their part of the densities.
FASTFACE_DEVICE void activate(const Decoder& decoder, int unit, float (&hidden)[4], float (&density)[2]) {
  FASTFACE_UNROLL
  for (int i = 0; i < 4; ++i) hidden[i] = softplus(hidden[i]);
  FASTFACE_UNROLL
  for (int i = 0; i < 4; ++i) density[i / 2] = fmaf(hidden[i], decoder.density[unit + i % 2], density[i / 2]);
}

// colours += hidden w for a tile of units; of `w`, the tiles of colours.
FASTFACE_DEVICE void add_hidden(const float (&hidden)[4], const Weights (&w)[kColourTiles],
                                float (&colours)[kColourTiles][4]) {
  const float a[4] = {hidden[0], hidden[2], hidden[1], hidden[3]};
  FASTFACE_UNROLL
  for (int n = 0; n < kColourTiles; ++n) multiply(colours[n], a, w[n]);
}

FASTFACE_DEVICE void put_density(const Params& p, float (&density)[2], int first, int lane, const Ray& ray) {
  FASTFACE_UNROLL
  for (int i = 0; i < 2; ++i) {
    density[i] += exchange(density[i], 1);
    density[i] += exchange(density[i], 2);
    if (lane % 4 == 0) ray.density[first + lane / 4 + 8 * i] = density[i] + p.b2[0];
  }
}

// ---- The kernels ----

struct Index {
  int x, y, z;
};

struct Grid {
  int64_t x, y, z;
};

// Of rays, for a Kernel that looks at kRows samples of one and puts its colours.
template <class Kernel>
struct Rays {
  static constexpr int kMostThreads = kMostWarps * kWarp;

  static Grid grid(const Plan& plan) { return {plan.blocks, 1, 1}; }
  static int threads(const Plan& plan) { return plan.warps * kWarp; }
  static int64_t shared(const Plan& plan) { return shared_floats(plan); }

  FASTFACE_DEVICE static void look_at_all(const Plan& plan, const Decoder& decoder, int64_t index, int first, int last,
                                          int lane, const Ray& ray) {
    const Line line(plan.p, index);
    const auto* image = image_of<typename Kernel::Element>(plan.p, index);
    FASTFACE_UNROLL_BY(1)
    for (; first < last; first += kRows) Kernel::look(plan, decoder, image, line, first, lane, ray);
    warp_synchronize();
  }

  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const Params& p = plan.p;
    const int warp = thread / kWarp, lane = thread % kWarp, coarse = static_cast<int>(p.coarse);
    const Decoder decoder = decoder_in(plan, shared);
    load_decoder(plan, decoder, thread, plan.warps * kWarp);
    synchronize();
    const Ray ray = ray_in(plan, decoder, warp);
    const int64_t step = static_cast<int64_t>(plan.blocks) * plan.warps;
    for (int64_t index = static_cast<int64_t>(block.x) * plan.warps + warp; index < plan.rays; index += step) {
      stratify(p, index, lane, ray);
      for (int i = lane; i < coarse; i += kWarp) ray.order[i] = i;
      warp_synchronize();
      // One copy of the code for both passes.
      FASTFACE_UNROLL_BY(1)
      for (int first = 0, last = coarse; first < plan.samples; first = last, last = plan.samples) {
        if (first > 0) {
          composite(coarse, lane, ray);
          warp_synchronize();
          resample(p, index, lane, ray);
          warp_synchronize();
        }
        look_at_all(plan, decoder, index, first, last, lane, ray);
      }
      if (p.fine > 0) {
        sort(plan.samples, lane, ray);
        warp_synchronize();
      }
      const Composite seen = weigh(plan, lane, ray);
      Kernel::put_colours(plan, decoder, index, seen.opacity, lane, ray);
      if (lane == 0) {
        p.opacity[index] = seen.opacity;
        p.depth_out[index] = seen.opacity == 0 ? ray.depths[ray.order[plan.samples - 1]] : seen.depth / seen.opacity;
      }
      warp_synchronize();
    }
  }
};

// Up to kChannels and kColours: a sample is looked at once, and its colours wait for their weights.
template <class T, bool kWhole, bool kFlat>
struct Render : Rays<Render<T, kWhole, kFlat>> {
  using Element = T;
  using Colour = typename Waiting<T>::type;  // [held, kColourStride]

  FASTFACE_DEVICE static void look(const Plan& plan, const Decoder& decoder, const T* image, const Line& line,
                                   int first, int lane, const Ray& ray) {
    const int g = lane / 4, t = lane % 4;
    float x[2][kPack];  // channels 8 t .. 8 t + 7 of samples g and g + 8
    gather(plan.p, image, line.at(ray.depths[first + g]), kPack * t, {kWhole, kFlat}, x[0]);
    gather(plan.p, image, line.at(ray.depths[first + g + 8]), kPack * t, {kWhole, kFlat}, x[1]);
    float colours[kColourTiles][4], density[2] = {};
    start_colours(decoder, 0, t, colours);
    FASTFACE_UNROLL_BY(1)
    for (int tile = 0; tile < plan.hidden_tiles; ++tile) {
      const int unit = tile * kUnits + 2 * t;
      float hidden[4] = {decoder.bias[unit], decoder.bias[unit + 1], decoder.bias[unit], decoder.bias[unit + 1]};
      Weights first_layer[kSteps], second_layer[kColourTiles];
      load(decoder.first + tile * kSteps * kWarp + lane, first_layer);
      add_features(x, first_layer, hidden);
      activate(decoder, unit, hidden, density);
      load(decoder.second + tile * kColourTiles * kWarp + lane, second_layer);
      add_hidden(hidden, second_layer, colours);
    }
    put_density(plan.p, density, first, lane, ray);
    FASTFACE_UNROLL
    for (int i = 0; i < 2; ++i) {
      FASTFACE_UNROLL
      for (int n = 0; n < kColourTiles; ++n) {
        Colour* to = reinterpret_cast<Colour*>(ray.rest) + (first + g + 8 * i) * kColourStride + n * kUnits + 2 * t;
        assign(to[0], sigmoid(colours[n][2 * i]));
        assign(to[1], sigmoid(colours[n][2 * i + 1]));
      }
    }
  }

  FASTFACE_DEVICE static void put_colours(const Plan& plan, const Decoder&, int64_t index, float opacity, int lane,
                                          const Ray& ray) {
    const Colour* const colours = reinterpret_cast<const Colour*>(ray.rest);
    float colour = 0;
    FASTFACE_UNROLL_BY(4)
    for (int i = 0; i < plan.samples; ++i) {
      colour = fmaf(ray.shares[i], to_float(colours[i * kColourStride + lane]), colour);
    }
    if (lane < plan.p.outputs - 1) put_colour<T>(plan.p, index, lane, colour, opacity);
  }
};

// Of any size: channels and colours in blocks, between them the hidden layer of a tile of samples, which each lane
// keeps for itself. Colours are computed when their weights are known, after a second look at all samples.
template <class T>
struct RenderLarge : Rays<RenderLarge<T>> {
  using Element = T;
  struct alignas(16) Hidden {
    float of[4];
  };

  FASTFACE_DEVICE static Hidden* hidden_in(const Ray& ray) { return reinterpret_cast<Hidden*>(ray.rest); }

  FASTFACE_DEVICE static void look(const Plan& plan, const Decoder& decoder, const T* image, const Line& line,
                                   int first, int lane, const Ray& ray) {
    const int g = lane / 4, t = lane % 4;
    Hidden* const all = hidden_in(ray) + lane;
    float density[2] = {};
    FASTFACE_UNROLL_BY(1)
    for (int block = 0; block < plan.steps; block += kSteps) {
      const int channel = 8 * block + kPack * t;
      float x[2][kPack];
      gather(plan.p, image, line.at(ray.depths[first + g]), channel, {plan.whole, false}, x[0]);
      gather(plan.p, image, line.at(ray.depths[first + g + 8]), channel, {plan.whole, false}, x[1]);
      FASTFACE_UNROLL_BY(1)
      for (int tile = 0; tile < plan.hidden_tiles; ++tile) {
        const int unit = tile * kUnits + 2 * t;
        const float one = decoder.bias[unit], other = decoder.bias[unit + 1];
        Hidden hidden = block == 0 ? Hidden{{one, other, one, other}} : all[tile * kWarp];
        Weights weights[kSteps];
        first_weights(plan, decoder, tile, block, lane, weights);
        add_features(x, weights, hidden.of);
        if (block + kSteps == plan.steps) activate(decoder, unit, hidden.of, density);
        all[tile * kWarp] = hidden;
      }
    }
    put_density(plan.p, density, first, lane, ray);
  }

  FASTFACE_DEVICE static void put_colours(const Plan& plan, const Decoder& decoder, int64_t index, float opacity,
                                          int lane, const Ray& ray) {
    const T* image = image_of<T>(plan.p, index);
    const Line line(plan.p, index);
    float* const sums = ray.rest + 4 * kWarp * plan.hidden_tiles;  // of the colours, behind the hidden layer
    for (int i = lane; i < plan.colour_tiles * kUnits; i += kWarp) sums[i] = 0;
    warp_synchronize();
    FASTFACE_UNROLL_BY(1)
    for (int first = 0; first < plan.samples; first += kRows) {
      look(plan, decoder, image, line, first, lane, ray);
      FASTFACE_UNROLL_BY(1)
      for (int tile = 0; tile < plan.colour_tiles; tile += kColourTiles) {
        add_colours(plan, decoder, tile, first, lane, ray, sums);
      }
    }
    warp_synchronize();
    for (int i = lane; i < plan.p.outputs - 1; i += kWarp) put_colour<T>(plan.p, index, i, sums[i], opacity);
  }

  // Adds a block of colours of the samples whose hidden layer is known.
  FASTFACE_DEVICE static void add_colours(const Plan& plan, const Decoder& decoder, int from, int first, int lane,
                                          const Ray& ray, float* sums) {
    const int g = lane / 4, t = lane % 4;
    float colours[kColourTiles][4];
    start_colours(decoder, from / kColourTiles, t, colours);
    FASTFACE_UNROLL_BY(1)
    for (int tile = 0; tile < plan.hidden_tiles; ++tile) {
      const Hidden hidden = hidden_in(ray)[tile * kWarp + lane];
      Weights weights[kColourTiles];
      second_weights(plan, decoder, tile, from, lane, weights);
      add_hidden(hidden.of, weights, colours);
    }
    FASTFACE_UNROLL
    for (int n = 0; n < kColourTiles; ++n) {
      FASTFACE_UNROLL
      for (int j = 0; j < 2; ++j) {
        float sum = 0;
        FASTFACE_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int sample = first + g + 8 * i;
          if (sample < plan.samples) sum = fmaf(ray.shares[sample], sigmoid(colours[n][2 * i + j]), sum);
        }
        FASTFACE_UNROLL
        for (int mask = 4; mask < kWarp; mask *= 2) sum += exchange(sum, mask);
        if (g == 0) sums[(from + n) * kUnits + 2 * t + j] += sum;
      }
    }
  }

  FASTFACE_DEVICE static void first_weights(const Plan& plan, const Decoder& decoder, int tile, int step, int lane,
                                            Weights (&weights)[kSteps]) {
    if (plan.stored_tiles > 0) return load(decoder.first + (tile * plan.steps + step) * kWarp + lane, weights);
    FASTFACE_UNROLL
    for (int i = 0; i < kSteps; ++i) weights[i] = first_fragment(plan.p, tile, step + i, lane);
  }

  FASTFACE_DEVICE static void second_weights(const Plan& plan, const Decoder& decoder, int tile, int colour_tile,
                                             int lane, Weights (&weights)[kColourTiles]) {
    if (plan.stored_tiles > 0) {
      return load(decoder.second + (tile * plan.colour_tiles + colour_tile) * kWarp + lane, weights);
    }
    FASTFACE_UNROLL
    for (int n = 0; n < kColourTiles; ++n) weights[n] = second_fragment(plan.p, tile, colour_tile + n, lane);
  }
};

template <class T, bool kWhole, bool kFlat>
struct Sample {
  static constexpr int kMostThreads = 256;

  static int64_t packs(const Plan& plan) { return ceil_div(plan.p.channels, kPack); }
  static Grid grid(const Plan& plan) {
    const int64_t groups = plan.p.reduce == Reduce::kNone ? 3 : 1;
    return {ceil_div(plan.p.count * packs(plan), kMostThreads), plan.p.batch, groups};
  }
  static int threads(const Plan&) { return kMostThreads; }
  static int64_t shared(const Plan&) { return 0; }

  // A thread takes kPack channels of a point.
  FASTFACE_DEVICE static void run(const Plan& plan, const Index& block, int thread, float*) {
    const Params& p = plan.p;
    const int packs = static_cast<int>((p.channels + kPack - 1) / kPack);
    const int64_t number = static_cast<int64_t>(block.x) * kMostThreads + thread, n = number / packs;
    if (n >= p.count) return;
    const int channel = static_cast<int>(number - n * packs) * kPack;
    const float* from = p.points + 3 * (block.y * p.count + n);
    const float scale = 2 / p.box;
    const Point point = {{from[0] * scale, from[1] * scale, from[2] * scale}};
    const T* image = static_cast<const T*>(p.planes.data) + block.y * p.planes.stride[0];
    float sum[kPack];
    int64_t row = block.y * p.count + n;
    if (p.reduce == Reduce::kNone) {
      const float start = spoilt(point);
      FASTFACE_UNROLL
      for (int i = 0; i < kPack; ++i) sum[i] = start;
      add_plane(p, image, block.z, point, channel, {kWhole, kFlat}, sum);
      row = (static_cast<int64_t>(block.y) * 3 + block.z) * p.count + n;
    } else {
      gather(p, image, point, channel, {kWhole, kFlat}, sum);
    }
    T* to = static_cast<T*>(p.features) + row * p.channels + channel;
    if constexpr (kWhole) {
      constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
      FASTFACE_UNROLL
      for (int i = 0; i < kPack; i += kWidth) {
        T values[kWidth];
        FASTFACE_UNROLL
        for (int j = 0; j < kWidth; ++j) assign(values[j], sum[i + j]);
        *reinterpret_cast<Words<T, kWidth>*>(to + i) = Words<T, kWidth>::of(values);
      }
    } else {
      FASTFACE_UNROLL
      for (int i = 0; i < kPack; ++i) {
        if (channel + i < p.channels) assign(to[i], sum[i]);
      }
    }
  }
};

enum class Op { kSamplePlanes, kRenderPlanes };

template <class T, bool kWhole, bool kFlat, class Visitor>
void visit_op(Op op, const Plan& plan, const Visitor& visitor) {
  if (op == Op::kSamplePlanes) {
    visitor(Sample<T, kWhole, kFlat>{});
  } else if (plan.room == Room::kColours) {
    visitor(Render<T, kWhole, kFlat>{});
  } else {
    visitor(RenderLarge<T>{});
  }
}

template <class T, class Visitor>
void visit_typed(Op op, const Plan& plan, const Visitor& visitor) {
  if (!plan.whole) {
    visit_op<T, false, false>(op, plan, visitor);
  } else if (plan.p.trigrid) {
    visit_op<T, true, false>(op, plan, visitor);
  } else {
    visit_op<T, true, true>(op, plan, visitor);
  }
}

// Hands the kernel of a call to `visitor`.
template <class Visitor>
void visit(Op op, const Plan& plan, const Visitor& visitor) {
  by_dtype<Half, BFloat16>(plan.p.planes.dtype, [&](auto zero) { visit_typed<decltype(zero)>(op, plan, visitor); });
}

}  // namespace fastface::triplane::cuda

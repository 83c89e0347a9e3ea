// The `triplane` hot path on the CPU, compiled once per instruction set tier. A thread takes a ray at a time, all of
// it: depths, features, hidden layer, weights and colours of its samples stay in the caches, and nothing of a sample is
// ever in a tensor. Formulas and the reasons for the layout of the work: README.md.
#include "triplane_cpu.h"

#include "cpu_simd.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastface::triplane::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

constexpr int64_t kBlock = 48;  // samples whose features are held at once
// Samples that share a load of a weight, and vectors of outputs at once: the sums of both fill the registers.
constexpr int kRows = 6;
#if defined(__AVX512F__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
constexpr int64_t kTask = 8;  // rays that a thread takes at once
constexpr int64_t kTile = 8;  // rays on a side of a tile of an image

// ---- Functions of vectors ----

// ln(1 + y) for 0 <= y <= 1, within 1.3 units in the last place: a Chebyshev fit of ln(1 + y) / y.
inline vf log1p_(vf y) {
  constexpr float kTerms[] = {-0.0031760570f, 0.0195425283f,  -0.0563736148f, 0.1054362357f,  -0.1526966691f,
                              0.1966327429f,  -0.2495161593f, 0.3332971036f,  -0.4999989271f, 1.0f};
  vf p = vf{} + kTerms[0];
  for (int i = 1; i < 10; ++i) p = fma_(p, y, vf{} + kTerms[i]);
  return p * y;
}

// ln(1 + e^x). NaN stays NaN.
inline vf softplus_(vf x) { return max_(x, vf{}) + log1p_(exp_(minus_abs(x))); }

// p / (1 + e^-x) + q / (1 + e^-y), by one division. NaN stays NaN. Below -40 a sigmoid stays at 4e-18, so that the
// product of two is a number.
inline vf two_sigmoids(vf x, vf y, float p, float q) {
  const vf a = 1.0f + exp_(min_(vf{} + 40.0f, -x)), b = 1.0f + exp_(min_(vf{} + 40.0f, -y));
  return fma_(vf{} + p, b, q * a) / (a * b);
}

// The sum over the lanes of each.
inline vf totals(vf (&values)[kLanes]) {
  transpose<kLanes>(values);
  vf sum = values[0];
  for (int i = 1; i < kLanes; ++i) sum += values[i];
  return sum;
}

// ---- The decoder ----

// A layer's weights [outputs, inputs] so that `columns` outputs of one input lie next to each other, [groups, inputs,
// columns], and its biases; zeros beyond the last output.
struct Layer {
  int64_t inputs, outputs, columns;  // outputs with those that are zero
  float *weight, *bias;

  // All vectors at once, or half of them where that leaves fewer zeros.
  static int64_t group(int64_t outputs) {
    constexpr int64_t kAll = kWide * kLanes;
    return round_up(outputs, kAll) == round_up(outputs, kAll / 2) ? kAll : kAll / 2;
  }
  static int64_t padded(int64_t outputs) { return round_up(outputs, group(outputs)); }
  static int64_t floats(int64_t inputs, int64_t outputs) { return padded(outputs) * (inputs + 1); }

  Layer(const float* w, const float* b, int64_t count, int64_t inputs, float* memory)
      : inputs(inputs), outputs(padded(count)), columns(group(count)), weight(memory), bias(memory + outputs * inputs) {
    for (int64_t k = 0; k < outputs; ++k) {
      float* const to = weight + k / columns * columns * inputs + k % columns;
      for (int64_t n = 0; n < inputs; ++n) to[n * columns] = k < count ? w[k * inputs + n] : 0.0f;
      bias[k] = k < count ? b[k] : 0.0f;
    }
  }
};

// x Wᵀ + b of `Rows` samples for one group of `Wide` vectors to `to`. A function of its own: what the caller does next
// would claim registers that the sums need.
template <int Rows, int Wide>
[[gnu::noinline]] void dense_rows(const float* x, int64_t stride, int64_t inputs, const float* weight,
                                  const float* bias, float* to, int64_t to_stride) {
  vf sums[Rows][Wide];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Wide; ++v) sums[r][v] = load<kLanes>(bias + v * kLanes);
  }
  for (int64_t n = 0; n < inputs; ++n) {
    vf weights[Wide];
    for (int v = 0; v < Wide; ++v) weights[v] = load<kLanes>(weight + (n * Wide + v) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const vf value = splat<kLanes>(x[r * stride + n]);
#pragma GCC unroll 4
      for (int v = 0; v < Wide; ++v) sums[r][v] = fma_(value, weights[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Wide; ++v) store<kLanes>(to + r * to_stride + v * kLanes, sums[r][v]);
  }
}

template <int Wide>
inline void dense_group(const float* x, int64_t stride, int64_t rows, const Layer& layer, int64_t column, float* to,
                        int64_t to_stride) {
  constexpr int kMost = kRows * kWide / Wide;
  int64_t row = 0;
  const auto some = [&](auto count) {
    for (; row + count.value <= rows; row += count.value) {
      dense_rows<count.value, Wide>(x + row * stride, stride, layer.inputs, layer.weight + column * layer.inputs,
                                    layer.bias + column, to + row * to_stride + column, to_stride);
    }
  };
  some(Int<kMost>{});
  some(Int<kMost / 3>{});
  some(Int<1>{});
}

// A layer of `rows` samples, its outputs to `to`.
inline void dense(const float* x, int64_t stride, int64_t rows, const Layer& layer, float* to, int64_t to_stride) {
  for (int64_t column = 0; column < layer.outputs; column += layer.columns) {
    if (layer.columns == kWide * kLanes) {
      dense_group<kWide>(x, stride, rows, layer, column, to, to_stride);
    } else {
      dense_group<kWide / 2>(x, stride, rows, layer, column, to, to_stride);
    }
  }
}

// The decoder as the loops read it; shared by all threads.
struct Decoder {
  Layer hidden, colours;
  const float* w_density;  // with zeros, like the hidden layer
  float b_density;

  static int64_t floats(const Params& p) {
    return Layer::floats(p.channels, p.hidden) + Layer::floats(p.hidden, p.outputs - 1) + Layer::padded(p.hidden);
  }

  Decoder(const Params& p, float* memory)
      : hidden(p.w1, p.b1, p.hidden, p.channels, memory),
        colours(p.w2 + p.hidden, p.b2 + 1, p.outputs - 1, p.hidden, hidden.bias + hidden.outputs),
        b_density(p.b2[0]) {
    float* const density = colours.bias + colours.outputs;
    for (int64_t k = 0; k < hidden.outputs; ++k) density[k] = k < p.hidden ? p.w2[k] : 0.0f;
    w_density = density;
  }
};

// ---- Reading planes ----

// The corners of up to kLanes samples in the planes asked for. A corner is a number of three bits: one more in x, in y,
// in depth.
struct Taps {
  int64_t offset[3][kLanes];  // of the lowest corner
  alignas(64) float weight[3][8][kLanes];
  alignas(64) int32_t present[3][kLanes];  // a bit for each corner inside; the others are zero
  bool whole[kLanes];                      // no corner is outside
  bool lost[kLanes];                       // a coordinate is no number: the sample is not either
};

// Where a coordinate in [-1, 1] lies between pixel centres of an axis.
struct Between {
  vi low;        // the lower of both
  vf weight[2];  // of the lower and of the upper one
  vi inside[2];  // which of them exist: all bits or none
};

inline Between between(vf coordinate, int64_t size) {
  const vf at = ((coordinate + 1.0f) * static_cast<float>(size) - 1.0f) * 0.5f;
  // Far outside any corner is; the bound keeps the conversion to an integer defined, and no number becomes one.
  const vf lowest = vf{} - 2.0f, highest = vf{} + (static_cast<float>(size) + 1.0f);
  const vf floor = floor_(at > lowest ? (at < highest ? at : highest) : lowest);
  const vf above = at - floor;
  const vi low = __builtin_convertvector(floor, vi), count = vi{} + static_cast<int32_t>(size);
  return {low, {1.0f - above, above}, {low >= 0 & low < count, low >= -1 & low + 1 < count}};
}

// Taps of the samples at `point` (x, y, z of kLanes samples, scaled to [-1, 1]) in planes [first, last).
inline void find_taps(const Params& p, int64_t image, const vf (&point)[3], int first, int last, Taps& taps) {
  const auto* stride = p.planes.stride;
  const vf nothing = (point[0] - point[0]) + (point[1] - point[1]) + (point[2] - point[2]);  // NaN for NaN and infinity
  vi whole = vi{} - 1;
  for (int k = first; k < last; ++k) {
    const Between x = between(point[p.axes[3 * k]], p.width), y = between(point[p.axes[3 * k + 1]], p.height);
    Between z = {vi{}, {vf{} + 1.0f, vf{}}, {vi{} - 1, vi{}}};
    if (p.trigrid) z = between(point[p.axes[3 * k + 2]], p.depth);
    vi present = {};
    for (int c = 0; c < (p.trigrid ? 8 : 4); ++c) {
      const int dx = c & 1, dy = c >> 1 & 1, dz = c >> 2;
      store<kLanes>(taps.weight[k][c], x.weight[dx] * y.weight[dy] * z.weight[dz]);
      const vi inside = x.inside[dx] & y.inside[dy] & z.inside[dz];
      present |= inside & (1 << c);
      whole &= inside;
    }
    memcpy(taps.present[k], &present, sizeof(present));
    const int64_t base = image * stride[0] + k * stride[1];
    for (int s = 0; s < kLanes; ++s) {
      taps.offset[k][s] = base + z.low[s] * stride[3] + y.low[s] * stride[4] + x.low[s] * stride[5];
    }
  }
  for (int s = 0; s < kLanes; ++s) {
    taps.lost[s] = !(nothing[s] == 0.0f);
    taps.whole[s] = whole[s] != 0 && !taps.lost[s];
  }
}

// The sum of a sample's corners in planes [first, last), `channels` of them, times `factor`.
template <class T>
inline void gather(const Params& p, const Taps& taps, int s, int first, int last, float factor, float* to) {
  const auto* stride = p.planes.stride;
  const T* const planes = static_cast<const T*>(p.planes.data);
  const int corners = p.trigrid ? 8 : 4;
  const auto corner = [&](int k, int c) {
    return planes + taps.offset[k][s] + (c & 1) * stride[5] + (c >> 1 & 1) * stride[4] + (c >> 2) * stride[3];
  };
  constexpr int kTogether = 2;
  int64_t at = 0;
  if (taps.whole[s] && corners == 4) {
    for (; at + kTogether * kLanes <= p.channels; at += kTogether * kLanes) {
      vf sums[kTogether] = {};
      for (int k = first; k < last; ++k) {
        for (int c = 0; c < 4; ++c) {
          const vf weight = splat<kLanes>(taps.weight[k][c][s]);
          for (int v = 0; v < kTogether; ++v)
            sums[v] = fma_(weight, load<kLanes>(corner(k, c) + at + v * kLanes), sums[v]);
        }
      }
      for (int v = 0; v < kTogether; ++v) store<kLanes>(to + at + v * kLanes, sums[v] * factor);
    }
  }
  for (; at < p.channels; at += kLanes) {
    const int64_t n = least(kLanes, p.channels - at);
    vf sum = vf{} + (taps.lost[s] ? __builtin_nanf("") : 0.0f);
    for (int k = first; k < last && !taps.lost[s]; ++k) {
      for (int c = 0; c < corners; ++c) {
        if ((taps.present[k][s] >> c & 1) == 0) continue;
        const T* from = corner(k, c) + at;
        const vf value = n == kLanes ? load<kLanes>(from) : load_part<kLanes>(from, n);
        sum = fma_(splat<kLanes>(taps.weight[k][c][s]), value, sum);
      }
    }
    store<kLanes>(to + at, sum * factor);
  }
}

// ---- A ray ----

// What a thread needs for a ray of S + I samples; the storage order is coarse, then fine.
struct Ray {
  int64_t coarse, fine, count;
  float* block;             // [kBlock, channels or colours padded]: features, then colours of some samples
  float* hidden;            // [S + I, hidden padded]
  float *depths, *density;  // [S + I]
  float* share;             // [S + I], v of each sample
  float* weights;           // [S + I] of the intervals in order
  float* cumulated;         // [S]
  float* colours;           // [colours padded]
  int32_t* order;           // [S + I], nearest first
  int64_t block_stride, hidden_stride;

  static int64_t width(const Params& p) { return most(round_up(p.channels, 2 * kLanes), Layer::padded(p.outputs - 1)); }

  static int64_t floats(const Params& p) {
    const int64_t count = round_up(p.coarse + p.fine, kLanes) + kLanes;
    return kBlock * width(p) + count * Layer::padded(p.hidden) + 6 * count + Layer::padded(p.outputs - 1) + 8 * kLanes;
  }

  Ray(const Params& p, float* memory) {
    coarse = p.coarse;
    fine = p.fine;
    count = coarse + fine;
    const int64_t padded = round_up(count, kLanes) + kLanes;
    block_stride = width(p);
    hidden_stride = Layer::padded(p.hidden);
    float* at = memory;
    const auto take = [&at](int64_t floats) {
      float* const result = at;
      at += round_up(floats, kLanes);
      return result;
    };
    block = take(kBlock * block_stride);
    hidden = take(padded * hidden_stride);
    depths = take(padded);
    density = take(padded);
    share = take(padded);
    weights = take(padded);
    cumulated = take(padded);
    order = reinterpret_cast<int32_t*>(take(padded));
    colours = take(Layer::padded(p.outputs - 1));
  }
};

// One depth in each stratum.
inline void stratify(const Params& p, int64_t index, Ray& ray) {
  const float near = p.near[index], far = p.far[index];
  const float last = static_cast<float>(ray.coarse - 1);
  const float* jitter = p.jitter == nullptr ? nullptr : p.jitter + index * ray.coarse;
  for (int64_t k = 0; k < ray.coarse; ++k) {
    const float t = static_cast<float>(k) / last + (jitter == nullptr ? 0.5f : jitter[k]) / last;
    ray.depths[k] = p.disparity ? 1.0f / ((1.0f - t) / near + t / far) : near + t * (far - near);
  }
}

// Hidden layer and density of samples [first, last) of a ray.
template <class T>
inline void look(const Params& p, const Decoder& decoder, int64_t image, int64_t index, int64_t first, int64_t last,
                 Ray& ray) {
  const float* origin = p.points + 3 * index;
  const float* direction = p.directions + 3 * index;
  const float scale = 2.0f / p.box, factor = p.reduce == Reduce::kMean ? 1.0f / 3.0f : 1.0f;
  Taps taps;
  for (int64_t start = first; start < last; start += kBlock) {
    const int64_t rows = least(kBlock, last - start);
    for (int64_t s = 0; s < rows; s += kLanes) {
      const vf z = load<kLanes>(ray.depths + start + s);  // lanes beyond the last sample are not used
      vf point[3];
      for (int i = 0; i < 3; ++i) point[i] = (origin[i] + z * direction[i]) * scale;
      find_taps(p, image, point, 0, 3, taps);
      const int64_t n = least(kLanes, rows - s);
      for (int64_t i = 0; i < n; ++i) {
        gather<T>(p, taps, static_cast<int>(i), 0, 3, factor, ray.block + (s + i) * ray.block_stride);
      }
    }
    float* const hidden = ray.hidden + start * ray.hidden_stride;
    dense(ray.block, ray.block_stride, rows, decoder.hidden, hidden, ray.hidden_stride);
    for (int64_t row = 0; row < rows; row += kLanes) {
      vf density[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) density[i] = vf{};
      for (int64_t i = 0; i < least(kLanes, rows - row); ++i) {
        for (int64_t column = 0; column < decoder.hidden.outputs; column += kLanes) {
          float* const at = hidden + (row + i) * ray.hidden_stride + column;
          const vf active = softplus_(load<kLanes>(at));
          store<kLanes>(at, active);
          density[i] = fma_(active, load<kLanes>(decoder.w_density + column), density[i]);
        }
      }
      store<kLanes>(ray.density + start + row, totals(density) + decoder.b_density);
    }
  }
}

// Weights of the intervals between samples in `order`, and their sum.
inline float composite(const Ray& ray, int64_t count, float* weights) {
  const int32_t* order = ray.order;
  float through = 1, sum = 0;
  for (int64_t i = 0; i + 1 < count; i += kLanes) {
    alignas(64) float middle[kLanes] = {}, length[kLanes] = {};
    const int64_t n = least(kLanes, count - 1 - i);
    for (int64_t j = 0; j < n; ++j) {
      const int32_t a = order[i + j], b = order[i + j + 1];
      middle[j] = (ray.density[a] + ray.density[b]) / 2 - 1;
      length[j] = ray.depths[b] - ray.depths[a];
    }
    const vf power = -softplus_(load<kLanes>(middle)) * load<kLanes>(length);  // above 0 where depths fall
    const vf kept = power > 88.72f ? vf{} + __builtin_inff() : exp_(power);
    for (int64_t j = 0; j < n; ++j) {
      const float alpha = 1 - kept[j];
      weights[i + j] = alpha * through;
      sum += weights[i + j];
      through *= 1 - alpha + 1e-10f;
    }
  }
  return sum;
}

// Where halving finds the first of `values` above `bound`: its definition where they do not rise.
inline int64_t halve(const float* values, int64_t count, float bound) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t at = (low + high) / 2;
    if (values[at] > bound) {
      high = at;
    } else {
      low = at + 1;
    }
  }
  return low;
}

inline void insert_sorted(float* values, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const float value = values[i];
    int64_t j = i;
    for (; j > 0 && values[j - 1] > value; --j) values[j] = values[j - 1];
    values[j] = value;
  }
}

inline bool rises(const float* values, int64_t count) {
  bool result = true;
  for (int64_t i = 1; i < count; ++i) result &= values[i] >= values[i - 1];
  return result;
}

// How many of `values` are below (or, with `equal`, not above) each of `of`, handed to `done(index, how many)`.
template <bool equal, class Done>
inline void count_below(const float* values, int64_t count, const float* of, int64_t n, const Done& done) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf mine = load<kLanes>(of + i);  // lanes beyond the last are not used
    vi below = {};
    for (int64_t j = 0; j < count; ++j) {
      const vf other = vf{} + values[j];
      below -= equal ? other <= mine : other < mine;
    }
    for (int64_t lane = 0; lane < least(kLanes, n - i); ++lane) done(i + lane, below[lane]);
  }
}

// The fine depths, nearest first, behind the coarse ones: the inverse of the smoothed distribution of their weights.
inline void resample(const Params& p, int64_t index, Ray& ray) {
  const int64_t intervals = ray.coarse - 1, shares = ray.coarse - 3;
  const float* w = ray.weights;
  const auto highest = [&](int64_t j) {  // of the intervals on either side of depth j
    const float before = j > 0 ? w[j - 1] : w[0], after = j < intervals ? w[j] : w[intervals - 1];
    return before > after || before != before ? before : after;
  };
  float sum = 0;
  for (int64_t j = 0; j < shares; ++j) {
    const float smooth = (highest(j + 1) + highest(j + 2)) / 2 + 0.01f;
    ray.cumulated[j + 1] = smooth + 1e-5f;
    sum += ray.cumulated[j + 1];
  }
  ray.cumulated[0] = 0;
  for (int64_t j = 1; j <= shares; ++j) ray.cumulated[j] = ray.cumulated[j] / sum + ray.cumulated[j - 1];
  const float* given = p.u == nullptr ? nullptr : p.u + index * ray.fine;
  float* const to = ray.depths + ray.coarse;
  for (int64_t i = 0; i < ray.fine; ++i) {
    to[i] = given == nullptr ? (static_cast<float>(i) + 0.5f) / static_cast<float>(ray.fine) : given[i];
  }
  const auto middle = [&](int64_t j) { return (ray.depths[j] + ray.depths[j + 1]) / 2; };
  const auto place = [&](int64_t i, int64_t found) {  // the first entry above u
    const int64_t below = most(found - 1, 0), above = least(found, shares);
    float width = ray.cumulated[above] - ray.cumulated[below];
    if (width < 1e-5f) width = 1;
    const float start = middle(below), end = middle(above);
    to[i] = start + (to[i] - ray.cumulated[below]) / width * (end - start);
  };
  if (rises(ray.cumulated, shares + 1)) {
    count_below<true>(ray.cumulated, shares + 1, to, ray.fine, place);
  } else {
    for (int64_t i = 0; i < ray.fine; ++i) place(i, halve(ray.cumulated, shares + 1, to[i]));
  }
  if (given != nullptr) insert_sorted(to, ray.fine);
}

// Nearest first; of equal depths the coarse one. Depths that a caller's jitter left out of order are sorted as well.
inline void merge(Ray& ray) {
  const float* fine = ray.depths + ray.coarse;
  int32_t* const order = ray.order;
  if (rises(ray.depths, ray.coarse) && rises(fine, ray.fine)) {
    count_below<false>(fine, ray.fine, ray.depths, ray.coarse, [&](int64_t i, int64_t n) { order[i + n] = i; });
    count_below<true>(ray.depths, ray.coarse, fine, ray.fine,
                      [&](int64_t i, int64_t n) { order[i + n] = ray.coarse + i; });
    return;
  }
  for (int64_t i = 0; i < ray.count; ++i) {
    const auto moved = static_cast<int32_t>(i);
    int64_t j = i;
    for (; j > 0 && ray.depths[order[j - 1]] > ray.depths[moved]; --j) order[j] = order[j - 1];
    order[j] = moved;
  }
}

// The sum of the colours of all samples, each times its share.
inline void paint(const Decoder& decoder, Ray& ray) {
  for (int64_t c = 0; c < decoder.colours.outputs; c += kLanes) store<kLanes>(ray.colours + c, vf{});
  for (int64_t start = 0; start < ray.count; start += kBlock) {
    const int64_t rows = least(kBlock, ray.count - start);
    dense(ray.hidden + start * ray.hidden_stride, ray.hidden_stride, rows, decoder.colours, ray.block,
          ray.block_stride);
    for (int64_t c = 0; c < decoder.colours.outputs; c += kLanes) {
      vf sum = load<kLanes>(ray.colours + c);
      for (int64_t row = 0; row < rows; row += 2) {  // a share beyond the last row is 0
        const float *from = ray.block + row * ray.block_stride + c, *share = ray.share + start + row;
        sum += two_sigmoids(load<kLanes>(from), load<kLanes>(from + ray.block_stride), share[0], share[1]);
      }
      store<kLanes>(ray.colours + c, sum);
    }
  }
}

template <class T>
inline void render(const Params& p, const Decoder& decoder, int64_t index, Ray& ray) {
  const int64_t image = index / p.count;
  stratify(p, index, ray);
  look<T>(p, decoder, image, index, 0, ray.coarse, ray);
  for (int64_t i = 0; i < ray.coarse; ++i) ray.order[i] = static_cast<int32_t>(i);
  if (ray.fine > 0) {
    composite(ray, ray.coarse, ray.weights);
    resample(p, index, ray);
    look<T>(p, decoder, image, index, ray.coarse, ray.count, ray);
    merge(ray);
  }
  const float opacity = composite(ray, ray.count, ray.weights);
  const float nearest = ray.depths[ray.order[0]];
  float depth = 0;  // beyond the nearest: a long sum of small numbers loses less
  for (int64_t i = 0; i < ray.count; ++i) {
    // A colour belongs to the intervals on either side of its sample, so colours need no order.
    const float before = i > 0 ? ray.weights[i - 1] : 0.0f, after = i + 1 < ray.count ? ray.weights[i] : 0.0f;
    ray.share[ray.order[i]] = (before + after) / 2;
    if (i + 1 < ray.count) {
      depth += after * ((ray.depths[ray.order[i]] + ray.depths[ray.order[i + 1]]) / 2 - nearest);
    }
  }
  paint(decoder, ray);
  const float background = p.white_back ? 1 - opacity : 0.0f;
  const int64_t colours = p.outputs - 1;
  T* const out = static_cast<T*>(p.features) + index * colours;
  for (int64_t c = 0; c < colours; c += kLanes) {
    const vf colour = 1.002f * load<kLanes>(ray.colours + c) - 0.001f * opacity + background;
    const vf value = 2.0f * colour - 1.0f;
    const int64_t n = least(kLanes, colours - c);
    if (n == kLanes) {
      store<kLanes>(out + c, value);
    } else {
      store_part<kLanes>(out + c, value, n);
    }
  }
  p.opacity[index] = opacity;
  p.depth_out[index] = opacity == 0 ? ray.depths[ray.order[ray.count - 1]] : nearest + depth / opacity;
}

// The order in which rays are taken. A square number of them is taken for an image, and by tiles: so the texels that
// the rays above and below share are still in the cache of the core.
struct RayOrder {
  int64_t count, across = 0;  // rays of an image, tiles on a side of it

  explicit RayOrder(int64_t count) : count(count) {
    int64_t side = kTile;
    while (side * side < count) side += kTile;
    if (side * side == count) across = side / kTile;
  }

  int64_t operator()(int64_t index) const {
    if (across == 0) return index;
    const int64_t image = index / count, tile = index % count / (kTile * kTile), ray = index % (kTile * kTile);
    const int64_t y = tile / across * kTile + ray / kTile, x = tile % across * kTile + ray % kTile;
    return image * count + y * across * kTile + x;
  }
};

template <class T>
bool render_all(const Params& p, int threads) {
  const int64_t rays = p.batch * p.count;
  const RayOrder order(p.count);
  const int64_t task = rays < kTile * kTile * kTask * threads ? kTask : kTile * kTile;
  const int64_t each = round_up(Ray::floats(p), 16);
  Buffer shared(static_cast<size_t>(Decoder::floats(p)) * sizeof(float));
  Buffer scratch(static_cast<size_t>(threads * each) * sizeof(float));
  if (shared.data == nullptr || scratch.data == nullptr) return false;
  const Decoder decoder(p, reinterpret_cast<float*>(shared.data));
  memset(scratch.data, 0, static_cast<size_t>(threads * each) * sizeof(float));
  float* const memory = reinterpret_cast<float*>(scratch.data);
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    Ray ray(p, memory + thread * each);
#pragma omp for schedule(dynamic, task)
    for (int64_t index = 0; index < rays; ++index) render<T>(p, decoder, order(index), ray);
  }
  return true;
}

// ---- Points alone ----

template <class T>
bool sample_all(const Params& p, int threads) {
  const int64_t blocks = (p.count + kLanes - 1) / kLanes, padded = round_up(p.channels, 2 * kLanes);
  const int64_t groups = p.reduce == Reduce::kNone ? 3 : 1;
  const float scale = 2.0f / p.box, factor = p.reduce == Reduce::kMean ? 1.0f / 3.0f : 1.0f;
  Buffer scratch(static_cast<size_t>(threads * padded) * sizeof(float));
  if (scratch.data == nullptr) return false;
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    float* const row = reinterpret_cast<float*>(scratch.data) + thread * padded;
    Taps taps;
#pragma omp for schedule(dynamic, kTask)
    for (int64_t task = 0; task < p.batch * blocks; ++task) {
      const int64_t image = task / blocks, first = task % blocks * kLanes, n = least(kLanes, p.count - first);
      vf point[3] = {};
      for (int64_t j = 0; j < n; ++j) {
        for (int i = 0; i < 3; ++i) point[i][j] = p.points[3 * (image * p.count + first + j) + i] * scale;
      }
      for (int64_t group = 0; group < groups; ++group) {
        const int from = groups == 3 ? static_cast<int>(group) : 0, to = groups == 3 ? from + 1 : 3;
        find_taps(p, image, point, from, to, taps);
        for (int64_t j = 0; j < n; ++j) {
          gather<T>(p, taps, static_cast<int>(j), from, to, factor, row);
          T* const out = static_cast<T*>(p.features) + ((image * groups + group) * p.count + first + j) * p.channels;
          write_row(row, out, 1, p.channels);
        }
      }
    }
  }
  return true;
}

template <class T>
bool run_typed(CpuOp op, const Params& p, int threads) {
  const int used = team(threads, p.batch * p.count * (op == CpuOp::kRenderPlanes ? p.coarse + p.fine : 1) * 16);
  return op == CpuOp::kRenderPlanes ? render_all<T>(p, used) : sample_all<T>(p, used);
}

}  // namespace

bool run(CpuOp op, const Params& params, int threads) {
  return by_dtype<Half, BFloat16>(params.planes.dtype,
                                  [&](auto zero) { return run_typed<decltype(zero)>(op, params, threads); });
}

}  // namespace fastface::triplane::FASTFACE_TIER

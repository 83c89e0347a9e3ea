// The `spade` hot path on the CPU, compiled once per instruction set tier. Formulas and the reasons for the layout of
// the work: README.md. Two orders of the work, by which elements of x are neighbours in memory:
// - along a row (contiguous): a plane is one channel, its coefficients are constants;
// - along the channels (channels_last): the coefficients lie next to each other as the elements do.
#include "spade_cpu.h"

#include "cpu_simd.h"

namespace fastface::spade::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

constexpr int64_t kPiece = 256 * kLanes;  // elements whose moments are taken at once: at most 16 KiB, short sums
constexpr int kTogether = 8;              // vectors that are summed before they are added to a longer sum
constexpr int64_t kTile = 512;            // elements of a row that are copied at once where they do not lie as needed
constexpr int64_t kPlanesPerThread = 4;   // with fewer planes, threads share them
constexpr int64_t kBlock = 1 << 16;       // elements of a channels_last image whose moments are taken at once: 256 KiB
constexpr int64_t kMinPixels = 16, kMaxPixels = 256;
constexpr int64_t kShares = 32;                // of a channels_last image, whose moments are taken independently
constexpr int64_t kPadding = kLanes * kLanes;  // of a tile, for whole vectors beyond its end

// ---- Parts of an image ----

struct Part {
  int64_t y, rows, x, columns;
};

// An image cut into parts of about `elements`: whole rows where they are short, pieces of a row where they are long.
struct Parts {
  int64_t height, width, rows, columns, across;
  Parts(const Params& p, int64_t elements) : height(p.height), width(p.width) {
    columns = least(width, p.scale > 1 && p.scale < elements ? elements / p.scale * p.scale : elements);
    rows = most(1, elements / columns);
    if (p.scale > 1) rows = round_up(rows, p.scale);  // the rows that share one of a modulation map stay together
    across = (width + columns - 1) / columns;
  }
  int64_t count() const { return (height + rows - 1) / rows * across; }
  Part at(int64_t index) const {
    const int64_t y = index / across * rows, x = index % across * columns;
    return {y, least(rows, height - y), x, least(columns, width - x)};
  }
};

inline bool flat(const Params& p, const View<4>& view) {
  return view.data == nullptr || p.height == 1 || view.stride[2] == p.width * view.stride[3];
}

// The same call with an image as a single row, where all tensors allow it.
inline Params flattened(Params p) {
  if (p.scale > 1 || !flat(p, p.x) || !flat(p, p.gamma) || !flat(p, p.beta) || !flat(p, p.residual) ||
      !flat(p, p.out)) {
    return p;
  }
  p.width *= p.height;
  p.height = 1;
  return p;
}

inline int64_t offset_of(const View<4>& view, int64_t b, int64_t c, int64_t y, int64_t x) {
  return b * view.stride[0] + c * view.stride[1] + y * view.stride[2] + x * view.stride[3];
}

// `count` elements, `stride` apart: where they lie, if they lie as neighbours of type X, else copied to `tile`. Null
// for a tensor that was not given.
template <class X>
inline const X* run_of(const View<4>& view, int64_t offset, int64_t stride, int64_t count, float* tile) {
  if (view.data == nullptr) return nullptr;
  if constexpr (sizeof(X) == sizeof(float)) {
    if (stride != 1 || view.dtype != DType::kFloat32) {
      read_row(view.data, view.dtype, offset, stride, count, tile);
      return tile;
    }
  }
  return static_cast<const X*>(view.data) + offset;
}

// ---- Moments ----

// Number, sum, and sum of squared distances from the mean. Parts are merged as in Chan, Golub and LeVeque (1983), so a
// large mean costs no digits.
struct Moments {
  double count = 0, sum = 0, square = 0;

  inline void add(const Moments& other) {
    if (count == 0) {
      *this = other;
      return;
    }
    const double apart = other.sum / other.count - sum / count;
    square += other.square + apart * apart * (count * other.count / (count + other.count));
    sum += other.sum;
    count += other.count;
  }

  inline float mean() const { return static_cast<float>(sum / count); }
  inline float rstd(double eps) const { return static_cast<float>(1 / __builtin_sqrt(square / count + eps)); }
};

// From sums of (value - centre) and of its square: exact for a centre that is only about the mean.
inline Moments moments_about(double centre, double count, double sum, double square) {
  // About an infinite centre the sum is NaN; that of the values is infinite all the same.
  const double known = centre - centre == 0 ? sum : 0;
  const double inside = square - sum * sum / count;
  return {count, count * centre + known, inside < 0 ? 0 : inside};
}

// Added in pairs: a chain of kLanes additions would be the longest wait between two planes.
inline double total(vf value) {
  double sums[kLanes];
  for (int j = 0; j < kLanes; ++j) sums[j] = value[j];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

template <class T>
inline vf load_up_to(const T* from, int64_t count) {
  return count == kLanes ? load<kLanes>(from) : load_part<kLanes>(from, count);
}

// N vectors of `count` elements each. Their sum is taken before it is added to more, which shortens the chain of
// roundings.
template <class T, int N>
inline void load_vectors(const T* from, int64_t stride, int64_t count, vf (&values)[N]) {
  for (int j = 0; j < N; ++j) values[j] = load_up_to(from + j * stride, count);
}

template <int N>
inline vf sum_of(const vf (&values)[N]) {
  vf sum = values[0];
  for (int j = 1; j < N; ++j) sum += values[j];
  return sum;
}

template <int N>
inline vf sum_of_squares(const vf (&values)[N]) {
  vf sum = values[0] * values[0];
  for (int j = 1; j < N; ++j) sum = fma_(values[j], values[j], sum);
  return sum;
}

// The moments of `count` <= kPiece neighbours, read twice from the first-level cache.
inline Moments moments_of(const float* x, int64_t count) {
  const auto each_vector = [x, count](const auto& body) {
    int64_t i = 0;
    for (; i + kTogether * kLanes <= count; i += kTogether * kLanes) {
      vf values[kTogether];
      load_vectors(x + i, kLanes, kLanes, values);
      body(values, vi{} - 1);
    }
    for (; i < count; i += kLanes) {
      vf values[1];
      load_vectors(x + i, kLanes, least(kLanes, count - i), values);
      body(values, lane_index() < static_cast<int32_t>(least(kLanes, count - i)));
    }
  };
  vf sum = {}, square = {};
  each_vector([&](auto& values, vi) { sum += sum_of(values); });
  const float centre = static_cast<float>(total(sum) / static_cast<double>(count));
  sum = vf{};
  each_vector([&](auto& values, vi inside) {
    for (vf& value : values) value = inside ? value - centre : vf{};
    sum += sum_of(values);
    square += sum_of_squares(values);
  });
  return moments_about(centre, static_cast<double>(count), total(sum), total(square));
}

inline Moments moments_of_part(const Params& p, int64_t b, int64_t c, const Part& part) {
  alignas(64) float tile[kPiece + kPadding];
  if (part.rows == 1) {
    const int64_t offset = offset_of(p.x, b, c, part.y, part.x);
    return moments_of(run_of<float>(p.x, offset, p.x.stride[3], part.columns, tile), part.columns);
  }
  Moments moments;
  const int64_t together = most(1, kPiece / part.columns);
  for (int64_t y = part.y; y < part.y + part.rows; y += together) {
    const int64_t rows = least(together, part.y + part.rows - y);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t offset = offset_of(p.x, b, c, y + r, part.x);
      read_row(p.x.data, p.x.dtype, offset, p.x.stride[3], part.columns, tile + r * part.columns);
    }
    moments.add(moments_of(tile, rows * part.columns));
  }
  return moments;
}

// ---- Normalisation ----

// v < floor ? floor : v, then v > 0 ? v : v * slope. Keeps NaN.
struct Activate {
  vf floor, slope;
  explicit Activate(const Params& p) {
    floor = vf{} + (p.activation == Activation::kRelu ? 0.0f : -__builtin_inff());
    slope = vf{} + (p.activation == Activation::kLeakyRelu ? p.slope : 1.0f);
  }
  inline vf operator()(vf v) const {
    v = v < floor ? floor : v;
    return v > 0.0f ? v : v * slope;
  }
};

// What turns a channel's elements into its output where no map says otherwise; `gain` is 1 + gamma.
struct Channel {
  float mean, rstd, gain, shift;
};

inline Channel channel_of(const Params& p, int64_t index, float mean, float rstd) {
  const float gamma = p.gamma_channel == nullptr ? 0.0f : p.gamma_channel[index];
  return {mean, rstd, 1.0f + gamma, p.beta_channel == nullptr ? 0.0f : p.beta_channel[index]};
}

// The coefficients of a run of one channel.
struct Constant {
  vf means, rstds, gains, shifts;
  explicit Constant(const Channel& k)
      : means(vf{} + k.mean), rstds(vf{} + k.rstd), gains(vf{} + k.gain), shifts(vf{} + k.shift) {}
  inline vf mean(int64_t) const { return means; }
  inline vf rstd(int64_t) const { return rstds; }
  inline vf gain(int64_t) const { return gains; }
  inline vf shift(int64_t) const { return shifts; }
};

// The coefficients of neighbouring channels, four arrays `apart` floats apart.
struct PerChannel {
  const float* data;
  int64_t apart;
  inline vf mean(int64_t i) const { return load<kLanes>(data + i); }
  inline vf rstd(int64_t i) const { return load<kLanes>(data + apart + i); }
  inline vf gain(int64_t i) const { return load<kLanes>(data + 2 * apart + i); }
  inline vf shift(int64_t i) const { return load<kLanes>(data + 3 * apart + i); }
};

// Neighbouring elements: of x, residual and out as X, of the maps as M.
template <class X, class M>
struct Run {
  const X* x;
  const M *gamma, *beta;
  const X* residual;
  X* out;
};

template <class X, class M, class Coefficients>
inline void normalise_vector(const Run<X, M>& run, const Coefficients& k, const Activate& act, int64_t i, int64_t n) {
  const vf normal = (load_up_to(run.x + i, n) - k.mean(i)) * k.rstd(i);
  const vf gain = run.gamma == nullptr ? k.gain(i) : 1.0f + load_up_to(run.gamma + i, n);
  const vf shift = run.beta == nullptr ? k.shift(i) : load_up_to(run.beta + i, n);
  vf value = act(fma_(normal, gain, shift));
  if (run.residual != nullptr) value += load_up_to(run.residual + i, n);
  if (n == kLanes) {
    store<kLanes>(run.out + i, value);
  } else {
    store_part<kLanes>(run.out + i, value, n);
  }
}

template <class X, class M, class Coefficients>
inline void normalise_run(const Run<X, M>& run, const Coefficients& k, const Activate& act, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) normalise_vector(run, k, act, i, kLanes);
  if (i < count) normalise_vector(run, k, act, i, count - i);
}

// Tiles for what does not lie as the loop reads it: x, gamma, beta, residual, out.
struct Tiles {
  alignas(64) float x[kTile + kPadding], gamma[kTile + kPadding], beta[kTile + kPadding], residual[kTile + kPadding],
      out[kTile + kPadding];
};

// Where an element lies in each tensor.
struct Place {
  int64_t x, gamma, beta, residual, out;
};

inline Place place_of(const Params& p, int64_t b, int64_t c, int64_t y, int64_t x) {
  const int64_t s = most(1, p.scale);
  return {offset_of(p.x, b, c, y, x), offset_of(p.gamma, b, c, y / s, x / s), offset_of(p.beta, b, c, y / s, x / s),
          offset_of(p.residual, b, c, y, x), offset_of(p.out, b, c, y, x)};
}

// Normalises `count` <= kTile neighbours along axis `axis`. With `spread`, gamma and beta are in their tiles already.
template <class X, class M, class Coefficients>
inline void normalise_tile(const Params& p, const Place& at, int axis, bool spread, const Coefficients& k,
                           const Activate& act, int64_t count, Tiles& tiles) {
  Run<X, M> run;
  run.x = run_of<X>(p.x, at.x, p.x.stride[axis], count, tiles.x);
  run.residual = run_of<X>(p.residual, at.residual, p.residual.stride[axis], count, tiles.residual);
  const auto map = [&](const View<4>& view, int64_t offset, float* tile) -> const M* {
    if constexpr (sizeof(M) == sizeof(float)) {
      if (spread) return view.data == nullptr ? nullptr : tile;
    }
    return run_of<M>(view, offset, view.stride[axis], count, tile);
  };
  run.gamma = map(p.gamma, at.gamma, tiles.gamma);
  run.beta = map(p.beta, at.beta, tiles.beta);
  if constexpr (sizeof(X) == sizeof(float)) {
    if (p.out.stride[axis] != 1 || p.out.dtype != DType::kFloat32) {
      run.out = tiles.out;
      normalise_run(run, k, act, count);
      return write_row(tiles.out, p.out.data, p.out.dtype, at.out, p.out.stride[axis], count);
    }
  }
  run.out = static_cast<X*>(p.out.data) + at.out;
  normalise_run(run, k, act, count);
}

// ---- Contiguous ----

// Repeats every entry of a row `scale` times.
struct Spread {
  int64_t scale;
  vi index[kLanes];  // of the entries of a vector that fill the next `scale` vectors

  explicit Spread(int64_t s) : scale(s) {
    for (int64_t j = 0; j < least(scale, kLanes); ++j) {
      for (int i = 0; i < kLanes; ++i) index[j][i] = static_cast<int32_t>((j * kLanes + i) / scale);
    }
  }

  // Elements [x, x + count) of the repeated row; x is a multiple of the scale where that is below kLanes.
  inline void row(const View<4>& map, int64_t b, int64_t c, int64_t y, int64_t x, int64_t count, float* to) const {
    alignas(64) float entries[kTile + kPadding];
    const int64_t first = x / scale, n = (x + count - 1) / scale - first + 1;
    read_row(map.data, map.dtype, offset_of(map, b, c, y / scale, first), map.stride[3], n, entries);
    if (scale >= kLanes) {
      for (int64_t e = 0; e < n; ++e) {
        const int64_t end = least(count, (first + e + 1) * scale - x);
        for (int64_t i = most(0, (first + e) * scale - x); i < end; i += kLanes) {
          store<kLanes>(to + i, vf{} + entries[e]);
        }
      }
      return;
    }
    for (int64_t e = 0; e < n; e += kLanes) {
      const vf some = load<kLanes>(entries + e);
      for (int64_t j = 0; j < scale; ++j) store<kLanes>(to + e * scale + j * kLanes, permute(some, index[j]));
    }
  }
};

// Whether the loop reads and writes every tensor where it lies, so that no tile bounds a run.
template <class X, class M>
inline bool direct(const Params& p) {
  const auto lies = [](const View<4>& view, size_t size) {
    return view.data == nullptr || (view.stride[3] == 1 && (size != sizeof(float) || view.dtype == DType::kFloat32));
  };
  return lies(p.x, sizeof(X)) && lies(p.residual, sizeof(X)) && lies(p.out, sizeof(X)) && lies(p.gamma, sizeof(M)) &&
         lies(p.beta, sizeof(M));
}

template <class X, class M>
inline void normalise_part(const Params& p, int64_t b, int64_t c, const Part& part, const Channel& channel,
                           const Spread& spread, const Activate& act) {
  Tiles tiles;
  const Constant k(channel);
  const bool maps = p.scale > 1;
  int64_t step = maps && p.scale < kTile ? kTile / p.scale * p.scale : kTile;
  if (!maps && direct<X, M>(p)) step = part.columns;
  for (int64_t x = part.x; x < part.x + part.columns; x += step) {
    const int64_t count = least(step, part.x + part.columns - x);
    for (int64_t y = part.y; y < part.y + part.rows; ++y) {
      if (maps && (y == part.y || y % p.scale == 0)) {
        if (p.gamma.data != nullptr) spread.row(p.gamma, b, c, y, x, count, tiles.gamma);
        if (p.beta.data != nullptr) spread.row(p.beta, b, c, y, x, count, tiles.beta);
      }
      normalise_tile<X, M>(p, place_of(p, b, c, y, x), 3, maps, k, act, count, tiles);
    }
  }
}

// Where statistics are given to the op they are read, else taken from the moments; instance_stats writes them.
inline bool gives_stats(CpuOp op, const Params& p) { return op == CpuOp::kModulatedNorm && p.mean != nullptr; }

inline Channel finish(CpuOp op, const Params& p, int64_t index, const Moments& moments) {
  if (gives_stats(op, p)) return channel_of(p, index, p.mean[index], p.rstd[index]);
  const float mean = moments.mean(), rstd = moments.rstd(p.eps);
  if (op == CpuOp::kInstanceStats) {
    p.mean[index] = mean;
    p.rstd[index] = rstd;
  }
  return channel_of(p, index, mean, rstd);
}

// Many planes: what a thread reads for the moments is in its cache still when it normalises.
template <class X, class M>
void run_planes(CpuOp op, const Params& p, const Parts& parts, const Spread& spread, const Activate& act, int threads) {
  const int64_t planes = p.batch * p.channels, step = grain(planes, threads);
  const int64_t read = gives_stats(op, p) ? 0 : parts.count();
  const int64_t written = op == CpuOp::kModulatedNorm ? parts.count() : 0;
#pragma omp parallel for schedule(dynamic, step) num_threads(threads)
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t b = plane / p.channels, c = plane % p.channels;
    Moments moments;
    for (int64_t i = 0; i < read; ++i) moments.add(moments_of_part(p, b, c, parts.at(i)));
    const Channel channel = finish(op, p, plane, moments);
    for (int64_t i = 0; i < written; ++i) normalise_part<X, M>(p, b, c, parts.at(i), channel, spread, act);
  }
}

// Few planes: all threads share each.
template <class X, class M>
bool run_parts(CpuOp op, const Params& p, const Parts& parts, const Spread& spread, const Activate& act, int threads) {
  const int64_t planes = p.batch * p.channels, count = parts.count(), tasks = planes * count;
  const int64_t read = gives_stats(op, p) ? 0 : tasks, written = op == CpuOp::kModulatedNorm ? tasks : 0;
  const int64_t step = grain(tasks, threads);
  Buffer moments_data(static_cast<size_t>(read) * sizeof(Moments));
  Buffer channel_data(static_cast<size_t>(planes) * sizeof(Channel));
  if (moments_data.data == nullptr || channel_data.data == nullptr) return false;
  Moments* const moments = reinterpret_cast<Moments*>(moments_data.data);
  Channel* const channels = reinterpret_cast<Channel*>(channel_data.data);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, step)
    for (int64_t i = 0; i < read; ++i) {
      const int64_t plane = i / count;
      moments[i] = moments_of_part(p, plane / p.channels, plane % p.channels, parts.at(i % count));
    }
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) {
      Moments whole;
      for (int64_t i = 0; i < count && read > 0; ++i) whole.add(moments[plane * count + i]);
      channels[plane] = finish(op, p, plane, whole);
    }
#pragma omp for schedule(dynamic, step) nowait
    for (int64_t i = 0; i < written; ++i) {
      const int64_t plane = i / count;
      const Part part = parts.at(i % count);
      normalise_part<X, M>(p, plane / p.channels, plane % p.channels, part, channels[plane], spread, act);
    }
  }
  return true;
}

// ---- channels_last ----

// The moments of up to kTile channels, which all have the same count; laid out so that the merge runs in vectors.
struct ChannelMoments {
  double count = 0, sum[kTile] = {}, square[kTile] = {};

  inline void add(int64_t channels, double number, const float* centre, const float* rest, const float* apart) {
    for (int64_t i = 0; i < channels; ++i) {
      Moments merged = {count, sum[i], square[i]};
      merged.add(moments_about(centre[i], number, rest[i], apart[i]));
      sum[i] = merged.sum;
      square[i] = merged.square;
    }
    count += number;
  }
};

// Adds the moments of `channels` <= kTile neighbouring channels over a part of an image.
template <class T>
inline void add_pixels(const Params& p, int64_t b, int64_t c, int64_t channels, const Part& part, ChannelMoments& to) {
  alignas(64) float centre[kTile], sum[kTile] = {}, square[kTile] = {};
  const double count = static_cast<double>(part.rows * part.columns);
  const int64_t stride = p.x.stride[3];
  const auto each_run = [&](const auto& body) {
    for (int64_t y = part.y; y < part.y + part.rows; ++y) {
      const T* pixel = static_cast<const T*>(p.x.data) + offset_of(p.x, b, c, y, part.x);
      int64_t x = 0;
      for (; x + kTogether <= part.columns; x += kTogether) body(pixel + x * stride, Int<kTogether>{});
      for (; x < part.columns; ++x) body(pixel + x * stride, Int<1>{});
    }
  };
  each_run([&](const T* from, auto pixels) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      vf values[decltype(pixels)::value];
      load_vectors(from + i, stride, least(kLanes, channels - i), values);
      store<kLanes>(sum + i, load<kLanes>(sum + i) + sum_of(values));
    }
  });
  for (int64_t i = 0; i < channels; i += kLanes) {
    store<kLanes>(centre + i, load<kLanes>(sum + i) / static_cast<float>(count));
    store<kLanes>(sum + i, vf{});
  }
  each_run([&](const T* from, auto pixels) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      vf values[decltype(pixels)::value];
      load_vectors(from + i, stride, least(kLanes, channels - i), values);
      for (vf& value : values) value -= load<kLanes>(centre + i);
      store<kLanes>(sum + i, load<kLanes>(sum + i) + sum_of(values));
      store<kLanes>(square + i, load<kLanes>(square + i) + sum_of_squares(values));
    }
  });
  to.add(channels, count, centre, sum, square);
}

template <class T, class X, class M>
bool run_channels_last(CpuOp op, const Params& p, const Activate& act, int threads) {
  const Parts parts(p, least(most(kBlock / p.channels, kMinPixels), kMaxPixels));
  const int64_t shares = least(parts.count(), kShares), chunks = (p.channels + kTile - 1) / kTile;
  const int64_t tasks = p.batch * shares * chunks, planes = p.batch * p.channels;
  const int64_t read = gives_stats(op, p) ? 0 : tasks;
  const int64_t written = op == CpuOp::kModulatedNorm ? p.batch * parts.count() : 0, step = grain(written, threads);
  const int64_t padded = round_up(p.channels, kLanes), s = most(1, p.scale);
  Buffer moments_data(static_cast<size_t>(read > 0 ? shares * planes : 0) * sizeof(Moments));
  Buffer channel_data(static_cast<size_t>(p.batch * 4 * padded) * sizeof(float));
  if (moments_data.data == nullptr || channel_data.data == nullptr) return false;
  Moments* const moments = reinterpret_cast<Moments*>(moments_data.data);  // [B, shares, C]
  float* const channels = reinterpret_cast<float*>(channel_data.data);     // [B, 4, padded C]
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < read; ++i) {
      const int64_t c = i % chunks * kTile, image = i / chunks, b = image / shares, share = image % shares;
      const int64_t n = least(kTile, p.channels - c);
      ChannelMoments mine;
      for (int64_t j = share * parts.count() / shares; j < (share + 1) * parts.count() / shares; ++j) {
        add_pixels<T>(p, b, c, n, parts.at(j), mine);
      }
      for (int64_t j = 0; j < n; ++j) moments[image * p.channels + c + j] = {mine.count, mine.sum[j], mine.square[j]};
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < planes; ++i) {
      const int64_t b = i / p.channels, c = i % p.channels;
      Moments whole;
      for (int64_t j = 0; j < shares && read > 0; ++j) whole.add(moments[(b * shares + j) * p.channels + c]);
      const Channel channel = finish(op, p, i, whole);
      float* const to = channels + b * 4 * padded + c;
      to[0] = channel.mean;
      to[padded] = channel.rstd;
      to[2 * padded] = channel.gain;
      to[3 * padded] = channel.shift;
    }
#pragma omp for schedule(dynamic, step) nowait
    for (int64_t i = 0; i < written; ++i) {
      const int64_t b = i / parts.count();
      const Part part = parts.at(i % parts.count());
      Tiles tiles;
      for (int64_t y = part.y; y < part.y + part.rows; ++y) {
        for (int64_t c = 0; c < p.channels; c += kTile) {
          const PerChannel k = {channels + b * 4 * padded + c, padded};
          Place at = place_of(p, b, c, y, part.x);
          for (int64_t x = part.x; x < part.x + part.columns;) {
            normalise_tile<X, M>(p, at, 1, false, k, act, least(kTile, p.channels - c), tiles);
            at.x += p.x.stride[3];
            at.residual += p.residual.stride[3];
            at.out += p.out.stride[3];
            ++x;
            if (s > 1 && x % s != 0) continue;
            at.gamma += p.gamma.stride[3];
            at.beta += p.beta.stride[3];
          }
        }
      }
    }
  }
  return true;
}

// ---- The ops ----

inline bool neighbours(const View<4>& view, int axis) { return view.data == nullptr || view.stride[axis] == 1; }

// T is what x holds; X and M are what the loops read, T itself or a copy in floats.
template <class T, class X, class M>
bool run_as(CpuOp op, const Params& p, bool last, int threads) {
  const Activate act(p);
  if (last) return run_channels_last<T, X, M>(op, p, act, threads);
  const Parts parts(p, kPiece);
  const Spread spread(p.scale);
  if (p.batch * p.channels < kPlanesPerThread * threads) return run_parts<X, M>(op, p, parts, spread, act, threads);
  run_planes<X, M>(op, p, parts, spread, act, threads);
  return true;
}

template <class T>
bool run_typed(CpuOp op, const Params& given, int threads) {
  const Params p = flattened(given);
  const bool last = p.x.stride[1] == 1 && p.x.stride[3] != 1 && p.width > 1;
  const int axis = last ? 1 : 3, used = team(threads, p.batch * p.channels * p.height * p.width);
  if constexpr (sizeof(T) != sizeof(float)) {
    const bool images = neighbours(p.x, axis) && neighbours(p.residual, axis) && neighbours(p.out, axis);
    const bool maps = neighbours(p.gamma, axis) && neighbours(p.beta, axis) && (last || p.scale <= 1);
    if (images && maps) return run_as<T, T, T>(op, p, last, used);
    if (images) return run_as<T, T, float>(op, p, last, used);
  }
  return run_as<T, float, float>(op, p, last, used);
}

}  // namespace

bool run(CpuOp op, const Params& params, int threads) {
  return by_dtype<Half, BFloat16>(params.x.dtype,
                                  [&](auto zero) { return run_typed<decltype(zero)>(op, params, threads); });
}

}  // namespace fastface::spade::FASTFACE_TIER

// The `warp` hot path on the CPU, compiled once per instruction set tier. Formulas and the reasons for the layout of
// the work: README.md. Two ways to warp:
// - pure translations separate per axis: blend up to four source rows into one, then read that at two neighbouring
// offsets;
// - anything else samples trilinearly from voxels whose channels lie next to each other, 4 to 16 channels at a time.
#include "warp_cpu.h"

#include "cpu_simd.h"

namespace fastface::warp::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

constexpr int kTile = 64;                 // voxels of a row that are worked on at once
constexpr int kRun = kTile + 2 * kLanes;  // a blended source row: the tile, one more tap at either end, alignment
constexpr int kMaxRows = 8;               // rows of a block, so that the pass over weights serves several
constexpr int kGroup = 4;                 // channels that are warped together, so that they share taps and weights
constexpr int kMaxChunk = 16;             // channels that lie next to each other: one cache line of float32

inline bool is_nan(double value) { return value != value; }

// Voxel i of an axis of n lies at 2 i / (n - 1) - 1, and coordinate x is sampled at x * scale + offset, in voxels.
struct Axis {
  int64_t size;
  double scale, offset;
  Axis(int64_t n, bool align_corners) : size(n) {
    scale = 0.5 * static_cast<double>(align_corners ? n - 1 : n);
    offset = 0.5 * static_cast<double>(n - 1);
  }
  double coordinate(int64_t i) const {
    return size == 1 ? 0.0 : 2.0 * static_cast<double>(i) / static_cast<double>(size - 1) - 1.0;
  }
  double voxel(int64_t i) const { return coordinate(i) * scale + offset; }
};

struct Space {
  Axis x, y, z;
  explicit Space(const Params& p)
      : x(p.width, p.align_corners), y(p.height, p.align_corners), z(p.depth, p.align_corners) {}
};

// w_k(p) = A (p - driving) + source.
struct Motion {
  double a[9], driving[3], source[3];
};

inline Motion motion_of(const Params& p, int64_t b, int64_t motion) {
  Motion m = {{1, 0, 0, 0, 1, 0, 0, 0, 1}, {0, 0, 0}, {0, 0, 0}};
  if (motion == 0) return m;
  const int64_t k = b * p.keypoints + motion - 1;
  for (int i = 0; i < 3; ++i) {
    m.driving[i] = p.kp_driving[k * 3 + i];
    m.source[i] = p.kp_source[k * 3 + i];
  }
  if (p.linear != nullptr) {
    const float* a = p.linear + (p.linear_per_keypoint ? k : b) * 9;
    for (int i = 0; i < 9; ++i) m.a[i] = a[i];
  }
  return m;
}

// ---- Pure translations ----

// Per (image, motion): the taps and weights of every output index of every axis, and the factors of both Gaussians.
struct Table {
  int32_t shift, split;  // output x reads source x + shift and its right neighbour; from `split` on, one further right
  float *x0, *x1;        // their weights
  int32_t *y, *z;        // output y reads source rows y[.] and y[.] + 1; -2 where both are outside
  float *y0, *y1, *z0, *z1;
  float *driving[3], *source[3];  // Gaussian factors along x, y, z
};

struct Tables {
  int64_t width, height, depth, size;  // padded, in floats
  bool heat;
  float* data;

  Tables(const Params& p, bool with_heat) : heat(with_heat), data(nullptr) {
    width = round_up(p.width, 16);
    height = round_up(p.height, 16);
    depth = round_up(p.depth, 16);
    size = 16 + 2 * width + 3 * height + 3 * depth + (heat ? 2 * (width + height + depth) : 0);
  }
  Table at(int64_t index) const {
    float* from = data + index * size;
    Table t;
    int32_t head[2];
    memcpy(head, from, sizeof head);
    t.shift = head[0];
    t.split = head[1];
    from += 16;
    auto take = [&](int64_t count) {
      float* start = from;
      from += count;
      return start;
    };
    t.x0 = take(width), t.x1 = take(width);
    t.y = reinterpret_cast<int32_t*>(take(height)), t.y0 = take(height), t.y1 = take(height);
    t.z = reinterpret_cast<int32_t*>(take(depth)), t.z0 = take(depth), t.z1 = take(depth);
    const int64_t sizes[3] = {width, height, depth};
    for (int i = 0; i < 3; ++i) t.driving[i] = heat ? take(sizes[i]) : nullptr;
    for (int i = 0; i < 3; ++i) t.source[i] = heat ? take(sizes[i]) : nullptr;
    return t;
  }
};

inline void fill_rows(const Axis& axis, double delta, int32_t* first, float* w0, float* w1) {
  for (int64_t i = 0; i < axis.size; ++i) {
    const double at = axis.voxel(i) + delta * axis.scale;
    const bool inside = at > -1.0 && at < static_cast<double>(axis.size);
    const double floor = inside ? __builtin_floor(at) : -2.0;
    first[i] = static_cast<int32_t>(floor);
    w1[i] = inside ? static_cast<float>(at - floor) : 0.0f;
    w0[i] = inside ? static_cast<float>(1.0 - (at - floor)) : 0.0f;
  }
}

inline void fill_gaussian(const Axis& axis, double keypoint, float sigma2, float* out) {
  const int64_t padded = round_up(axis.size, 16);
  const double factor = -1.0 / (2.0 * static_cast<double>(sigma2));
  for (int64_t i = 0; i < padded; ++i) {
    const double offset = axis.coordinate(least(i, axis.size - 1)) - keypoint;
    out[i] = static_cast<float>(offset * offset * factor);
  }
  for (int64_t i = 0; i < padded; i += kLanes) store<kLanes>(out + i, exp_(load<kLanes>(out + i)));
}

void fill_table(const Params& p, const Space& space, const Tables& tables, int64_t index) {
  const int64_t motions = p.keypoints + 1, width = p.width;
  const Motion m = motion_of(p, index / motions, index % motions);
  const Table t = tables.at(index);
  double delta[3];
  for (int i = 0; i < 3; ++i) delta[i] = m.source[i] - m.driving[i];
  fill_rows(space.y, delta[1], t.y, t.y0, t.y1);
  fill_rows(space.z, delta[2], t.z, t.z0, t.z1);

  // Along x, voxels lie scale * 2 / (n - 1) apart, which is 1 or 1 + 1 / (n - 1): the row falls behind the taps by at
  // most one.
  const double start = space.x.voxel(0) + delta[0] * space.x.scale;
  const double limit = static_cast<double>(width) + 2.0;
  const bool outside = !(start > -limit && start < limit);
  const double shift = outside ? limit : __builtin_floor(start);
  const bool broken = is_nan(delta[0]) || is_nan(delta[1]) || is_nan(delta[2]);
  int64_t split = width;
  for (int64_t i = width - 1; i >= 0; --i) {
    const double ahead = space.x.voxel(i) + delta[0] * space.x.scale - static_cast<double>(i) - shift;
    const double step = ahead >= 1.0 ? 1.0 : 0.0;
    if (step > 0.0 && !outside) split = i;
    const double fraction = ahead - step;
    // A motion with a NaN gives NaN everywhere, also where it reads no row.
    t.x0[i] = broken ? __builtin_nanf("") : outside ? 0.0f : static_cast<float>(1.0 - fraction);
    t.x1[i] = broken ? __builtin_nanf("") : outside ? 0.0f : static_cast<float>(fraction);
  }
  for (int64_t i = width; i < tables.width; ++i) t.x0[i] = t.x1[i] = 0.0f;
  const int32_t head[2] = {static_cast<int32_t>(shift), static_cast<int32_t>(split)};
  memcpy(tables.data + index * tables.size, head, sizeof head);
  if (tables.heat && index % motions != 0) {
    const Axis* axes[3] = {&space.x, &space.y, &space.z};
    for (int i = 0; i < 3; ++i) {
      fill_gaussian(*axes[i], m.driving[i], p.sigma2, t.driving[i]);
      fill_gaussian(*axes[i], m.source[i], p.sigma2, t.source[i]);
    }
  }
}

// The source rows, at most four, whose blend along y and z is one row before the warp along x.
struct RowSet {
  int32_t count;
  float weight[4];
  int64_t offset[4];
};

inline RowSet row_set(const Params& p, const Table& t, int64_t z, int64_t y, int64_t stride_z, int64_t stride_y) {
  RowSet rows;
  rows.count = 0;
  for (int64_t dz = 0; dz < 2; ++dz) {
    const int64_t sz = t.z[z] + dz;
    if (sz < 0 || sz >= p.depth) continue;
    for (int64_t dy = 0; dy < 2; ++dy) {
      const int64_t sy = t.y[y] + dy;
      if (sy < 0 || sy >= p.height) continue;
      rows.weight[rows.count] = (dz ? t.z1[z] : t.z0[z]) * (dy ? t.y1[y] : t.y0[y]);
      rows.offset[rows.count++] = sz * stride_z + sy * stride_y;
    }
  }
  return rows;
}

// For G channels, runs[g][i] = sum of weight * row[start + i], zero outside the row; `start` and `length` are multiples
// of kLanes.
template <class T, int N, int G>
inline void blend_rows(const RowSet& rows, const T* base, int64_t stride_c, int64_t start, int64_t length,
                       int64_t width, float* runs) {
  vf weight[N];
  for (int r = 0; r < N; ++r) weight[r] = vf{} + rows.weight[r];
  const int64_t first = least(most(-start, 0), length);
  const int64_t full =
      most(least(length, (width - start) / kLanes * kLanes), first);  // start may lie far right of the row
  const int64_t part = full < length && start + full < width ? width - start - full : 0;
  for (int g = 0; g < G; ++g, base += stride_c, runs += kRun) {
    const T* row[N];
    for (int r = 0; r < N; ++r) row[r] = base + rows.offset[r] + start;
    int64_t i = 0;
    for (; i < first; i += kLanes) store<kLanes>(runs + i, vf{});
    for (; i < full; i += kLanes) {
      vf sum = weight[0] * load<kLanes>(row[0] + i);
      for (int r = 1; r < N; ++r) sum = fma_(weight[r], load<kLanes>(row[r] + i), sum);
      store<kLanes>(runs + i, sum);
    }
    if (part > 0) {
      vf sum = {};
      for (int r = 0; r < N; ++r) sum = fma_(weight[r], load_part<kLanes>(row[r] + i, part), sum);
      store<kLanes>(runs + i, sum);
      i += kLanes;
    }
    for (; i < length; i += kLanes) store<kLanes>(runs + i, vf{});
  }
}

template <class T, int G>
inline void blend(const RowSet& rows, const T* base, int64_t stride_c, int64_t start, int64_t length, int64_t width,
                  float* runs) {
  switch (rows.count) {
    case 4:
      return blend_rows<T, 4, G>(rows, base, stride_c, start, length, width, runs);
    case 2:
      return blend_rows<T, 2, G>(rows, base, stride_c, start, length, width, runs);
    case 1:
      return blend_rows<T, 1, G>(rows, base, stride_c, start, length, width, runs);
    default:
      for (int g = 0; g < G; ++g) {
        for (int64_t i = 0; i < length; i += kLanes) store<kLanes>(runs + g * kRun + i, vf{});
      }
  }
}

// Where the taps of a tile of output voxels [x, x + count) lie in blended rows.
struct Window {
  int64_t start, length;  // the source range of the run
  int64_t lead;           // run[lead + i] is the left tap of voxel x + i
  int64_t split;          // but run[lead + i + 1] from voxel x + split on
};

inline Window window_of(const Table& t, int64_t x, int64_t count) {
  Window w;
  const int64_t left = x + t.shift;
  w.start = (left >= 0 ? left / kLanes : -((-left + kLanes - 1) / kLanes)) * kLanes;
  w.lead = left - w.start;
  w.length = round_up(w.lead + round_up(count, kLanes) + 2, kLanes);
  w.split = t.split - x;
  return w;
}

// Calls body(i, left, right) for every vector of a tile: left(run) and right(run) are the taps of the voxels [i, i +
// kLanes).
template <class Body>
inline void each_pair(const Window& w, int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i < count && i + kLanes <= w.split; i += kLanes) {
    const int64_t at = w.lead + i;
    body(
        i, [at](const float* run) { return load<kLanes>(run + at); },
        [at](const float* run) { return load<kLanes>(run + at + 1); });
  }
  if (i < count && i < w.split) {
    const vi before = lane_index() < static_cast<int32_t>(w.split - i);
    const int64_t at = w.lead + i;
    body(
        i, [=](const float* run) { return before ? load<kLanes>(run + at) : load<kLanes>(run + at + 1); },
        [=](const float* run) { return before ? load<kLanes>(run + at + 1) : load<kLanes>(run + at + 2); });
    i += kLanes;
  }
  for (; i < count; i += kLanes) {
    const int64_t at = w.lead + i;
    body(
        i, [at](const float* run) { return load<kLanes>(run + at + 1); },
        [at](const float* run) { return load<kLanes>(run + at + 2); });
  }
}

// ---- Softmax ----

// The logits of all motions for `count` voxels of a row, [K+1][kTile] as floats.
inline void read_logits(const Params& p, int64_t b, int64_t z, int64_t y, int64_t x, int64_t count, float* to) {
  const int64_t* s = p.logits.stride;
  const int64_t offset = b * s[0] + z * s[2] + y * s[3] + x * s[4];
  for (int64_t k = 0; k <= p.keypoints; ++k) {
    read_row(p.logits.data, p.logits.dtype, offset + k * s[1], s[4], count, to + k * kTile);
  }
}

// Turns logits into exp(logit - max) in place, and gives 1 / sum. Padding lanes hold what they will.
inline void softmax_tile(int64_t motions, int64_t count, float* logits, float* inverse) {
  for (int64_t i = 0; i < count; i += kLanes) {
    vf top = load<kLanes>(logits + i);
    for (int64_t k = 1; k < motions; ++k) top = max_(load<kLanes>(logits + k * kTile + i), top);
    vf sum = {};
    for (int64_t k = 0; k < motions; ++k) {
      const vf e = exp_(load<kLanes>(logits + k * kTile + i) - top);
      sum += e;
      store<kLanes>(logits + k * kTile + i, e);
    }
    store<kLanes>(inverse + i, 1.0f / sum);
  }
}

// ---- Coordinates ----

// Where the voxels of a tile are sampled, relative to themselves and in voxels. That keeps more digits of a small
// motion than a coordinate does. For the op motion_field: the coordinates.
struct Points {
  alignas(64) float x[kTile], y[kTile], z[kTile];
};

// Per axis: the coordinate in [-1, 1], and the background's motion in the units of Points.
struct Grid {
  bool relative;
  float *coordinate[3], *identity[3];
  float* centred[3];  // the voxel's distance from the centre of the axis; 0 if the units are coordinates

  static int64_t floats(const Params& p) { return 3 * (round_up(p.width, 16) + p.height + p.depth); }
  void fill(const Space& space, bool relative_voxels, float* data) {
    relative = relative_voxels;
    const Axis* axes[3] = {&space.x, &space.y, &space.z};
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = *axes[a];
      const int64_t padded = a == 0 ? round_up(axis.size, 16) : axis.size;
      coordinate[a] = data;
      identity[a] = data + padded;
      centred[a] = data + 2 * padded;
      data += 3 * padded;
      for (int64_t i = 0; i < padded; ++i) {
        const int64_t at = least(i, axis.size - 1);
        const double from = axis.coordinate(at);
        coordinate[a][i] = static_cast<float>(from);
        centred[a][i] = static_cast<float>(relative ? static_cast<double>(at) - axis.offset : 0.0);
        identity[a][i] = static_cast<float>(relative ? axis.voxel(at) - static_cast<double>(at) : from);
      }
    }
  }
};

// Along a row a motion is slope * x + constant in each coordinate: in voxels from the centre of the source, or in
// coordinates. A matrix far from the identity makes motions as large as the volume, so they are made relative to their
// voxel only at the end.
struct Line {
  float slope[3], constant[3];
};

inline Line line_of(const Params& p, const Space& space, const Grid& grid, int64_t b, int64_t motion, int64_t z,
                    int64_t y) {
  const Motion m = motion_of(p, b, motion);
  const double from_y = space.y.coordinate(y), from_z = space.z.coordinate(z);
  const double dy = from_y - m.driving[1], dz = from_z - m.driving[2];
  double slope[3], constant[3];
  for (int i = 0; i < 3; ++i) {
    const double* a = m.a + 3 * i;
    slope[i] = a[0];
    constant[i] = a[1] * dy + a[2] * dz - a[0] * m.driving[0] + m.source[i];
  }
  if (grid.relative) {
    const Axis* axes[3] = {&space.x, &space.y, &space.z};
    for (int i = 0; i < 3; ++i) {
      slope[i] *= axes[i]->scale;
      constant[i] *= axes[i]->scale;
    }
  }
  Line line;
  for (int i = 0; i < 3; ++i) {
    line.slope[i] = static_cast<float>(slope[i]);
    line.constant[i] = static_cast<float>(constant[i]);
  }
  return line;
}

// Weighted sums over the motions. They are taken four motions at a time, which halves the rounding of a long chain and
// the wait for it.
template <int kTerms>
struct Blend {
  vf weight, term[kTerms];
  inline void add(vf w, const float* factor, bool first) {
    weight = first ? w : weight + w;
    for (int j = 0; j < kTerms; ++j) {
      term[j] = first ? w * (vf{} + factor[j]) : fma_(w, vf{} + factor[j], term[j]);
    }
  }
};

template <int kTerms>
inline Blend<kTerms> blend_motions(int64_t motions, const float* logits, vf top, const float* factors) {
  Blend<kTerms> total = {};
  for (int64_t k = 0; k < motions; k += 4) {
    Blend<kTerms> part;
    part.add(exp_(load<kLanes>(logits + k * kTile) - top), factors + k * kTerms, true);
    const int64_t end = least(k + 4, motions);
    for (int64_t j = k + 1; j < end; ++j) {
      part.add(exp_(load<kLanes>(logits + j * kTile) - top), factors + j * kTerms, false);
    }
    total.weight += part.weight;
    for (int t = 0; t < kTerms; ++t) total.term[t] += part.term[t];
  }
  return total;
}

// The blended flow of a tile. `scratch` holds [K+1][kTile] logits; `deltas` [K+1][3] the translations in the units of
// the grid, or null: then `lines` [K+1] is filled and used.
inline void flow_tile(const Params& p, const Space& space, const Grid& grid, int64_t b, int64_t z, int64_t y, int64_t x,
                      int64_t count, const float* deltas, Line* lines, float* scratch, Points& to) {
  const int64_t motions = p.keypoints + 1;
  read_logits(p, b, z, y, x, count, scratch);
  if (deltas == nullptr) {
    for (int64_t k = 0; k < motions; ++k) lines[k] = line_of(p, space, grid, b, k, z, y);
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    vf top = load<kLanes>(scratch + i);
    for (int64_t k = 1; k < motions; ++k) top = max_(load<kLanes>(scratch + k * kTile + i), top);
    if (deltas != nullptr) {
      const Blend<3> blend = blend_motions<3>(motions, scratch + i, top, deltas);
      const vf inverse = 1.0f / blend.weight;
      store<kLanes>(to.x + i, fma_(blend.term[0], inverse, load<kLanes>(grid.identity[0] + x + i)));
      store<kLanes>(to.y + i, fma_(blend.term[1], inverse, vf{} + grid.identity[1][y]));
      store<kLanes>(to.z + i, fma_(blend.term[2], inverse, vf{} + grid.identity[2][z]));
    } else {
      const Blend<6> blend = blend_motions<6>(motions, scratch + i, top, lines[0].slope);
      const vf inverse = 1.0f / blend.weight;
      const vf at = load<kLanes>(grid.coordinate[0] + x + i);
      store<kLanes>(to.x + i, fma_(fma_(blend.term[0], at, blend.term[3]), inverse,
                                   vf{} - load<kLanes>(grid.centred[0] + x + i)));
      store<kLanes>(to.y + i, fma_(fma_(blend.term[1], at, blend.term[4]), inverse, vf{} - grid.centred[1][y]));
      store<kLanes>(to.z + i, fma_(fma_(blend.term[2], at, blend.term[5]), inverse, vf{} - grid.centred[2][z]));
    }
  }
}

// ---- Trilinear samples ----

// Corner 0 and the eight weights of every voxel of a tile, x fastest. Where not all corners are inside, `inside` is 0.
struct Taps {
  alignas(64) float weight[8][kTile];
  float broken[kTile];  // 0, or NaN where a coordinate or the mask is
  int32_t x[kTile], y[kTile], z[kTile], inside[kTile];
  int64_t offset[kTile];
};

struct Strides {
  int64_t x, y, z;
};

// Keeps NaN, and bounds the rest to what converts to an integer. A motion beyond the bounds reads no voxel from
// anywhere.
inline vf bounded(vf value, int64_t size) {
  const float limit = static_cast<float>(size) + 2.0f;
  value = value < -limit ? vf{} - limit : value;
  return value > limit ? vf{} + limit : value;
}

// The fraction of a position, and the index of the voxel before it; `from` is what the position is relative to.
inline vf fraction_of(vf value, int64_t size, vi from, vi& index) {
  value = bounded(value, size);
  const vf floor = floor_(value);
  index = __builtin_convertvector(floor == floor ? floor : vf{}, vi) + from;
  return value - floor;
}

template <bool kMasked>
inline void make_taps(const Params& p, const Points& points, int64_t z0, int64_t y0, int64_t x0, int64_t count,
                      const float* mask, Taps& t) {
  const vi lane = lane_index();
  for (int64_t i = 0; i < count; i += kLanes) {
    vi x, y, z;
    const vf fx = fraction_of(load<kLanes>(points.x + i), p.width, lane + static_cast<int32_t>(x0 + i), x);
    const vf fy = fraction_of(load<kLanes>(points.y + i), p.height, vi{} + static_cast<int32_t>(y0), y);
    const vf fz = fraction_of(load<kLanes>(points.z + i), p.depth, vi{} + static_cast<int32_t>(z0), z);
    const vi inside = (x >= 0) & (x < static_cast<int32_t>(p.width - 1)) & (y >= 0) &
                      (y < static_cast<int32_t>(p.height - 1)) & (z >= 0) & (z < static_cast<int32_t>(p.depth - 1));
    const vf m = kMasked ? load<kLanes>(mask + i) : vf{} + 1.0f;
    const vf z1 = kMasked ? fz * m : fz, z0w = m - z1;
    const vf rows[4] = {z0w - z0w * fy, z0w * fy, z1 - z1 * fy, z1 * fy};
    for (int r = 0; r < 4; ++r) {
      const vf right = rows[r] * fx;
      store<kLanes>(t.weight[2 * r] + i, rows[r] - right);
      store<kLanes>(t.weight[2 * r + 1] + i, right);
    }
    store<kLanes>(t.broken + i, (fx + fy + fz) * m * 0.0f);
    memcpy(t.x + i, &x, sizeof x);
    memcpy(t.y + i, &y, sizeof y);
    memcpy(t.z + i, &z, sizeof z);
    memcpy(t.inside + i, &inside, sizeof inside);
  }
}

inline void set_offsets(const Strides& stride, int64_t count, Taps& t) {
  for (int64_t i = 0; i < count; ++i) t.offset[i] = t.z[i] * stride.z + t.y[i] * stride.y + t.x[i] * stride.x;
}

template <class T, int L>
__attribute__((noinline)) void sample_border(const Params& p, const T* base, const Strides& stride, const Taps& t,
                                             int64_t i, float* to) {
  constexpr int N = L < kLanes ? L : kLanes;
  using F = typename VecOf<N>::f;
  F sum[L / N];
  for (int v = 0; v < L / N; ++v) sum[v] = F{} + t.broken[i];
  for (int corner = 0; corner < 8; ++corner) {
    const int64_t x = t.x[i] + (corner & 1), y = t.y[i] + (corner >> 1 & 1), z = t.z[i] + (corner >> 2);
    if (x < 0 || x >= p.width || y < 0 || y >= p.height || z < 0 || z >= p.depth) continue;
    const T* from = base + z * stride.z + y * stride.y + x * stride.x;
    const F weight = F{} + t.weight[corner][i];
    for (int v = 0; v < L / N; ++v) sum[v] = fma_<N>(weight, load<N>(from + v * N), sum[v]);
  }
  for (int v = 0; v < L / N; ++v) store<N>(to + v * N, load<N>(to + v * N) + sum[v]);
}

// to[count][L] (+)= the samples of L channels that lie next to each other.
template <class T, int L, bool kAdd>
inline void sample_tile(const Params& p, const T* base, const Strides& stride, const Taps& t, int64_t count,
                        float* to) {
  constexpr int N = L < kLanes ? L : kLanes;
  using F = typename VecOf<N>::f;
  for (int64_t i = 0; i < count; ++i, to += L) {
    if (!t.inside[i]) {
      if (!kAdd) memset(to, 0, L * sizeof(float));
      sample_border<T, L>(p, base, stride, t, i, to);
      continue;
    }
    const T* from = base + t.offset[i];
    const T* corner[4] = {from, from + stride.y, from + stride.z, from + stride.z + stride.y};
    F weight[8];
    for (int c = 0; c < 8; ++c) weight[c] = F{} + t.weight[c][i];
    for (int v = 0; v < L / N; ++v) {
      F low = kAdd ? load<N>(to + v * N) : F{}, high = {};
      for (int c = 0; c < 4; ++c) {
        low = fma_<N>(weight[2 * c], load<N>(corner[c] + v * N), low);
        high = fma_<N>(weight[2 * c + 1], load<N>(corner[c] + stride.x + v * N), high);
      }
      store<N>(to + v * N, low + high);
    }
  }
}

// One channel, any strides: for the up to three channels that fill no vector.
template <class T, bool kAdd>
inline void sample_channel(const Params& p, const T* base, const Strides& stride, const Taps& t, int64_t count,
                           float* to) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = kAdd ? to[i] + t.broken[i] : t.broken[i];
    for (int corner = 0; corner < 8; ++corner) {
      const int64_t x = t.x[i] + (corner & 1), y = t.y[i] + (corner >> 1 & 1), z = t.z[i] + (corner >> 2);
      if (!t.inside[i] && (x < 0 || x >= p.width || y < 0 || y >= p.height || z < 0 || z >= p.depth)) continue;
      sum += t.weight[corner][i] * to_float(base[z * stride.z + y * stride.y + x * stride.x]);
    }
    to[i] = sum;
  }
}

// from[count][L] to to[L][kTile].
template <int L>
inline void transpose_tile(const float* from, int64_t count, float* to) {
  constexpr int N = L < kLanes ? L : kLanes;
  for (int64_t i = 0; i < count; i += N) {
    for (int v = 0; v < L; v += N) {
      typename VecOf<N>::f block[N];
      for (int j = 0; j < N; ++j) block[j] = load<N>(from + (i + j) * L + v);
      transpose<N>(block);
      for (int j = 0; j < N; ++j) store<N>(to + (v + j) * kTile + i, block[j]);
    }
  }
}

// Writes L channels of a tile, times `scale` [kTile] unless that is null. `tile` has room for whole blocks.
template <class T, int L>
inline void emit_tile(const float* tile, const float* scale, int64_t count, T* out, int64_t stride_c,
                      int64_t stride_x) {
  if (stride_c == 1) {
    constexpr int N = L < kLanes ? L : kLanes;
    for (int64_t i = 0; i < count; ++i) {
      for (int v = 0; v < L; v += N) {
        typename VecOf<N>::f value = load<N>(tile + i * L + v);
        if (scale != nullptr) value *= scale[i];
        store<N>(out + i * stride_x + v, value);
      }
    }
    return;
  }
  alignas(64) float rows[L * kTile];
  transpose_tile<L>(tile, count, rows);
  for (int c = 0; c < L; ++c) {
    if (scale != nullptr) {
      for (int64_t i = 0; i < count; i += kLanes) {
        store<kLanes>(rows + c * kTile + i, load<kLanes>(rows + c * kTile + i) * load<kLanes>(scale + i));
      }
    }
    write_row(rows + c * kTile, out + c * stride_c, stride_x, count);
  }
}

// Copies one row of L channels so that they lie next to each other; channels from `real` on are zero.
template <class T, int L>
inline void interleave_row(const T* from, int64_t stride_c, int64_t stride_x, int64_t real, int64_t width, T* to) {
  int64_t x = 0;
  if constexpr (sizeof(T) == 4) {
    constexpr int N = L < kLanes ? L : kLanes;
    if (stride_x == 1 && real == L) {
      for (; x + N <= width; x += N) {
        for (int v = 0; v < L; v += N) {
          typename VecOf<N>::f block[N];
          for (int j = 0; j < N; ++j) block[j] = load<N>(from + (v + j) * stride_c + x);
          transpose<N>(block);
          for (int j = 0; j < N; ++j) store<N>(to + (x + j) * L + v, block[j]);
        }
      }
    }
  }
  for (; x < width; ++x) {
    for (int64_t c = 0; c < L; ++c) to[x * L + c] = c < real ? from[c * stride_c + x * stride_x] : T{};
  }
}

// ---- The ops ----

// Runs a body with L as a constant of 4, 8 or 16.
template <class Body>
inline void with_lanes(int lanes, const Body& body) {
  if (lanes == 16) {
    body(Int<16>{});
  } else if (lanes == 8) {
    body(Int<8>{});
  } else {
    body(Int<4>{});
  }
}

inline int lanes_for(int64_t channels) { return channels > 8 ? 16 : channels > 4 ? 8 : 4; }

// A block of rows of one image: tasks are numbered so that neighbours in memory follow each other.
struct Blocks {
  int64_t rows, per_plane, across, depth;
  Blocks(const Params& p, int64_t rows_of_block)
      : rows(rows_of_block),
        per_plane((p.height + rows - 1) / rows),
        across((p.width + kTile - 1) / kTile),
        depth(p.depth) {}
  int64_t count() const { return depth * per_plane * across; }
  void at(const Params& p, int64_t index, int64_t& z, int64_t& y, int64_t& ny, int64_t& x, int64_t& nx) const {
    x = index % across * kTile;
    index /= across;
    y = index % per_plane * rows;
    z = index / per_plane;
    nx = least(kTile, p.width - x);
    ny = least(rows, p.height - y);
  }
};

template <class T>
struct Planes {
  const T* data;
  int64_t b, c, z, y;  // strides; rows are contiguous
};

// Copies one row of `count` channels so that each channel's voxels lie next to each other.
template <class T>
inline void planar_row(const T* from, int64_t from_c, int64_t from_x, int64_t count, int64_t width, T* to,
                       int64_t to_c) {
  int64_t x = 0;
  if constexpr (sizeof(T) == 4) {
    if (from_c == 1) {
      const int64_t blocks = count / kLanes * kLanes;
      for (; x + kLanes <= width; x += kLanes) {
        for (int64_t c = 0; c < blocks; c += kLanes) {
          vf block[kLanes];
          for (int j = 0; j < kLanes; ++j) block[j] = load<kLanes>(from + (x + j) * from_x + c);
          transpose<kLanes>(block);
          for (int j = 0; j < kLanes; ++j) store<kLanes>(to + (c + j) * to_c + x, block[j]);
        }
        for (int64_t c = blocks; c < count; ++c) {
          for (int64_t j = x; j < x + kLanes; ++j) to[c * to_c + j] = from[j * from_x + c];
        }
      }
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t j = x; j < width; ++j) to[c * to_c + j] = from[c * from_c + j * from_x];
  }
}

// The same for [begin, end) channels of all images, shared out among the threads of the region it is called from.
template <class T>
inline void copy_planar(const Params& p, int64_t begin, int64_t end, int64_t images_apart, T* to) {
  const int64_t* s = p.feature.stride;
  const int64_t plane = p.height * p.width, volume = plane * p.depth;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < p.batch * p.depth * p.height; ++i) {
    const int64_t y = i % p.height, z = i / p.height % p.depth, b = i / p.height / p.depth;
    const T* from = static_cast<const T*>(p.feature.data) + b * s[0] + begin * s[1] + z * s[2] + y * s[3];
    planar_row(from, s[1], s[4], end - begin, p.width, to + b * images_apart + z * plane + y * p.width, volume);
  }
}

// How the rows of an output are written.
struct Sink {
  int64_t stride_x;
  bool streamed;  // past the caches; the caller has checked the alignment of every row

  // Row voxels [i, i + kLanes) of `count`.
  template <class T>
  inline void put(T* row, int64_t i, int64_t count, vf value) const {
    if (streamed) {
      stream<kLanes>(row + i, value);
    } else if (stride_x == 1) {
      if (i + kLanes <= count) {
        store<kLanes>(row + i, value);
      } else {
        store_part<kLanes>(row + i, value, count - i);
      }
    } else {
      T part[kLanes];
      store<kLanes>(part, value);
      const int64_t n = least(kLanes, count - i);
      for (int64_t j = 0; j < n; ++j) row[(i + j) * stride_x] = part[j];
    }
  }

  // The same voxels of G channels. Where the channels are neighbours in memory they are written together.
  template <int G, class T>
  inline void put_group(T* row, int64_t stride_c, int64_t i, int64_t count, const vf (&values)[G]) const {
    if constexpr (G == 4) {
      if (stride_c == 1 && stride_x != 1) {
        alignas(64) float lanes[G * kLanes];
        for (int g = 0; g < G; ++g) store<kLanes>(lanes + g * kLanes, values[g]);
        for (int64_t j = 0; j < kLanes; j += 4) {
          VecOf<4>::f block[4];
          for (int g = 0; g < G; ++g) block[g] = load<4>(lanes + g * kLanes + j);
          transpose<4>(block);
          const int64_t n = least(4, count - i - j);
          for (int64_t v = 0; v < n; ++v) store<4>(row + (i + j + v) * stride_x, block[v]);
        }
        return;
      }
    }
    for (int g = 0; g < G; ++g) put(row + g * stride_c, i, count, values[g]);
  }
};

// An output larger than the caches has left them before anybody reads it.
template <class T>
inline bool may_stream(const Params& p, int64_t channels) {
  constexpr int64_t kFromBytes = 4 << 20;
  constexpr int64_t kAlign = 64;
  const int64_t* so = p.out.stride;
  const int64_t size = sizeof(T);
  const bool aligned = (reinterpret_cast<intptr_t>(p.out.data) | (so[0] * size) | (so[1] * size) | (so[2] * size) |
                        (so[3] * size) | (p.width * size)) %
                           kAlign ==
                       0;
  return aligned && so[4] == 1 && p.batch * channels * p.depth * p.height * p.width * size >= kFromBytes;
}

// One block of the heatmap of a motion: the difference of two products of Gaussian factors.
template <class T>
inline void pack_heat(const Params& p, const Table& t, int64_t k, int64_t z, int64_t y0, int64_t ny, int64_t x,
                      int64_t nx, const Sink& sink, T* out) {
  const int64_t* so = p.out.stride;
  for (int64_t y = y0; y < y0 + ny; ++y) {
    T* row = out + z * so[2] + y * so[3] + x * so[4];
    if (k == 0) {
      for (int64_t i = 0; i < nx; i += kLanes) sink.put(row, i, nx, vf{});
    } else {
      const float driving = t.driving[1][y] * t.driving[2][z], source = t.source[1][y] * t.source[2][z];
      for (int64_t i = 0; i < nx; i += kLanes) {
        const vf d = load<kLanes>(t.driving[0] + x + i) * driving, s = load<kLanes>(t.source[0] + x + i) * source;
        sink.put(row, i, nx, d - s);
      }
    }
  }
}

// G channels of a block of a motion's warped volume.
template <class T, int G>
inline void pack_warped(const Params& p, const Table& t, const Planes<T>& planes, const T* base, int64_t z, int64_t y0,
                        int64_t ny, int64_t x, int64_t nx, const Sink& sink, float* runs, T* out) {
  const int64_t* so = p.out.stride;
  const Window w = window_of(t, x, nx);
  for (int64_t y = y0; y < y0 + ny; ++y) {
    const RowSet set = row_set(p, t, z, y, planes.z, planes.y);
    blend<T, G>(set, base, planes.c, w.start, w.length, p.width, runs);
    T* row = out + z * so[2] + y * so[3] + x * so[4];
    each_pair(w, nx, [&](int64_t i, const auto& left, const auto& right) {
      const vf x0 = load<kLanes>(t.x0 + x + i), x1 = load<kLanes>(t.x1 + x + i);
      vf values[G];
      for (int g = 0; g < G; ++g) values[g] = fma_(x1, right(runs + g * kRun), x0 * left(runs + g * kRun));
      sink.template put_group<G>(row, so[1], i, nx, values);
    });
  }
}

template <class T>
bool pack_translations(const Params& p, int threads) {
  const Space space(p);
  const int64_t motions = p.keypoints + 1, images = p.batch * motions;
  const int64_t plane = p.height * p.width, volume = plane * p.depth;
  Tables tables(p, true);
  const bool copy = p.feature.stride[4] != 1 && p.width > 1;
  Buffer table_data(static_cast<size_t>(images * tables.size) * sizeof(float));
  Buffer copied(copy ? static_cast<size_t>(p.batch * p.channels * volume) * sizeof(T) : 0);
  if (table_data.data == nullptr || copied.data == nullptr) return false;
  tables.data = reinterpret_cast<float*>(table_data.data);
  Planes<T> planes = {static_cast<const T*>(p.feature.data), p.feature.stride[0], p.feature.stride[1],
                      p.feature.stride[2], p.feature.stride[3]};
  if (copy) planes = {reinterpret_cast<T*>(copied.data), p.channels * volume, volume, plane, p.width};

  // Rows that are contiguous in the output are written one motion after the other; in channels_last the motions of a
  // row are neighbours, so one task writes them all.
  const int64_t* so = p.out.stride;
  const bool by_motion = so[4] == 1;
  const Sink sink = {so[4], may_stream<T>(p, motions * (p.channels + 1))};
  const Blocks blocks(p, by_motion ? kMaxRows : 1);
  const int64_t tasks = blocks.count() * (by_motion ? images : p.batch);
  const int64_t work = images * (p.channels + 1) * volume;
  const int used = team(threads, work);
  const int64_t step = grain(tasks, used);
#pragma omp parallel num_threads(used)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < images; ++i) fill_table(p, space, tables, i);
    if (copy) copy_planar(p, 0, p.channels, p.channels * volume, reinterpret_cast<T*>(copied.data));
    alignas(64) float runs[kGroup * kRun];
#pragma omp for schedule(dynamic, step)
    for (int64_t i = 0; i < tasks; ++i) {
      int64_t z, y, ny, x, nx;
      blocks.at(p, i % blocks.count(), z, y, ny, x, nx);
      const int64_t first = i / blocks.count() * (by_motion ? 1 : motions);
      for (int64_t image = first; image < first + (by_motion ? 1 : motions); ++image) {
        const int64_t b = image / motions, k = image % motions;
        const Table t = tables.at(image);
        T* out = static_cast<T*>(p.out.data) + b * so[0] + k * (p.channels + 1) * so[1];
        pack_heat(p, t, k, z, y, ny, x, nx, sink, out);
        int64_t c = 0;
        for (; c + kGroup <= p.channels; c += kGroup) {
          const T* base = planes.data + b * planes.b + c * planes.c;
          pack_warped<T, kGroup>(p, t, planes, base, z, y, ny, x, nx, sink, runs, out + (c + 1) * so[1]);
        }
        for (; c < p.channels; ++c) {
          const T* base = planes.data + b * planes.b + c * planes.c;
          pack_warped<T, 1>(p, t, planes, base, z, y, ny, x, nx, sink, runs, out + (c + 1) * so[1]);
        }
      }
    }
    fence_streams();
  }
  return true;
}

// A motion that is no translation: coordinates are affine along a row.
inline void affine_points(const Line& line, const Grid& grid, int64_t z, int64_t y, int64_t x, int64_t count,
                          Points& to) {
  float* axes[3] = {to.x, to.y, to.z};
  for (int a = 0; a < 3; ++a) {
    const vf slope = vf{} + line.slope[a], constant = vf{} + line.constant[a];
    const int64_t row = a == 1 ? y : z;
    for (int64_t i = 0; i < count; i += kLanes) {
      const vf at = a == 0 ? load<kLanes>(grid.centred[0] + x + i) : vf{} + grid.centred[a][row];
      store<kLanes>(axes[a] + i, fma_(load<kLanes>(grid.coordinate[0] + x + i), slope, constant) - at);
    }
  }
}

template <class T>
bool pack_affine(const Params& p, int threads) {
  const Space space(p);
  const int64_t motions = p.keypoints + 1, images = p.batch * motions;
  const int64_t plane = p.height * p.width, volume = plane * p.depth;
  const int64_t padded = p.channels / 16 * 16 + (p.channels % 16 ? lanes_for(p.channels % 16) : 0);
  Tables tables(p, true);
  Buffer table_data(static_cast<size_t>(images * tables.size) * sizeof(float));
  Buffer grid_data(static_cast<size_t>(Grid::floats(p)) * sizeof(float));
  Buffer copied(static_cast<size_t>(p.batch * padded * volume) * sizeof(T));
  if (table_data.data == nullptr || grid_data.data == nullptr || copied.data == nullptr) return false;
  tables.data = reinterpret_cast<float*>(table_data.data);
  Grid grid;
  grid.fill(space, true, reinterpret_cast<float*>(grid_data.data));
  T* const copy = reinterpret_cast<T*>(copied.data);

  const int64_t* so = p.out.stride;
  const int64_t* sf = p.feature.stride;
  const bool by_motion = so[4] == 1;
  const Blocks blocks(p, by_motion ? kMaxRows : 1);
  const int64_t tasks = blocks.count() * (by_motion ? images : p.batch);
  const int used = team(threads, images * (p.channels + 1) * volume);
  const int64_t step = grain(tasks, used);
#pragma omp parallel num_threads(used)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < images; ++i) fill_table(p, space, tables, i);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.batch * p.depth * p.height; ++i) {
      const int64_t y = i % p.height, z = i / p.height % p.depth, b = i / p.height / p.depth;
      for (int64_t c = 0; c < p.channels; c += 16) {
        const int64_t real = least(16, p.channels - c);
        with_lanes(lanes_for(real), [&](auto l) {
          constexpr int L = decltype(l)::value;
          const T* from = static_cast<const T*>(p.feature.data) + b * sf[0] + c * sf[1] + z * sf[2] + y * sf[3];
          T* to = copy + b * padded * volume + c * volume + (z * plane + y * p.width) * L;
          interleave_row<T, L>(from, sf[1], sf[4], real, p.width, to);
        });
      }
    }
    Points points;
    Taps taps;
    alignas(64) float tile[kTile * kMaxChunk], rows[kTile * kMaxChunk];
#pragma omp for schedule(dynamic, step)
    for (int64_t i = 0; i < tasks; ++i) {
      int64_t z, y0, ny, x, nx;
      blocks.at(p, i % blocks.count(), z, y0, ny, x, nx);
      const int64_t first = i / blocks.count() * (by_motion ? 1 : motions);
      for (int64_t image = first; image < first + (by_motion ? 1 : motions); ++image) {
        const int64_t b = image / motions, k = image % motions;
        T* out = static_cast<T*>(p.out.data) + b * so[0] + k * (p.channels + 1) * so[1];
        pack_heat(p, tables.at(image), k, z, y0, ny, x, nx, {so[4], false}, out);
        for (int64_t y = y0; y < y0 + ny; ++y) {
          const Line line = line_of(p, space, grid, b, k, z, y);
          affine_points(line, grid, z, y, x, nx, points);
          make_taps<false>(p, points, z, y, x, nx, nullptr, taps);
          T* to = out + so[1] + z * so[2] + y * so[3] + x * so[4];
          for (int64_t c = 0; c < p.channels; c += 16) {
            const int64_t real = least(16, p.channels - c);
            with_lanes(lanes_for(real), [&](auto l) {
              constexpr int L = decltype(l)::value;
              const Strides stride = {L, L * p.width, L * plane};
              set_offsets(stride, nx, taps);
              sample_tile<T, L, false>(p, copy + b * padded * volume + c * volume, stride, taps, nx, tile);
              if (real == L) {
                emit_tile<T, L>(tile, nullptr, nx, to + c * so[1], so[1], so[4]);
              } else {
                transpose_tile<L>(tile, nx, rows);
                for (int64_t r = 0; r < real; ++r) write_row(rows + r * kTile, to + (c + r) * so[1], so[4], nx);
              }
            });
          }
        }
      }
    }
  }
  return true;
}

inline void fill_deltas(const Params& p, const Space& space, bool in_voxels, float* deltas) {
  const int64_t motions = p.keypoints + 1;
  const double scale[3] = {space.x.scale, space.y.scale, space.z.scale};
  for (int64_t i = 0; i < p.batch * motions; ++i) {
    const Motion m = motion_of(p, i / motions, i % motions);
    for (int a = 0; a < 3; ++a) {
      deltas[3 * i + a] = static_cast<float>((m.source[a] - m.driving[a]) * (in_voxels ? scale[a] : 1.0));
    }
  }
}

bool motion_field(const Params& p, int threads) {
  const Space space(p);
  const int64_t motions = p.keypoints + 1;
  const int used = team(threads, p.batch * motions * p.depth * p.height * p.width);
  const int64_t scratch_size = round_up(motions * kTile + motions * 6, 16);
  Buffer grid_data(static_cast<size_t>(Grid::floats(p) + p.batch * motions * 3) * sizeof(float));
  Buffer scratch_data(static_cast<size_t>(used * scratch_size) * sizeof(float));
  if (grid_data.data == nullptr || scratch_data.data == nullptr) return false;
  Grid grid;
  grid.fill(space, false, reinterpret_cast<float*>(grid_data.data));
  float* deltas = nullptr;
  if (p.linear == nullptr) {
    deltas = reinterpret_cast<float*>(grid_data.data) + Grid::floats(p);
    fill_deltas(p, space, false, deltas);
  }
  const Blocks blocks(p, 1);
  const int64_t tasks = p.batch * blocks.count(), step = grain(tasks, used);
  const int64_t* so = p.out.stride;
  int next = 0;
#pragma omp parallel num_threads(used)
  {
    int me;
#pragma omp atomic capture
    me = next++;
    float* scratch = reinterpret_cast<float*>(scratch_data.data) + me * scratch_size;
    Line* lines = reinterpret_cast<Line*>(scratch + motions * kTile);
    Points points;
#pragma omp for schedule(dynamic, step)
    for (int64_t i = 0; i < tasks; ++i) {
      int64_t z, y, ny, x, nx;
      blocks.at(p, i % blocks.count(), z, y, ny, x, nx);
      const int64_t b = i / blocks.count();
      const float* d = deltas == nullptr ? nullptr : deltas + b * motions * 3;
      flow_tile(p, space, grid, b, z, y, x, nx, d, lines, scratch, points);
      float* to = static_cast<float*>(p.out.data) + b * so[0] + z * so[2] + y * so[3] + x * so[4];
      const float* axes[3] = {points.x, points.y, points.z};
      for (int a = 0; a < 3; ++a) write_row(axes[a], to + a * so[1], so[4], nx);
    }
  }
  return true;
}

// How the channels of a composed volume are cut: `lanes` at a time while that many are left, then 8, then 4, then
// single ones.
struct Cut {
  bool
      copy;  // chunks are copied so that their channels lie next to each other; else the feature is laid out so already
  bool flow;   // and the flow is kept from the first chunk for the others
  int lanes;   // of the largest chunk; 0 if every channel is sampled by itself
  int passes;  // 1 if no copy is needed
};

inline int64_t chunk_lanes(int64_t left, int64_t most) {
  for (int64_t lanes = most; lanes >= 4; lanes /= 2) {
    if (left >= lanes) return lanes;
  }
  return 0;
}

inline Cut cut_channels(const Params& p, int64_t element, bool keep_flow) {
  const int64_t channels = p.channels, voxels = p.depth * p.height * p.width;
  Cut cut = {false, false, 16, 1};
  if (p.feature.stride[1] == 1) return cut;
  cut.copy = true;
  for (cut.lanes = 16; cut.lanes >= 4; cut.lanes /= 2) {
    cut.passes = 0;
    for (int64_t c = 0; c < channels; ++cut.passes) {
      const int64_t lanes = chunk_lanes(channels - c, cut.lanes);
      if (lanes == 0) break;
      c += lanes;
    }
    cut.flow = keep_flow && cut.passes > 1;
    const int64_t per_voxel = least(cut.lanes, channels) * element + (cut.flow ? 12 : 0);
    // The scratch may be no larger than the output; below a mebibyte nobody minds.
    const bool fits = per_voxel <= channels * element || p.batch * voxels * per_voxel <= (1 << 20);
    if (cut.passes > 0 && fits) return cut;
  }
  return {false, false, 0, 1};
}

template <class T>
bool compose_sampled(const Params& p, bool volumes, int threads) {
  const Space space(p);
  const int64_t motions = p.keypoints + 1, channels = p.channels;
  const int64_t plane = p.height * p.width, volume = plane * p.depth;
  const int64_t* so = p.out.stride;
  const int64_t* sf = p.feature.stride;
  const T* const feature = static_cast<const T*>(p.feature.data);
  const Cut cut = cut_channels(p, sizeof(T), !volumes);
  const int used = team(threads, p.batch * volume * (volumes ? motions * channels : motions + channels));

  const int64_t tiles_size = volumes ? channels * kTile : kMaxChunk * kTile;
  const int64_t scratch_size = round_up(motions * kTile + motions * 6, 16) + tiles_size;
  const int64_t copied_lanes = cut.copy ? chunk_lanes(channels, cut.lanes) : 0;
  Buffer grid_data(static_cast<size_t>(Grid::floats(p) + p.batch * motions * 3) * sizeof(float));
  Buffer scratch_data(static_cast<size_t>(used * scratch_size) * sizeof(float));
  Buffer copied(static_cast<size_t>(p.batch * copied_lanes * volume) * sizeof(T));
  Buffer flow_data(cut.flow ? static_cast<size_t>(p.batch * volume * 3) * sizeof(float) : 0);
  if (grid_data.data == nullptr || scratch_data.data == nullptr || copied.data == nullptr ||
      flow_data.data == nullptr) {
    return false;
  }
  Grid grid;
  grid.fill(space, true, reinterpret_cast<float*>(grid_data.data));
  float* deltas = nullptr;
  if (p.linear == nullptr) {
    deltas = reinterpret_cast<float*>(grid_data.data) + Grid::floats(p);
    fill_deltas(p, space, true, deltas);
  }
  T* const copy = reinterpret_cast<T*>(copied.data);
  float* const flow = reinterpret_cast<float*>(flow_data.data);
  const Blocks blocks(p, 1);
  const int64_t tasks = p.batch * blocks.count(), step = grain(tasks, used);
  const Strides own = {sf[4], sf[3], sf[2]};
  int next = 0;

#pragma omp parallel num_threads(used)
  {
    int me;
#pragma omp atomic capture
    me = next++;
    float* const scratch = reinterpret_cast<float*>(scratch_data.data) + me * scratch_size;
    Line* const lines = reinterpret_cast<Line*>(scratch + motions * kTile);
    float* const tiles = scratch + round_up(motions * kTile + motions * 6, 16);
    Points points;
    Taps taps;
    alignas(64) float inverse[kTile], occlusion[kTile];
    int64_t begin = 0;  // the first channel of the pass
    for (int pass = 0; pass < cut.passes; ++pass) {
      const bool last = pass + 1 == cut.passes;
      const int64_t lanes = cut.copy ? chunk_lanes(channels - begin, cut.lanes) : 0;
      const int64_t end = last ? channels : begin + lanes;
      if (cut.copy) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.batch * p.depth * p.height; ++i) {
          const int64_t y = i % p.height, z = i / p.height % p.depth, b = i / p.height / p.depth;
          const T* from = feature + b * sf[0] + begin * sf[1] + z * sf[2] + y * sf[3];
          T* to = copy + (b * volume + z * plane + y * p.width) * lanes;
          with_lanes(static_cast<int>(lanes), [&](auto l) {
            constexpr int L = decltype(l)::value;
            interleave_row<T, L>(from, sf[1], sf[4], L, p.width, to);
          });
        }
      }
#pragma omp for schedule(dynamic, step)
      for (int64_t i = 0; i < tasks; ++i) {
        int64_t z, y, ny, x, nx;
        blocks.at(p, i % blocks.count(), z, y, ny, x, nx);
        const int64_t b = i / blocks.count();
        T* const out = static_cast<T*>(p.out.data) + b * so[0] + z * so[2] + y * so[3] + x * so[4];
        const float* scale = nullptr;
        if (p.occlusion.data != nullptr) {
          const int64_t* s = p.occlusion.stride;
          read_row(static_cast<const T*>(p.occlusion.data) + b * s[0] + y * s[2] + x * s[3], s[3], nx, occlusion);
          scale = occlusion;
        }

        // Every chunk of the pass: the lanes, where its voxels begin, and their strides.
        auto each_chunk = [&](const auto& body) {
          for (int64_t c = begin; c < end;) {
            const bool copied_chunk = cut.copy && c == begin;
            const int64_t n = cut.lanes == 0 ? 0 : copied_chunk ? lanes : cut.copy ? 0 : chunk_lanes(end - c, 16);
            const Strides stride = copied_chunk ? Strides{n, n * p.width, n * plane} : own;
            body(c, static_cast<int>(n), copied_chunk ? copy + b * volume * n : feature + b * sf[0] + c * sf[1],
                 stride);
            c += n == 0 ? 1 : n;
          }
        };
        if (!volumes) {
          const int64_t at = b * volume + z * plane + y * p.width + x;
          float* axes[3] = {points.x, points.y, points.z};
          if (pass == 0) {
            const float* d = deltas == nullptr ? nullptr : deltas + b * motions * 3;
            flow_tile(p, space, grid, b, z, y, x, nx, d, lines, scratch, points);
            for (int a = 0; a < 3 && cut.flow; ++a) write_row(axes[a], flow + a * p.batch * volume + at, 1, nx);
          } else {
            for (int a = 0; a < 3; ++a) read_row(flow + a * p.batch * volume + at, 1, nx, axes[a]);
          }
          make_taps<false>(p, points, z, y, x, nx, nullptr, taps);
          if (!cut.copy) set_offsets(own, nx, taps);
          each_chunk([&](int64_t c, int n, const T* base, const Strides& stride) {
            if (n == 0) {
              sample_channel<T, false>(p, base, stride, taps, nx, tiles);
              for (int64_t j = 0; j < nx && scale != nullptr; ++j) tiles[j] *= scale[j];
              write_row(tiles, out + c * so[1], so[4], nx);
              return;
            }
            if (cut.copy) set_offsets(stride, nx, taps);
            with_lanes(n, [&](auto l) {
              constexpr int L = decltype(l)::value;
              sample_tile<T, L, false>(p, base, stride, taps, nx, tiles);
              emit_tile<T, L>(tiles, scale, nx, out + c * so[1], so[1], so[4]);
            });
          });
          continue;
        }

        read_logits(p, b, z, y, x, nx, scratch);
        softmax_tile(motions, nx, scratch, inverse);
        if (scale != nullptr) {
          for (int64_t j = 0; j < nx; ++j) inverse[j] *= occlusion[j];
        }
        memset(tiles, 0, static_cast<size_t>((end - begin) * kTile) * sizeof(float));
        for (int64_t k = 0; k < motions; ++k) {
          affine_points(line_of(p, space, grid, b, k, z, y), grid, z, y, x, nx, points);
          make_taps<true>(p, points, z, y, x, nx, scratch + k * kTile, taps);
          if (!cut.copy) set_offsets(own, nx, taps);
          each_chunk([&](int64_t c, int n, const T* base, const Strides& stride) {
            float* tile = tiles + (c - begin) * kTile;
            if (n == 0) return sample_channel<T, true>(p, base, stride, taps, nx, tile);
            if (cut.copy) set_offsets(stride, nx, taps);
            with_lanes(n, [&](auto l) { sample_tile<T, decltype(l)::value, true>(p, base, stride, taps, nx, tile); });
          });
        }
        each_chunk([&](int64_t c, int n, const T*, const Strides&) {
          float* tile = tiles + (c - begin) * kTile;
          if (n == 0) {
            for (int64_t j = 0; j < nx; ++j) tile[j] *= inverse[j];
            return write_row(tile, out + c * so[1], so[4], nx);
          }
          with_lanes(
              n, [&](auto l) { emit_tile<T, decltype(l)::value>(tile, inverse, nx, out + c * so[1], so[1], so[4]); });
        });
      }
      begin = end;
    }
  }
  return true;
}

template <class T>
bool compose_translated_volumes(const Params& p, int threads) {
  const Space space(p);
  const int64_t motions = p.keypoints + 1, images = p.batch * motions, channels = p.channels;
  const int64_t plane = p.height * p.width, volume = plane * p.depth;
  const int64_t* so = p.out.stride;
  const int64_t* sf = p.feature.stride;
  const int used = team(threads, p.batch * volume * motions * channels);

  // Fewer rows a block for many motions, so that a block's masks stay in the cache.
  const int64_t rows = most(1, least(kMaxRows, 32768 / (motions * kTile)));
  const Blocks blocks(p, rows);
  const int64_t set_bytes = round_up(static_cast<int64_t>(sizeof(RowSet)) * motions * rows, 64);
  const int64_t scratch_bytes = set_bytes + static_cast<int64_t>(sizeof(float)) * motions * rows * kTile;

  // A copy is cut in two, so that it is smaller than the output.
  const bool copy = sf[4] != 1 && p.width > 1;
  const int64_t chunk = copy ? most(1, (channels + 1) / 2) : channels;
  Tables tables(p, false);
  Buffer table_data(static_cast<size_t>(images * tables.size) * sizeof(float));
  Buffer scratch_data(static_cast<size_t>(used * scratch_bytes));
  Buffer copied(copy ? static_cast<size_t>(p.batch * chunk * volume) * sizeof(T) : 0);
  if (table_data.data == nullptr || scratch_data.data == nullptr || copied.data == nullptr) return false;
  tables.data = reinterpret_cast<float*>(table_data.data);
  Planes<T> planes = {static_cast<const T*>(p.feature.data), sf[0], sf[1], sf[2], sf[3]};
  if (copy) planes = {reinterpret_cast<T*>(copied.data), chunk * volume, volume, plane, p.width};
  const Sink sink = {so[4], false};
  const int64_t tasks = p.batch * blocks.count(), step = grain(tasks, used);
  int next = 0;

#pragma omp parallel num_threads(used)
  {
    int me;
#pragma omp atomic capture
    me = next++;
    RowSet* const sets = reinterpret_cast<RowSet*>(scratch_data.data + me * scratch_bytes);
    float* const masks =
        reinterpret_cast<float*>(scratch_data.data + me * scratch_bytes + set_bytes);  // [rows][K+1][kTile]
    alignas(64) float runs[kGroup * kRun], sums[kGroup * kMaxRows * kTile], scale[kMaxRows * kTile], occlusion[kTile];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < images; ++i) fill_table(p, space, tables, i);
    for (int64_t begin = 0; begin < channels; begin += chunk) {
      const int64_t end = least(channels, begin + chunk);
      if (copy) copy_planar(p, begin, end, chunk * volume, reinterpret_cast<T*>(copied.data));
#pragma omp for schedule(dynamic, step)
      for (int64_t i = 0; i < tasks; ++i) {
        int64_t z, y0, ny, x, nx;
        blocks.at(p, i % blocks.count(), z, y0, ny, x, nx);
        const int64_t b = i / blocks.count();
        for (int64_t r = 0; r < ny; ++r) {
          float* const mask = masks + r * motions * kTile;
          read_logits(p, b, z, y0 + r, x, nx, mask);
          softmax_tile(motions, nx, mask, scale + r * kTile);
          if (p.occlusion.data != nullptr) {
            const int64_t* s = p.occlusion.stride;
            const T* from = static_cast<const T*>(p.occlusion.data) + b * s[0] + (y0 + r) * s[2] + x * s[3];
            read_row(from, s[3], nx, occlusion);
            for (int64_t j = 0; j < nx; ++j) scale[r * kTile + j] *= occlusion[j];
          }
        }
        for (int64_t k = 0; k < motions; ++k) {
          const Table t = tables.at(b * motions + k);
          for (int64_t r = 0; r < ny; ++r) sets[k * rows + r] = row_set(p, t, z, y0 + r, planes.z, planes.y);
        }
        auto warp_group = [&](int64_t c, auto group) {
          constexpr int G = decltype(group)::value;
          const T* const base = planes.data + b * planes.b + (copy ? c - begin : c) * planes.c;
          for (int g = 0; g < G; ++g) memset(sums + g * kMaxRows * kTile, 0, kMaxRows * kTile * sizeof(float));
          for (int64_t k = 0; k < motions; ++k) {
            const Table t = tables.at(b * motions + k);
            const Window w = window_of(t, x, nx);
            for (int64_t r = 0; r < ny; ++r) {
              blend<T, G>(sets[k * rows + r], base, planes.c, w.start, w.length, p.width, runs);
              const float* const mask = masks + (r * motions + k) * kTile;
              float* const sum = sums + r * kTile;
              each_pair(w, nx, [&](int64_t i, const auto& left, const auto& right) {
                const vf m = load<kLanes>(mask + i);
                const vf x0 = load<kLanes>(t.x0 + x + i) * m, x1 = load<kLanes>(t.x1 + x + i) * m;
                for (int g = 0; g < G; ++g) {
                  float* const to = sum + g * kMaxRows * kTile + i;
                  const vf one = fma_(x0, left(runs + g * kRun), load<kLanes>(to));
                  store<kLanes>(to, fma_(x1, right(runs + g * kRun), one));
                }
              });
            }
          }
          T* const out = static_cast<T*>(p.out.data) + b * so[0] + c * so[1] + z * so[2] + y0 * so[3] + x * so[4];
          for (int64_t r = 0; r < ny; ++r) {
            for (int64_t j = 0; j < nx; j += kLanes) {
              const vf factor = load<kLanes>(scale + r * kTile + j);
              vf values[G];
              for (int g = 0; g < G; ++g) values[g] = load<kLanes>(sums + (g * kMaxRows + r) * kTile + j) * factor;
              sink.template put_group<G>(out + r * so[3], so[1], j, nx, values);
            }
          }
        };
        int64_t c = begin;
        for (; c + kGroup <= end; c += kGroup) warp_group(c, Int<kGroup>{});
        for (; c < end; ++c) warp_group(c, Int<1>{});
      }
    }
  }
  return true;
}

template <class T>
bool run_typed(CpuOp op, const Params& p, int threads) {
  const bool affine = p.linear != nullptr;
  if (op == CpuOp::kPackMotions) return affine ? pack_affine<T>(p, threads) : pack_translations<T>(p, threads);
  if (op == CpuOp::kComposeVolumes && !affine) return compose_translated_volumes<T>(p, threads);
  return compose_sampled<T>(p, op == CpuOp::kComposeVolumes, threads);
}

}  // namespace

bool run(CpuOp op, const Params& params, int threads) {
  if (op == CpuOp::kMotionField) return motion_field(params, threads);
  return by_dtype<Half, BFloat16>(params.feature.dtype,
                                  [&](auto zero) { return run_typed<decltype(zero)>(op, params, threads); });
}

}  // namespace fastface::warp::FASTFACE_TIER

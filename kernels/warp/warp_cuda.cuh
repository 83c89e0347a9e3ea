// The arithmetic of the `warp` kernels for CUDA. Formulas, costs and the reasons for each cut: README.md.
//
// Each kernel is a struct: its grid, its shared memory, and its phases, between which the block synchronises. A phase
// is a function of (plan, block index, thread, shared memory) that a host compiler can run too, one thread after the
// other, so the tests check this file without a GPU; warp_cuda.cu adds the launch.
//
// Rules kept everywhere: zeros outside the volume come from loads that do not happen, never from a weight of zero, so
// that NaN and infinity behave as in grid_sample; a coordinate is clamped before it becomes an integer; offsets inside
// one channel of one image fit 32 bits (checked before the launch), larger ones are 64 bits.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cuda_numeric.h"
#include "warp.h"

namespace fastface::warp::cuda {

using namespace fastface::cuda;

enum class Op { kPackMotions, kComposeFlow, kComposeVolumes, kMotionField };

// One axis of the volume: voxel i moved by a shift s (in coordinates) lies at pixel i + (i * inverse - half) + s *
// scale.
struct Axis {
  int size;
  float scale;
  float inverse;
  float half;
};

struct Plan {
  Params p;
  Axis x, y, z;
  float inverse_two_sigma2;
  int voxels;         // D * H * W
  int planes;         // pack: planes along z per thread
  int lanes;          // compose: 16-byte pieces per voxel where the channels are last and adjacent, else 0
  int chunk;          // pack with the channels last: motions per block
  int channels_each;  // compose_volumes: channels per thread
};

struct Index {
  int x, y, z;
};

struct Grid {
  int64_t x, y, z;
};

inline Axis make_axis(int64_t size, bool align_corners) {
  const float n = static_cast<float>(size);
  Axis axis{static_cast<int>(size), (align_corners ? n - 1 : n) / 2, 0, 0};
  if (!align_corners && size > 1) {
    axis.inverse = 1 / (n - 1);
    axis.half = 0.5f;
  }
  return axis;
}

template <class T>
inline bool aligned(const View<5>& view, int vector) {
  bool ok = view.stride[1] == 1 && reinterpret_cast<uintptr_t>(view.data) % (vector * sizeof(T)) == 0;
  for (const int axis : {0, 2, 3, 4}) ok = ok && view.stride[axis] % vector == 0;
  return ok;
}

inline Plan make_plan(const Params& p) {
  Plan plan{};
  plan.p = p;
  plan.x = make_axis(p.width, p.align_corners);
  plan.y = make_axis(p.height, p.align_corners);
  plan.z = make_axis(p.depth, p.align_corners);
  plan.inverse_two_sigma2 = std::min(0.5f / p.sigma2, 3e38f);
  plan.voxels = static_cast<int>(p.depth * p.height * p.width);
  return plan;
}

FASTFACE_HD float shifted_pixel(int i, float shift, const Axis& axis) {
  const float at = static_cast<float>(i);
  return at + fmaf(at, axis.inverse, fmaf(shift, axis.scale, -axis.half));
}

// The coordinate of voxel i, 2 i / (n - 1) - 1, rounded once; 0 on an axis of one voxel.
FASTFACE_HD float coordinate(int i, const Axis& axis) {
  return static_cast<float>(2 * i - (axis.size - 1)) / static_cast<float>(axis.size > 1 ? axis.size - 1 : 1);
}

// A pixel as its lower neighbour and the weight of the upper one; NaN stays in the weight.
FASTFACE_HD int split(float pixel, int size, float& weight) {
  const float clamped = fminf(fmaxf(pixel, -2.0f), static_cast<float>(size) + 1.0f);
  const float lower = floorf(clamped);
  weight = is_nan(pixel) ? pixel : clamped - lower;
  return static_cast<int>(lower);
}

FASTFACE_HD bool within(int i, int size) { return static_cast<unsigned>(i) < static_cast<unsigned>(size); }

// The eight neighbours of a point: offsets, weights and a bit for each that exists.
struct Corners {
  int offset[8];
  float weight[8];
  unsigned inside;
};

FASTFACE_HD Corners find_corners(const Plan& plan, const View<5>& view, float px, float py, float pz) {
  float wx, wy, wz;
  const int x0 = split(px, plan.x.size, wx);
  const int y0 = split(py, plan.y.size, wy);
  const int z0 = split(pz, plan.z.size, wz);
  const int stride_z = static_cast<int>(view.stride[2]), stride_y = static_cast<int>(view.stride[3]);
  const int stride_x = static_cast<int>(view.stride[4]);
  Corners corners;
  corners.inside = 0;
  FASTFACE_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int x = x0 + (i & 1), y = y0 + (i >> 1 & 1), z = z0 + (i >> 2);
    const bool inside = within(x, plan.x.size) && within(y, plan.y.size) && within(z, plan.z.size);
    corners.inside |= static_cast<unsigned>(inside) << i;
    corners.offset[i] = inside ? z * stride_z + y * stride_y + x * stride_x : 0;
    corners.weight[i] = (i & 1 ? wx : 1 - wx) * (i & 2 ? wy : 1 - wy) * (i & 4 ? wz : 1 - wz);
  }
  return corners;
}

template <class T>
FASTFACE_HD float sample(const T* channel, const Corners& corners) {
  float value[8];
  FASTFACE_UNROLL
  for (int i = 0; i < 8; ++i) value[i] = corners.inside >> i & 1 ? to_float(channel[corners.offset[i]]) : 0.0f;
  float sum = 0;
  FASTFACE_UNROLL
  for (int i = 0; i < 8; ++i) sum = fmaf(value[i], corners.weight[i], sum);
  return sum;
}

// N adjacent channels at once, times `factor`, added to `sum`.
template <class T, int N>
FASTFACE_HD void sample_pack(const T* first, const Corners& corners, float factor, float (&sum)[N]) {
  Pack<T, N> value[8];
  FASTFACE_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (corners.inside >> i & 1) {
      value[i] = *reinterpret_cast<const Pack<T, N>*>(first + corners.offset[i]);
    } else {
      FASTFACE_UNROLL
      for (int c = 0; c < N; ++c) assign(value[i].value[c], 0.0f);
    }
  }
  FASTFACE_UNROLL
  for (int i = 0; i < 8; ++i) {
    const float weight = factor * corners.weight[i];
    FASTFACE_UNROLL
    for (int c = 0; c < N; ++c) sum[c] = fmaf(to_float(value[i].value[c]), weight, sum[c]);
  }
}

// Stands for logits whose dtype is looked up at every load, where loads are too few to be worth a kernel per dtype.
struct AnyLogit {};

template <class L>
FASTFACE_HD float load_logit(const View<5>& view, int64_t offset) {
  if constexpr (std::is_same_v<L, AnyLogit>) {
    if (view.dtype == DType::kFloat32) return static_cast<const float*>(view.data)[offset];
    if (view.dtype == DType::kFloat16) return to_float(static_cast<const Half*>(view.data)[offset]);
    return to_float(static_cast<const BFloat16*>(view.data)[offset]);
  } else {
    return to_float(static_cast<const L*>(view.data)[offset]);
  }
}

struct Voxel {
  int z, y, x;
};

FASTFACE_HD Voxel locate(const Plan& plan, int voxel) {
  const unsigned width = plan.x.size, height = plan.y.size, index = voxel;
  const unsigned row = index / width;
  return {static_cast<int>(row / height), static_cast<int>(row % height), static_cast<int>(index % width)};
}

FASTFACE_HD int offset_in_channel(const View<5>& view, const Voxel& v) {
  return v.z * static_cast<int>(view.stride[2]) + v.y * static_cast<int>(view.stride[3]) +
         v.x * static_cast<int>(view.stride[4]);
}

// The neighbours of voxel v moved by a shift in coordinates.
FASTFACE_HD Corners shifted_corners(const Plan& plan, const Voxel& v, const float (&shift)[3]) {
  return find_corners(plan, plan.p.feature, shifted_pixel(v.x, shift[0], plan.x), shifted_pixel(v.y, shift[1], plan.y),
                      shifted_pixel(v.z, shift[2], plan.z));
}

// Keypoint k - 1 of an image; the background, k = 0, has none and gets the origin.
FASTFACE_HD void load_point(const float* points, const Plan& plan, int b, int k, float (&point)[3]) {
  const float* from = points + (static_cast<int64_t>(b) * plan.p.keypoints + k - 1) * 3;
  FASTFACE_UNROLL
  for (int i = 0; i < 3; ++i) point[i] = k > 0 ? from[i] : 0.0f;
}

FASTFACE_HD void load_shift(const Plan& plan, int b, int k, float (&shift)[3]) {
  float source[3], driving[3];
  load_point(plan.p.kp_source, plan, b, k, source);
  load_point(plan.p.kp_driving, plan, b, k, driving);
  FASTFACE_UNROLL
  for (int i = 0; i < 3; ++i) shift[i] = source[i] - driving[i];
}

// What motion k adds to a coordinate p, as an affine map of p: 3 rows of (A_k - 1, shift - (A_k - 1) kp_driving); zeros
// for the background. Taken relative to p like this, a motion near the identity keeps digits that a coordinate would
// lose.
FASTFACE_HD void load_affine(const Plan& plan, int b, int k, float* map) {
  float shift[3], driving[3];
  load_shift(plan, b, k, shift);
  load_point(plan.p.kp_driving, plan, b, k, driving);
  const int64_t index = plan.p.linear_per_keypoint ? static_cast<int64_t>(b) * plan.p.keypoints + k - 1 : b;
  for (int row = 0; row < 3; ++row) {
    float moved = shift[row];
    for (int column = 0; column < 3; ++column) {
      const float a = k > 0 ? plan.p.linear[index * 9 + row * 3 + column] - (row == column ? 1.0f : 0.0f) : 0.0f;
      map[row * 4 + column] = a;
      moved = fmaf(-a, driving[column], moved);
    }
    map[row * 4 + 3] = moved;
  }
}

FASTFACE_HD float apply_row(const float* row, float x, float y, float z) {
  return fmaf(row[0], x, fmaf(row[1], y, fmaf(row[2], z, row[3])));
}

// pack_motions, translations. A thread owns kRows rows by `planes` planes of one output channel at one x. Every axis is
// sampled on its own: along x two values of a row are blended, and a blended row serves the rows above and below it, a
// blended plane the planes before and after it. That leaves 2 (kRows + 1) (planes + 1) / (kRows planes) loads per
// value, 3.1 of 8 for 4 x 4. Lanes are neighbours along x, so loads and stores of a warp fall on whole lines.
template <class T>
struct PackTranslation {
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerProcessor = 7;
  static constexpr int kPhases = 1;
  static constexpr int kRows = 4;

  static int64_t items(const Plan& plan) {
    return static_cast<int64_t>((plan.y.size + kRows - 1) / kRows) * plan.x.size;
  }

  static Grid prepare(Plan& plan, int processors) {
    const int64_t tiles = (items(plan) + kThreads - 1) / kThreads;
    const int64_t channels = (plan.p.keypoints + 1) * (plan.p.channels + 1);
    // Deeper walks share more loads, as long as every processor keeps 16 blocks.
    plan.planes = 8;
    int64_t slabs = 0;
    for (;; plan.planes /= 2) {
      slabs = (plan.z.size + plan.planes - 1) / plan.planes;
      if (plan.planes == 1 || tiles * slabs * channels * plan.p.batch >= 16 * static_cast<int64_t>(processors)) break;
    }
    return {tiles * slabs, channels, plan.p.batch};
  }

  static size_t shared_bytes(const Plan&) { return 0; }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float*) {
    const Params& p = plan.p;
    const unsigned width = plan.x.size;
    const unsigned count = static_cast<unsigned>((plan.y.size + kRows - 1) / kRows) * width;
    const unsigned tiles = (count + kThreads - 1) / kThreads;
    const unsigned item = static_cast<unsigned>(block.x) % tiles * kThreads + thread;
    if (item >= count) return;
    const int z_first = static_cast<int>(static_cast<unsigned>(block.x) / tiles) * plan.planes;
    const int z_end = z_first + plan.planes < plan.z.size ? z_first + plan.planes : plan.z.size;
    const int x = static_cast<int>(item % width), y_first = static_cast<int>(item / width) * kRows;
    const int rows = plan.y.size - y_first < kRows ? plan.y.size - y_first : kRows;
    const int per_motion = static_cast<int>(p.channels) + 1;
    const int k = block.y / per_motion, channel = block.y % per_motion - 1;

    const int out_y = static_cast<int>(p.out.stride[3]), out_z = static_cast<int>(p.out.stride[2]);
    T* out = static_cast<T*>(p.out.data) + block.z * p.out.stride[0] + block.y * p.out.stride[1];
    out += z_first * out_z + y_first * out_y + x * static_cast<int>(p.out.stride[4]);
    if (channel < 0) {
      heatmap(plan, block.z, k, x, y_first, rows, z_first, z_end, out, out_y, out_z);
    } else {
      const T* feature =
          static_cast<const T*>(p.feature.data) + block.z * p.feature.stride[0] + channel * p.feature.stride[1];
      warped(plan, feature, block.z, k, x, y_first, rows, z_first, z_end, out, out_y, out_z);
    }
  }

  FASTFACE_HD static float falloff(int i, float centre, const Axis& axis, float minus) {
    const float distance = coordinate(i, axis) - centre;
    return expf(minus * distance * distance);
  }

  // A Gaussian separates as well: three factors instead of one exponential per voxel.
  FASTFACE_HD static void heatmap(const Plan& plan, int b, int k, int x, int y_first, int rows, int z_first, int z_end,
                                  T* out, int out_y, int out_z) {
    float source[3], driving[3];
    load_point(plan.p.kp_source, plan, b, k, source);
    load_point(plan.p.kp_driving, plan, b, k, driving);
    const float minus = -plan.inverse_two_sigma2;
    const float source_x = falloff(x, source[0], plan.x, minus), driving_x = falloff(x, driving[0], plan.x, minus);
    float source_xy[kRows], driving_xy[kRows];
    FASTFACE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      source_xy[r] = source_x * falloff(y_first + r, source[1], plan.y, minus);
      driving_xy[r] = driving_x * falloff(y_first + r, driving[1], plan.y, minus);
    }
    for (int z = z_first; z < z_end; ++z, out += out_z) {
      const float source_z = falloff(z, source[2], plan.z, minus), driving_z = falloff(z, driving[2], plan.z, minus);
      FASTFACE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r < rows) assign(out[r * out_y], driving_xy[r] * driving_z - source_xy[r] * source_z);
      }
    }
  }

  FASTFACE_HD static void warped(const Plan& plan, const T* feature, int b, int k, int x, int y_first, int rows,
                                 int z_first, int z_end, T* out, int out_y, int out_z) {
    float shift[3];
    load_shift(plan, b, k, shift);
    const float px = shifted_pixel(x, shift[0], plan.x);
    const float py = shifted_pixel(y_first, shift[1], plan.y), pz = shifted_pixel(z_first, shift[2], plan.z);
    const bool broken = is_nan(px) || is_nan(py) || is_nan(pz);

    Source source;
    source.feature = feature;
    source.height = plan.y.size;
    source.depth = plan.z.size;
    source.stride_y = static_cast<int>(plan.p.feature.stride[3]);
    source.stride_z = static_cast<int>(plan.p.feature.stride[2]);
    const int stride_x = static_cast<int>(plan.p.feature.stride[4]);
    const int x0 = split(px, plan.x.size, source.weight_x);
    source.left = within(x0, plan.x.size) ? x0 * stride_x : -1;
    source.right = within(x0 + 1, plan.x.size) ? (x0 + 1) * stride_x : -1;
    FASTFACE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      source.y0[r] = split(shifted_pixel(y_first + r, shift[1], plan.y), plan.y.size, source.weight_y[r]);
    }

    float low[kRows], high[kRows];
    int held = -3;  // the plane that `high` holds; none yet
    for (int z = z_first; z < z_end; ++z, out += out_z) {
      float weight;
      const int z0 = split(shifted_pixel(z, shift[2], plan.z), plan.z.size, weight);
      if (z0 == held) {
        FASTFACE_UNROLL
        for (int r = 0; r < kRows; ++r) low[r] = high[r];
      } else {
        source.blend_plane(z0, low);
      }
      source.blend_plane(z0 + 1, high);
      held = z0 + 1;
      FASTFACE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float value = fmaf(high[r], weight, low[r] * (1 - weight));
        if (r < rows) assign(out[r * out_y], broken ? NAN : value);
      }
    }
  }

  struct Source {
    const T* feature;
    int height, depth, stride_y, stride_z;
    int left, right;  // offsets of the two neighbours along x, -1 outside
    float weight_x;
    int y0[kRows];
    float weight_y[kRows];

    FASTFACE_HD float blend_row(const T* plane, int y) const {
      const bool inside = within(y, height);
      const T* row = plane + (inside ? y * stride_y : 0);
      const float a = inside && left >= 0 ? to_float(row[left]) : 0.0f;
      const float b = inside && right >= 0 ? to_float(row[right]) : 0.0f;
      return fmaf(b, weight_x, a * (1 - weight_x));
    }

    FASTFACE_HD void blend_plane(int z, float (&value)[kRows]) const {
      if (!within(z, depth)) {
        FASTFACE_UNROLL
        for (int r = 0; r < kRows; ++r) value[r] = 0;
        return;
      }
      const T* plane = feature + z * stride_z;
      bool adjacent = true;
      FASTFACE_UNROLL
      for (int r = 1; r < kRows; ++r) adjacent = adjacent && y0[r] == y0[0] + r;
      if (adjacent) {
        float row[kRows + 1];
        FASTFACE_UNROLL
        for (int r = 0; r <= kRows; ++r) row[r] = blend_row(plane, y0[0] + r);
        FASTFACE_UNROLL
        for (int r = 0; r < kRows; ++r) value[r] = fmaf(row[r + 1], weight_y[r], row[r] * (1 - weight_y[r]));
        return;
      }
      // The grid is slightly coarser than the pixels, so a row of them is skipped once or twice per axis.
      FASTFACE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        value[r] = fmaf(blend_row(plane, y0[r] + 1), weight_y[r], blend_row(plane, y0[r]) * (1 - weight_y[r]));
      }
    }
  };
};

FASTFACE_HD float heatmap_at(const Plan& plan, int b, int k, float x, float y, float z) {
  float source[3], driving[3];
  load_point(plan.p.kp_source, plan, b, k, source);
  load_point(plan.p.kp_driving, plan, b, k, driving);
  const float to_driving =
      (x - driving[0]) * (x - driving[0]) + (y - driving[1]) * (y - driving[1]) + (z - driving[2]) * (z - driving[2]);
  const float to_source =
      (x - source[0]) * (x - source[0]) + (y - source[1]) * (y - source[1]) + (z - source[2]) * (z - source[2]);
  return expf(-plan.inverse_two_sigma2 * to_driving) - expf(-plan.inverse_two_sigma2 * to_source);
}

// The neighbours of voxel v, at coordinates x, y, z, under motion k.
FASTFACE_HD Corners motion_corners(const Plan& plan, int b, int k, const Voxel& v, float x, float y, float z) {
  float shift[3];
  if (plan.p.linear == nullptr) {
    load_shift(plan, b, k, shift);
  } else {
    float map[12];
    load_affine(plan, b, k, map);
    FASTFACE_UNROLL
    for (int i = 0; i < 3; ++i) shift[i] = apply_row(map + 4 * i, x, y, z);
  }
  return shifted_corners(plan, v, shift);
}

// pack_motions with a linear part: a thread owns one voxel of one motion and shares its eight corners among the
// channels.
template <class T>
struct PackLinear {
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerProcessor = 5;
  static constexpr int kPhases = 1;

  static Grid prepare(Plan& plan, int) {
    return {(static_cast<int64_t>(plan.voxels) + kThreads - 1) / kThreads, plan.p.keypoints + 1, plan.p.batch};
  }

  static size_t shared_bytes(const Plan&) { return 0; }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float*) {
    const Params& p = plan.p;
    const int64_t voxel = static_cast<int64_t>(block.x) * kThreads + thread;
    if (voxel >= plan.voxels) return;
    const Voxel v = locate(plan, static_cast<int>(voxel));
    const int k = block.y, b = block.z;
    const float x = coordinate(v.x, plan.x), y = coordinate(v.y, plan.y), z = coordinate(v.z, plan.z);
    const int64_t stride = p.out.stride[1];
    T* out =
        static_cast<T*>(p.out.data) + b * p.out.stride[0] + k * (p.channels + 1) * stride + offset_in_channel(p.out, v);
    assign(*out, heatmap_at(plan, b, k, x, y, z));
    const Corners corners = motion_corners(plan, b, k, v, x, y, z);
    const T* feature = static_cast<const T*>(p.feature.data) + b * p.feature.stride[0];
    const int channels = static_cast<int>(p.channels);
#ifdef __CUDACC__
#pragma unroll 2
#endif
    for (int c = 0; c < channels; ++c) {
      out += stride;
      assign(*out, sample(feature, corners));
      feature += p.feature.stride[1];
    }
  }
};

// pack_motions where the channels are last and adjacent in both tensors: the (K+1)(C+1) values of a voxel are one run
// of memory, so a block gathers `chunk` motions of 32 voxels into shared memory and then writes runs.
template <class T>
struct PackLast {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 3;
  static constexpr int kPhases = 2;
  static constexpr int kVoxels = 32;
  static constexpr int kTileBytes = 32 * 1024;

  static bool fits(const Plan& plan) {
    const View<5>&feature = plan.p.feature, &out = plan.p.out;
    return feature.stride[1] == 1 && out.stride[1] == 1 && plan.p.channels > 1 &&
           (plan.p.channels + 1) * kVoxels * static_cast<int64_t>(sizeof(T)) <= kTileBytes;
  }

  static Grid prepare(Plan& plan, int) {
    const int64_t motions = plan.p.keypoints + 1;
    const int64_t bytes = (plan.p.channels + 1) * kVoxels * static_cast<int64_t>(sizeof(T));
    plan.chunk = static_cast<int>(std::min<int64_t>(motions, kTileBytes / bytes));
    // Four channels are one load where they are aligned.
    plan.lanes = plan.p.channels % 4 == 0 && aligned<T>(plan.p.feature, 4) ? static_cast<int>(plan.p.channels) / 4 : 0;
    return {(static_cast<int64_t>(plan.voxels) + kVoxels - 1) / kVoxels, (motions + plan.chunk - 1) / plan.chunk,
            plan.p.batch};
  }

  static size_t shared_bytes(const Plan& plan) {
    return static_cast<size_t>(plan.chunk) * (plan.p.channels + 1) * kVoxels * sizeof(T);
  }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    T* tile = reinterpret_cast<T*>(shared);  // [kVoxels, motions here, C + 1]
    const Params& p = plan.p;
    const int channels = static_cast<int>(p.channels), b = block.z;
    const int first = block.y * plan.chunk;
    const int left = static_cast<int>(p.keypoints) + 1 - first;
    const int motions = left < plan.chunk ? left : plan.chunk;
    const int run = motions * (channels + 1);
    const int64_t first_voxel = static_cast<int64_t>(block.x) * kVoxels;
    if constexpr (kPhase == 0) {
      const int64_t voxel = first_voxel + thread % kVoxels;
      if (voxel >= plan.voxels) return;
      const Voxel v = locate(plan, static_cast<int>(voxel));
      const float x = coordinate(v.x, plan.x), y = coordinate(v.y, plan.y), z = coordinate(v.z, plan.z);
      const T* feature = static_cast<const T*>(p.feature.data) + b * p.feature.stride[0];
      for (int m = thread / kVoxels; m < motions; m += kThreads / kVoxels) {
        T* target = tile + thread % kVoxels * run + m * (channels + 1);
        assign(*target++, heatmap_at(plan, b, first + m, x, y, z));
        const Corners corners = motion_corners(plan, b, first + m, v, x, y, z);
        if (plan.lanes > 0) {
          for (int lane = 0; lane < plan.lanes; ++lane, target += 4) {
            float sum[4] = {0, 0, 0, 0};
            sample_pack<T, 4>(feature + lane * 4, corners, 1.0f, sum);
            FASTFACE_UNROLL
            for (int c = 0; c < 4; ++c) assign(target[c], sum[c]);
          }
        } else {
          for (int c = 0; c < channels; ++c) assign(target[c], sample(feature + c, corners));
        }
      }
    } else {
      T* out = static_cast<T*>(p.out.data) + b * p.out.stride[0] + first * (channels + 1);
      // A warp writes whole runs.
      for (int i = thread / 32; i < kVoxels; i += kThreads / 32) {
        if (first_voxel + i >= plan.voxels) return;
        T* target = out + offset_in_channel(p.out, locate(plan, static_cast<int>(first_voxel) + i));
        for (int j = thread % 32; j < run; j += 32) target[j] = tile[i * run + j];
      }
    }
  }
};

// What the composing kernels share: a block owns kVoxels voxels, kGroups threads for each. The groups split the K + 1
// logits of their voxel and meet in shared memory, so that one image fills the chip; then they split the channels.
// Shared memory: the motions [K+1, 4 or 12], the partial sums [kGroups, 5, kVoxels], the results [4, kVoxels].
struct Composer {
  static constexpr int kThreads = 256;
  static constexpr int kVoxels = 64;
  static constexpr int kGroups = kThreads / kVoxels;
  static constexpr int kChunk = 8;  // logits in flight per thread

  static int64_t tiles(const Plan& plan) { return (static_cast<int64_t>(plan.voxels) + kVoxels - 1) / kVoxels; }

  FASTFACE_HD static int map_size(const Plan& plan) { return plan.p.linear == nullptr ? 4 : 12; }

  FASTFACE_HD static int table_size(const Plan& plan) {
    return (static_cast<int>(plan.p.keypoints) + 1) * map_size(plan);
  }

  FASTFACE_HD static float* partials(const Plan& plan, float* shared) { return shared + table_size(plan); }

  FASTFACE_HD static float* results(const Plan& plan, float* shared) {
    return partials(plan, shared) + kGroups * 5 * kVoxels;
  }

  static size_t shared_bytes(const Plan& plan) {
    return (static_cast<size_t>(table_size(plan)) + (kGroups * 5 + 4) * kVoxels) * sizeof(float);
  }

  FASTFACE_HD static void fill_table(const Plan& plan, int b, int thread, float* shared) {
    const int motions = static_cast<int>(plan.p.keypoints) + 1;
    for (int k = thread; k < motions; k += kThreads) {
      if (plan.p.linear == nullptr) {
        float shift[3];
        load_shift(plan, b, k, shift);
        FASTFACE_UNROLL
        for (int i = 0; i < 3; ++i) shared[k * 4 + i] = shift[i];
        shared[k * 4 + 3] = 0;
      } else {
        load_affine(plan, b, k, shared + k * 12);
      }
    }
  }

  // The largest logit, the sum of exponentials and, with kFlow, the blended shift over this group's share of the
  // logits. The subtracted maximum is 0 as long as it is -inf: motions switched off then add nothing, and all of them
  // off ends in 0 / 0.
  template <class L, bool kFlow>
  FASTFACE_HD static void reduce(const Plan& plan, const Index& block, int thread, float* shared) {
    const int i = thread % kVoxels, group = thread / kVoxels;
    const int64_t voxel = static_cast<int64_t>(block.x) * kVoxels + i;
    if (voxel >= plan.voxels) return;
    const Voxel v = locate(plan, static_cast<int>(voxel));
    const View<5>& view = plan.p.logits;
    const int64_t base = block.z * view.stride[0] + offset_in_channel(view, v);
    const int motions = static_cast<int>(plan.p.keypoints) + 1;
    const bool affine = plan.p.linear != nullptr;
    float x = 0, y = 0, z = 0;
    if (kFlow && affine) {
      x = coordinate(v.x, plan.x);
      y = coordinate(v.y, plan.y);
      z = coordinate(v.z, plan.z);
    }
    const float off = -INFINITY;
    float top = off, total = 0, flow[3] = {0, 0, 0};
    for (int first = group; first < motions; first += kGroups * kChunk) {
      float value[kChunk];
      FASTFACE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        const int k = first + j * kGroups;
        value[j] = k < motions ? load_logit<L>(view, base + k * view.stride[1]) : off;
      }
      float raised = top;
      FASTFACE_UNROLL
      for (int j = 0; j < kChunk; ++j) raised = fmaxf(raised, value[j]);
      const float subtracted = raised == off ? 0.0f : raised;
      const float kept = expf(top - subtracted);
      top = raised;
      total *= kept;
      FASTFACE_UNROLL
      for (int a = 0; a < 3; ++a) flow[a] *= kept;
      FASTFACE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        const int k = first + j * kGroups;
        if (k >= motions) break;
        const float e = expf(value[j] - subtracted);
        total += e;
        if constexpr (!kFlow) continue;
        if (affine) {
          const float* map = shared + k * 12;
          FASTFACE_UNROLL
          for (int a = 0; a < 3; ++a) flow[a] = fmaf(e, apply_row(map + a * 4, x, y, z), flow[a]);
        } else {
          FASTFACE_UNROLL
          for (int a = 0; a < 3; ++a) flow[a] = fmaf(e, shared[k * 4 + a], flow[a]);
        }
      }
    }
    float* partial = partials(plan, shared) + group * 5 * kVoxels + i;
    partial[0] = top;
    partial[kVoxels] = total;
    if (kFlow) {
      FASTFACE_UNROLL
      for (int a = 0; a < 3; ++a) partial[(2 + a) * kVoxels] = flow[a];
    }
  }

  struct Reduced {
    float top, total, flow[3];
  };

  template <bool kFlow>
  FASTFACE_HD static Reduced combine(int i, const float* shared_partials) {
    const float off = -INFINITY;
    Reduced all{off, 0, {0, 0, 0}};
    FASTFACE_UNROLL
    for (int group = 0; group < kGroups; ++group) all.top = fmaxf(all.top, shared_partials[group * 5 * kVoxels + i]);
    const float subtracted = all.top == off ? 0.0f : all.top;
    FASTFACE_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      const float* partial = shared_partials + group * 5 * kVoxels + i;
      const float kept = expf(partial[0] - subtracted);
      all.total = fmaf(partial[kVoxels], kept, all.total);
      if constexpr (kFlow) {
        FASTFACE_UNROLL
        for (int a = 0; a < 3; ++a) all.flow[a] = fmaf(partial[(2 + a) * kVoxels], kept, all.flow[a]);
      }
    }
    return all;
  }

  template <class T>
  FASTFACE_HD static float visibility(const Plan& plan, int b, const Voxel& v) {
    const View<4>& view = plan.p.occlusion;
    if (view.data == nullptr) return 1;
    const int64_t offset = b * view.stride[0] + v.y * view.stride[2] + v.x * view.stride[3];
    return to_float(static_cast<const T*>(view.data)[offset]);
  }

  // Vector loads along the channels, where they are adjacent and aligned in both tensors.
  template <class T>
  static int lanes(const Params& p) {
    constexpr int kVector = 16 / sizeof(T);
    const bool ok = p.channels % kVector == 0 && aligned<T>(p.feature, kVector) && aligned<T>(p.out, kVector);
    return ok ? static_cast<int>(p.channels) / kVector : 0;
  }
};

// compose_flow: softmax and flow per voxel, then one sample of every channel.
template <class T, class L>
struct ComposeFlow : Composer {
  static constexpr int kBlocksPerProcessor = 3;
  static constexpr int kPhases = 4;
  static constexpr int kVector = 16 / sizeof(T);

  static Grid prepare(Plan& plan, int) {
    plan.lanes = lanes<T>(plan.p);
    return {tiles(plan), 1, plan.p.batch};
  }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const Params& p = plan.p;
    const int64_t first = static_cast<int64_t>(block.x) * kVoxels;
    if constexpr (kPhase == 0) {
      fill_table(plan, block.z, thread, shared);
    } else if constexpr (kPhase == 1) {
      reduce<L, true>(plan, block, thread, shared);
    } else if constexpr (kPhase == 2) {
      if (thread >= kVoxels || first + thread >= plan.voxels) return;
      const Voxel v = locate(plan, static_cast<int>(first) + thread);
      const Reduced all = combine<true>(thread, partials(plan, shared));
      const float x = all.flow[0] / all.total, y = all.flow[1] / all.total, z = all.flow[2] / all.total;
      float* result = results(plan, shared) + thread;
      result[0] = shifted_pixel(v.x, x, plan.x);
      result[kVoxels] = shifted_pixel(v.y, y, plan.y);
      result[2 * kVoxels] = shifted_pixel(v.z, z, plan.z);
      result[3 * kVoxels] = visibility<T>(plan, block.z, v);
    } else {
      const float* result = results(plan, shared);
      const T* feature = static_cast<const T*>(p.feature.data) + block.z * p.feature.stride[0];
      T* out = static_cast<T*>(p.out.data) + block.z * p.out.stride[0];
      if (plan.lanes > 0) {
        for (int item = thread; item < kVoxels * plan.lanes; item += kThreads) {
          const int i = item / plan.lanes, lane = item % plan.lanes;
          if (first + i >= plan.voxels) return;
          const Corners corners =
              find_corners(plan, p.feature, result[i], result[kVoxels + i], result[2 * kVoxels + i]);
          float sum[kVector] = {};
          sample_pack<T, kVector>(feature + lane * kVector, corners, 1.0f, sum);
          const float visible = result[3 * kVoxels + i];
          Pack<T, kVector> packed;
          FASTFACE_UNROLL
          for (int c = 0; c < kVector; ++c) assign(packed.value[c], sum[c] * visible);
          T* target = out + offset_in_channel(p.out, locate(plan, static_cast<int>(first) + i)) + lane * kVector;
          *reinterpret_cast<Pack<T, kVector>*>(target) = packed;
        }
        return;
      }
      const int i = thread % kVoxels;
      if (first + i >= plan.voxels) return;
      const Corners corners = find_corners(plan, p.feature, result[i], result[kVoxels + i], result[2 * kVoxels + i]);
      const float visible = result[3 * kVoxels + i];
      const int channels = static_cast<int>(p.channels);
      out += offset_in_channel(p.out, locate(plan, static_cast<int>(first) + i));
#ifdef __CUDACC__
#pragma unroll 2
#endif
      for (int c = thread / kVoxels; c < channels; c += kGroups) {
        assign(out[c * p.out.stride[1]], sample(feature + c * p.feature.stride[1], corners) * visible);
      }
    }
  }
};

// compose_volumes: the softmax's maximum and sum per voxel, then every motion's sample weighted and added up in
// registers.
template <class T>
struct ComposeVolumes : Composer {
  using L = AnyLogit;
  static constexpr int kBlocksPerProcessor = 2;
  static constexpr int kPhases = 4;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kChannels = 8;  // per thread, at most

  static Grid prepare(Plan& plan, int) {
    plan.lanes = lanes<T>(plan.p);
    const int64_t channels = plan.p.channels;
    plan.channels_each = static_cast<int>(std::min<int64_t>(kChannels, (channels + kGroups - 1) / kGroups));
    const int64_t per_block = kGroups * plan.channels_each;
    return {tiles(plan), plan.lanes > 0 ? 1 : (channels + per_block - 1) / per_block, plan.p.batch};
  }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const Params& p = plan.p;
    const int64_t first = static_cast<int64_t>(block.x) * kVoxels;
    if constexpr (kPhase == 0) {
      fill_table(plan, block.z, thread, shared);
    } else if constexpr (kPhase == 1) {
      reduce<L, false>(plan, block, thread, shared);
    } else if constexpr (kPhase == 2) {
      if (thread >= kVoxels || first + thread >= plan.voxels) return;
      const Reduced all = combine<false>(thread, partials(plan, shared));
      float* result = results(plan, shared) + thread;
      result[0] = all.top;
      result[kVoxels] = 1 / all.total;
      result[2 * kVoxels] = visibility<T>(plan, block.z, locate(plan, static_cast<int>(first) + thread));
    } else {
      if (plan.lanes > 0) {
        for (int item = thread; item < kVoxels * plan.lanes; item += kThreads) {
          const int i = item / plan.lanes, c = item % plan.lanes * kVector;
          if (first + i >= plan.voxels) return;
          float sum[kVector] = {};
          const Voxel v = locate(plan, static_cast<int>(first) + i);
          const T* feature = static_cast<const T*>(p.feature.data) + block.z * p.feature.stride[0] + c;
          const float visible = blend(plan, block, i, v, shared, [&](const Corners& corners, float weight) {
            sample_pack<T, kVector>(feature, corners, weight, sum);
          });
          Pack<T, kVector> packed;
          FASTFACE_UNROLL
          for (int j = 0; j < kVector; ++j) assign(packed.value[j], sum[j] * visible);
          T* target = static_cast<T*>(p.out.data) + block.z * p.out.stride[0] + offset_in_channel(p.out, v) + c;
          *reinterpret_cast<Pack<T, kVector>*>(target) = packed;
        }
        return;
      }
      const int i = thread % kVoxels;
      const int c = (block.y * kGroups + thread / kVoxels) * plan.channels_each;
      const int left = static_cast<int>(p.channels) - c;
      const int count = left < plan.channels_each ? left : plan.channels_each;
      if (first + i >= plan.voxels || count <= 0) return;
      const Voxel v = locate(plan, static_cast<int>(first) + i);
      const T* feature =
          static_cast<const T*>(p.feature.data) + block.z * p.feature.stride[0] + c * p.feature.stride[1];
      float sum[kChannels] = {};
      const float visible = blend(plan, block, i, v, shared, [&](const Corners& corners, float weight) {
        FASTFACE_UNROLL
        for (int j = 0; j < kChannels; ++j) {
          if (j < count) sum[j] = fmaf(weight, sample(feature + j * p.feature.stride[1], corners), sum[j]);
        }
      });
      T* out = static_cast<T*>(p.out.data) + block.z * p.out.stride[0] + offset_in_channel(p.out, v);
      FASTFACE_UNROLL
      for (int j = 0; j < kChannels; ++j) {
        if (j < count) assign(out[(c + j) * p.out.stride[1]], sum[j] * visible);
      }
    }
  }

  // Calls `add` with the corners and the weight of every motion; returns the visibility.
  template <class Add>
  FASTFACE_HD static float blend(const Plan& plan, const Index& block, int i, const Voxel& v, const float* shared,
                                 Add add) {
    const View<5>& view = plan.p.logits;
    const int64_t base = block.z * view.stride[0] + offset_in_channel(view, v);
    const float* result = shared + table_size(plan) + kGroups * 5 * kVoxels + i;
    const float top = result[0], inverse = result[kVoxels];
    const int motions = static_cast<int>(plan.p.keypoints) + 1;
    const bool affine = plan.p.linear != nullptr;
    float x = 0, y = 0, z = 0;
    if (affine) {
      x = coordinate(v.x, plan.x);
      y = coordinate(v.y, plan.y);
      z = coordinate(v.z, plan.z);
    }
    for (int k = 0; k < motions; ++k) {
      const float weight = expf(load_logit<L>(view, base + k * view.stride[1]) - top) * inverse;
      const float* map = shared + k * map_size(plan);
      float shift[3];
      FASTFACE_UNROLL
      for (int a = 0; a < 3; ++a) shift[a] = affine ? apply_row(map + 4 * a, x, y, z) : map[a];
      add(shifted_corners(plan, v, shift), weight);
    }
    return result[2 * kVoxels];
  }
};

// motion_field: compose_flow without the sample.
template <class L>
struct MotionField : Composer {
  static constexpr int kBlocksPerProcessor = 4;
  static constexpr int kPhases = 3;

  static Grid prepare(Plan& plan, int) { return {tiles(plan), 1, plan.p.batch}; }

  template <int kPhase>
  FASTFACE_HD static void run(const Plan& plan, const Index& block, int thread, float* shared) {
    const Params& p = plan.p;
    const int64_t first = static_cast<int64_t>(block.x) * kVoxels;
    if constexpr (kPhase == 0) {
      fill_table(plan, block.z, thread, shared);
    } else if constexpr (kPhase == 1) {
      reduce<L, true>(plan, block, thread, shared);
    } else {
      if (thread >= kVoxels || first + thread >= plan.voxels) return;
      const Voxel v = locate(plan, static_cast<int>(first) + thread);
      const Reduced all = combine<true>(thread, partials(plan, shared));
      float* out = static_cast<float*>(p.out.data) + block.z * p.out.stride[0] + offset_in_channel(p.out, v);
      const int64_t stride = p.out.stride[1];
      out[0] = all.flow[0] / all.total + coordinate(v.x, plan.x);
      out[stride] = all.flow[1] / all.total + coordinate(v.y, plan.y);
      out[2 * stride] = all.flow[2] / all.total + coordinate(v.z, plan.z);
    }
  }
};

// Calls `launch(Kernel{}, plan)` with the kernel for these dtypes and layouts.
template <class T, class Launch>
void visit_logits(Plan& plan, Launch&& launch) {
  by_dtype<Half, BFloat16>(plan.p.logits.dtype, [&](auto zero) { launch(ComposeFlow<T, decltype(zero)>{}, plan); });
}

template <class T, class Launch>
void visit_feature(Op op, Plan& plan, Launch&& launch) {
  if (op == Op::kComposeFlow) return visit_logits<T>(plan, launch);
  if (op == Op::kComposeVolumes) return launch(ComposeVolumes<T>{}, plan);
  if (PackLast<T>::fits(plan)) return launch(PackLast<T>{}, plan);
  if (plan.p.linear != nullptr) return launch(PackLinear<T>{}, plan);
  launch(PackTranslation<T>{}, plan);
}

template <class Launch>
void visit(Op op, Plan& plan, Launch&& launch) {
  if (op == Op::kMotionField) {
    return by_dtype<Half, BFloat16>(plan.p.logits.dtype,
                                    [&](auto zero) { launch(MotionField<decltype(zero)>{}, plan); });
  }
  by_dtype<Half, BFloat16>(plan.p.feature.dtype, [&](auto zero) { visit_feature<decltype(zero)>(op, plan, launch); });
}

}  // namespace fastface::warp::cuda

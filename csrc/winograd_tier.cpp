// The transforms of Winograd's F(2x2, 3x3) on the CPU, a vector of channels at a time; see fastface/engine/winograd.py.
#include "winograd_tier.h"

#include "cpu_simd.h"

namespace fastface::winograd::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

struct Place {
  int64_t image, y, x;  // the tile's first output
};

struct Grid {
  int64_t across, down;
  explicit Grid(const Params& p) : across((p.width + 1) / 2), down((p.height + 1) / 2) {}
  Place place(int64_t tile) const {
    const int64_t image = tile / (across * down), rest = tile % (across * down);
    return {image, rest / across * 2, rest % across * 2};
  }
};

inline vf load_channels(const float* from, int64_t left) {
  return left >= kLanes ? load<kLanes>(from) : load_part<kLanes>(from, left);
}

inline void store_channels(float* to, vf value, int64_t left) {
  if (left >= kLanes) {
    store<kLanes>(to, value);
  } else {
    store_part<kLanes>(to, value, left);
  }
}

// Bᵀ d B for one tile and one vector of channels; d is the 4x4 of inputs that the 2x2 outputs see.
inline void input_tile(const vf (&d)[4][4], vf (&v)[4][4]) {
  vf r[4][4];
  for (int j = 0; j < 4; ++j) {
    r[0][j] = d[0][j] - d[2][j];
    r[1][j] = d[1][j] + d[2][j];
    r[2][j] = d[2][j] - d[1][j];
    r[3][j] = d[1][j] - d[3][j];
  }
  for (int i = 0; i < 4; ++i) {
    v[i][0] = r[i][0] - r[i][2];
    v[i][1] = r[i][1] + r[i][2];
    v[i][2] = r[i][2] - r[i][1];
    v[i][3] = r[i][1] - r[i][3];
  }
}

// Aᵀ m A.
inline void output_tile(const vf (&m)[4][4], vf (&y)[2][2]) {
  vf r[2][4];
  for (int j = 0; j < 4; ++j) {
    r[0][j] = m[0][j] + m[1][j] + m[2][j];
    r[1][j] = m[1][j] - m[2][j] - m[3][j];
  }
  for (int i = 0; i < 2; ++i) {
    y[i][0] = r[i][0] + r[i][1] + r[i][2];
    y[i][1] = r[i][1] - r[i][2] - r[i][3];
  }
}

}  // namespace

bool input(const Params& p, int threads) {
  const Grid grid(p);
  const int used = team(threads, 16 * p.count * p.channels);
#pragma omp parallel for num_threads(used) schedule(static)
  for (int64_t t = 0; t < p.count; ++t) {
    const Place at = grid.place(p.first + t);
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int64_t left = p.channels - c;
      vf d[4][4], v[4][4];
      for (int i = 0; i < 4; ++i) {
        const int64_t y = at.y + i - 1;
        for (int j = 0; j < 4; ++j) {
          const int64_t x = at.x + j - 1;
          const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
          const float* from = p.image + at.image * p.stride[0] + y * p.stride[1] + x * p.stride[2] + c;
          d[i][j] = inside ? load_channels(from, left) : vf{};
        }
      }
      input_tile(d, v);
      for (int i = 0; i < 16; ++i) {
        store_channels(p.tiles + (i * p.rows + t) * p.channels + c, v[i / 4][i % 4], left);
      }
    }
  }
  return true;
}

bool output(const Params& p, int threads) {
  const Grid grid(p);
  const int used = team(threads, 16 * p.count * p.channels);
#pragma omp parallel for num_threads(used) schedule(static)
  for (int64_t t = 0; t < p.count; ++t) {
    const Place at = grid.place(p.first + t);
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int64_t left = p.channels - c;
      vf m[4][4], y[2][2];
      for (int i = 0; i < 16; ++i) {
        m[i / 4][i % 4] = load_channels(p.tiles + (i * p.rows + t) * p.channels + c, left);
      }
      output_tile(m, y);
      const vf bias = p.bias == nullptr ? vf{} : load_channels(p.bias + c, left);
      for (int i = 0; i < 2 && at.y + i < p.height; ++i) {
        for (int j = 0; j < 2 && at.x + j < p.width; ++j) {
          float* to = p.image + at.image * p.stride[0] + (at.y + i) * p.stride[1] + (at.x + j) * p.stride[2] + c;
          store_channels(to, y[i][j] + bias, left);
        }
      }
    }
  }
  return true;
}

}  // namespace fastface::winograd::FASTFACE_TIER

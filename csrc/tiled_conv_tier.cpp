// Convolutions by tiles on the CPU; see fastface/engine/winograd.py and fft_conv.py. A thread takes a block of tiles
// through all three steps, so that what is transformed stays near: the inputs of all channels into `transformed`, then
// for some outputs at a time the products and their way back.
#include "tiled_conv_tier.h"

#include <math.h>

#include "cpu_simd.h"

namespace fastface::tiled_conv::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

constexpr int kGroup = 16;                    // channels next to each other in what is transformed
constexpr int kPanel = 32;                    // outputs next to each other in filters and products
constexpr int kRows = kLanes == 16 ? 14 : 6;  // of a product held in registers, kWidth wide
constexpr int kWidth = 2 * kLanes;
constexpr int kManyRows = 64;  // of a product, for which reading the filters is worth it
constexpr int kSegment = 16;   // tiles of one row that are transformed together
constexpr int kParts = kGroup / kLanes;

// An algorithm turns tiles of kSide x kSide inputs into kFrequencies values of kComponents parts each, and what comes
// out of the products back into kTile x kTile outputs, for a vector of channels at a time.
template <class Line>
struct Winograd {
  static constexpr int kTile = Line::kTile, kSide = kTile + 2, kFrequencies = kSide * kSide, kComponents = 1;

  // From pixels kGroup apart, `width` to a row, to values `frequency` apart; the next group's come `next` after them.
  void input(const float* from, int64_t width, float* to, int64_t frequency, int64_t, int64_t next) const {
    vf once[kSide][kSide];
    for (int j = 0; j < kSide; ++j) {
      vf column[kSide], changed[kSide];
      for (int i = 0; i < kSide; ++i) column[i] = load<kLanes>(from + (i * width + j) * kGroup);
      Line::input(column, changed);
      for (int i = 0; i < kSide; ++i) once[i][j] = changed[i];
    }
    for (int i = 0; i < kSide; ++i) {
      vf changed[kSide];
      Line::input(once[i], changed);
      for (int j = 0; j < kSide; ++j) {
        float* at = to + (i * kSide + j) * frequency;
        store<kLanes>(at, changed[j]);
        __builtin_prefetch(at + next, 1, 2);
      }
    }
  }

  template <class Put>
  void output(const float* from, int64_t frequency, int64_t, Put put) const {
    vf once[kTile][kSide];
    for (int j = 0; j < kSide; ++j) {
      vf column[kSide], changed[kTile];
      for (int i = 0; i < kSide; ++i) column[i] = load<kLanes>(from + (i * kSide + j) * frequency);
      Line::output(column, changed);
      for (int i = 0; i < kTile; ++i) once[i][j] = changed[i];
    }
    for (int i = 0; i < kTile; ++i) {
      vf changed[kTile];
      Line::output(once[i], changed);
      for (int j = 0; j < kTile; ++j) put(i, j, changed[j]);
    }
  }
};

// F(2, 3): points 0, 1, -1 and infinity.
struct Line2 {
  static constexpr int kTile = 2;
  static void input(const vf (&d)[4], vf (&v)[4]) {
    v[0] = d[2] - d[0];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  static void output(const vf (&m)[4], vf (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

// F(4, 3): points 0, p, -p, q, -q and infinity. Every constant is exact in float32.
struct Line4 {
  static constexpr int kTile = 4;
  static constexpr float p = 0.625f, q = 1.5f, p2 = p * p, q2 = q * q;
  static vf times(float a, vf b, vf c) { return fma_(splat<kLanes>(a), b, c); }
  static void input(const vf (&d)[6], vf (&v)[6]) {
    const vf even_p = times(-q2, d[2], d[4]), odd_p = p * times(-q2, d[1], d[3]);
    const vf even_q = times(-p2, d[2], d[4]), odd_q = q * times(-p2, d[1], d[3]);
    v[0] = times(p2 * q2, d[0], times(-(p2 + q2), d[2], d[4]));
    v[1] = even_p + odd_p;
    v[2] = even_p - odd_p;
    v[3] = even_q + odd_q;
    v[4] = even_q - odd_q;
    v[5] = times(p2 * q2, d[1], times(-(p2 + q2), d[3], d[5]));
  }
  static void output(const vf (&m)[6], vf (&y)[4]) {
    const vf even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q;
    y[1] = times(p, odd_p, q * odd_q);
    y[2] = times(p2, even_p, q2 * even_q);
    y[3] = times(p * p2, odd_p, times(q * q2, odd_q, m[5]));
  }
};

// The discrete Fourier transform of real tiles for 7x7 filters: kSide x (kSide / 2 + 1) complex numbers, the rest being
// their conjugates. A product by small matrices, halved by the symmetry of cosine and sine, is cheap next to the
// products over channels.
struct Fourier {
  static constexpr int kTile = 16, kSide = kTile + 6, kHalf = kSide / 2, kFrequencies = kSide * (kHalf + 1);
  static constexpr int kComponents = 2;
  float cosine[kSide][kSide], sine[kSide][kSide];  // of 2 pi i j / kSide

  Fourier() {
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const double angle = 6.283185307179586476925 * (i * j % kSide) / kSide;
        cosine[i][j] = static_cast<float>(cos(angle));
        sine[i][j] = static_cast<float>(sin(angle));
      }
    }
  }

  // Of real numbers; frequencies 0 to kHalf.
  void forward(const vf (&x)[kSide], vf (&real)[kHalf + 1], vf (&imaginary)[kHalf + 1]) const {
    vf even[kHalf], odd[kHalf];
    for (int n = 1; n < kHalf; ++n) {
      even[n] = x[n] + x[kSide - n];
      odd[n] = x[kSide - n] - x[n];
    }
    for (int f = 0; f <= kHalf; ++f) {
      vf re = f % 2 ? x[0] - x[kHalf] : x[0] + x[kHalf], im = {};
      for (int n = 1; n < kHalf; ++n) {
        re = fma_(splat<kLanes>(cosine[f][n]), even[n], re);
        im = fma_(splat<kLanes>(sine[f][n]), odd[n], im);
      }
      real[f] = re;
      imaginary[f] = im;
    }
  }

  void input(const float* from, int64_t width, float* to, int64_t frequency, int64_t component, int64_t next) const {
    vf once[2][kHalf + 1][kSide];
    for (int i = 0; i < kSide; ++i) {
      vf row[kSide], real[kHalf + 1], imaginary[kHalf + 1];
      for (int j = 0; j < kSide; ++j) row[j] = load<kLanes>(from + (i * width + j) * kGroup);
      forward(row, real, imaginary);
      for (int f = 0; f <= kHalf; ++f) {
        once[0][f][i] = real[f];
        once[1][f][i] = imaginary[f];
      }
    }
    for (int x = 0; x <= kHalf; ++x) {
      vf a[2][kHalf + 1], b[2][kHalf + 1];  // of the real and of the imaginary parts
      forward(once[0][x], a[0], a[1]);
      forward(once[1][x], b[0], b[1]);
      for (int y = 0; y <= kHalf; ++y) {
        float* at = to + (y * (kHalf + 1) + x) * frequency;
        store<kLanes>(at, a[0][y] - b[1][y]);
        store<kLanes>(at + component, a[1][y] + b[0][y]);
        __builtin_prefetch(at + next, 1, 2);
        __builtin_prefetch(at + component + next, 1, 2);
        if (y == 0 || y == kHalf) continue;
        at = to + ((kSide - y) * (kHalf + 1) + x) * frequency;
        store<kLanes>(at, a[0][y] + b[1][y]);
        store<kLanes>(at + component, b[0][y] - a[1][y]);
        __builtin_prefetch(at + next, 1, 2);
        __builtin_prefetch(at + component + next, 1, 2);
      }
    }
  }

  // The first kTile of each axis: those that no wrapped input reaches. The filters have the factor 1 / kSide^2, and 2
  // for each frequency that stands for its conjugate too.
  template <class Put>
  void output(const float* from, int64_t frequency, int64_t component, Put put) const {
    vf once[kTile][2][kHalf + 1];
    for (int x = 0; x <= kHalf; ++x) {
      vf even[2][kHalf + 1], odd[2][kHalf + 1];
      for (int y = 0; y <= kHalf; ++y) {
        for (int part = 0; part < 2; ++part) {
          const float* at = from + x * frequency + part * component;
          const vf one = load<kLanes>(at + y * (kHalf + 1) * frequency);
          const bool alone = y == 0 || y == kHalf;
          const vf other = alone ? vf{} : load<kLanes>(at + (kSide - y) * (kHalf + 1) * frequency);
          even[part][y] = one + other;
          odd[part][y] = one - other;
        }
      }
      for (int i = 0; i < kTile; ++i) {
        vf re = even[0][0], im = even[1][0];
        for (int y = 1; y <= kHalf; ++y) {
          const vf c = splat<kLanes>(cosine[i][y]), s = splat<kLanes>(sine[i][y]);
          re = fma_(c, even[0][y], fma_(-s, odd[1][y], re));
          im = fma_(c, even[1][y], fma_(s, odd[0][y], im));
        }
        once[i][0][x] = re;
        once[i][1][x] = im;
      }
    }
    for (int i = 0; i < kTile; ++i) {
      for (int j = 0; j < kTile; ++j) {
        vf value = once[i][0][0];
        for (int x = 1; x <= kHalf; ++x) {
          const vf c = splat<kLanes>(cosine[j][x]), s = splat<kLanes>(sine[j][x]);
          value = fma_(c, once[i][0][x], fma_(-s, once[i][1][x], value));
        }
        put(i, j, value);
      }
    }
  }
};

// How far apart the frequencies of `rows` rows lie: not at a power of two, where they would share a set of the caches.
int64_t apart(int64_t rows, int64_t width) { return rows * width + kGroup; }

// Tiles `first` to `first + tiles`, counted row by row, of an image at depths `begin` to `begin + depths`.
struct Block {
  int64_t image, begin, depths, first, tiles;
};

struct Plan {
  int64_t across, down;        // tiles
  int64_t groups, columns;     // of the inputs transformed, and of the products, all components together
  int64_t depths, tiles;       // of a block at most
  int64_t deep, wide, blocks;  // blocks over depth, over tiles, and in all
  int64_t parts;               // that the panels are divided into, for enough work to share
  int64_t together;            // panels whose products are held at once

  template <class Algorithm>
  Plan(const Params& p, const Algorithm&, int threads) {
    constexpr int64_t kFewDepths = 16, tile = Algorithm::kTile;
    constexpr int64_t kProducts = 300000, kFilters = 100000;  // values that the caches keep at once
    across = (p.out_width + tile - 1) / tile;
    down = (p.out_height + tile - 1) / tile;
    groups = Algorithm::kComponents * ((p.channels + kGroup - 1) / kGroup);
    columns = Algorithm::kComponents * round_up(p.outputs, kGroup / Algorithm::kComponents);
    // Filters with depth see more than the block's own depths: many of these at once, and few tiles.
    const int64_t most_depths = p.taps == 1 ? most(1, kManyRows / (across * down)) : kFewDepths;
    deep = (p.depth + most_depths - 1) / most_depths;
    depths = (p.depth + deep - 1) / deep;
    const int64_t most_tiles = most(1, kManyRows / depths);
    wide = (across * down + most_tiles - 1) / most_tiles;
    tiles = (across * down + wide - 1) / wide;
    blocks = p.batch * deep * wide;
    parts = 1;
    together = panels();
    if (Algorithm::kComponents > 1) return;  // which an output needs both
    while (parts < panels() && blocks * parts % threads != 0 && blocks * parts < 8 * threads) ++parts;
    together = most(1, kProducts / (Algorithm::kFrequencies * depths * tiles * kPanel));
    together = least(together, most(1, kFilters / (p.taps * groups * kGroup * kPanel)));
    together = least(together, (panels() + parts - 1) / parts);
  }

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }

  Block block(const Params& p, int64_t number) const {
    const int64_t begin = number / wide % deep * depths, first = number % wide * tiles;
    return {number / (wide * deep), begin, least(depths, p.depth - begin), first, least(tiles, across * down - first)};
  }
};

// Calls run(offset, y, x, count) for the parts of a block that lie in one row of tiles: tile `offset` of the block is
// tile x of row y.
template <class Run>
void for_segments(const Plan& plan, const Block& block, Run run) {
  for (int64_t done = 0; done < block.tiles;) {
    const int64_t x = (block.first + done) % plan.across;
    const int64_t count = least(least(block.tiles - done, plan.across - x), kSegment);
    run(done, (block.first + done) / plan.across, x, count);
    done += count;
  }
}

// `count` channels of `pixels` pixels next to each other, kGroup at most; zero beyond.
void gather(const Params& p, const float* from, int64_t count, int64_t pixels, float* to) {
  const int64_t channel = p.x_stride[1], step = p.x_stride[4];
  if (channel == 1) {
    for (int64_t x = 0; x < pixels; ++x) {
      __builtin_prefetch(from + x * step + 2 * kGroup, 0, 2);  // soon, and too far apart for the processor to guess
      for (int part = 0; part < kParts; ++part) {
        const int64_t left = count - part * kLanes;
        const float* at = from + x * step + part * kLanes;
        const vf value = left >= kLanes ? load<kLanes>(at) : left > 0 ? load_part<kLanes>(at, left) : vf{};
        store<kLanes>(to + x * kGroup + part * kLanes, value);
      }
    }
    return;
  }
  for (int64_t x = 0; x < pixels; x += kLanes) {
    const int64_t width = least(kLanes, pixels - x);
    for (int part = 0; part < kParts; ++part) {
      vf rows[kLanes];
      for (int c = 0; c < kLanes; ++c) {
        const float* at = from + (part * kLanes + c) * channel + x;
        rows[c] = part * kLanes + c >= count ? vf{} : width == kLanes ? load<kLanes>(at) : load_part<kLanes>(at, width);
      }
      transpose<kLanes>(rows);
      for (int64_t i = 0; i < width; ++i) store<kLanes>(to + (x + i) * kGroup + part * kLanes, rows[i]);
    }
  }
}

// The way back: `count` channels, kGroup at most, of `pixels` pixels.
void scatter(const Params& p, const float* from, int64_t count, int64_t pixels, float* to) {
  const int64_t channel = p.out_stride[1], step = p.out_stride[4];
  if (channel == 1) {
    for (int64_t x = 0; x < pixels; ++x) {
      for (int part = 0; part < kParts; ++part) {
        const int64_t left = count - part * kLanes;
        const vf value = load<kLanes>(from + x * kGroup + part * kLanes);
        float* at = to + x * step + part * kLanes;
        if (left >= kLanes) {
          store<kLanes>(at, value);
        } else if (left > 0) {
          store_part<kLanes>(at, value, left);
        }
      }
    }
    return;
  }
  for (int64_t x = 0; x < pixels; x += kLanes) {
    const int64_t width = least(kLanes, pixels - x);
    for (int part = 0; part < kParts; ++part) {
      vf rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < width ? load<kLanes>(from + (x + i) * kGroup + part * kLanes) : vf{};
      }
      transpose<kLanes>(rows);
      for (int c = 0; c < least(kLanes, count - part * kLanes); ++c) {
        float* at = to + (part * kLanes + c) * channel + x;
        if (width == kLanes) {
          store<kLanes>(at, rows[c]);
        } else {
          store_part<kLanes>(at, rows[c], width);
        }
      }
    }
  }
}

// A block's inputs transformed: [frequencies, groups, rows, kGroup], a row per depth and tile.
template <class Algorithm>
void transform_inputs(const Params& p, const Algorithm& algorithm, const Plan& plan, const Block& block, float* stage,
                      float* transformed) {
  constexpr int kTile = Algorithm::kTile, kSide = Algorithm::kSide, kOverlap = kSide - kTile;
  const int64_t groups = plan.groups / Algorithm::kComponents;
  const int64_t depths = block.depths + p.taps - 1, rows = depths * block.tiles;
  for (int64_t depth = 0; depth < depths; ++depth) {
    const int64_t z = block.begin + depth - p.taps / 2;
    for_segments(plan, block, [&](int64_t offset, int64_t tile_y, int64_t tile_x, int64_t count) {
      const int64_t width = count * kTile + kOverlap, x = tile_x * kTile - p.pad;
      const int64_t begin = most(0, -x), end = most(begin, least(width, p.width - x));
      for (int64_t group = 0; group < groups; ++group) {
        for (int i = 0; i < kSide; ++i) {
          const int64_t y = tile_y * kTile + i - p.pad;
          float* to = stage + i * width * kGroup;
          if (y < 0 || y >= p.height || z < 0 || z >= p.depth) {
            memset(to, 0, width * kGroup * sizeof(float));
            continue;
          }
          memset(to, 0, begin * kGroup * sizeof(float));
          memset(to + end * kGroup, 0, (width - end) * kGroup * sizeof(float));
          const float* from = p.x + block.image * p.x_stride[0] + group * kGroup * p.x_stride[1] + z * p.x_stride[2] +
                              y * p.x_stride[3] + (x + begin) * p.x_stride[4];
          gather(p, from, p.channels - group * kGroup, end - begin, to + begin * kGroup);
        }
        float* to = transformed + (group * rows + depth * block.tiles + offset) * kGroup;
        for (int64_t t = 0; t < count * kParts; ++t) {
          const int64_t part = t % kParts * kLanes;
          algorithm.input(stage + t / kParts * kTile * kGroup + part, width, to + t / kParts * kGroup + part,
                          apart(rows, plan.groups * kGroup), groups * rows * kGroup, rows * kGroup);
        }
      }
    });
  }
}

// Lines that will be wanted next, fetched a few at a time while others are worked on.
struct Ahead {
  const float* at;
  int64_t lines;  // per step
  void step() {
    for (int64_t i = 0; i < lines; ++i, at += kGroup) __builtin_prefetch(at, 0, 2);
  }
};

// `Rows` rows of a product, `width` columns wide, in steps of `Vectors` vectors.
template <int Rows, int Vectors>
void multiply(const float* rows, int64_t tap_stride, int64_t group_stride, int64_t taps, int64_t groups,
              const float* filters, int64_t width, float* out, int64_t out_stride, Ahead next_rows,
              Ahead next_filters) {
  for (int64_t column = 0; column < width; column += Vectors * kLanes) {
    vf sum[Rows][Vectors] = {};
    const float* b = filters + column;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t group = 0; group < groups; ++group) {
        const float* a = rows + tap * tap_stride + group * group_stride;
        next_rows.step();
        next_filters.step();
        for (int c = 0; c < kGroup; ++c, b += width) {
          vf factor[Vectors];
          for (int v = 0; v < Vectors; ++v) {
            factor[v] = load<kLanes>(b + v * kLanes);
            if (Vectors == 2) __builtin_prefetch(b + 8 * kPanel + v * kLanes, 0, 3);  // one vector has no time for it
          }
          for (int i = 0; i < Rows; ++i) {
            const vf value = splat<kLanes>(a[i * kGroup + c]);
            for (int v = 0; v < Vectors; ++v) sum[i][v] = fma_(value, factor[v], sum[i][v]);
          }
        }
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int v = 0; v < Vectors; ++v) store<kLanes>(out + i * out_stride + column + v * kLanes, sum[i][v]);
    }
  }
}

using Multiply = void (*)(const float*, int64_t, int64_t, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                          Ahead, Ahead);
template <int Vectors>
constexpr Multiply kMultiply[] = {multiply<1, Vectors>,  multiply<2, Vectors>,  multiply<3, Vectors>,
                                  multiply<4, Vectors>,  multiply<5, Vectors>,  multiply<6, Vectors>,
#if defined(__AVX512F__)
                                  multiply<7, Vectors>,  multiply<8, Vectors>,  multiply<9, Vectors>,
                                  multiply<10, Vectors>, multiply<11, Vectors>, multiply<12, Vectors>,
                                  multiply<13, Vectors>, multiply<14, Vectors>
#endif
};

// The products of panels `begin` to `end`: [frequencies, rows, columns], the columns those of the panels.
template <class Algorithm>
void multiply_block(const Params& p, const Plan& plan, const Block& block, const float* transformed, int64_t begin,
                    int64_t end, float* products) {
  const int64_t rows = block.depths * block.tiles, stored = rows + (p.taps - 1) * block.tiles;
  const int64_t columns = least(plan.columns, end * kPanel) - begin * kPanel, together = end - begin;
  const int64_t from_size = apart(stored, plan.groups * kGroup), to_size = apart(rows, columns);
  const int64_t calls = (rows + kRows - 1) / kRows, steps = p.taps * plan.groups, length = steps * kGroup;
  // What the next frequency takes, in equal parts per step of this one.
  const int64_t row_lines = (from_size / kGroup + calls * together * steps - 1) / (calls * together * steps);
  const int64_t filter_lines = (columns + calls * together - 1) / (calls * together);
  for (int64_t f = 0; f < Algorithm::kFrequencies; ++f) {
    const float* from = transformed + f * from_size;
    const float* filters = p.filters + (f * plan.columns + begin * kPanel) * length;
    Ahead next_rows{from + from_size, row_lines}, next_filters{filters + plan.columns * length, filter_lines};
    for (int64_t call = 0; call < calls; ++call) {  // of nearly as many rows each
      const int64_t row = rows * call / calls, count = rows * (call + 1) / calls - row;
      for (int64_t column = 0; column < columns; column += kPanel) {
        const int64_t width = least(kPanel, columns - column);
        const Multiply run = width % kWidth == 0 ? kMultiply<2>[count - 1] : kMultiply<1>[count - 1];
        run(from + row * kGroup, block.tiles * kGroup, stored * kGroup, p.taps, plan.groups, filters + column * length,
            width, products + f * to_size + row * columns + column, columns, next_rows, next_filters);
        next_rows.at += row_lines * steps * kGroup;
        next_filters.at += filter_lines * steps * kGroup;
      }
    }
  }
}

// The outputs of panels `begin` to `end`, straight to where they go or through `stage`.
template <class Algorithm>
void transform_outputs(const Params& p, const Algorithm& algorithm, const Plan& plan, const Block& block,
                       const float* products, int64_t begin, int64_t end, float* stage) {
  constexpr int kTile = Algorithm::kTile;
  const int64_t first = begin * kPanel, last = least(p.outputs, end * kPanel);
  const int64_t columns = least(plan.columns, end * kPanel) - first;
  const int64_t frequency = apart(block.depths * block.tiles, columns);
  for (int64_t depth = 0; depth < block.depths; ++depth) {
    for_segments(plan, block, [&](int64_t offset, int64_t tile_y, int64_t tile_x, int64_t count) {
      const int64_t y = tile_y * kTile, x = tile_x * kTile, stored = count * kTile;
      const int64_t height = least(kTile, p.out_height - y), width = least(stored, p.out_width - x);
      float* const out = p.out + block.image * p.out_stride[0] + (block.begin + depth) * p.out_stride[2] +
                         y * p.out_stride[3] + x * p.out_stride[4];
      const float* const from = products + (depth * block.tiles + offset) * columns;
      const auto tile = [&](int64_t t, int64_t k, float* to, int64_t y_stride, int64_t x_stride) {
        for (int64_t part = k; part < least(k + kGroup, p.outputs); part += kLanes, to += kLanes) {
          const int64_t left = p.outputs - part;
          const float* b = p.bias + part;
          const vf bias = p.bias == nullptr ? vf{} : left >= kLanes ? load<kLanes>(b) : load_part<kLanes>(b, left);
          algorithm.output(from + t * columns + part - first, frequency, columns / 2,
                           [&](int64_t i, int64_t j, vf value) {
                             value = value + bias;
                             if (p.activate) value = value < 0.0f ? (p.slope == 0.0f ? vf{} : value * p.slope) : value;
                             store<kLanes>(to + i * y_stride + j * x_stride, value);
                           });
        }
      };
      if (p.out_stride[1] == 1 && height == kTile && width == stored && (last - first) % kGroup == 0) {
        for (int64_t t = 0; t < count; ++t) {
          for (int64_t k = first; k < last; k += kGroup) {
            // The next tile's lines: a store that misses the caches would hold up those behind it.
            float* const next = out + (t + 1) * kTile * p.out_stride[4] + k;
            for (int64_t i = 0; i < kTile * kTile && t + 1 < count; ++i) {
              __builtin_prefetch(next + i / kTile * p.out_stride[3] + i % kTile * p.out_stride[4], 1, 2);
            }
            tile(t, k, out + t * kTile * p.out_stride[4] + k, p.out_stride[3], p.out_stride[4]);
          }
        }
        return;
      }
      for (int64_t k = first; k < last; k += kGroup) {
        for (int64_t t = 0; t < count; ++t) tile(t, k, stage + t * kTile * kGroup, stored * kGroup, kGroup);
        for (int64_t i = 0; i < height; ++i) {
          scatter(p, stage + i * stored * kGroup, last - k, width, out + k * p.out_stride[1] + i * p.out_stride[3]);
        }
      }
    });
  }
}

// While it lives, its thread takes numbers below 1.2e-38 for zero. A Gaussian heatmap is full of them far from its
// keypoint, and arithmetic on each costs a hundred cycles: half the time of the layers that read heatmaps.
class TinyIsZero {
 public:
#ifdef __SSE__
  TinyIsZero() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~TinyIsZero() { __builtin_ia32_ldmxcsr(before_); }
#else
  TinyIsZero() {}
#endif
  TinyIsZero(const TinyIsZero&) = delete;
  TinyIsZero& operator=(const TinyIsZero&) = delete;

 private:
#ifdef __SSE__
  unsigned before_;
#endif
};

template <class Algorithm>
bool convolve_by(const Params& p, const Algorithm& algorithm, int threads) {
  const Plan plan(p, algorithm, threads);
  const int64_t units = plan.blocks * plan.parts;
  const int64_t rows = plan.depths * plan.tiles, stored = rows + (p.taps - 1) * plan.tiles;
  const int64_t stage_size = Algorithm::kSide * (kSegment * Algorithm::kTile + Algorithm::kSide) * kGroup;
  const int64_t transformed_size = Algorithm::kFrequencies * apart(stored, plan.groups * kGroup);
  const int64_t products_size = Algorithm::kFrequencies * apart(rows, plan.together * kPanel) + kGroup;
  const int used = static_cast<int>(least(threads, units));
  bool done = true;
#pragma omp parallel num_threads(used) reduction(&& : done)
  {
    const TinyIsZero flushing;
    const Buffer memory((stage_size + transformed_size + products_size) * sizeof(float));
    done = memory.data != nullptr;
    float* const transformed = reinterpret_cast<float*>(memory.data);
    float* const products = transformed + transformed_size;
    float* const stage = products + products_size;
    int64_t present = -1;  // the block that is transformed
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      if (!done) continue;
      const int64_t number = unit / plan.parts, part = unit % plan.parts;
      const Block block = plan.block(p, number);
      if (present != number) transform_inputs(p, algorithm, plan, block, stage, transformed);
      present = number;
      const int64_t last = plan.panels() * (part + 1) / plan.parts;
      for (int64_t panel = plan.panels() * part / plan.parts; panel < last; panel += plan.together) {
        const int64_t end = least(last, panel + plan.together);
        multiply_block<Algorithm>(p, plan, block, transformed, panel, end, products);
        transform_outputs(p, algorithm, plan, block, products, panel, end, stage);
      }
    }
  }
  return done;
}

}  // namespace

bool convolve(const Params& params, int threads) {
  switch (params.tile) {
    case 2:
      return convolve_by(params, Winograd<Line2>(), threads);
    case 4:
      return convolve_by(params, Winograd<Line4>(), threads);
    default:
      return convolve_by(params, Fourier(), threads);
  }
}

}  // namespace fastface::tiled_conv::FASTFACE_TIER

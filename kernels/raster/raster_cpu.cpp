// The `raster` hot path on the CPU, compiled once per instruction set tier. Formulas and the reasons for the layout of
// the work: README.md. An image is drawn in four steps, each shared by all threads: corners to subpixels; triangles to
// the tiles that they may touch; every tile by itself, its triangles in the order of their indices; attributes.
#include "raster_cpu.h"

#include "cpu_simd.h"

namespace fastface::raster::FASTFACE_TIER {
namespace {

using namespace ::fastface::FASTFACE_TIER;

constexpr int32_t kSubpixels = 256;
constexpr float kLimit = 1048576.0f;                  // pixels; beyond it a corner is not drawn
constexpr int64_t kTileWidth = 64, kTileHeight = 16;  // depth and index of a tile take 8 KiB of the first-level cache
constexpr int64_t kMinChunk = 1024, kChunksPerThread = 4;  // of triangles that one thread sorts into tiles at once
constexpr int64_t kWidened = 4096;                         // attributes that one thread turns to float32 at once
constexpr int64_t kTriangleWork = 8;                       // a small triangle takes as long as so many pixels
// Up to this extent in subpixels an edge function, in whole pixels, fits into 32 bits over the bounding box and a
// vector beside it: 2 * (2^18 + 16 * 2^8) * 2^18 / 2^8 < 2^31.
constexpr int64_t kNarrow = 1 << 18;

struct Corner {
  int32_t x, y;  // subpixels; x is kUnusable where a coordinate is not finite or too far off
  float z;
};
constexpr int32_t kUnusable = INT32_MIN;

inline Corner corner_of(const float* vertex) {
  const float x = vertex[0], y = vertex[1], z = vertex[2];
  // Comparisons with NaN are false.
  const bool usable = __builtin_fabsf(x) < kLimit && __builtin_fabsf(y) < kLimit && z - z == 0;
  if (!usable) return {kUnusable, 0, 0};
  const auto snap = [](float value) { return static_cast<int32_t>(__builtin_floorf(value * kSubpixels + 0.5f)); };
  return {snap(x), snap(y), z};
}

// A triangle that may cover a pixel, and the pixels whose centres lie in its bounding box.
struct Box {
  int32_t triangle;
  int16_t left, top, right, bottom;  // inclusive
  float area;                        // twice its area in subpixels², above 0 where its corners run clockwise
  bool wide;                         // larger than kNarrow
};

// Three corners in clockwise order on the screen, and which vertices they are.
struct Triangle {
  Corner corner[3];
  int32_t vertex[3];
};

inline int64_t area_of(const Corner& a, const Corner& b, const Corner& c) {
  return static_cast<int64_t>(b.x - a.x) * (c.y - a.y) - static_cast<int64_t>(c.x - a.x) * (b.y - a.y);
}

inline Triangle triangle_of(const Params& p, const Corner* corners, int32_t index) {
  const int32_t* at = p.triangle + 3 * static_cast<int64_t>(index);
  const bool clockwise = area_of(corners[at[0]], corners[at[1]], corners[at[2]]) > 0;
  const int32_t second = clockwise ? at[1] : at[2], third = clockwise ? at[2] : at[1];
  return {{corners[at[0]], corners[second], corners[third]}, {at[0], second, third}};
}

enum class Fate { kDrawn, kUnseen, kSkipped };

// Whether a triangle may cover a pixel; `box` is only set if so.
inline Fate examine(const Params& p, const Corner* corners, int64_t index, Box& box) {
  const int32_t* at = p.triangle + 3 * index;
  for (int i = 0; i < 3; ++i) {
    if (at[i] < 0 || at[i] >= p.vertices) return Fate::kSkipped;
  }
  const Corner &a = corners[at[0]], &b = corners[at[1]], &c = corners[at[2]];
  if (a.x == kUnusable || b.x == kUnusable || c.x == kUnusable) return Fate::kSkipped;
  const auto low = [](int32_t i, int32_t j, int32_t k) { return i < j ? (i < k ? i : k) : (j < k ? j : k); };
  const auto high = [](int32_t i, int32_t j, int32_t k) { return i > j ? (i > k ? i : k) : (j > k ? j : k); };
  const int32_t x0 = low(a.x, b.x, c.x), x1 = high(a.x, b.x, c.x);
  const int32_t y0 = low(a.y, b.y, c.y), y1 = high(a.y, b.y, c.y);
  // Shifts round down, also below zero.
  const int64_t left = most((x0 + kSubpixels - 1) >> 8, 0), right = least(x1 >> 8, p.width - 1);
  const int64_t top = most((y0 + kSubpixels - 1) >> 8, 0), bottom = least(y1 >> 8, p.height - 1);
  if (left > right || top > bottom) return Fate::kUnseen;
  const int64_t area = area_of(a, b, c);
  if (area == 0 || (p.cull == Cull::kBack && area > 0) || (p.cull == Cull::kFront && area < 0)) return Fate::kUnseen;
  box = {static_cast<int32_t>(index),
         static_cast<int16_t>(left),
         static_cast<int16_t>(top),
         static_cast<int16_t>(right),
         static_cast<int16_t>(bottom),
         static_cast<float>(area),
         x1 - x0 >= kNarrow || y1 - y0 >= kNarrow};
  return Fate::kDrawn;
}

// An edge function over pixels, in units of 256 subpixels²: e(x, y) / 256 = step_x x + step_y y + constant + rest. Its
// whole part is at least 0 exactly where the centre is inside by the top-left rule: steps per pixel are whole, so what
// remains of the constant decides nothing.
struct Edge {
  int64_t step_x, step_y, constant;
  float rest;

  Edge(const Corner& from, const Corner& to) {
    const int64_t dx = to.x - from.x, dy = to.y - from.y;
    const int64_t excluded = (dy > 0) | ((dy == 0) & (dx <= 0));  // a centre on a right or bottom edge is outside
    const int64_t origin = dy * from.x - dx * from.y - excluded;
    step_x = -dy;
    step_y = dx;
    constant = origin >> 8;
    rest = static_cast<float>((origin & 255) + excluded) * (1.0f / kSubpixels);
  }
  int64_t whole(int64_t x, int64_t y) const { return step_x * x + step_y * y + constant; }
};

// The edges of a triangle, each named by the corner that it does not touch: e_i / area is the weight of that corner.
struct Edges {
  Edge of[3];
  float scale;  // 256 / area

  explicit Edges(const Triangle& t)
      : of{{t.corner[1], t.corner[2]}, {t.corner[2], t.corner[0]}, {t.corner[0], t.corner[1]}},
        scale(kSubpixels / static_cast<float>(area_of(t.corner[0], t.corner[1], t.corner[2]))) {}
};

// The nearest depth, and whose it is, of every pixel of a tile.
struct Tile {
  int64_t left, top, width, height;  // the part inside the image
  alignas(64) float depth[kTileHeight * kTileWidth];
  alignas(64) int32_t triangle[kTileHeight * kTileWidth];

  void begin(const Params& p, int64_t x, int64_t y) {
    left = x;
    top = y;
    width = least(kTileWidth, p.width - x);
    height = least(kTileHeight, p.height - y);
    for (int64_t i = 0; i < kTileHeight * kTileWidth; i += kLanes) {
      store<kLanes>(depth + i, vf{} + __builtin_inff());
      const vi none = vi{} - 1;
      memcpy(triangle + i, &none, sizeof none);
    }
  }

  // Keeps, of `kLanes` pixels of the tile, those that are covered and nearer. Triangles come in the order of their
  // indices, so of equally near ones the first stays.
  inline void put(int64_t at, vi covered, vf z, int32_t index) {
    const vf before = load<kLanes>(depth + at);
    vi winner;
    memcpy(&winner, triangle + at, sizeof winner);
    const vi nearer = covered & (z < before);
    winner = nearer ? vi{} + index : winner;
    store<kLanes>(depth + at, nearer ? z : before);
    memcpy(triangle + at, &winner, sizeof winner);
  }
};

// The pixels of a box that lie in a tile, from a whole vector of the tile on: what the last triangle wrote is then read
// back as it was written.
struct Window {
  int64_t left, top, right, bottom;
  Window(const Box& box, const Tile& tile)
      : left(most(box.left, tile.left) / kLanes * kLanes),
        top(most(box.top, tile.top)),
        right(least(box.right, tile.left + tile.width - 1)),
        bottom(least(box.bottom, tile.top + tile.height - 1)) {}
};

inline int64_t floor_divide(int64_t a, int64_t b) {  // b > 0
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

// A triangle of any size: along each row the covered pixels are one run, whose ends are found by division.
inline void draw_wide(const Params& p, const Corner* corners, const Box& box, Tile& tile) {
  const Triangle t = triangle_of(p, corners, box.triangle);
  const Edges edges(t);
  const Window window(box, tile);
  const vi lane = lane_index();
  const Edge &one = edges.of[1], &two = edges.of[2];
  const vf z0 = vf{} + t.corner[0].z;
  const vf z1 = vf{} + (t.corner[1].z - t.corner[0].z) * edges.scale;
  const vf z2 = vf{} + (t.corner[2].z - t.corner[0].z) * edges.scale;
  const vf step1 = vf{} + static_cast<float>(one.step_x), step2 = vf{} + static_cast<float>(two.step_x);
  for (int64_t y = window.top; y <= window.bottom; ++y) {
    int64_t first = 0, last = window.right - window.left;
    for (const Edge& edge : edges.of) {
      const int64_t start = edge.whole(window.left, y);
      if (edge.step_x > 0) first = most(first, -floor_divide(start, edge.step_x));
      if (edge.step_x < 0) last = least(last, floor_divide(start, -edge.step_x));
      if (edge.step_x == 0 && start < 0) last = -1;
    }
    const vf start1 = vf{} + (static_cast<float>(one.whole(window.left, y)) + one.rest);
    const vf start2 = vf{} + (static_cast<float>(two.whole(window.left, y)) + two.rest);
    for (int64_t i = first / kLanes * kLanes; i <= last; i += kLanes) {
      const vi here = lane + static_cast<int32_t>(i);
      const vi covered = (here >= static_cast<int32_t>(first)) & (here <= static_cast<int32_t>(last));
      const vf x = __builtin_convertvector(here, vf);
      const vf z = fma_(fma_(x, step2, start2), z2, fma_(fma_(x, step1, start1), z1, z0));
      tile.put((y - tile.top) * kTileWidth + window.left - tile.left + i, covered, z, box.triangle);
    }
  }
}

// kLanes narrow triangles of a tile, prepared in the lanes of vectors, then drawn one after the other. All is relative
// to the first pixel of each one's window, and what is whole fits into 32 bits: as in `Edge`, with coordinates split
// into pixels and subpixels, so that no product runs over. Sums may on the way, as unsigned numbers may.
struct Batch {
  int32_t x[3][kLanes], y[3][kLanes];  // corners
  float z[3][kLanes], area[kLanes];
  int32_t left[kLanes], top[kLanes];
  uint32_t start[3][kLanes], step_x[3][kLanes], step_y[3][kLanes];
  float first_z[kLanes], step_z[2][kLanes];

  inline void set(int lane, const Params& p, const Corner* corners, const Box& box, const Window& at) {
    const int32_t* const vertex = p.triangle + 3 * static_cast<int64_t>(box.triangle);
    for (int i = 0; i < 3; ++i) {
      const Corner& corner = corners[vertex[i]];
      x[i][lane] = corner.x;
      y[i][lane] = corner.y;
      z[i][lane] = corner.z;
    }
    area[lane] = box.area;
    left[lane] = static_cast<int32_t>(at.left);
    top[lane] = static_cast<int32_t>(at.top);
  }

  inline void prepare() {
    const vf signed_area = load<kLanes>(area);
    const vi clockwise = signed_area > 0.0f;
    const vf scale = static_cast<float>(kSubpixels) / (clockwise ? signed_area : -signed_area);
    const vi x0 = get(x[0]), y0 = get(y[0]), column = get(left), row = get(top);
    const vi xs[3] = {x0, clockwise ? get(x[1]) : get(x[2]), clockwise ? get(x[2]) : get(x[1])};
    const vi ys[3] = {y0, clockwise ? get(y[1]) : get(y[2]), clockwise ? get(y[2]) : get(y[1])};
    vf rest[3];
    for (int i = 0; i < 3; ++i) {
      const int from = (i + 1) % 3, to = (i + 2) % 3;
      const vi dx = xs[to] - xs[from], dy = ys[to] - ys[from];
      const vi excluded = (dy > 0) | ((dy == 0) & (dx <= 0));  // -1 where a centre on the edge is outside
      const vu fine = (vu)dy * (vu)(xs[from] & 255) - (vu)dx * (vu)(ys[from] & 255) + (vu)excluded;
      const vu whole = (vu)dy * (vu)((xs[from] >> 8) - column) - (vu)dx * (vu)((ys[from] >> 8) - row);
      put(start[i], whole + (vu)((vi)fine >> 8));
      put(step_x[i], -(vu)dy);
      put(step_y[i], (vu)dx);
      rest[i] = __builtin_convertvector((vi)(fine & 255u) - excluded, vf) * (1.0f / kSubpixels);
    }
    // z = z_0 + (z_1 - z_0) w_1 + (z_2 - z_0) w_2 is constant where all corners are equally deep.
    const vf z0 = load<kLanes>(z[0]), z1 = load<kLanes>(z[1]) - z0, z2 = load<kLanes>(z[2]) - z0;
    const vf step1 = (clockwise ? z1 : z2) * scale, step2 = (clockwise ? z2 : z1) * scale;
    store<kLanes>(first_z, fma_(rest[2], step2, fma_(rest[1], step1, z0)));
    store<kLanes>(step_z[0], step1);
    store<kLanes>(step_z[1], step2);
  }

  inline void draw(int lane, const Box& box, const Window& at, Tile& tile) const {
    const vu along = (vu)lane_index();
    vu row[3], across[3];
    for (int i = 0; i < 3; ++i) {
      row[i] = along * step_x[i][lane] + start[i][lane];
      across[i] = vu{} + step_x[i][lane] * static_cast<uint32_t>(kLanes);
    }
    const vf z0 = vf{} + first_z[lane], z1 = vf{} + step_z[0][lane], z2 = vf{} + step_z[1][lane];
    for (int64_t y = at.top; y <= at.bottom; ++y) {
      vu e[3] = {row[0], row[1], row[2]};
      int64_t pixel = (y - tile.top) * kTileWidth + at.left - tile.left;
      for (int64_t x = at.left; x <= at.right; x += kLanes, pixel += kLanes) {
        const vi covered = (vi)(e[0] | e[1] | e[2]) >= 0;
        const vf e1 = __builtin_convertvector((vi)e[1], vf), e2 = __builtin_convertvector((vi)e[2], vf);
        tile.put(pixel, covered, fma_(e2, z2, fma_(e1, z1, z0)), box.triangle);
        for (int i = 0; i < 3; ++i) e[i] += across[i];
      }
      for (int i = 0; i < 3; ++i) row[i] += step_y[i][lane];
    }
  }

  static inline vi get(const int32_t* from) {
    vi value;
    memcpy(&value, from, sizeof value);
    return value;
  }
  static inline void put(uint32_t* to, vu value) { memcpy(to, &value, sizeof value); }
};

// Draws the boxes of a list in their order.
inline void draw(const Params& p, const Corner* corners, const Box* boxes, const int32_t* list, int64_t count,
                 Tile& tile) {
  Batch batch = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(least(kLanes, count - i));
    for (int j = 0; j < n; ++j) {
      const Box& box = boxes[list[i + j]];
      batch.set(j, p, corners, box, Window(box, tile));
    }
    batch.prepare();
    for (int j = 0; j < n; ++j) {
      const Box& box = boxes[list[i + j]];
      if (box.wide) {
        draw_wide(p, corners, box, tile);
      } else {
        batch.draw(j, box, Window(box, tile), tile);
      }
    }
  }
}

// ---- From triangles to pixels ----

// The weights and vertices of every pixel in a row of a tile; none where no triangle is.
struct Weights {
  float weight[3][kTileWidth];
  int32_t vertex[3][kTileWidth];

  void fill(const Params& p, const Corner* corners, const int32_t* triangle, int64_t x, int64_t y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (triangle[i] < 0) continue;
      const Triangle t = triangle_of(p, corners, triangle[i]);
      const Edges edges(t);
      for (int k = 0; k < 3; ++k) {
        const Edge& edge = edges.of[k];
        weight[k][i] = (static_cast<float>(edge.whole(x + i, y)) + edge.rest) * edges.scale;
        vertex[k][i] = t.vertex[k];
      }
    }
  }
};

// Writes a finished tile to the outputs of image b. `values` are the attributes in float32, null where they are per
// triangle.
template <class T>
void emit(const Params& p, const Corner* corners, const float* values, int64_t b, const Tile& tile) {
  const T* const attribute = static_cast<const T*>(p.attribute);
  Weights w;
  for (int64_t r = 0; r < tile.height; ++r) {
    const int64_t y = tile.top + r, pixel = (b * p.height + y) * p.width + tile.left, count = tile.width;
    const int32_t* const triangle = tile.triangle + r * kTileWidth;
    memcpy(p.visible + pixel, triangle, static_cast<size_t>(count) * sizeof(int32_t));
    memcpy(p.depth + pixel, tile.depth + r * kTileWidth, static_cast<size_t>(count) * sizeof(float));
    if (values != nullptr) w.fill(p, corners, triangle, tile.left, y, count);
    for (int64_t a = 0; a < p.attributes; ++a) {
      T* const to = static_cast<T*>(p.image) + ((b * p.attributes + a) * p.height + y) * p.width + tile.left;
      if (values == nullptr) {
        for (int64_t i = 0; i < count; ++i) {
          to[i] = triangle[i] < 0 ? T{} : attribute[triangle[i] * p.attributes + a];
        }
        continue;
      }
      alignas(64) float row[kTileWidth];
      for (int64_t i = 0; i < count; ++i) {
        row[i] = 0.0f;
        if (triangle[i] < 0) continue;
        for (int k = 0; k < 3; ++k) row[i] += w.weight[k][i] * values[w.vertex[k][i] * p.attributes + a];
      }
      write_row(row, to, 1, count);
    }
  }
}

// ---- The op ----

// How an image is cut into tiles, and its triangles into chunks.
struct Plan {
  int64_t across, tiles, chunk, chunks;
  Plan(const Params& p, int threads) {
    across = (p.width + kTileWidth - 1) / kTileWidth;
    tiles = across * ((p.height + kTileHeight - 1) / kTileHeight);
    chunk = most(kMinChunk, (p.triangles + kChunksPerThread * threads - 1) / (kChunksPerThread * threads));
    chunks = (p.triangles + chunk - 1) / chunk;
  }
  template <class Body>
  void each_tile(const Box& box, const Body& body) const {
    for (int64_t row = box.top / kTileHeight; row <= box.bottom / kTileHeight; ++row) {
      for (int64_t i = box.left / kTileWidth; i <= box.right / kTileWidth; ++i) body(row * across + i);
    }
  }
};

// What the steps hand to each other; all of one image.
struct Scratch {
  Corner* corners;   // [V]
  Box* boxes;        // [T], of each chunk the first `kept`
  int64_t* kept;     // [chunks]
  int64_t* skipped;  // [chunks]
  int64_t* places;   // [chunks, tiles]: how many boxes a chunk puts into a tile, then where it puts the next
  int64_t* ends;     // [tiles]: where the list of a tile ends
};

void sort_chunk(const Params& p, const Plan& plan, int64_t chunk, const Scratch& s) {
  const int64_t first = chunk * plan.chunk, last = least(first + plan.chunk, p.triangles);
  int64_t* const places = s.places + chunk * plan.tiles;
  memset(places, 0, static_cast<size_t>(plan.tiles) * sizeof(int64_t));
  int64_t kept = 0, skipped = 0;
  for (int64_t i = first; i < last; ++i) {
    Box& box = s.boxes[first + kept];
    const Fate fate = examine(p, s.corners, i, box);
    skipped += fate == Fate::kSkipped;
    if (fate != Fate::kDrawn) continue;
    ++kept;
    plan.each_tile(box, [&](int64_t tile) { ++places[tile]; });
  }
  s.kept[chunk] = kept;
  s.skipped[chunk] = skipped;
}

// Turns counts into places: tile by tile, in each chunk by chunk, so in the order of the triangles. Gives the total.
int64_t place_boxes(const Plan& plan, const Scratch& s) {
  int64_t total = 0;
  for (int64_t tile = 0; tile < plan.tiles; ++tile) {
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      int64_t& place = s.places[chunk * plan.tiles + tile];
      const int64_t count = place;
      place = total;
      total += count;
    }
    s.ends[tile] = total;
  }
  return total;
}

template <class T>
bool run_typed(const Params& p, int threads) {
  const int used = team(threads, p.height * p.width + kTriangleWork * p.triangles);
  const Plan plan(p, used);
  Buffer corner_data(static_cast<size_t>(p.vertices) * sizeof(Corner));
  Buffer box_data(static_cast<size_t>(p.triangles) * sizeof(Box));
  Buffer count_data(static_cast<size_t>(plan.chunks * (plan.tiles + 2) + plan.tiles) * sizeof(int64_t));
  if (corner_data.data == nullptr || box_data.data == nullptr || count_data.data == nullptr) return false;
  const int64_t numbers = p.per_vertex ? p.vertices * p.attributes : 0;
  const bool widened = numbers > 0 && sizeof(T) != sizeof(float);
  Buffer value_data(widened ? static_cast<size_t>(numbers) * sizeof(float) : 0);
  if (value_data.data == nullptr) return false;
  float* const copied = reinterpret_cast<float*>(value_data.data);
  const float* const values = widened ? copied : numbers > 0 ? static_cast<const float*>(p.attribute) : nullptr;
  if (widened) {
#pragma omp parallel for schedule(static) num_threads(used)
    for (int64_t i = 0; i < numbers; i += kWidened) {
      read_row(p.attribute, p.dtype, i, 1, least(kWidened, numbers - i), copied + i);
    }
  }
  int64_t* const counts = reinterpret_cast<int64_t*>(count_data.data);
  const Scratch s = {reinterpret_cast<Corner*>(corner_data.data),
                     reinterpret_cast<Box*>(box_data.data),
                     counts,
                     counts + plan.chunks,
                     counts + 2 * plan.chunks,
                     counts + plan.chunks * (plan.tiles + 2)};
  for (int64_t b = 0; b < p.batch; ++b) {
#pragma omp parallel num_threads(used)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < p.vertices; ++i) s.corners[i] = corner_of(p.vertex + 3 * (b * p.vertices + i));
#pragma omp for schedule(dynamic) nowait
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sort_chunk(p, plan, chunk, s);
    }
    Buffer list_data(static_cast<size_t>(place_boxes(plan, s)) * sizeof(int32_t));
    if (list_data.data == nullptr) return false;
    int32_t* const list = reinterpret_cast<int32_t*>(list_data.data);
#pragma omp parallel num_threads(used)
    {
#pragma omp for schedule(dynamic)
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        int64_t* const places = s.places + chunk * plan.tiles;
        const int64_t first = chunk * plan.chunk;
        for (int64_t i = first; i < first + s.kept[chunk]; ++i) {
          plan.each_tile(s.boxes[i], [&](int64_t tile) { list[places[tile]++] = static_cast<int32_t>(i); });
        }
      }
      Tile tile;
#pragma omp for schedule(dynamic) nowait
      for (int64_t i = 0; i < plan.tiles; ++i) {
        tile.begin(p, i % plan.across * kTileWidth, i / plan.across * kTileHeight);
        const int64_t first = i == 0 ? 0 : s.ends[i - 1];
        draw(p, s.corners, s.boxes, list + first, s.ends[i] - first, tile);
        emit<T>(p, s.corners, values, b, tile);
      }
    }
    int64_t skipped = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) skipped += s.skipped[chunk];
    p.skipped[b] = static_cast<int32_t>(skipped);
  }
  return true;
}

}  // namespace

bool run(const Params& params, int threads) {
  return by_dtype<Half, BFloat16>(params.dtype, [&](auto zero) { return run_typed<decltype(zero)>(params, threads); });
}

}  // namespace fastface::raster::FASTFACE_TIER

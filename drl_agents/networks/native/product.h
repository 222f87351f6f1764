// Products of small matrices, and what is done to their sums while these are in registers.
//
// The outer-product kernel of Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3),
// 2008), with tiles of kTile rows and two vectors of columns.
#pragma once

#include <algorithm>
#include <cstring>

// Floats in a vector register, and rows of a tile: as many as leave registers for two vectors of columns and a factor.
#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#define TILE 12
#elif defined(__AVX__)
#define LANES 8
#define TILE 6
#else
#define LANES 4
#define TILE 8
#endif
#endif

namespace {

constexpr long kLanes = LANES, kTile = TILE, kVectors = 2, kColumns = kVectors * kLanes;

typedef float Vector __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// As `load`, of which the last `missing` lanes are not there to be read: zeros.
inline Vector load_part(const float* from, long missing) {
  if (missing <= 0) return load(from);
  Vector v{};
  std::memcpy(&v, from, sizeof v - missing * 4);
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline void store_part(float* to, Vector v, long missing) {
  std::memcpy(to, &v, sizeof v - std::max(missing, 0L) * 4);
}

inline Vector all(float x) { return x - Vector{}; }

// Of a lane that is not a number neither bound is chosen: it stays one.
inline Vector at_least(Vector x, float low) { return all(low) > x ? all(low) : x; }
inline Vector at_most(Vector x, float high) { return all(high) < x ? all(high) : x; }

// The quotient of polynomials of drl_agents/networks/activation.py.
inline Vector tanh_of(Vector x) {
  constexpr float end = 7.90531110763549805f;
  x = at_most(at_least(x, -end), end);
  const Vector square = x * x;
  Vector above = all(-2.76076847742355e-16f) * square + all(2.00018790482477e-13f);
  for (float c : {-8.60467152213735e-11f, 5.12229709037114e-08f, 1.48572235717979e-05f, 6.37261928875436e-04f,
                  4.89352455891786e-03f})
    above = above * square + all(c);
  Vector below = all(1.19825839466702e-06f) * square + all(1.18534705686654e-04f);
  for (float c : {2.26843463243900e-03f, 4.89352518554385e-03f}) below = below * square + all(c);
  return x * above / below;
}

// sum_k a[i, k] b[k, columns] for M rows i and V vectors of columns, handed to out(row, column, vector). The rows of `b`
// lie `b_row` apart; a[i, k] is at a[i * a_row + k], or of a transposed one at a[k * a_row + i].
template <int M, int V, bool Transposed, class Out>
void tile(const float* a, long a_row, const float* b, long b_row, long depth, const Out& out, long row, long column) {
  Vector sums[M][V] = {};
  for (long k = 0; k < depth; k++) {
    Vector columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) columns[v] = load(b + k * b_row + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      const Vector factor = all(Transposed ? a[k * a_row + i] : a[i * a_row + k]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sums[i][v] += factor * columns[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) out(row + i, column + v * kLanes, sums[i][v]);
}

// A tile of `rows` rows, which are at most M.
template <int M, int V, bool Transposed, class Out>
inline void tile_of(long rows, const float* a, long a_row, const float* b, long b_row, long depth, const Out& out,
                    long row, long column) {
  if constexpr (M > 0) {
    if (rows >= M)
      tile<M, V, Transposed>(a, a_row, b, b_row, depth, out, row, column);
    else
      tile_of<M - 1, V, Transposed>(rows, a, a_row, b, b_row, depth, out, row, column);
  }
}

// The product of a (rows, depth) and b (depth, columns), handed to out(row, column, vector) by vectors of which the last
// may pass the end of a row. b_at(column): where column `column` of `b` begins.
template <bool Transposed, class At, class Out>
void product(long rows, long columns, long depth, const float* a, long a_row, const At& b_at, long b_row,
             const Out& out) {
  for (long column = 0; column < columns; column += kColumns) {
    const float* b = b_at(column);
    const bool one = columns - column <= kLanes;
    for (long row = 0; row < rows; row += kTile) {
      const float* own = Transposed ? a + row : a + row * a_row;
      if (one)
        tile_of<kTile, 1, Transposed>(rows - row, own, a_row, b, b_row, depth, out, row, column);
      else
        tile_of<kTile, kVectors, Transposed>(rows - row, own, a_row, b, b_row, depth, out, row, column);
    }
  }
}

long whole(long size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Floats of a row of at least `size`, an odd number of cache lines: rows an even number apart share few sets of a cache.
long spaced(long size) { return ((size + 15) / 16 | 1) * 16; }

long panels_size(long rows, long columns) { return (columns + kColumns - 1) / kColumns * kColumns * rows; }

// w (rows, columns) as panels of kColumns columns, their rows one after the other; behind the last column zeros.
void pack(const float* w, long rows, long columns, float* to) {
  for (long column = 0; column < columns; column += kColumns) {
    const long width = std::min(kColumns, columns - column);
    for (long row = 0; row < rows; row++, to += kColumns) {
      std::memcpy(to, w + row * columns + column, width * 4);
      std::fill(to + width, to + kColumns, 0.f);
    }
  }
}

// The transpose of w (columns, rows) as panels.
void pack_transposed(const float* w, long rows, long columns, float* to) {
  for (long column = 0; column < columns; column += kColumns, to += rows * kColumns)
    for (long c = 0; c < kColumns; c++)
      for (long row = 0; row < rows; row++)
        to[row * kColumns + c] = column + c < columns ? w[(column + c) * rows + row] : 0.f;
}

}  // namespace

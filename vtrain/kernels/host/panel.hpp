// Host: the accumulator of a matrix product's tile, and the packed panels that it multiplies (see product.hpp).
//
// A block is one OpenMP thread. Its accumulator lies in the second-level cache; pieces of ROWS x COLUMNS of it pass through
// registers while KB terms of the sum are added, and go back unchanged: the chain of each element runs on.
#pragma once
#include "../tile/grid.hpp"
#include "pack.hpp"

VT_BEGIN

template <class Acc> struct Registers {  // the accumulators that the register file holds, with room for a row of B
#if defined(__AVX512F__)
  static constexpr int ROWS = 12, VECTORS = 2;
#elif defined(__AVX2__)
  static constexpr int ROWS = 6, VECTORS = 2;
#else
  static constexpr int ROWS = 4, VECTORS = 2;
#endif
  static constexpr int COLUMNS = VECTORS * WIDTH<Acc>;
};

// Elements from one term to the next of a factor of a block.
struct Pitch {
  int64_t a, b;
};

// acc[r][c] = fused(a[k][r], b[k][c], acc[r][c]) for k ascending; rows of a and columns of b lie next to each other.
template <class Acc, int R>
VT_FN void multiply_block(const Acc* a, const Acc* b, Pitch pitch, int64_t terms, Acc* acc, int64_t stride) {
  constexpr int V = Registers<Acc>::VECTORS, W = WIDTH<Acc>;
  Vector<Acc> c[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) c[r][v] = load_vector(acc + r * stride + v * W);
  for (int64_t k = 0; k < terms; k++, a += pitch.a, b += pitch.b) {
    Vector<Acc> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) row[v] = load_vector(b + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Vector<Acc> x = spread(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) c[r][v] = fused(x, row[v], c[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store_vector(acc + r * stride + v * W, c[r][v]);
}

// Rows beyond `rows` are zero in the panel and unused in the accumulator: up to the next size that there is code for.
template <class Acc>
VT_FN void multiply_rows(int rows, const Acc* a, const Acc* b, Pitch pitch, int64_t terms, Acc* acc, int64_t stride) {
  constexpr int ROWS = Registers<Acc>::ROWS, SOME = ROWS - ROWS / 3, FEW = ROWS / 3;
  if (rows > SOME) multiply_block<Acc, ROWS>(a, b, pitch, terms, acc, stride);
  else if (rows > FEW) multiply_block<Acc, SOME>(a, b, pitch, terms, acc, stride);
  else multiply_block<Acc, FEW>(a, b, pitch, terms, acc, stride);
}

template <class Acc> VT_FN void write_row(const Target& out, int64_t i, int64_t j, int64_t n, const Acc* chain) {
  while (n > 0) {
    const int64_t left = out.run - j % out.run, some = left < n ? left : n;
    float* y = out.address(i, j);
    if (!out.bias && out.alpha == 1.0f) for (int64_t q = 0; q < some; q++) y[q] = static_cast<float>(chain[q]);
    else for (int64_t q = 0; q < some; q++) y[q] = out.finished(static_cast<float>(chain[q]), i, j + q);
    j += some, n -= some, chain += some;
  }
}

// A tile of the result: at most MB x NB.
template <class Acc> class PanelTile {
 public:
  static constexpr int ROWS = Registers<Acc>::ROWS, COLUMNS = Registers<Acc>::COLUMNS;
  static constexpr int64_t KB = 256;

  PanelTile(int64_t m, int64_t n, int64_t batch, const Grid& grid) : m_(m), n_(n) {
    mb_ = even(m, 240, ROWS);
    nb_ = even(n, 512, COLUMNS);
    while (nb_ > 128 && batch * tiles_of(m, mb_) * tiles_of(n, nb_) < 4 * grid.blocks()) nb_ = even(n, nb_ / 2, COLUMNS);
  }
  int64_t tiles() const { return tiles_of(m_, mb_) * tiles_of(n_, nb_); }

  // The chains over k of tile t, finished and stored.
  template <class A, class B> void run(int64_t t, const A& a, const B& b, int64_t k, const Target& out, Scratch& memory) const {
    const int64_t i0 = t % tiles_of(m_, mb_) * mb_, j0 = t / tiles_of(m_, mb_) * nb_;
    const int64_t rows = m_ - i0 < mb_ ? m_ - i0 : mb_, columns = n_ - j0 < nb_ ? n_ - j0 : nb_;
    Acc* acc = memory.get<Acc>(mb_ * nb_ + (mb_ + nb_) * KB);
    Acc* left = acc + mb_ * nb_;
    Acc* right = left + mb_ * KB;
    for (int64_t q = 0; q < mb_ * nb_; q++) acc[q] = Acc(0);
    for (int64_t k0 = 0; k0 < k; k0 += KB) {
      const int64_t terms = k - k0 < KB ? k - k0 : KB;
      for (int64_t i = 0; i < rows; i += ROWS)
        pack(a, i0 + i, static_cast<int>(rows - i < ROWS ? rows - i : ROWS), k0, terms, left + i * terms, ROWS);
      for (int64_t j = 0; j < columns; j += COLUMNS) {
        pack(b, j0 + j, static_cast<int>(columns - j < COLUMNS ? columns - j : COLUMNS), k0, terms, right, COLUMNS);
        for (int64_t i = 0; i < rows; i += ROWS)
          multiply_rows<Acc>(static_cast<int>(rows - i < ROWS ? rows - i : ROWS), left + i * terms, right,
                             Pitch{ROWS, COLUMNS}, terms, acc + i * nb_ + j, nb_);
      }
    }
    for (int64_t i = 0; i < rows; i++) write_row(out, i0 + i, j0, columns, acc + i * nb_);
  }

 private:
  static int64_t tiles_of(int64_t size, int64_t each) { return (size + each - 1) / each; }
  // At most `most`, a multiple of `unit`, so that the tiles differ little in size.
  static int64_t even(int64_t size, int64_t most, int64_t unit) {
    const int64_t count = tiles_of(size, most);
    return (tiles_of(size, count ? count : 1) + unit - 1) / unit * unit;
  }
  int64_t m_, n_, mb_, nb_;
};

VT_END

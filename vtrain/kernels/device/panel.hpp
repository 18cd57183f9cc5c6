// Device: a product's tile, 64 x 64, computed by 4 warps of 2 x 2 register tiles each (see product.hpp, tile.hpp).
//
// The panels of the next KB terms are read into registers while the current ones, in shared memory, are multiplied; two
// buffers take turns, so that one barrier a round is enough.
#pragma once
#include "../reductions/operand.hpp"
#include "../tile/grid.hpp"
#include "../tile/tile.hpp"

VT_BEGIN

constexpr int PRODUCT_THREADS = 128;

template <class Acc> class PanelTile {
 public:
  static constexpr int SIDE = 64, KB = 16, EACH = SIDE * KB / PRODUCT_THREADS;

  VT_FN PanelTile(int64_t m, int64_t n, int64_t, const Grid&) : m_(m), n_(n) {}
  VT_FN int64_t tiles() const { return (m_ + SIDE - 1) / SIDE * ((n_ + SIDE - 1) / SIDE); }

  template <class A, class B>
  VT_FN void run(int64_t t, const A& a, const B& b, int64_t k, const Target& out, Scratch&) const {
    __shared__ Acc left[2][KB][SIDE], right[2][KB][SIDE];
    const int64_t down = (m_ + SIDE - 1) / SIDE, i0 = t % down * SIDE, j0 = t / down * SIDE;
    const int warp = threadIdx.x / 32, wi = warp / 2 * 32, wj = warp % 2 * 32;
    Tile<Acc> acc[2][2];
    for (int q = 0; q < 4; q++) acc[q / 2][q % 2].fill(Acc(0));
    Acc next_left[EACH], next_right[EACH];
    fetch(a, i0, m_, 0, k, next_left);
    fetch(b, j0, n_, 0, k, next_right);
    __syncthreads();  // the last piece's panels are done with
    put(next_left, left[0]);
    put(next_right, right[0]);
    __syncthreads();
    for (int64_t k0 = 0, turn = 0; k0 < k; k0 += KB, turn ^= 1) {
      const bool more = k0 + KB < k;
      if (more) {
        fetch(a, i0, m_, k0 + KB, k, next_left);
        fetch(b, j0, n_, k0 + KB, k, next_right);
      }
      const int terms = k - k0 < KB ? static_cast<int>(k - k0) : KB;
      for (int q = 0; q < 4; q++)
        acc[q / 2][q % 2].multiply_AtB(&left[turn][0][wi + q / 2 * 16], &right[turn][0][wj + q % 2 * 16], SIDE, terms);
      if (more) {
        put(next_left, left[turn ^ 1]);
        put(next_right, right[turn ^ 1]);
      }
      __syncthreads();
    }
    for (int q = 0; q < 4; q++) store(acc[q / 2][q % 2], i0 + wi + q / 2 * 16, j0 + wj + q % 2 * 16, out);
  }

 private:
  template <class F>
  VT_FN static void fetch(const F& f, int64_t r0, int64_t rows, int64_t k0, int64_t terms, Acc (&next)[EACH]) {
    const int64_t r = r0 + threadIdx.x % SIDE;
    for (int q = 0; q < EACH; q++) {
      const int64_t k = k0 + threadIdx.x / SIDE + q * (PRODUCT_THREADS / SIDE);
      next[q] = r < rows && k < terms ? static_cast<Acc>(f.at(r, k)) : Acc(0);
    }
  }
  VT_FN static void put(const Acc (&next)[EACH], Acc (&panel)[KB][SIDE]) {
    for (int q = 0; q < EACH; q++) panel[threadIdx.x / SIDE + q * (PRODUCT_THREADS / SIDE)][threadIdx.x % SIDE] = next[q];
  }
  VT_FN void store(const Tile<Acc>& tile, int64_t i0, int64_t j0, const Target& out) const {
    tile.each([&](int r, int c, Acc value) {
      const int64_t i = i0 + r, j = j0 + c;
      if (i < m_ && j < n_) *out.address(i, j) = out.finished(static_cast<float>(value), i, j);
    });
  }
  int64_t m_, n_;
};

VT_END

// Register tiles, 16 x 16: written once, since lanes.hpp says how much of one a thread holds (HELD) and which part
// (held_row, held_column).
//
//   Tile<T>    fill, each; multiply_AtB: chains of fused multiply-adds, k ascending
#pragma once
#include "lanes.hpp"

VT_BEGIN

template <class T> class Tile {
 public:
  static constexpr int SIDE = 16;
  T v[HELD];

  VT_FN void fill(T x) { for (int q = 0; q < HELD; q++) v[q] = x; }
  template <class F> VT_FN void each(const F& f) const { for (int q = 0; q < HELD; q++) f(held_row(q), held_column(q), v[q]); }

  // v(r, c) += sum over k < terms of a(k, r) * b(k, c); pitch: elements between rows of a and b.
  VT_FN void multiply_AtB(const T* a, const T* b, int pitch, int terms) {
    for (int k = 0; k < terms; k++)
      for (int q = 0; q < HELD; q++) v[q] = fused(a[k * pitch + held_row(q)], b[k * pitch + held_column(q)], v[q]);
  }
};

VT_END

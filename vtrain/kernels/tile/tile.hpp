// Register tiles, 16 x 16: written once, since lanes.hpp says how much of one a thread holds (HELD) and which part
// (held_row, held_column).
//
//   Tile<T>    fill, map, merge, load, each;
//              multiply_AB, multiply_ABt, multiply_AtB: chains of fused multiply-adds, k ascending
#pragma once
#include "lanes.hpp"

VT_BEGIN

template <class T> class Tile {
 public:
  static constexpr int SIDE = 16;
  T v[HELD];

  VT_FN void fill(T x) { for (int q = 0; q < HELD; q++) v[q] = x; }
  template <class F> VT_FN void map(const F& f) { for (int q = 0; q < HELD; q++) v[q] = f(v[q]); }
  template <class F> VT_FN void merge(const Tile& other, const F& f) { for (int q = 0; q < HELD; q++) v[q] = f(v[q], other.v[q]); }
  // v(r, c) = f(r, c).
  template <class F> VT_FN void load(const F& f) { for (int q = 0; q < HELD; q++) v[q] = f(held_row(q), held_column(q)); }
  template <class F> VT_FN void each(const F& f) const { for (int q = 0; q < HELD; q++) f(held_row(q), held_column(q), v[q]); }

  // v(r, c) += sum over k < terms of a(r, k) * b(k, c) and its transposed forms; pitch: elements between rows of a and b.
  VT_FN void multiply_AB(const T* a, const T* b, int pitch, int terms) {
    for (int k = 0; k < terms; k++)
      for (int q = 0; q < HELD; q++) v[q] = fused(a[held_row(q) * pitch + k], b[k * pitch + held_column(q)], v[q]);
  }
  VT_FN void multiply_ABt(const T* a, const T* b, int pitch, int terms) {
    for (int k = 0; k < terms; k++)
      for (int q = 0; q < HELD; q++) v[q] = fused(a[held_row(q) * pitch + k], b[held_column(q) * pitch + k], v[q]);
  }
  VT_FN void multiply_AtB(const T* a, const T* b, int pitch, int terms) {
    for (int k = 0; k < terms; k++)
      for (int q = 0; q < HELD; q++) v[q] = fused(a[k * pitch + held_row(q)], b[k * pitch + held_column(q)], v[q]);
  }
};

VT_END

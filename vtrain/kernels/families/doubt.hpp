// Settling where the log is made elsewhere: round y, and find the elements in doubt (numerics §3, §4).
//
// Compaction is deterministic: `doubt_count` counts per strip of STRIP elements, the caller adds the counts up, and
// `doubt_write` writes index, value and half-width of each, ascending. (The host's one-pass form: host/variant.cpp.)
#pragma once
#include "../math/rounding.hpp"
#include "../tile/elements.hpp"

VT_BEGIN

enum Holder : int64_t { HOLDS_FLOAT = 0, HOLDS_BFLOAT16 = 1, HOLDS_HALF = 2 };

struct DoubtArgs {
  const void* y;  // [batch, rows, cols], float or double
  void* out;
  const double *row, *col, *bias, *full;  // w = tau * s + eta, 0 where s is: s = row * col + bias, or full, or |y|
  int64_t* counts;                        // doubt_count: one a strip; doubt_write: where each strip's elements go
  int64_t* index;
  double *value, *width;
  int64_t y_double, holder, p, emin, emax, batch, rows, cols, relative;
  double tau, eta, zero;

  VT_FN int64_t size() const { return batch * rows * cols; }
  VT_FN double at(int64_t i) const {
    return (y_double ? static_cast<const double*>(y)[i] : static_cast<double>(static_cast<const float*>(y)[i])) + zero;
  }
  VT_FN double rounded(double v) const { return round_binary(v, p, emin, emax); }
  VT_FN double half_width(int64_t i, double v) const {
    if (relative) return width_of(magnitude_of(v));
    if (full) return width_of(full[i]);
    const int64_t line = i / cols, column = i % cols;
    const double s = (row ? row[line] : 1.0) * (col ? col[line / rows * cols + column] : 1.0) + (bias ? bias[column] : 0.0);
    return width_of(s);
  }
  VT_FN double width_of(double s) const { return s == 0.0 ? 0.0 : tau * s + eta; }
  VT_FN bool in_doubt(int64_t i) const {
    const double v = at(i), w = half_width(i, v);
    return v == v && w != 0 && as_bits(rounded(v - w)) != as_bits(rounded(v + w));
  }
  VT_FN void store(int64_t i) const {
    const double r = rounded(at(i));
    if (holder == HOLDS_FLOAT) static_cast<float*>(out)[i] = static_cast<float>(r);
    else if (holder == HOLDS_BFLOAT16) static_cast<uint16_t*>(out)[i] = static_cast<uint16_t>(as_bits(static_cast<float>(r)) >> 16);
    else static_cast<uint16_t*>(out)[i] = half_bits(r);
  }
  // A representable value of the half format (p = 11, emin = -14) as its encoding.
  VT_FN static uint16_t half_bits(double r) {
    const uint64_t b = as_bits(r);
    const uint16_t sign = static_cast<uint16_t>(b >> 48 & 0x8000u);
    const double a = magnitude_of(r);
    if (a != a) return static_cast<uint16_t>(sign | 0x7e00u);
    if (a == infinity()) return static_cast<uint16_t>(sign | 0x7c00u);
    if (a < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<uint16_t>(a * 0x1p24));
    const uint64_t m = as_bits(a);
    return static_cast<uint16_t>(sign | ((m >> 52) - 1023 + 15) << 10 | (m >> 42 & 0x3ffu));
  }
};

VT_FN void kernel_round(const Grid& grid, const DoubtArgs& a) {
  each_element(grid, a.size(), [&](int64_t i) { a.store(i); });
}

// f(i, in doubt, ranks of the 32 elements' flags) for a strip, 32 elements at a time.
template <class F> VT_FN void each_flag(const DoubtArgs& a, int64_t strip, const F& f) {
  const int64_t start = strip * STRIP, n = a.size() - start < STRIP ? a.size() - start : STRIP;
  for (int64_t base = 0; base < n; base += LANES) {
    bool flag[WARP];
    for (int q = 0; q < WARP; q++) flag[q] = base + lane_of(q) < n && a.in_doubt(start + base + lane_of(q));
    const Ranks r = ranks(flag);
    for (int q = 0; q < WARP; q++) f(start + base + lane_of(q), lane_of(q), flag[q], r);
  }
}

VT_FN void kernel_doubt_count(const Grid& grid, const DoubtArgs& a) {
  grid.warps((a.size() + STRIP - 1) / STRIP, STRIP, [&](int64_t strip) {
    int64_t n = 0;
    each_flag(a, strip, [&](int64_t, int lane, bool, const Ranks& r) { n += lane == last_lane() ? r.all() : 0; });
    if (lane_of(0) == 0) a.counts[strip] = n;
  });
}

VT_FN void kernel_doubt_write(const Grid& grid, const DoubtArgs& a) {
  grid.warps((a.size() + STRIP - 1) / STRIP, STRIP, [&](int64_t strip) {
    int64_t at = a.counts[strip];
    each_flag(a, strip, [&](int64_t i, int lane, bool flag, const Ranks& r) {
      if (flag) {
        const int64_t to = at + r.below(lane);
        a.index[to] = i;
        a.value[to] = a.at(i);
        a.width[to] = a.half_width(i, a.at(i));
      }
      if (lane == last_lane()) at += r.all();  // once for each 32
    });
  });
}

VT_END

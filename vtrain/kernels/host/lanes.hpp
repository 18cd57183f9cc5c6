// Host: a warp's lanes are a loop; see tile/lanes.hpp.
#pragma once
#include "../config.hpp"

VT_BEGIN

constexpr int LANES = 32, WARP = LANES, HELD = 256;
constexpr bool VECTORS = true;
VT_FN constexpr int lane_of(int q) { return q; }
VT_FN constexpr int held_row(int q) { return q / 16; }
VT_FN constexpr int held_column(int q) { return q % 16; }

// With a loop without a condition for whole warps.
template <class F> VT_FN void each_lane(int64_t n, const F& f) {
  if (n >= LANES) VT_EACH(q) f(q);
  else VT_EACH(q) if (q < n) f(q);
}

// f(position) for all positions below n, none of which touches another's elements.
template <class F> VT_FN void each_position(int64_t n, const F& f) {
  _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) f(i);
}

template <class T, class F> VT_FN T fold(const T (&held)[WARP], const F& f) {
  T x[LANES];
  for (int q = 0; q < LANES; q++) x[q] = held[q];
  for (int q = 0; q < 16; q++) x[q] = f(x[q], x[q + 16]);
  for (int q = 0; q < 8; q++) x[q] = f(x[q], x[q + 8]);
  for (int q = 0; q < 4; q++) x[q] = f(x[q], x[q + 4]);
  for (int q = 0; q < 2; q++) x[q] = f(x[q], x[q + 2]);
  return f(x[0], x[1]);
}

template <class T> VT_FN T of_lane(const T (&held)[WARP], int lane) { return held[lane]; }

VT_FN uint32_t flags_of(const bool (&held)[WARP]) {
  uint32_t flags = 0;
  for (int q = 0; q < LANES; q++) flags |= static_cast<uint32_t>(held[q]) << q;
  return flags;
}

VT_END

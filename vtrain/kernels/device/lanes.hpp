// Device: a lane is a thread; see tile/lanes.hpp.
#pragma once
#include "../config.hpp"

VT_BEGIN

constexpr int LANES = 32, WARP = 1, HELD = 8;
constexpr bool VECTORS = false;
VT_FN int lane_of(int) { return static_cast<int>(threadIdx.x % LANES); }
VT_FN int held_row(int q) { return static_cast<int>(threadIdx.x % LANES) / 8 * 4 + q / 2; }
VT_FN int held_column(int q) { return static_cast<int>(threadIdx.x % LANES) % 8 * 2 + q % 2; }

template <class F> VT_FN void each_lane(int64_t n, const F& f) {
  if (lane_of(0) < n) f(0);
}

template <class F> VT_FN void each_position(int64_t n, const F& f) {
  for (int64_t i = lane_of(0); i < n; i += LANES) f(i);
}

template <class T, class F> VT_FN T fold(const T (&held)[WARP], const F& f) {
  T x = held[0];
  for (int half = LANES / 2; half; half /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, half));
  return x;
}

template <class T> VT_FN T of_lane(const T (&held)[WARP], int lane) { return __shfl_sync(0xffffffffu, held[0], lane); }

VT_FN uint32_t flags_of(const bool (&held)[WARP]) { return __ballot_sync(0xffffffffu, held[0]); }

VT_END

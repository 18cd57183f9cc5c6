// Loops over elements that don't depend on each other: a warp's lanes along a row, warps along a whole tensor.
#pragma once
#include "grid.hpp"
#include "lanes.hpp"

VT_BEGIN

// f(position) for all positions of a row; in one loop, which keeps constants in registers.
template <class F> VT_FN void along(int64_t n, const F& f) {
  each_position(n, f);
}

constexpr int64_t STRIP = 4096;  // elements a warp takes at once

template <class F> VT_FN void each_element(const Grid& grid, int64_t n, const F& f) {
  grid.warps((n + STRIP - 1) / STRIP, STRIP, [&](int64_t piece) VT_INLINE {
    const int64_t start = piece * STRIP, count = n - start < STRIP ? n - start : STRIP;
    along(count, [&](int64_t i) VT_INLINE { f(start + i); });
  });
}

// out = f(x), where f.usual(x), else f.any(x): in vectors, and once more for 32 elements of which one is unusual.
template <class F> VT_FN void each_usual(const Grid& grid, int64_t n, const float* x, float* out, const F& f) {
  grid.warps((n + STRIP - 1) / STRIP, STRIP, [&](int64_t piece) VT_INLINE {
    const int64_t start = piece * STRIP, end = n - start < STRIP ? n : start + STRIP;
    for (int64_t base = start; base < end; base += LANES) {
      uint32_t unusual = 0;
      each_lane(end - base, [&](int q) VT_INLINE {
        const float v = x[base + lane_of(q)];
        unusual |= !f.usual(v);
        out[base + lane_of(q)] = f(v);
      });
      if (unusual)
        each_lane(end - base, [&](int q) VT_INLINE {
          const float v = x[base + lane_of(q)];
          if (!f.usual(v)) out[base + lane_of(q)] = f.any(v);
        });
    }
  });
}

VT_END

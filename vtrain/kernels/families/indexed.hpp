// Sums at indices, in double, in one fixed order: the terms of each result in ascending order of their position (numerics
// §3). The caller sorts positions by index, stably; no result is touched by two warps, so no atomics are needed.
#pragma once
#include "../tile/grid.hpp"
#include "../tile/lanes.hpp"

VT_BEGIN

struct ScatterArgs {
  const float* values;                        // [terms, width]
  const int64_t *order, *starts;              // positions sorted by index; where each result's positions start: [results + 1]
  const int64_t* rows;                        // row of y that each result goes to, [results]
  const float* x;                             // added first, a row of y's shape at rows[r]; or null
  double* y;                                  // [.., width]
  int64_t results, width;
  double alpha;
};

VT_FN void kernel_scatter(const Grid& grid, const ScatterArgs& a) {
  const int64_t groups = (a.width + LANES - 1) / LANES;
  const float alpha = static_cast<float>(a.alpha);
  grid.warps(a.results * groups, LANES * 4, [&](int64_t piece) {
    const int64_t r = piece / groups, column = piece % groups * LANES, width = a.width - column;
    const int64_t to = a.rows[r] * a.width + column;
    Lanes<double> total;
    total.load(width, 0.0, [&](int lane) { return a.x ? static_cast<double>(a.x[to + lane]) : 0.0; });
    for (int64_t s = a.starts[r]; s < a.starts[r + 1]; s++) {
      const float* value = a.values + a.order[s] * a.width + column;
      each_lane(width, [&](int q) {
        const float term = alpha * value[lane_of(q)];
        total.v[q] = total.v[q] + static_cast<double>(term);
      });
    }
    total.each(width, [&](int lane, double v) { a.y[to + lane] = v; });
  });
}

VT_END

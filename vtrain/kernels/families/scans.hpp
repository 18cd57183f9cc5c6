// Running results along a dimension, in double (numerics §3).
#pragma once
#include "../tile/grid.hpp"
#include "../tile/lanes.hpp"

VT_BEGIN

// y[row, j] = x[row, 0] + ... + x[row, j], in ascending order.
struct RunningArgs {
  const float* x;
  double* y;
  int64_t outer, n, inner;
};
VT_FN void kernel_running_sum(const Grid& grid, const RunningArgs& a) {
  const int64_t groups = (a.inner + LANES - 1) / LANES;
  grid.warps(a.outer * groups, a.n * LANES, [&](int64_t piece) {
    const int64_t column = piece % groups * LANES, start = piece / groups * a.n * a.inner + column, width = a.inner - column;
    Lanes<double> total;
    total.fill(0.0);
    for (int64_t k = 0; k < a.n; k++)
      each_lane(width, [&](int q) {
        const int64_t at = start + k * a.inner + lane_of(q);
        total.v[q] = total.v[q] + static_cast<double>(a.x[at]);
        a.y[at] = total.v[q];
      });
  });
}

VT_END

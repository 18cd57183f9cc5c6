// Device: a lane a column, 32 neighbouring ones a warp.
#pragma once
#include "../reductions/scan.hpp"

VT_BEGIN

VT_FN void scan(const Grid& grid, const ScanArgs& a) {
  const int64_t groups = (a.columns + LANES - 1) / LANES;
  grid.warps(a.batch * a.heads * groups, a.length * a.rows, [&](int64_t piece) {
    const ScanHead head(a, piece / groups);
    const int64_t c0 = piece % groups * LANES;
    each_lane(a.columns - c0, [&](int q) { scan_column(head, c0 + lane_of(q)); });
  });
}

VT_END

// Device: a lane an element.
#pragma once
#include "../reductions/depthwise.hpp"

VT_BEGIN

VT_FN void depthwise(const Grid& grid, const DepthwiseArgs& a) {
  const int64_t width = depthwise_width(a), groups = (width + LANES - 1) / LANES;
  grid.warps(depthwise_rows(a) * groups, a.taps * LANES, [&](int64_t piece) {
    const int64_t row = piece / groups, at = piece % groups * LANES;
    each_lane(width - at, [&](int q) { a.out[row * width + at + lane_of(q)] = depthwise_element(a, row, at + lane_of(q)); });
  });
}

VT_END

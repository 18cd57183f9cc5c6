// Convolutions of channels with filters of their own, in the order of depthwise.hpp in reductions/.
#pragma once
#include "../reductions/depthwise.hpp"
#include VT_BODY(depthwise)

VT_BEGIN

VT_FN void kernel_depthwise(const Grid& grid, const DepthwiseArgs& a) { depthwise(grid, a); }

VT_END

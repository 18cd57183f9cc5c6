// Device: attention a warp a query. The backward pass in one launch is the host's alone, as blocks can't wait for each other.
#pragma once
#include "../reductions/attention.hpp"

VT_BEGIN

VT_FN void attention(const Grid& grid, const AttentionArgs& a) {
  grid.warps(a.batch * a.heads * a.queries, a.keys * (a.d + a.width),
             [&](int64_t at) { attend(AttentionHead(a, at / a.queries), at % a.queries); });
}

VT_FN void attention_backward(const Grid&, const AttentionArgs&) {}

VT_END

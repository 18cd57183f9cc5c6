// Softmax attention, forward and backward, in the order of attention.hpp in reductions/.
#pragma once
#include "../reductions/attention.hpp"
#include VT_BODY(attention)

VT_BEGIN

VT_FN void kernel_attention(const Grid& grid, const AttentionArgs& a) { attention(grid, a); }

VT_FN void kernel_attention_backward(const Grid& grid, const AttentionArgs& a) {
  if (a.part == 0) return attention_backward(grid, a);
  const int64_t each = a.part == 1 ? a.queries : a.keys, other = a.part == 1 ? a.keys : a.queries;
  grid.warps(a.batch * a.heads * each, other * (a.d + a.width), [&](int64_t at) {
    const AttentionHead head(a, at / each);
    if (a.part == 1) attend_back_to_query(head, at % each);
    else attend_back_to_key(head, head.offset + at % each);
  });
}

VT_END

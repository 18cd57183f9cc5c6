// Convolutions of channels with filters of their own, of any length, and their gradients (numerics §3). For one channel of one
// batch entry, u of n positions, w of `taps`, y of `length`:
//
//   y[t]  = chain(i: w[i] u[t + i - shift]) + 0          i ascending, and so positions; a bias is an operation of its own
//   du[s] = chain(t: dy[t] w[s - t + shift]) + 0         t ascending
//   dw[i] = chain(batch, t: dy[t] u[t + i - shift]) + 0  batch entries ascending, and t in each
//
// Chains of fused multiply-adds from +0; what lies outside of u is left out. shift = taps - 1 is causal from nothing; with
// the last inputs before u in front of it, shift = 0 goes on from them. Blocks, threads and cuts are free.
#pragma once
#include "../tile/grid.hpp"
#include "../tile/lanes.hpp"

VT_BEGIN

struct DepthwiseArgs {
  const float *u, *w, *grad;  // [batch, channels, n], [channels, taps], [batch, channels, length]
  float* out;                 // what is wanted: [batch, channels, length], [batch, channels, n], [channels, taps]; dense
  int64_t batch, channels, n, taps, length, shift, kind;  // kind: 0 y, 1 du, 2 dw
};

// One element, whatever is asked for: what a device runs, a lane an element.
VT_FN float depthwise_element(const DepthwiseArgs& a, int64_t row, int64_t at) {
  float sum = 0.0f;
  if (a.kind == 0) {
    const float *u = a.u + row * a.n, *w = a.w + row % a.channels * a.taps;
    for (int64_t i = 0; i < a.taps; i++) {
      const int64_t s = at + i - a.shift;
      if (s >= 0 && s < a.n) sum = fused(w[i], u[s], sum);
    }
  } else if (a.kind == 1) {
    const float *g = a.grad + row * a.length, *w = a.w + row % a.channels * a.taps;
    for (int64_t t = 0; t < a.length; t++) {
      const int64_t i = at - t + a.shift;
      if (i >= 0 && i < a.taps) sum = fused(g[t], w[i], sum);
    }
  } else {
    for (int64_t b = 0; b < a.batch; b++) {
      const int64_t entry = b * a.channels + row;
      const float *g = a.grad + entry * a.length, *u = a.u + entry * a.n;
      for (int64_t t = 0; t < a.length; t++) {
        const int64_t s = t + at - a.shift;
        if (s >= 0 && s < a.n) sum = fused(g[t], u[s], sum);
      }
    }
  }
  return sum + 0.0f;
}

VT_FN int64_t depthwise_rows(const DepthwiseArgs& a) { return a.kind == 2 ? a.channels : a.batch * a.channels; }
VT_FN int64_t depthwise_width(const DepthwiseArgs& a) { return a.kind == 0 ? a.length : a.kind == 1 ? a.n : a.taps; }

VT_END

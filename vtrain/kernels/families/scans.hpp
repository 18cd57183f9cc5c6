// Running results along a dimension: sums in double, and states of linear attention (numerics §3).
#pragma once
#include "../reductions/scan.hpp"
#include VT_BODY(scans)

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

VT_FN void kernel_scan(const Grid& grid, const ScanArgs& a) { scan(grid, a); }

// The gradient of a decay's logarithm, a_j dL/da_j, by key and row: what readers behind a key got from it by way of the state
// before it. With P_j = sum over c of S_j dL/dS_j, P_j - k_j dk_j = a_j dL/da_j, and P before a reader's event is P after it
// plus read_t dread_t. Double throughout, from the last event to the first; rounded to float once.
struct DecayArgs {
  const float *read, *read_grad, *key, *key_grad, *state, *state_grad;  // dense, by [head, position, row]; [head, row, column]
  float* out;                                                           // [head, position, row]
  int64_t batch, heads, length, rows, columns, reach, span;
};
VT_FN void kernel_scan_decay(const Grid& grid, const DecayArgs& a) {
  const int64_t groups = (a.rows + LANES - 1) / LANES;
  const Events events{a.length, a.reach, a.span};
  grid.warps(a.batch * a.heads * groups, a.length * LANES, [&](int64_t piece) {
    const int64_t head = piece / groups, r0 = piece % groups * LANES;
    each_lane(a.rows - r0, [&](int q) {
      const int64_t r = r0 + lane_of(q), base = head * a.length * a.rows + r, last = (head * a.rows + r) * a.columns;
      double p = 0.0;
      if (a.state_grad)
        for (int64_t c = 0; c < a.columns; c++)
          p = p + static_cast<double>(a.state[last + c]) * static_cast<double>(a.state_grad[last + c]);
      for (int64_t i = events.segments() - 1; i >= 0; i--) {
        const Segment s = events.segment(i);
        for (int64_t e = s.count - 1; e >= 0; e--) {
          if (s.readers >= 0) {
            const int64_t at = base + (s.readers + e) * a.rows;
            p = p + static_cast<double>(a.read[at]) * static_cast<double>(a.read_grad[at]);
          }
          if (s.keys >= 0) {
            const int64_t at = base + (s.keys + e) * a.rows;
            p = p - static_cast<double>(a.key[at]) * static_cast<double>(a.key_grad[at]);
            a.out[at] = static_cast<float>(p);
          }
        }
      }
    });
  });
}

VT_END

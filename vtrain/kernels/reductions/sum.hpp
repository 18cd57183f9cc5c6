// Canonical sums, in double: one order for every layout, thread count and machine (numerics §3).
//
// The n terms of a sum are numbered 0 .. n-1 in the row-major order of the summed dimensions, and cut into segments of
// SEGMENT. Within a segment lane l of 32 adds up its terms l, l + 32, l + 64, ... in ascending order from +0; the lanes are
// added as a tree over halves (16, 8, 4, 2, 1); the segments' sums are added in ascending order to +0. Error:
// |y - exact| <= gamma_d * sum|x| with d <= n / 32 + 5 + n / SEGMENT roundings on the longest path (Higham 2002, §4.2).
#pragma once
#include "../tile/grid.hpp"
#include "../tile/lanes.hpp"

VT_BEGIN

constexpr int64_t SEGMENT = 16384;

struct Plus {
  VT_FN double operator()(double a, double b) const { return a + b; }
};

// A sum along the lanes of one warp; feed() takes its terms 32 at a time, in order.
class LaneSum {
 public:
  VT_FN LaneSum() { acc_.fill(0.0); }
  // f(q): the term base + lane_of(q); `base` a multiple of 32, `n` all terms.
  template <class F> VT_FN void feed(int64_t base, int64_t n, const F& f) {
    if (base % SEGMENT == 0 && base) close();
    each_lane(n - base, [&](int q) { acc_.v[q] = acc_.v[q] + f(q); });
  }
  VT_FN double total() { close(); return total_; }

 private:
  VT_FN void close() {
    total_ = total_ + fold(acc_.v, Plus());
    acc_.fill(0.0);
  }
  Lanes<double> acc_;
  double total_ = 0.0;
};

// What is summed: x[batch, outer, rows, cols] over (outer, cols), strides in elements.
struct Layout {
  int64_t batch, outer, rows, cols, sb, so, sr, sc;
  VT_FN int64_t terms() const { return outer * cols; }
  VT_FN int64_t offset(int64_t f) const { return outer == 1 || cols == 0 ? f * sc : f / cols * so + f % cols * sc; }
};

// y[b * rows + row] = sum over f of term(offset, row, f), the sum's terms next to each other in memory: lanes along the sum.
template <class Term> VT_FN void sum_along(const Grid& grid, const Layout& x, const Term& term, double* y) {
  const int64_t n = x.terms();
  grid.warps(x.batch * x.rows, n, [&](int64_t piece) {
    const int64_t row = piece % x.rows, start = piece / x.rows * x.sb + row * x.sr;
    LaneSum sum;
    Lanes<int64_t> away;  // of a lane's term from that of lane 0, where that is the same in every round
    away.load(LANES, 0, [&](int lane) { return x.offset(lane); });
    const bool whole = x.outer == 1 || x.cols == 0 || LANES % x.cols == 0;
    for (int64_t base = 0; base < n; base += LANES) {
      const int64_t at = start + (x.outer == 1 ? base * x.sc : x.offset(base));
      const int64_t left = x.outer == 1 ? LANES : x.cols - base % x.cols;  // until the next stretch of `cols`
      if (VECTORS && x.sc == 1 && left >= LANES)
        sum.feed(base, n, [&](int q) { return term(at + lane_of(q), row, base + lane_of(q)); });
      else if (whole)
        sum.feed(base, n, [&](int q) { return term(at + away.v[q], row, base + lane_of(q)); });
      else if (x.cols >= LANES)
        sum.feed(base, n, [&](int q) {
          const int64_t over = lane_of(q) >= left ? x.so - x.cols * x.sc : 0;
          return term(at + lane_of(q) * x.sc + over, row, base + lane_of(q));
        });
      else
        sum.feed(base, n, [&](int q) { return term(start + x.offset(base + lane_of(q)), row, base + lane_of(q)); });
    }
    const double total = sum.total();
    if (lane_of(0) == 0) y[piece] = total;
  });
}

// The same sums, 32 rows at a time, a lane each: for rows that lie next to each other.
// Unit: they are next to each other (x.sr is 1), which the host's vectors want to know.
template <bool Unit, class Term> VT_FN void sum_across(const Grid& grid, const Layout& x, const Term& term, double* y) {
  const int64_t n = x.terms(), groups = (x.rows + LANES - 1) / LANES;
  grid.warps(x.batch * groups, n * LANES, [&](int64_t piece) {
    const int64_t row = piece % groups * LANES, start = piece / groups * x.sb + row * x.sr, width = x.rows - row;
    Lanes<double> total, acc[LANES];
    total.fill(0.0);
    for (int64_t from = 0; from < n; from += SEGMENT) {
      const int64_t to = from + SEGMENT < n ? from + SEGMENT : n;
      for (int l = 0; l < LANES; l++) acc[l].fill(0.0);
      int64_t at = start + x.offset(from), inside = from % x.cols;
      for (int64_t base = from; base < to; base += LANES)
        for (int l = 0; l < LANES && base + l < to; l++) {
          const int64_t step = Unit ? 1 : x.sr;
          each_lane(width, [&](int q) { acc[l].v[q] = acc[l].v[q] + term(at + lane_of(q) * step, row + lane_of(q), base + l); });
          at += x.sc;
          if (++inside == x.cols) at += x.so - x.cols * x.sc, inside = 0;
        }
      for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) acc[l].merge(acc[l + half], Plus());
      total.merge(acc[0], Plus());
    }
    total.each(width, [&](int lane, double v) { y[piece / groups * x.rows + row + lane] = v; });
  });
}

template <class Term> VT_FN void sum(const Grid& grid, const Layout& x, const Term& term, double* y) {
  if (x.sc == 1 || x.rows < 8) sum_along(grid, x, term, y);
  else if (VECTORS && x.sr == 1) sum_across<true>(grid, x, term, y);
  else sum_across<false>(grid, x, term, y);
}

VT_END

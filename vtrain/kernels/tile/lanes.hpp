// A warp's 32 lanes: a loop on the host, threads on a device. A thread holds WARP of a warp's values and HELD of a 16 x 16
// tile's; the q-th that it holds is that of lane lane_of(q), or of (held_row(q), held_column(q)). With a body for each target:
//
//   LANES, WARP, HELD, lane_of(q), held_row(q), held_column(q)
//   VECTORS                     whether neighbours in memory are worth a loop of their own
//   each_lane(n, f)             f(q) for each held lane below n
//   each_position(n, f)         f(i) for each i below n, the lanes taking turns
//   fold(x, f)                  the tree over a warp's values: f(v[l], v[l ^ 16]), then 8, 4, 2, 1; f commutes. Every lane
//                               gets the result
//   of_lane(x, lane)            one lane's value, in every lane
//   flags_of(held)              the lanes' flags, as bits
#pragma once
#include "arithmetic.hpp"
#include VT_BODY(lanes)

VT_BEGIN

static_assert(LANES == 32, "the orders of sums are those of 32 lanes");

// The last lane that this thread holds: what happens once for each 32 lanes happens there.
VT_FN int last_lane() { return lane_of(WARP - 1); }

// Of the lanes below `lane` those whose flag is set, and of all 32: a compaction's positions, in order.
struct Ranks {
  uint32_t flags;
  VT_FN int below(int lane) const { return count_ones(flags & ((1u << lane) - 1u)); }
  VT_FN int all() const { return count_ones(flags); }
};
VT_FN Ranks ranks(const bool (&held)[WARP]) { return {flags_of(held)}; }

// Values in the lanes of a warp.
template <class T> struct Lanes {
  T v[WARP];
  VT_FN void fill(T x) { VT_EACH(q) v[q] = x; }
  // v = f(lane), for lanes below n; `rest` in the others.
  template <class F> VT_FN void load(int64_t n, T rest, const F& f) {
    fill(rest);
    each_lane(n, [&](int q) { v[q] = f(lane_of(q)); });
  }
  // f(lane, value) for lanes below n.
  template <class F> VT_FN void each(int64_t n, const F& f) const {
    each_lane(n, [&](int q) { f(lane_of(q), v[q]); });
  }
  // v = f(v, other): lane by lane.
  template <class U, class F> VT_FN void merge(const Lanes<U>& other, const F& f) {
    VT_EACH(q) v[q] = f(v[q], other.v[q]);
  }
};

VT_END

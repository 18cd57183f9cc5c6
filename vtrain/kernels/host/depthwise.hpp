// Host: all three are correlations: out[x] = chain(j: factor[j] line[x + j - shift]), with the filter turned round for du, and
// over all batch entries for dw. Beyond its ends a line is zero, which adds exactly nothing, where all numbers are finite.
#pragma once
#include "../reductions/depthwise.hpp"
#include "vector.hpp"

VT_BEGIN

constexpr int TAP_VECTORS = 8;
constexpr int64_t TAP_BLOCK = TAP_VECTORS * WIDTH<float>;

// acc[0 .. V vectors] of the chains over j in [from, to) of factor[j] line[j + ...].
template <int V> VT_FN void correlate_block(const float* factor, const float* line, int64_t from, int64_t to, float* acc) {
  Vector<float> y[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) y[v] = load_vector(acc + v * WIDTH<float>);
  for (int64_t j = from; j < to; j++) {
    const Vector<float> f = spread(factor[j]);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) y[v] = fused(f, load_vector(line + j + v * WIDTH<float>), y[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) store_vector(acc + v * WIDTH<float>, y[v]);
}

// acc[x] += chain(j < terms: factor[j] line(x + j - shift)) for x < width; line of n numbers, zeros outside. acc has room
// for whole blocks, and `window` for terms + two of them. Only terms that meet the line are gone through.
inline void correlate(const float* factor, int64_t terms, const float* x, int64_t n, int64_t shift, int64_t width, float* acc,
                      float* window) {
  for (int64_t at = 0; at < width; at += TAP_BLOCK) {
    const int64_t low = most(shift - at - TAP_BLOCK + 1, 0), high = least(n + shift - at, terms);
    if (low >= high) continue;
    const int64_t first = at + low - shift, count = high - low + TAP_BLOCK - 1;  // of the line, what is read
    const float* from = x + first;
    if (first < 0 || first + count > n) {  // beyond its ends: with zeros
      for (int64_t i = 0; i < count; i++) window[i] = first + i >= 0 && first + i < n ? x[first + i] : 0.0f;
      from = window;
    }
    from -= low;
    if (width - at > TAP_BLOCK / 2) correlate_block<TAP_VECTORS>(factor, from, low, high, acc + at);
    else if (width - at > WIDTH<float>) correlate_block<TAP_VECTORS / 2>(factor, from, low, high, acc + at);
    else correlate_block<1>(factor, from, low, high, acc + at);
  }
}

class Depthwise {
 public:
  Depthwise(const DepthwiseArgs& a, Scratch& memory) : a_(a), width_(depthwise_width(a)) {
    const int64_t longest = most(a.n, most(a.taps, a.length));
    acc_ = memory.get<float>(width_ + 3 * TAP_BLOCK + 2 * longest);
    turned_ = acc_ + width_ + TAP_BLOCK;
    line_ = turned_ + longest;
  }

  void row(int64_t row) {
    for (int64_t i = 0; i < width_ + TAP_BLOCK; i++) acc_[i] = 0.0f;
    const bool plain = a_.kind == 2 ? weight(row) : a_.kind == 1 ? input(row) : output(row);
    float* out = a_.out + row * width_;
    if (plain) for (int64_t i = 0; i < width_; i++) out[i] = acc_[i] + 0.0f;
    else for (int64_t i = 0; i < width_; i++) out[i] = depthwise_element(a_, row, i);
  }

 private:
  // Each says whether it did it: not where a number is not finite.
  bool output(int64_t row) {
    const float *u = a_.u + row * a_.n, *w = a_.w + row % a_.channels * a_.taps;
    if (!all_finite(u, a_.n) || !all_finite(w, a_.taps)) return false;
    correlate(w, a_.taps, u, a_.n, a_.shift, width_, acc_, line_);
    return true;
  }
  // du[s] = chain(t: dy[t] w[s - t + shift]): with the filter turned round, w'[j] = w[taps - 1 - j], its term t lies at
  // t - s + taps - 1 - shift; so dy is the line, ascending with j, and w' the factor.
  bool input(int64_t row) {
    const float *g = a_.grad + row * a_.length, *w = a_.w + row % a_.channels * a_.taps;
    if (!all_finite(g, a_.length) || !all_finite(w, a_.taps)) return false;
    for (int64_t j = 0; j < a_.taps; j++) turned_[j] = w[a_.taps - 1 - j];
    correlate(turned_, a_.taps, g, a_.length, a_.taps - 1 - a_.shift, width_, acc_, line_);
    return true;
  }
  bool weight(int64_t row) {
    for (int64_t b = 0; b < a_.batch; b++) {
      const int64_t entry = b * a_.channels + row;
      const float *g = a_.grad + entry * a_.length, *u = a_.u + entry * a_.n;
      if (!all_finite(g, a_.length) || !all_finite(u, a_.n)) return false;
      correlate(g, a_.length, u, a_.n, a_.shift, width_, acc_, line_);
    }
    return true;
  }

  const DepthwiseArgs& a_;
  int64_t width_;
  float *acc_, *turned_, *line_;
};

inline void depthwise(const Grid& grid, const DepthwiseArgs& a) {
  const int64_t rows = depthwise_rows(a), some = rows < 8 * grid.blocks() ? 1 : 8;
  grid.each((rows + some - 1) / some, [&](int64_t piece, Scratch& memory) {
    Depthwise work(a, memory);
    for (int64_t row = piece * some; row < least(rows, piece * some + some); row++) work.row(row);
  });
}

VT_END

// The passes that are worth vector instructions, compiled for one instruction set (see CMakeLists.txt).
#include <algorithm>

#include "settle.hpp"

namespace vtrain {
namespace {

constexpr int64_t BLOCK = 512;

template <class C> inline double read(const void* y, int64_t i) { return static_cast<double>(static_cast<const C*>(y)[i]); }

inline void store_one(const Job& g, int64_t i, double r) {
  if (g.format.container == F32) static_cast<float*>(g.out)[i] = static_cast<float>(r);
  else if (g.format.container == BF16)  // the upper half of a float32; a quiet NaN keeps its quiet bit
    static_cast<uint16_t*>(g.out)[i] = static_cast<uint16_t>(bits_of(static_cast<float>(r)) >> 16);
  else static_cast<uint16_t*>(g.out)[i] = half_bits(r, g.format);
}

// Doubt half-widths of n elements that lie in one row of y, from flat index `flat`, column j.
template <class C> inline void widths(const Job& g, const Scale& s, int64_t flat, int64_t n, double* w) {
  const double tau = s.tau, eta = s.eta;
  const C* y = static_cast<const C*>(g.y) + flat;
  if (s.relative) {
    for (int64_t q = 0; q < n; q++) w[q] = width_of(tau, eta, std::fabs(static_cast<double>(y[q])));
    return;
  }
  if (s.s) {
    for (int64_t q = 0; q < n; q++) w[q] = width_of(tau, eta, s.s[flat + q]);
    return;
  }
  const int64_t i = flat / g.cols, j = flat % g.cols, b = i / g.rows;
  const double r = s.r ? s.r[i] : 1.0;
  const double* c = s.c ? s.c + b * g.cols + j : nullptr;
  const double* d = s.d ? s.d + j : nullptr;
  if (c && d) for (int64_t q = 0; q < n; q++) w[q] = width_of(tau, eta, r * c[q] + d[q]);
  else if (c) for (int64_t q = 0; q < n; q++) w[q] = width_of(tau, eta, r * c[q]);
  else if (d) for (int64_t q = 0; q < n; q++) w[q] = width_of(tau, eta, r + d[q]);
  else std::fill(w, w + n, width_of(tau, eta, r));
}

// Round n elements and flag those in doubt; true if there is one.
template <class C>
inline bool block_f32(const C* y, const double* w, float* out, uint32_t* flag, int64_t n, const double zero) {
  uint32_t any = 0;
  for (int64_t q = 0; q < n; q++) {
    double v = static_cast<double>(y[q]) + zero;
    out[q] = static_cast<float>(v);
    uint32_t differ = bits_of(static_cast<float>(v - w[q])) ^ bits_of(static_cast<float>(v + w[q]));
    flag[q] = differ;
    any |= differ;
  }
  return any != 0;
}

template <class C>
inline bool block_any(const C* y, const double* w, double* r, uint64_t* flag, int64_t n, const Format f, const double zero) {
  uint64_t any = 0;
  for (int64_t q = 0; q < n; q++) {
    double v = static_cast<double>(y[q]) + zero;
    r[q] = round_format(v, f);
    uint64_t differ = bits_of(round_format(v - w[q], f)) ^ bits_of(round_format(v + w[q], f));
    flag[q] = differ;
    any |= differ;
  }
  return any != 0;
}

inline void collect(const Job& g, double y, double w, int64_t flat, std::vector<Entry>& out) {
  if (y != y || w == 0) return;  // NaN is never in doubt (numerics §7), nor is -0 because -0 + 0 is +0
  const Format& f = g.format;
  Entry e;
  e.index = static_cast<uint64_t>(flat);
  double low = y - w, high = y + w;
  e.low = ordered(low != low ? -HUGE_VAL : round_format(low, f), f);
  e.high = ordered(high != high ? HUGE_VAL : round_format(high, f), f);
  if (e.low == e.high) return;
  e.value = ordered(round_format(y, f), f);
  double below = from_ordered(e.low, f), above = from_ordered(e.high, f);
  e.ternary = e.high - e.low == 1 && y - 3.0 * w > below && y + 3.0 * w < above;
  e.endless = std::isinf(w) && !std::isinf(y);
  out.push_back(e);
}

template <class C> void settle_range(const Job& g, const Scale& s, int64_t from, int64_t to, std::vector<Entry>& out) {
  alignas(64) double w[BLOCK], r[BLOCK];
  alignas(64) uint32_t flag32[BLOCK];
  alignas(64) uint64_t flag64[BLOCK];
  const bool one_row = s.relative || s.s || !(s.r || s.c || s.d);
  const bool native = g.format.is_f32();
  for (int64_t at = from; at < to;) {
    int64_t n = std::min(BLOCK, to - at);
    if (!one_row) n = std::min(n, g.cols - at % g.cols);
    widths<C>(g, s, at, n, w);
    const C* y = static_cast<const C*>(g.y) + at;
    bool any = native ? block_f32<C>(y, w, static_cast<float*>(g.out) + at, flag32, n, g.zero)
                      : block_any<C>(y, w, r, flag64, n, g.format, g.zero);
    if (!native) for (int64_t q = 0; q < n; q++) store_one(g, at + q, r[q]);
    if (any)
      for (int64_t q = 0; q < n; q++)
        if (native ? flag32[q] != 0 : flag64[q] != 0) collect(g, static_cast<double>(y[q]) + g.zero, w[q], at + q, out);
    at += n;
  }
}

template <class C> void round_range(const Job& g, int64_t from, int64_t to) {
  const C* y = static_cast<const C*>(g.y);
  if (g.format.is_f32()) {
    float* out = static_cast<float*>(g.out);
    for (int64_t i = from; i < to; i++) out[i] = static_cast<float>(static_cast<double>(y[i]) + g.zero);
    return;
  }
  alignas(64) double r[BLOCK];
  for (int64_t at = from; at < to; at += BLOCK) {
    int64_t n = std::min(BLOCK, to - at);
    for (int64_t q = 0; q < n; q++) r[q] = round_format(static_cast<double>(y[at + q]) + g.zero, g.format);
    for (int64_t q = 0; q < n; q++) store_one(g, at + q, r[q]);
  }
}

// Contiguous parts in ascending order, so that the entries of part t precede those of part t + 1: the order of the
// entries does not depend on the number of threads.
int parts(const Job& g, int64_t numel) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(g.threads, numel / 8192)));
}

void settle(const Job& g, const Scale& s, std::vector<std::vector<Entry>>& out) {
  const int64_t numel = g.batch * g.rows * g.cols;
  const int n = parts(g, numel);
  out.resize(n);
#pragma omp parallel for num_threads(n) schedule(static, 1)
  for (int t = 0; t < n; t++) {
    int64_t from = numel * t / n, to = numel * (t + 1) / n;
    if (g.y_is_f64) settle_range<double>(g, s, from, to, out[t]);
    else settle_range<float>(g, s, from, to, out[t]);
  }
}

void round_all(const Job& g) {
  const int64_t numel = g.batch * g.rows * g.cols;
  const int n = parts(g, numel);
#pragma omp parallel for num_threads(n) schedule(static, 1)
  for (int t = 0; t < n; t++) {
    int64_t from = numel * t / n, to = numel * (t + 1) / n;
    if (g.y_is_f64) round_range<double>(g, from, to);
    else round_range<float>(g, from, to);
  }
}

inline double widen(uint16_t h) { return static_cast<double>(float_of(static_cast<uint32_t>(h) << 16)); }
inline double widen(float x) { return static_cast<double>(x); }
inline double widen(double x) { return x; }

template <class X> constexpr int fraction_bits() { return sizeof(X) == 8 ? 52 : sizeof(X) == 4 ? 23 : 7; }

// What a reduction adds up: in double, so that nothing of a 32-bit range under- or overflows and products are exact.
// `m` is the least magnitude above zero among the terms.
struct SumAndAbs {  // sum x and sum |x|: a sum and its error scale
  static void add(double v, double& y, double& s, double& m) {
    const double a = std::fabs(v);
    y += v;
    s += a;
    m = a > 0 && a < m ? a : m;
  }
  // All partial sums are multiples of the quantum of the least term and at most s: with s below 2^52 quanta they are all
  // representable, so that every order gives the exact sum, and the scale is 0. (The factor 2 to spare covers s's own
  // rounding.)
  template <class X> static void finish(double&, double& s, double m) {
    if (m < HUGE_VAL && s < std::ldexp(1.0, std::ilogb(m) - fraction_bits<X>() + 52)) s = 0;
  }
};
struct Squares {  // sum x^2 (which is its own scale)
  static void add(double v, double& y, double&, double&) { y += v * v; }
  template <class X> static void finish(double& y, double& s, double) { s = y; }
};
struct Norm {
  static void add(double v, double& y, double&, double&) { y += v * v; }
  template <class X> static void finish(double& y, double& s, double) { y = std::sqrt(y); s = y; }
};

// Reduce x[:, i, :] for each i of [from, to). The order is fixed: 16 lanes and a tail, each over ascending (outer, column),
// then the lanes in order (columns contiguous), or ascending (otherwise); it depends neither on the instruction set nor on
// the number of threads.
template <class Op, class X>
void reduce_rows(const Reduction& g, const X* x, double* y, double* s, int64_t from, int64_t to) {
  const int64_t cols = g.cols, sr = g.sr, sc = g.sc;
  if (sc == 1) {
    for (int64_t i = from; i < to; i++) {
      double ya[16] = {}, sa[16] = {}, ma[16], yt = 0, st = 0, mt = HUGE_VAL;
      std::fill(ma, ma + 16, HUGE_VAL);
      for (int64_t o = 0; o < g.outer; o++) {
        const X* p = x + o * g.so + i * sr;
        int64_t k = 0;
        for (; k + 16 <= cols; k += 16)
          for (int q = 0; q < 16; q++) Op::add(widen(p[k + q]), ya[q], sa[q], ma[q]);
        for (; k < cols; k++) Op::add(widen(p[k]), yt, st, mt);
      }
      for (int q = 0; q < 16; q++) { yt += ya[q]; st += sa[q]; mt = std::min(mt, ma[q]); }
      Op::template finish<X>(yt, st, mt);
      y[i] = yt;
      s[i] = st;
    }
    return;
  }
  for (int64_t at = from; at < to; at += BLOCK) {
    int64_t n = std::min(BLOCK, to - at);
    alignas(64) double ya[BLOCK], sa[BLOCK], ma[BLOCK];
    std::fill(ya, ya + n, 0.0);
    std::fill(sa, sa + n, 0.0);
    std::fill(ma, ma + n, HUGE_VAL);
    for (int64_t ok = 0; ok < g.outer * cols; ok++) {
      const X* p = x + ok / cols * g.so + ok % cols * sc + at * sr;
      if (sr == 1) for (int64_t q = 0; q < n; q++) Op::add(widen(p[q]), ya[q], sa[q], ma[q]);
      else for (int64_t q = 0; q < n; q++) Op::add(widen(p[q * sr]), ya[q], sa[q], ma[q]);
    }
    for (int64_t q = 0; q < n; q++) { Op::template finish<X>(ya[q], sa[q], ma[q]); y[at + q] = ya[q]; s[at + q] = sa[q]; }
  }
}

template <class Op, class X> void reduce_typed(const Reduction& g) {
  const X* x = static_cast<const X*>(g.x);
  const int64_t per = std::max<int64_t>(1, std::min<int64_t>(g.threads, g.batch * g.outer * g.rows * g.cols / 16384 + 1));
  const int64_t split = g.batch >= per ? 1 : per;
#pragma omp parallel for collapse(2) num_threads(static_cast<int>(per)) schedule(static)
  for (int64_t b = 0; b < g.batch; b++)
    for (int64_t t = 0; t < split; t++)
      reduce_rows<Op>(g, x + b * g.sb, g.y + b * g.rows, g.s + b * g.rows, g.rows * t / split, g.rows * (t + 1) / split);
}

template <class Op> void reduce_op(const Reduction& g) {
  if (g.type == 0) reduce_typed<Op, float>(g);
  else if (g.type == 1) reduce_typed<Op, uint16_t>(g);
  else reduce_typed<Op, double>(g);
}

void reduce(const Reduction& g) {
  if (g.op == 0) reduce_op<Norm>(g);
  else if (g.op == 1) reduce_op<SumAndAbs>(g);
  else reduce_op<Squares>(g);
}

}  // namespace

#define VTRAIN_CAT2(a, b) a##b
#define VTRAIN_CAT(a, b) VTRAIN_CAT2(a, b)
#define VTRAIN_STR2(a) #a
#define VTRAIN_STR(a) VTRAIN_STR2(a)

const Variant* VTRAIN_CAT(variant_, VTRAIN_VARIANT)() {
  static const Variant v{VTRAIN_STR(VTRAIN_VARIANT), settle, round_all, reduce};
  return &v;
}

}  // namespace vtrain

// Settling: one pass over y that writes the rounded values and finds the elements in doubt (numerics §3-5).
// Compiled once for each instruction set (VTRAIN_VARIANT names the namespace); every variant gives the same bits,
// because each operation below is one IEEE operation and contraction is off.
#pragma once
#include <vector>

#include "format.hpp"

namespace vtrain {

// Half-width of the doubt of element (b, i, j) of y[batch, rows, cols]:
//   w = tau * (r[b, i] * c[b, j] + d[j]) + eta     (null vectors: r, c count as 1, d as 0)
//   w = tau * |y| + eta                            (relative)
//   w = tau * s[flat index] + eta                  (s given)
// but 0 where the scale is 0: then every term is zero, or every order exact, and nothing can underflow.
struct Scale {
  double tau, eta;
  const double *r, *c, *d, *s;
  bool relative;
};

struct Job {
  const void* y;
  bool y_is_f64;
  void* out;
  Format format;
  int64_t batch, rows, cols;
  int threads;
  double zero;  // added to every y: 0.0 turns -0 into +0 (the sign of an empty sum is no result), -0.0 changes nothing
};

struct Entry {
  uint64_t index;
  int64_t value, low, high;  // ordered integers of round(y), round(y - w), round(y + w)
  bool ternary;              // one boundary in the doubt interval, and neither neighbour is near (see codes)
  bool endless;              // a finite y with a half-width that is not: no bound at all
};

static inline double width_of(double tau, double eta, double scale) { return scale == 0.0 ? 0.0 : tau * scale + eta; }

static inline double half_width(const Scale& s, const Job& g, int64_t flat, double y) {
  double scale;
  if (s.relative) scale = std::fabs(y);
  else if (s.s) scale = s.s[flat];
  else {
    int64_t j = flat % g.cols, i = flat / g.cols, b = i / g.rows;
    scale = (s.r ? s.r[i] : 1.0) * (s.c ? s.c[b * g.cols + j] : 1.0) + (s.d ? s.d[j] : 0.0);
  }
  return width_of(s.tau, s.eta, scale);
}

// y[b, i] and s[b, i] from x[b, :, i, :], strides in elements.
struct Reduction {
  int op;    // 0 norm, 1 sum and sum of magnitudes, 2 sum of squares
  const void* x;
  int type;  // 0 float, 1 bfloat16, 2 double
  int64_t batch, outer, rows, cols, sb, so, sr, sc;
  double *y, *s;
  int threads;
};

struct Variant {
  const char* name;
  void (*settle)(const Job&, const Scale&, std::vector<std::vector<Entry>>&);
  void (*round)(const Job&);
  void (*reduce)(const Reduction&);
};

const Variant* variant_generic();
const Variant* variant_avx2();
const Variant* variant_avx512();

}  // namespace vtrain

// Sums over dimensions of values, squares and products, in double, in the order of sum.hpp.
#pragma once
#include "../reductions/sum.hpp"

VT_BEGIN

// Terms: of the element at `offset`, in sum `row`, number f.
template <class X> struct Value {
  const X* x;
  VT_FN double operator()(int64_t at, int64_t, int64_t) const { return static_cast<double>(x[at]); }
};
struct Square {
  const float* x;
  VT_FN double operator()(int64_t at, int64_t, int64_t) const {
    const double v = static_cast<double>(x[at]);
    return v * v;
  }
};
struct CentredSquare {  // (x - mean)^2, the difference rounded to float, the square exact
  const float *x, *mean;
  VT_FN double operator()(int64_t at, int64_t row, int64_t) const {
    const double v = static_cast<double>(x[at] - mean[row]);
    return v * v;
  }
};
struct Product {  // a * b rounded to float
  const float *a, *b;
  VT_FN double operator()(int64_t at, int64_t, int64_t) const { return static_cast<double>(a[at] * b[at]); }
};
struct CentredProduct {  // g * (x - mean), each rounded to float
  const float *g, *x, *mean;
  VT_FN double operator()(int64_t at, int64_t row, int64_t) const {
    const float c = x[at] - mean[row];
    return static_cast<double>(g[at] * c);
  }
};
struct NormalisedProduct {  // g * ((x - mean) * rstd), each rounded to float; mean and rstd by term
  const float *g, *x, *mean, *rstd;
  VT_FN double operator()(int64_t at, int64_t, int64_t f) const {
    const float c = mean ? x[at] - mean[f] : x[at];
    const float h = c * rstd[f];
    return static_cast<double>(g[at] * h);
  }
};

struct SumArgs {
  const void *a, *b, *c, *d;
  double* y;
  int64_t term, batch, outer, rows, cols, sb, so, sr, sc;
  VT_FN Layout layout() const { return Layout{batch, outer, rows, cols, sb, so, sr, sc}; }
  VT_FN const float* f(const void* p) const { return static_cast<const float*>(p); }
};

VT_FN void kernel_sum(const Grid& grid, const SumArgs& s) {
  const Layout x = s.layout();
  const float *a = s.f(s.a), *b = s.f(s.b), *c = s.f(s.c), *d = s.f(s.d);
  switch (s.term) {
    case 0: return sum(grid, x, Value<float>{a}, s.y);
    case 1: return sum(grid, x, Value<double>{static_cast<const double*>(s.a)}, s.y);
    case 2: return sum(grid, x, Square{a}, s.y);
    case 3: return sum(grid, x, CentredSquare{a, b}, s.y);
    case 4: return sum(grid, x, Product{a, b}, s.y);
    case 5: return sum(grid, x, CentredProduct{a, b, c}, s.y);
    case 6: return sum(grid, x, NormalisedProduct{a, b, c, d}, s.y);
  }
}

VT_END

// Products of matrices, in the order of product.hpp.
#pragma once
#include "../reductions/product.hpp"

VT_BEGIN

struct ProductArgs {
  const float *a, *b, *bias;
  float* y;
  int64_t m, n, k, batch, a_rs, a_ks, a_batch, b_rs, b_ks, b_batch;
  int64_t ld, y_batch, bias_i, bias_j, bias_batch;
  double alpha, beta;
};

template <class Acc> VT_FN void run_product(const Grid& grid, const ProductArgs& p) {
  const Strided a{p.a, p.a_rs, p.a_ks, p.a_batch}, b{p.b, p.b_rs, p.b_ks, p.b_batch};
  const int64_t whole = p.n > 0 ? p.n : 1;
  const Target out{p.y, p.ld, whole, 0, p.y_batch, static_cast<float>(p.alpha), static_cast<float>(p.beta),
                   p.bias, p.bias_i, p.bias_j, p.bias_batch};
  product<Acc>(grid, a, b, out, Extent{p.m, p.n, p.k, p.batch});
}
VT_FN void kernel_product(const Grid& grid, const ProductArgs& p) { run_product<float>(grid, p); }
VT_FN void kernel_product_wide(const Grid& grid, const ProductArgs& p) { run_product<double>(grid, p); }

VT_END

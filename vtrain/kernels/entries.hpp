// All kernels by name, with their arguments: the same list makes the host's table and the device's entry points. Every
// argument is 8 bytes wide, so that the caller can lay them out without knowing the compiler.
#pragma once
#include "families/channels.hpp"
#include "families/doubt.hpp"
#include "reductions/product.hpp"
#include "families/optimizer.hpp"
#include "families/pointwise.hpp"
#include "families/indexed.hpp"

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

// A convolution of x[n, c, h, w] by weight[o, c / groups, kh, kw] to y[n, o, oh, ow]; which of the three products of it is
// said by the kernel's name; `y` is what that product computes.
struct ConvolutionArgs {
  const float *x, *weight, *grad, *bias;
  float* y;
  int64_t n, c, h, w, o, kh, kw, sh, sw, ph, pw, dh, dw, oh, ow, groups;
  VT_FN int64_t cg() const { return c / groups; }
  VT_FN int64_t og() const { return o / groups; }
  VT_FN int64_t kernel() const { return kh * kw; }
  VT_FN Patches patches() const {
    return {x, c * h * w, cg() * h * w, {sh, -ph, dh, 1, h, kh, oh}, {sw, -pw, dw, 1, w, kw, ow}};
  }
  VT_FN Patches spread() const {
    return {grad, o * oh * ow, og() * oh * ow, {1, ph, -dh, sh, oh, kh, h}, {1, pw, -dw, sw, ow, kw, w}};
  }
};

// y[n, o, p] = bias[o] + chain over (channel, y tap, x tap).
template <class Acc> VT_FN void run_convolution(const Grid& grid, const ConvolutionArgs& g) {
  const int64_t depth = g.cg() * g.kernel(), area = g.oh * g.ow;
  const Strided weight{g.weight, depth, 1, g.og() * depth};
  const Target out{g.y, area, area, g.o * area, g.og() * area, 1.0f, 1.0f, g.bias, 1, 0, g.og()};
  product<Acc>(grid, weight, g.patches(), out, Extent{g.og(), g.n * area, depth, g.groups});
}
// dx[n, c, p] = chain over (output channel, y tap, x tap).
template <class Acc> VT_FN void run_input_gradient(const Grid& grid, const ConvolutionArgs& g) {
  const int64_t depth = g.cg() * g.kernel(), area = g.h * g.w;
  const Split weight{g.weight, g.kernel(), g.kernel(), depth, g.og() * depth};
  const Target out{g.y, area, area, g.c * area, g.cg() * area, 1.0f, 0.0f, nullptr, 0, 0, 0};
  product<Acc>(grid, weight, g.spread(), out, Extent{g.cg(), g.n * area, g.og() * g.kernel(), g.groups});
}
// dw[o, (c, y tap, x tap)] = chain over (sample, output position).
template <class Acc> VT_FN void run_weight_gradient(const Grid& grid, const ConvolutionArgs& g) {
  const int64_t depth = g.cg() * g.kernel(), area = g.oh * g.ow;
  const Split grad{g.grad, area, area, g.o * area, g.og() * area};
  const Target out{g.y, depth, depth, 0, g.og() * depth, 1.0f, 0.0f, nullptr, 0, 0, 0};
  product<Acc>(grid, grad, Taps{g.patches()}, out, Extent{g.og(), depth, g.n * area, g.groups});
}
VT_FN void kernel_convolution(const Grid& grid, const ConvolutionArgs& g) { run_convolution<float>(grid, g); }
VT_FN void kernel_convolution_wide(const Grid& grid, const ConvolutionArgs& g) { run_convolution<double>(grid, g); }
VT_FN void kernel_input_gradient(const Grid& grid, const ConvolutionArgs& g) { run_input_gradient<float>(grid, g); }
VT_FN void kernel_input_gradient_wide(const Grid& grid, const ConvolutionArgs& g) { run_input_gradient<double>(grid, g); }
VT_FN void kernel_weight_gradient(const Grid& grid, const ConvolutionArgs& g) { run_weight_gradient<float>(grid, g); }
VT_FN void kernel_weight_gradient_wide(const Grid& grid, const ConvolutionArgs& g) { run_weight_gradient<double>(grid, g); }

VT_END

// X(name, arguments)
#define VT_PRODUCTS(X)                                                                                           \
  X(product, ProductArgs) X(product_wide, ProductArgs) X(convolution, ConvolutionArgs)                           \
  X(convolution_wide, ConvolutionArgs) X(input_gradient, ConvolutionArgs) X(input_gradient_wide, ConvolutionArgs) \
  X(weight_gradient, ConvolutionArgs) X(weight_gradient_wide, ConvolutionArgs)
#define VT_MAPS(X)                                                                                                \
  X(exp, MapArgs) X(exp2, MapArgs) X(expm1, MapArgs) X(log, MapArgs) X(log2, MapArgs) X(log10, MapArgs)           \
  X(log1p, MapArgs) X(tanh, MapArgs) X(sigmoid, MapArgs) X(erf, MapArgs) X(erfc, MapArgs) X(sin, MapArgs)         \
  X(cos, MapArgs) X(sqrt, MapArgs) X(rsqrt, MapArgs) X(pow, MapArgs) X(power, MapArgs) X(gelu_erf, MapArgs)                         \
  X(gelu_erf_backward, MapArgs) X(gelu_tanh, MapArgs) X(gelu_tanh_backward, MapArgs) X(silu, MapArgs)             \
  X(silu_backward, MapArgs) X(softplus, MapArgs) X(softplus_backward, MapArgs)
#define VT_ROWS(X)                                                                                                \
  X(sum, SumArgs) X(softmax, RowArgs) X(softmax_backward, RowArgs) X(log_softmax, RowArgs)                        \
  X(log_softmax_backward, RowArgs) X(layer_norm, RowArgs) X(layer_norm_backward, RowArgs) X(rms_norm, RowArgs)    \
  X(rms_norm_backward, RowArgs) X(channel_norm, ChannelArgs) X(channel_norm_backward, ChannelArgs)                \
  X(scatter, ScatterArgs) X(running_sum, RunningArgs) X(sgd, StepArgs) X(adam, StepArgs)                \
  X(round, DoubtArgs) X(doubt_count, DoubtArgs) X(doubt_write, DoubtArgs)
#define VT_KERNELS(X) VT_PRODUCTS(X) VT_MAPS(X) VT_ROWS(X)

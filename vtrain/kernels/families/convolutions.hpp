// The three products of a convolution, in the order of product.hpp, without its patches being materialised.
#pragma once
#include "../reductions/product.hpp"

VT_BEGIN

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

// All kernels by name, with their arguments: the same list makes the host's table and the device's entry points. Every
// argument is 8 bytes wide, so that the caller can lay them out without knowing the compiler.
#pragma once
#include "families/attention.hpp"
#include "families/channels.hpp"
#include "families/convolutions.hpp"
#include "families/depthwise.hpp"
#include "families/doubt.hpp"
#include "families/indexed.hpp"
#include "families/optimizer.hpp"
#include "families/pointwise.hpp"
#include "families/products.hpp"
#include "families/rows.hpp"
#include "families/scans.hpp"
#include "families/sums.hpp"

// X(name, arguments)
#define VT_PRODUCTS(X)                                                                                            \
  X(product, ProductArgs) X(product_wide, ProductArgs) X(convolution, ConvolutionArgs)                            \
  X(convolution_wide, ConvolutionArgs) X(input_gradient, ConvolutionArgs) X(input_gradient_wide, ConvolutionArgs) \
  X(weight_gradient, ConvolutionArgs) X(weight_gradient_wide, ConvolutionArgs)                                    \
  X(attention, AttentionArgs) X(attention_backward, AttentionArgs) X(scan, ScanArgs)  \
  X(depthwise, DepthwiseArgs)
#define VT_MAPS(X)                                                                                                \
  X(exp, MapArgs) X(exp2, MapArgs) X(expm1, MapArgs) X(log, MapArgs) X(log2, MapArgs) X(log10, MapArgs)           \
  X(log1p, MapArgs) X(tanh, MapArgs) X(sigmoid, MapArgs) X(erf, MapArgs) X(erfc, MapArgs) X(sin, MapArgs)         \
  X(cos, MapArgs) X(sqrt, MapArgs) X(rsqrt, MapArgs) X(tan, MapArgs) X(asin, MapArgs) X(acos, MapArgs)            \
  X(atan, MapArgs) X(sinh, MapArgs) X(cosh, MapArgs) X(asinh, MapArgs) X(acosh, MapArgs) X(atanh, MapArgs)        \
  X(pow, MapArgs) X(power, MapArgs) X(gelu_erf, MapArgs) X(gelu_erf_backward, MapArgs) X(gelu_tanh, MapArgs)      \
  X(gelu_tanh_backward, MapArgs) X(silu, MapArgs) X(silu_backward, MapArgs) X(softplus, MapArgs)                  \
  X(softplus_backward, MapArgs)
#define VT_ROWS(X)                                                                                                \
  X(sum, SumArgs) X(softmax, RowArgs) X(softmax_backward, RowArgs) X(log_softmax, RowArgs)                        \
  X(log_softmax_backward, RowArgs) X(layer_norm, RowArgs) X(layer_norm_backward, RowArgs) X(rms_norm, RowArgs)    \
  X(rms_norm_backward, RowArgs) X(channel_norm, ChannelArgs) X(channel_norm_backward, ChannelArgs)                \
  X(scatter, ScatterArgs) X(running_sum, RunningArgs) X(scan_decay, DecayArgs) X(sgd, StepArgs) X(adam, StepArgs)                          \
  X(round, DoubtArgs) X(doubt_count, DoubtArgs) X(doubt_write, DoubtArgs)
#define VT_KERNELS(X) VT_PRODUCTS(X) VT_MAPS(X) VT_ROWS(X)

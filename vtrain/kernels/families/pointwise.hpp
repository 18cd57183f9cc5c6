// Elementwise functions and activations. Functions are correctly rounded (numerics §3); activations are fixed
// sequences of operations, rounded to float after each (numerics §2, classes 3 and 4).
#pragma once
#include "../math/floats.hpp"
#include "../math/power.hpp"
#include "../math/quick_trig.hpp"
#include "../tile/elements.hpp"

VT_BEGIN

struct MapArgs {
  const void *x, *other;  // other: an activation's incoming gradient, or power's exponents
  void* out;
  int64_t n, from_double, to_double;
  double p, q;  // parameters of the function: an exponent; beta and threshold
};

// out = f(x), from or to doubles; floats(x, out) from float to float.
template <class F, class E> VT_FN void map_function(const Grid& grid, const MapArgs& a, const F& f, const E& floats) {
  const float* x = static_cast<const float*>(a.x);
  const double* wide = static_cast<const double*>(a.x);
  float* out = static_cast<float*>(a.out);
  double* wide_out = static_cast<double*>(a.out);
  if (!a.from_double && !a.to_double) {
    floats(x, out);
  } else if (!VECTORS) {
    each_element(grid, a.n, [&](int64_t i) VT_INLINE {
      const double y = f(a.from_double ? wide[i] : static_cast<double>(x[i]));
      if (a.to_double) wide_out[i] = y;
      else out[i] = static_cast<float>(y);
    });
  } else if (!a.from_double) {
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { wide_out[i] = f(static_cast<double>(x[i])); });
  } else if (a.to_double) {
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { wide_out[i] = f(wide[i]); });
  } else {
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = static_cast<float>(f(wide[i])); });
  }
}

// m_name between doubles and floats; name_float from float to float.
#define VT_FUNCTIONS(X)                                                                                           \
  X(exp) X(exp2) X(expm1) X(log2) X(log10) X(log1p) X(tanh) X(sigmoid) X(erf) X(erfc) X(sqrt) X(tan) X(asin)      \
  X(acos) X(atan) X(sinh) X(cosh) X(asinh) X(acosh) X(atanh)
#define VT_FUNCTION(name)                                                                                         \
  VT_FN void kernel_##name(const Grid& grid, const MapArgs& a) {                                                  \
    map_function(grid, a, [](double x) VT_INLINE { return m_##name(x); },                                         \
                 [&](const float* x, float* out) VT_INLINE {                                                      \
                   each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = name##_float(x[i]); });            \
                 });                                                                                              \
  }
VT_FUNCTIONS(VT_FUNCTION)
#undef VT_FUNCTION

// Those with a shorter way for most floats.
#define VT_USUAL(name, Quick)                                                                                     \
  VT_FN void kernel_##name(const Grid& grid, const MapArgs& a) {                                                  \
    map_function(grid, a, [](double x) VT_INLINE { return m_##name(x); },                                         \
                 [&](const float* x, float* out) VT_INLINE { each_usual(grid, a.n, x, out, Quick()); });          \
  }
VT_USUAL(log, QuickLog)
VT_USUAL(sin, QuickSin)
VT_USUAL(cos, QuickCos)
VT_USUAL(rsqrt, QuickRsqrt)
#undef VT_USUAL

VT_FN void kernel_pow(const Grid& grid, const MapArgs& a) {
  const double p = a.p;
  const auto f = [p](double x) VT_INLINE { return m_pow(x, p); };
  map_function(grid, a, f, [&](const float* x, float* out) VT_INLINE {
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = static_cast<float>(f(static_cast<double>(x[i]))); });
  });
}

// x ** other, doubles both.
VT_FN void kernel_power(const Grid& grid, const MapArgs& a) {
  const double *x = static_cast<const double*>(a.x), *y = static_cast<const double*>(a.other);
  float* out = static_cast<float*>(a.out);
  double* wide_out = static_cast<double*>(a.out);
  if (a.to_double) each_element(grid, a.n, [&](int64_t i) VT_INLINE { wide_out[i] = m_pow(x[i], y[i]); });
  else each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = static_cast<float>(m_pow(x[i], y[i])); });
}

constexpr float SQRT_HALF = 0x1.6a09e6p-1f, SQRT_2_OVER_PI = 0x1.988454p-1f, CUBIC = 0x1.6e4e26p-5f;
constexpr float INV_SQRT_2PI = 0x1.988454p-2f, THREE_CUBIC = 0x1.12ba9ep-3f;

// x/2 * (1 + erf(x / sqrt 2)).
VT_FN float gelu_erf(float x) {
  const float inner = erf_float(x * SQRT_HALF) + 1.0f;
  return inner * (x * 0.5f);
}
// grad * (cdf + x * pdf).
VT_FN float gelu_erf_backward(float x, float grad) {
  const float cdf = (erf_float(x * SQRT_HALF) + 1.0f) * 0.5f;
  const float square = x * x;
  const float pdf = exp_float(square * -0.5f) * INV_SQRT_2PI;
  const float tail = pdf * x;
  return (cdf + tail) * grad;
}
// x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).
VT_FN float gelu_tanh_inner(float x) {
  const float square = x * x;
  const float cube = (square * x) * CUBIC;
  return (cube + x) * SQRT_2_OVER_PI;
}
VT_FN float gelu_tanh(float x) {
  const float inner = tanh_float(gelu_tanh_inner(x)) + 1.0f;
  return inner * (x * 0.5f);
}
VT_FN float gelu_tanh_backward(float x, float grad) {
  const float t = tanh_float(gelu_tanh_inner(x));
  const float left = (t + 1.0f) * 0.5f;
  const float square = x * x;
  const float steep = square * THREE_CUBIC;
  const float slope = (steep + 1.0f) * SQRT_2_OVER_PI;
  const float t2 = t * t;
  const float right = ((1.0f - t2) * slope) * (x * 0.5f);
  return (left + right) * grad;
}
// x * sigmoid(x).
VT_FN float silu(float x) { return sigmoid_float(x) * x; }
// grad * s * (1 + x * (1 - s)).
VT_FN float silu_backward(float x, float grad) {
  const float s = sigmoid_float(x);
  const float inner = (1.0f - s) * x;
  return ((inner + 1.0f) * s) * grad;
}

#define VT_ACTIVATIONS(X) X(gelu_erf) X(gelu_tanh) X(silu)
#define VT_ACTIVATION(name)                                                                                      \
  VT_FN void kernel_##name(const Grid& grid, const MapArgs& a) {                                                  \
    const float* x = static_cast<const float*>(a.x);                                                              \
    float* out = static_cast<float*>(a.out);                                                                      \
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = name(x[i]); });                                             \
  }                                                                                                               \
  VT_FN void kernel_##name##_backward(const Grid& grid, const MapArgs& a) {                                       \
    const float *x = static_cast<const float*>(a.x), *grad = static_cast<const float*>(a.other);                  \
    float* out = static_cast<float*>(a.out);                                                                      \
    each_element(grid, a.n, [&](int64_t i) VT_INLINE { out[i] = name##_backward(x[i], grad[i]); });                         \
  }
VT_ACTIVATIONS(VT_ACTIVATION)
#undef VT_ACTIVATION

// log1p(exp(beta * x)) / beta; x where beta * x > threshold.
VT_FN void kernel_softplus(const Grid& grid, const MapArgs& a) {
  const float* x = static_cast<const float*>(a.x);
  float* out = static_cast<float*>(a.out);
  const float beta = static_cast<float>(a.p), threshold = static_cast<float>(a.q);
  each_element(grid, a.n, [&](int64_t i) VT_INLINE {
    const float z = x[i] * beta, soft = log1p_float(exp_float(z)) / beta;
    out[i] = z > threshold ? x[i] : soft;
  });
}
// grad * sigmoid(beta * x); grad above the threshold.
VT_FN void kernel_softplus_backward(const Grid& grid, const MapArgs& a) {
  const float *x = static_cast<const float*>(a.x), *grad = static_cast<const float*>(a.other);
  float* out = static_cast<float*>(a.out);
  const float beta = static_cast<float>(a.p), threshold = static_cast<float>(a.q);
  each_element(grid, a.n, [&](int64_t i) VT_INLINE {
    const float z = x[i] * beta, inside = sigmoid_float(z) * grad[i];
    out[i] = z > threshold ? grad[i] : inside;
  });
}

VT_END

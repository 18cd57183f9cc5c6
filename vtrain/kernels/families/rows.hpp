// Softmax, layer norm and RMS norm over rows of n floats, forward and backward: each a fixed sequence of operations, rounded
// to float after each one; sums as in sum.hpp, functions correctly rounded (numerics §2, class 4). One warp a row.
#pragma once
#include "../math/floats.hpp"
#include "../reductions/sum.hpp"
#include "../tile/elements.hpp"

VT_BEGIN

VT_FN float mean_of(double sum, double n) { return static_cast<float>(sum / n); }

// The largest of a row; NaN where there is one; a zero is +0.
VT_FN float largest(const float* x, int64_t n) {
  const auto larger = [](float a, float b) { return (a > b) | (a != a) ? a : b; };
  Lanes<float> top;
  top.fill(-static_cast<float>(infinity()));
  for (int64_t base = 0; base < n; base += LANES)
    each_lane(n - base, [&](int q) VT_INLINE { top.v[q] = larger(top.v[q], x[base + lane_of(q)]); });
  return fold(top.v, larger) + 0.0f;
}

// The sum over a row of f(position).
template <class F> VT_FN double row_sum(int64_t n, const F& f) {
  LaneSum sum;
  for (int64_t base = 0; base < n; base += LANES) sum.feed(base, n, [&](int q) VT_INLINE { return f(base + lane_of(q)); });
  return sum.total();
}

struct RowArgs {
  const float *x, *y, *grad, *weight, *bias;
  float *mean, *rstd, *out;
  int64_t rows, n;
  double eps;
};

// e = exp(x - top) into out; their sum.
VT_FN float exp_sum(const float* x, float top, int64_t n, float* out) {
  along(n, [&](int64_t i) VT_INLINE { out[i] = exp_float(x[i] - top); });
  return static_cast<float>(row_sum(n, [&](int64_t i) VT_INLINE { return static_cast<double>(out[i]); }));
}

// e / sum(e), e = exp(x - max).
VT_FN void kernel_softmax(const Grid& grid, const RowArgs& a) {
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float* x = a.x + row * a.n;
    float* out = a.out + row * a.n;
    const float total = exp_sum(x, largest(x, a.n), a.n, out);
    along(a.n, [&](int64_t i) VT_INLINE { out[i] = out[i] / total; });
  });
}

// (x - max) - log(sum(exp(x - max))).
VT_FN void kernel_log_softmax(const Grid& grid, const RowArgs& a) {
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float* x = a.x + row * a.n;
    float* out = a.out + row * a.n;
    const float top = largest(x, a.n);
    const float total = exp_sum(x, top, a.n, out);
    const float shift = log_float(total);
    along(a.n, [&](int64_t i) VT_INLINE {
      const float s = x[i] - top;
      out[i] = s - shift;
    });
  });
}

// grad * y - y * sum(grad * y).
VT_FN void kernel_softmax_backward(const Grid& grid, const RowArgs& a) {
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float *y = a.y + row * a.n, *g = a.grad + row * a.n;
    float* out = a.out + row * a.n;
    along(a.n, [&](int64_t i) VT_INLINE { out[i] = g[i] * y[i]; });
    const float total = static_cast<float>(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(out[i]); }));
    along(a.n, [&](int64_t i) VT_INLINE {
      const float back = y[i] * total;
      out[i] = out[i] - back;
    });
  });
}

// grad - exp(y) * sum(grad).
VT_FN void kernel_log_softmax_backward(const Grid& grid, const RowArgs& a) {
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float *y = a.y + row * a.n, *g = a.grad + row * a.n;
    float* out = a.out + row * a.n;
    const float total = static_cast<float>(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(g[i]); }));
    along(a.n, [&](int64_t i) VT_INLINE {
      const float back = exp_float(y[i]) * total;
      out[i] = g[i] - back;
    });
  });
}

VT_FN float inverse_root(float variance, float eps) {
  const float v = variance + eps;
  return rsqrt_float(v);
}

// (x - mean) * rstd * weight + bias; the variance is that of the rounded differences.
VT_FN void kernel_layer_norm(const Grid& grid, const RowArgs& a) {
  const double n = static_cast<double>(a.n);
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float* x = a.x + row * a.n;
    float* out = a.out + row * a.n;
    const float mean = mean_of(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(x[i]); }), n);
    along(a.n, [&](int64_t i) VT_INLINE { out[i] = x[i] - mean; });
    const double squares = row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(out[i]) * static_cast<double>(out[i]); });
    const float rstd = inverse_root(mean_of(squares, n), static_cast<float>(a.eps));
    along(a.n, [&](int64_t i) VT_INLINE {
      float v = out[i] * rstd;
      if (a.weight) v = v * a.weight[i];
      if (a.bias) v = v + a.bias[i];
      out[i] = v;
    });
    if (lane_of(0) == 0) {
      a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
  });
}

// rstd * (g - mean(g) - xhat * mean(g * xhat)), g = grad * weight, xhat = (x - mean) * rstd.
VT_FN void kernel_layer_norm_backward(const Grid& grid, const RowArgs& a) {
  const double n = static_cast<double>(a.n);
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float *x = a.x + row * a.n, *grad = a.grad + row * a.n;
    float* out = a.out + row * a.n;
    const float mean = a.mean[row], rstd = a.rstd[row];
    const auto g = [&](int64_t i) VT_INLINE { return a.weight ? grad[i] * a.weight[i] : grad[i]; };
    const auto xhat = [&](int64_t i) VT_INLINE {
      const float c = x[i] - mean;
      return c * rstd;
    };
    const float mean_g = mean_of(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(g(i)); }), n);
    const float mean_gx = mean_of(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(g(i) * xhat(i)); }), n);
    along(a.n, [&](int64_t i) VT_INLINE {
      const float back = xhat(i) * mean_gx, centred = g(i) - mean_g;
      out[i] = (centred - back) * rstd;
    });
  });
}

// x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps).
VT_FN void kernel_rms_norm(const Grid& grid, const RowArgs& a) {
  const double n = static_cast<double>(a.n);
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float* x = a.x + row * a.n;
    float* out = a.out + row * a.n;
    const double squares = row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
    const float rstd = inverse_root(mean_of(squares, n), static_cast<float>(a.eps));
    along(a.n, [&](int64_t i) VT_INLINE {
      const float v = x[i] * rstd;
      out[i] = a.weight ? v * a.weight[i] : v;
    });
    if (lane_of(0) == 0) a.rstd[row] = rstd;
  });
}

// rstd * (g - xhat * mean(g * xhat)), g = grad * weight, xhat = x * rstd.
VT_FN void kernel_rms_norm_backward(const Grid& grid, const RowArgs& a) {
  const double n = static_cast<double>(a.n);
  grid.warps(a.rows, a.n, [&](int64_t row) VT_INLINE {
    const float *x = a.x + row * a.n, *grad = a.grad + row * a.n;
    float* out = a.out + row * a.n;
    const float rstd = a.rstd[row];
    const auto g = [&](int64_t i) VT_INLINE { return a.weight ? grad[i] * a.weight[i] : grad[i]; };
    const float mean_gx = mean_of(row_sum(a.n, [&](int64_t i) VT_INLINE { return static_cast<double>(g(i) * (x[i] * rstd)); }), n);
    along(a.n, [&](int64_t i) VT_INLINE {
      const float back = (x[i] * rstd) * mean_gx;
      out[i] = (g(i) - back) * rstd;
    });
  });
}

VT_END

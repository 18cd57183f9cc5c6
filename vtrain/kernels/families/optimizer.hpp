// Optimizer steps in one pass: operation for operation what torch.optim's unfused single-tensor forms do, rounded to float
// after each (numerics §2, class 4). Numbers come from the host in double and are rounded to float first, as there.
#pragma once
#include "../math/quick_root.hpp"
#include "../tile/elements.hpp"

VT_BEGIN

struct StepArgs {
  float* param;
  const float* grad;
  float *first, *second, *most;  // momentum buffer or first moment; second moment; its maximum (amsgrad) or null
  int64_t n, maximize, decoupled, fresh, nesterov;
  double lr, decay, beta1, beta2, eps, step_size, root_correction, momentum, dampening;
};

// grad' = -grad if maximizing; grad' += decay * param; buffer = momentum * buffer + (1 - dampening) * grad' (grad' itself in
// the first step); param += -lr * (nesterov: grad' + momentum * buffer; else buffer).
VT_FN void kernel_sgd(const Grid& grid, const StepArgs& a) {
  const float lr = static_cast<float>(-a.lr), decay = static_cast<float>(a.decay);
  const float momentum = static_cast<float>(a.momentum), share = static_cast<float>(1.0 - a.dampening);
  each_element(grid, a.n, [&](int64_t i) VT_INLINE {
    float g = a.maximize ? -a.grad[i] : a.grad[i];
    const float p = a.param[i];
    if (a.decay != 0.0) {
      const float pull = p * decay;
      g = g + pull;
    }
    if (a.first) {
      float b = g;
      if (!a.fresh) {
        const float kept = a.first[i] * momentum, fresh = share == 1.0f ? g : g * share;
        b = kept + fresh;
      }
      a.first[i] = b;
      const float ahead = b * momentum;
      g = a.nesterov ? g + ahead : b;
    }
    const float move = g * lr;
    a.param[i] = p + move;
  });
}

// Adam and AdamW: decay (decoupled: param *= 1 - lr * decay; else grad += decay * param), moments, param -= step_size * m / d,
// d = sqrt(v) / root_correction + eps.
VT_FN void kernel_adam(const Grid& grid, const StepArgs& a) {
  const float keep = static_cast<float>(1.0 - a.lr * a.decay), decay = static_cast<float>(a.decay);
  const double toward = 1.0 - a.beta1;  // the first moment is blended from its nearer end, as torch.lerp does
  const bool near = magnitude_of(toward) < 0.5;
  const float weight = static_cast<float>(near ? toward : 1.0 - toward);
  const float beta2 = static_cast<float>(a.beta2), share = static_cast<float>(1.0 - a.beta2);
  const float eps = static_cast<float>(a.eps), size = static_cast<float>(-a.step_size), root = static_cast<float>(a.root_correction);
  each_element(grid, a.n, [&](int64_t i) VT_INLINE {
    float g = a.maximize ? -a.grad[i] : a.grad[i];
    float p = a.param[i];
    if (a.decay != 0.0 && a.decoupled) p = p * keep;
    if (a.decay != 0.0 && !a.decoupled) {
      const float pull = p * decay;
      g = g + pull;
    }
    const float d = g - a.first[i], part = d * weight;
    const float m = near ? part + a.first[i] : g - part;
    const float kept = a.second[i] * beta2, scaled = g * share, square = scaled * g;
    const float v = kept + square;
    a.first[i] = m;
    a.second[i] = v;
    float top = v;
    if (a.most) {
      top = (a.most[i] > v) | (a.most[i] != a.most[i]) ? a.most[i] : v;
      a.most[i] = top;
    }
    const float spread = sqrt_float(top) / root;
    const float below = spread + eps, above = m * size;
    const float move = above / below;
    a.param[i] = p + move;
  });
}

VT_END

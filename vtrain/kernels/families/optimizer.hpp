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

// Choices that are the same for all elements, as masks: conditions would be taken out of the loop, in more ways than the
// compiler vectorises.
VT_FN uint32_t mask_of(bool yes) { return yes ? 0xffffffffu : 0u; }
VT_FN float either(uint32_t mask, float yes, float no) { return as_float((as_bits(yes) & mask) | (as_bits(no) & ~mask)); }

// Adam and AdamW: decay (decoupled: param *= 1 - lr * decay; else grad += decay * param), moments, param -= step_size * m / d,
// d = sqrt(v) / root_correction + eps.
template <bool MOST> VT_FN void adam_step(const Grid& grid, const StepArgs& a) {
  const bool decays = a.decay != 0.0;
  const uint32_t ahead = mask_of(decays && a.decoupled), pulled = mask_of(decays && !a.decoupled);
  const uint32_t flip = a.maximize ? 0x80000000u : 0u;
  const float keep = static_cast<float>(1.0 - a.lr * a.decay), decay = static_cast<float>(a.decay);
  const double toward = 1.0 - a.beta1;  // the first moment is blended from its nearer end, as torch.lerp does
  const bool close = magnitude_of(toward) < 0.5;
  const uint32_t near = mask_of(close);
  const float weight = static_cast<float>(close ? toward : 1.0 - toward);
  const float beta2 = static_cast<float>(a.beta2), share = static_cast<float>(1.0 - a.beta2);
  const float eps = static_cast<float>(a.eps), size = static_cast<float>(-a.step_size), root = static_cast<float>(a.root_correction);
  float *param = a.param, *first = a.first, *second = a.second, *most = a.most;
  const float* grad = a.grad;
  each_element(grid, a.n, [&](int64_t i) VT_INLINE {
    const float given = as_float(as_bits(grad[i]) ^ flip), before = param[i];
    const float p = either(ahead, before * keep, before), pull = p * decay, with_pull = given + pull;
    const float g = either(pulled, with_pull, given);
    const float d = g - first[i], part = d * weight;
    const float up = part + first[i], down = g - part, m = either(near, up, down);
    const float kept = second[i] * beta2, scaled = g * share, square = scaled * g;
    const float v = kept + square;
    first[i] = m;
    second[i] = v;
    float top = v;
    if (MOST) {
      const float held = most[i];
      top = (held > v) | (held != held) ? held : v;
      most[i] = top;
    }
    const float spread = sqrt_float(top) / root;
    const float below = spread + eps, above = m * size;
    const float move = above / below;
    param[i] = p + move;
  });
}

VT_FN void kernel_adam(const Grid& grid, const StepArgs& a) {
  if (a.most) adam_step<true>(grid, a);
  else adam_step<false>(grid, a);
}

VT_END

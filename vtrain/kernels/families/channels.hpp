// Batch norm's passes over x[samples, channels, area]: elementwise with a value per channel, rounded to float after each
// operation (numerics §2, class 4). The sums between them are those of sum.hpp.
#pragma once
#include "../tile/elements.hpp"

VT_BEGIN

struct ChannelArgs {
  const float *x, *grad;
  const float *mean, *gain, *bias, *offset, *slope;  // one a channel
  float* out;
  int64_t samples, channels, area;
};

template <class F> VT_FN void each_channel(const Grid& grid, const ChannelArgs& a, const F& f) {
  if (a.area == 1) {  // lanes along the channels
    grid.warps(a.samples, a.channels, [&](int64_t sample) {
      along(a.channels, [&](int64_t c) { f(c, sample * a.channels + c); });
    });
    return;
  }
  grid.warps(a.samples * a.channels, a.area, [&](int64_t piece) {
    const int64_t c = piece % a.channels, start = piece * a.area;
    along(a.area, [&](int64_t i) { f(c, start + i); });
  });
}

// (x - mean) * gain + bias.
VT_FN void kernel_channel_norm(const Grid& grid, const ChannelArgs& a) {
  each_channel(grid, a, [&](int64_t c, int64_t i) {
    const float d = a.x[i] - a.mean[c], v = d * a.gain[c];
    a.out[i] = a.bias ? v + a.bias[c] : v;
  });
}

// ((grad - offset) - (x - mean) * slope) * gain.
VT_FN void kernel_channel_norm_backward(const Grid& grid, const ChannelArgs& a) {
  each_channel(grid, a, [&](int64_t c, int64_t i) {
    const float d = a.x[i] - a.mean[c], back = d * a.slope[c], g = a.grad[i] - a.offset[c];
    a.out[i] = (g - back) * a.gain[c];
  });
}

VT_END

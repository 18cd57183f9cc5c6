// Constants and tables of the host's scalar functions, made by the functions of real.hpp when they are first wanted.
#include "elementary.hpp"
#include "fixed.hpp"

namespace vtrain::scalar {

const Constants& constants() {
  static const Constants made = [] {
    using R = Real<WIDE>;
    Constants c;
    c.pi = scaled(inverse_series<WIDE>(5, true), 4) - scaled(inverse_series<WIDE>(239, true), 2);  // Machin
    c.ln2 = R(18) * inverse_series<WIDE>(26, false) - scaled(inverse_series<WIDE>(4801, false), 1) +
            scaled(inverse_series<WIDE>(8749, false), 3);
    c.two_over_pi = scaled(reciprocal(c.pi), 1);
    return c;
  }();
  return made;
}

const Tables& tables() {
  static const Tables made = [] {
    using R = Real<4>;
    Tables t;
    for (int i = 0; i < 64; i++) {
      const R a(static_cast<u64>(i), -6);
      R sine, cosine;
      real_circle(a, sine, cosine);
      t.atan[i] = fixed_of(real_atan(a), 127);
      t.exp_coarse[i] = fixed_of(real_exp(a), 126);
      t.exp_fine[i] = fixed_of(real_exp(R(static_cast<u64>(i), -12)), 126);
      t.sine[i] = fixed_of(sine, 127);
      t.cosine[i] = i ? fixed_of(cosine, 127) : static_cast<u128>(1) << 127;
    }
    t.atan[64] = fixed_of(real_atan(R(1)), 127);
    for (u64 i = 88; i < 184; i++) {
      const R log = real_log(R((32768 + i - 1) / i, -8));
      const i128 size = static_cast<i128>(fixed_of(log, FRACTION));
      t.log_coarse[i - 88] = log.negative ? -size : size;
    }
    for (u64 j = 0; j < 72; j++) t.log_fine[j] = fixed_of(real_log(R(((1ull << 30) + 4096 + j - 1) / (4096 + j), -18)), FRACTION);
    t.ln2 = fixed_of(R(constants().ln2), 128);
    t.log2e = fixed_of(reciprocal(R(constants().ln2)), 127);
    t.log10e = fixed_of(reciprocal(real_log(R(10))), 128);
    t.half_pi = fixed_of(scaled(R(constants().pi), -1), 127);
    for (int q = 0; q < 3; q++) t.two_over_pi[2 - q] = constants().two_over_pi.m[WIDE - 1 - q];
    return t;
  }();
  return made;
}

}  // namespace vtrain::scalar

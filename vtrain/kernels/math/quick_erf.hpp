// erf of a float: see quick_exp.hpp.
#pragma once
#include "quick_exp.hpp"

VT_BEGIN

// x P(x^2), P of degree 26 about the middle of [0, 3.92^2] (error 2^-52.9; the first coefficient one unit up, for the float
// 0x1.81d5acp-13): erf(x) / x has derivatives of alternating signs in x^2,
// so that nothing cancels below the middle, and little above. From 3.92 on erf rounds to 1.
VT_FN float erf_float(float x) {
  const double a = static_cast<double>(bounded_below(bounded_above(x, 3.92f), -3.92f)), w = multiply_add(a, a, -7.6875);
  const double p = quick_horner(w, 0x1.714a947278f73p-2, -0x1.7fc077d0f9d94p-6, 0x1.294ee9bf939f9p-9,
                                -0x1.f7e50687db0b0p-13, 0x1.b34e94ebf2534p-16, -0x1.721058830d00fp-19,
                                0x1.2ed49990f0670p-22, -0x1.d68dd7d1e3011p-26, 0x1.585eb93dfc0f0p-29,
                                -0x1.d8febbeda6828p-33, 0x1.3078eac741aacp-36, -0x1.6f99cbe60bb4ep-40,
                                0x1.a0d185b8704a7p-44, -0x1.bcc1a009ca889p-48, 0x1.bf9362f803c25p-52,
                                -0x1.a9c28a9dccd0cp-56, 0x1.7fc695fcaafc4p-60, -0x1.48b2dcf876fcap-64,
                                0x1.0bb3243b79b9fp-68, -0x1.9da0467170738p-73, 0x1.3360e74bbb4bdp-77,
                                -0x1.c5d29a780ac68p-82, 0x1.32e003679c6cep-86, -0x1.3c8c9995a93aap-91,
                                0x1.9b53ecdf1ece7p-96, -0x1.ee6fd31bc4565p-100, 0x1.17d78807cf6b3p-104);
  const float y = static_cast<float>(a * p);
  return x == x ? y : quiet_nan_float();
}

VT_END

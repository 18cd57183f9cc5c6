// log of a float: see quick_exp.hpp.
#pragma once
#include "log.hpp"
#include "quick_exp.hpp"

VT_BEGIN

// For normal positive numbers. x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), both exact in float; s and R as in log.hpp:
// log(1 + f) = f - s (f - R).
struct QuickLog {
  VT_FN bool usual(float x) const { return as_bits(x) - 0x00800000u < 0x7f000000u; }
  VT_FN float operator()(float x) const {
    const uint32_t root_half = 0x3f3504f3u, b = as_bits(x) - root_half;
    const float exponent = static_cast<float>(static_cast<int32_t>(b) >> 23);
    const float fraction = as_float((b & 0x007fffffu) + root_half) - 1.0f;
    const double n = static_cast<double>(exponent), f = static_cast<double>(fraction);
    const double s = f / (2 + f), z = s * s;
    const double r = z * quick_horner(z, 0x1.5555555555558p-1, 0x1.99999999952d8p-2, 0x1.2492492df26cep-2,
                                      0x1.c71c62e40b94ep-3, 0x1.7462b5152e8a6p-3, 0x1.39fe52a20dc69p-3,
                                      0x1.2b58f4c8d5f63p-3);
    const double y = multiply_add(-s, f - r, f);
    return static_cast<float>(multiply_add(n, 0x1.62e42fefa3800p-1, multiply_add(n, 0x1.ef35793c76730p-45, y)));
  }
  VT_FN float any(float x) const { return static_cast<float>(m_log(static_cast<double>(x))); }
};

VT_FN float log_float(float x) { return QuickLog().usual(x) ? QuickLog()(x) : QuickLog().any(x); }

VT_END

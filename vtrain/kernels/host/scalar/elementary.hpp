// Elementary functions of Real<N>, by series after argument reduction. What they give has a relative error below
// 2^(40 - 64 N), the function being well conditioned there; where a caller's argument cancels, it counts the bits that are lost.
#pragma once
#include "real.hpp"

namespace vtrain::scalar {

constexpr int WIDE = 40;  // limbs of the constants: the largest double times 2 / pi still has 1472 bits of fraction

struct Constants {
  Real<WIDE> pi, ln2, two_over_pi;
};
const Constants& constants();

// The sum of (+-1)^j / ((2 j + 1) k^(2 j + 1)): atan(1 / k) or atanh(1 / k).
template <int N> Real<N> inverse_series(uint32_t k, bool alternating) {
  Real<N> power = Real<N>(1) / k, total = power;
  for (uint32_t j = 1; power.e > -64 * N; j++) {
    power = power / (k * k);
    const Real<N> term = power / (2 * j + 1);
    total = alternating && j % 2 ? total - term : total + term;
  }
  return total;
}

template <int N> Real<N> real_exp(const Real<N>& x) {
  constexpr int HALVINGS = 16;
  if (x.zero()) return Real<N>(1);
  const Real<N> ln2(constants().ln2);
  const double k = x.e < -1 ? 0.0 : std::nearbyint(x.approximate() * 1.4426950408889634);
  Real<N> r = x - Real<N>::of(k) * ln2;
  r.e -= HALVINGS;
  Real<N> total(1), term(1);
  for (uint32_t j = 1; !term.zero() && term.e > -64 * N; j++) {
    term = term * r / j;
    total = total + term;
  }
  for (int q = 0; q < HALVINGS; q++) total = total * total;
  return scaled(total, static_cast<int64_t>(k));
}

// Of x > 0. Near 1 the result is as exact, relatively, as x - 1.
template <int N> Real<N> real_log(const Real<N>& x) {
  Real<N> m = x;
  int64_t k = x.e;
  m.e = 0;
  if (m.m[N - 1] < 0xb504f333f9de6484ull) m.e = 1, k--;  // sqrt(1/2): m from there to sqrt(2)
  const Real<N> one(1), z = (m - one) / (m + one), square = z * z;
  Real<N> total = z, power = z;
  for (uint32_t j = 3; !power.zero() && power.e > total.e - 64 * N; j += 2) {
    power = power * square;
    total = total + power / j;
  }
  total.e += !total.zero();
  if (k) total = total + Real<N>::of(static_cast<double>(k)) * Real<N>(constants().ln2);
  return total;
}

// sin and cos of theta, |theta| <= pi / 4.
template <int N> void real_circle(const Real<N>& theta, Real<N>& sine, Real<N>& cosine) {
  const Real<N> square = theta * theta;
  Real<N> term(1);
  cosine = term, sine = theta;
  if (theta.zero()) return;
  Real<N> other = theta;
  for (uint32_t j = 1; other.e > theta.e - 64 * N; j++) {
    term = -(term * square / ((2 * j - 1) * (2 * j)));
    other = -(other * square / ((2 * j) * (2 * j + 1)));
    cosine = cosine + term;
    sine = sine + other;
  }
}

// x = (quadrants + f) pi / 2 with |f| <= 1/2: theta = f pi / 2; quadrants modulo 4. Exact reduction for every double.
template <int N> int real_reduce(double x, Real<N>& theta) {
  const Parts p = parts_of(x);
  Real<WIDE> v = constants().two_over_pi * Real<WIDE>(p.mantissa, p.exponent);
  const int64_t whole = v.e;
  int quadrants = 0;
  if (whole > 0) {
    quadrants = 2 * v.bit(static_cast<int>(whole) - 2) + v.bit(static_cast<int>(whole) - 1);
    for (int q = 0; q < WIDE; q++) {  // clear the integer part
      const int64_t above = whole - 64 * (WIDE - 1 - q);  // bits of this limb that belong to it
      if (above >= 64) v.m[q] = 0;
      else if (above > 0) v.m[q] &= ~0ull >> above;
    }
    v.normalise();
  }
  if (!v.zero() && v.e == 0) v = v - Real<WIDE>(1), quadrants++;
  theta = Real<N>(v) * scaled(Real<N>(constants().pi), -1);
  if (negative(x)) theta.negative = !theta.negative, quadrants = -quadrants;
  return quadrants & 3;
}

// sin (offset 0) or cos (offset 1) of x.
template <int N> Real<N> real_sine(double x, int offset) {
  Real<N> theta, sine, cosine;
  const int q = real_reduce(x, theta) + offset;
  real_circle(theta, sine, cosine);
  const Real<N> r = q & 1 ? cosine : sine;
  return q & 2 ? -r : r;
}

template <int N> Real<N> real_tan(double x) {
  Real<N> theta, sine, cosine;
  const int q = real_reduce(x, theta);
  real_circle(theta, sine, cosine);
  return q & 1 ? -(cosine / sine) : sine / cosine;
}

// Of t >= 0.
template <int N> Real<N> real_atan(Real<N> t) {
  if (t.zero()) return t;
  const Real<N> one(1);
  const bool invert = compare(t, one) > 0;
  if (invert) t = reciprocal(t);
  int halvings = 0;
  for (; t.e > -3; halvings++) t = t / (one + root(one + t * t));
  const Real<N> square = t * t;
  Real<N> total = t, power = t;
  for (uint32_t j = 3; power.e > total.e - 64 * N; j += 2) {
    power = -(power * square);
    total = total + power / j;
  }
  total.e += halvings;
  return invert ? scaled(Real<N>(constants().pi), -1) - total : total;
}

// The sum of erf's series, x > 0: erf(x) = 2 / sqrt(pi) exp(-x^2) sum of 2^j x^(2 j + 1) / (1 * 3 * ... * (2 j + 1)), whose
// terms are all positive (Abramowitz and Stegun, 7.1.6).
template <int N> Real<N> real_erf(const Real<N>& x) {
  const Real<N> square = x * x;
  Real<N> term = x, total = x;
  for (uint32_t j = 1; term.e > total.e - 64 * N; j++) {
    term = scaled(term * square, 1) / (2 * j + 1);
    total = total + term;
  }
  return scaled(total * real_exp(-square) / root(Real<N>(constants().pi)), 1);
}

}  // namespace vtrain::scalar

// The errors of the host's scalar functions before rounding, as shares of what the rounding test assumes: SEED COUNT. Prints
// a line for each, "name share". What is above 1 could be rounded wrongly without anybody noticing.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "circular.cpp"
#include "exponential.cpp"
#include "power.cpp"
#include "tables.cpp"

using namespace vtrain::scalar;

namespace {

std::mt19937_64 generator;
std::map<std::string, double> worst;

double uniform(double a, double b) { return a + (b - a) * static_cast<double>(generator() >> 11) * 0x1p-53; }
int below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }

// |difference| 2^bits.
void note(const char* name, Real<8> difference, int64_t bits) {
  difference.e += bits, difference.negative = false;
  const double share = difference.zero() || difference.e < -1000 ? 0 : difference.approximate();
  if (share > worst[name]) worst[name] = share;
}
template <int N> void absolute(const char* name, const Real<N>& got, const Real<8>& want, int64_t bits) {
  note(name, Real<8>(got) - want, bits);
}
template <int N> void relative(const char* name, const Real<N>& got, const Real<8>& want, int64_t bits) {
  note(name, (Real<8>(got) - want) / want, bits);
}
i128 signed_as(bool minus, u128 t) { return minus ? -static_cast<i128>(t) : static_cast<i128>(t); }

const Real<8> ONE8(1);

void exponentials() {
  const double x = below(3) ? uniform(-745, 709.7) : std::ldexp(uniform(-1, 1), -below(54));
  if (std::fabs(x) < TINY) return;
  const Real<8> exact = real_exp(Real<8>::of(x)), big = real_exp(Real<8>::of(std::fabs(x)));
  const Real<2> e = fixed_exp(fixed_argument(x)), b = fixed_exp(fixed_argument(std::fabs(x))), one(1);
  const i128 v = fixed_argument(x);
  relative("exp", e, exact, 109);
  relative("exp2", fixed_exp(signed_as(v < 0, multiply_high(magnitude(v), tables().ln2))),
           real_exp(Real<8>::of(x) * Real<8>(constants().ln2)), 109);
  absolute("expm1", e - one, exact - ONE8, 109 - above_zero(e.e));
  absolute("sinh", scaled(b - reciprocal(b), -1), scaled(big - reciprocal(big), -1), 109 - above_zero(b.e));
  absolute("cosh", scaled(b + reciprocal(b), -1), scaled(big + reciprocal(big), -1), 109 - above_zero(b.e));
  const double y = std::fabs(x) < 22 ? std::fabs(x) : uniform(0.001, 22);
  const Real<2> d = fixed_exp(fixed_argument(2 * y)), upper = d - one;
  const Real<8> exactly = real_exp(Real<8>::of(2 * y));
  relative("tanh", upper / (d + one), (exactly - ONE8) / (exactly + ONE8), upper.e - d.e + 108);
  relative("exp in 192 bits", real_exp(Real<3>::of(x)), exact, 192 - 40);
}

void logarithms() {
  const int kind = below(3);
  const double x = kind == 0 ? std::ldexp(uniform(1, 2), below(2040) - 1020)
                   : kind == 1 ? 1 + std::ldexp(uniform(-1, 1), -below(52) - 1) : uniform(0.5, 2);
  if (x == 1) return;
  const i128 v = fixed_log(x);
  const Real<8> exact = real_log(Real<8>::of(x));
  absolute("log", real_of(magnitude(v), FRACTION, v < 0), exact, 111);
  absolute("log2", real_of(multiply_high(magnitude(v), tables().log2e), FRACTION - 1, v < 0), exact / Real<8>(constants().ln2), 109);
  absolute("log10", real_of(multiply_high(magnitude(v), tables().log10e), FRACTION, v < 0), exact / real_log(Real<8>(10)), 110);
  relative("log in 192 bits", real_log(Real<3>::of(x)), exact, 192 - 40);
  double y = std::ldexp(uniform(-1, 1), below(40));
  if (std::fabs(y * std::log(x)) > 700) y *= 600 / std::fabs(y * std::log(x));
  const int above = static_cast<int>(bits_of(y) >> 52 & 0x7ff) - 1022;
  const i128 t = signed_as((v < 0) != negative(y), times(y, magnitude(v)));
  relative("pow", fixed_exp(t), real_exp(Real<8>::of(y) * exact), 107 - (above > 0 ? above : 0));
}

void near_one() {
  const double x = below(2) ? std::ldexp(uniform(-1, 1), -below(50)) : std::ldexp(uniform(1, 2), below(52));
  if (x <= -1 || std::fabs(x) < 0x1p-54) return;
  absolute("log1p", quick_log1p(x), real_log(ONE8 + Real<8>::of(x)), 110);
}

void circles() {
  double x = below(2) ? std::ldexp(uniform(1, 2), -below(26) - 1) : std::ldexp(uniform(1, 2), below(30));
  if (below(8) == 0) x = std::floor(x) * 1.5707963267948966;
  if (x < TINY || x >= 0x1p30) return;
  const Real<2> sine = quick_sine(x, 0), cosine = quick_sine(x, 1);
  absolute("sin", sine, real_sine<8>(x, 0), 121);
  absolute("cos", cosine, real_sine<8>(x, 1), 121);
  relative("tan", sine / cosine, real_tan<8>(x), (sine.e < cosine.e ? sine.e : cosine.e) + 117);
  absolute("atan", quick_angle(x, 1.0), real_atan(Real<8>::of(x)), 118);
  const double side = uniform(0, 1);
  const Real<8> exact = Real<8>::of(side), other = root((ONE8 - exact) * (ONE8 + exact));
  absolute("asin", quick_angle(Real<2>::of(side), other_side(side)), real_atan(exact / other), 118);
  absolute("acos", quick_angle(other_side(side), Real<2>::of(side)), real_atan(other / exact), 118);
  const Real<2> p = Real<2>::of(x), q = Real<2>::of(side);
  relative("hypot", root(p * p + q * q), root(Real<8>::of(x) * Real<8>::of(x) + exact * exact), 112);
  relative("sin in 192 bits", real_sine<3>(x, 0), real_sine<8>(x, 0), 192 - 40);
  relative("atan in 192 bits", real_atan(Real<3>::of(x)), real_atan(Real<8>::of(x)), 192 - 40);
  const double small = uniform(0, 6);
  relative("erf in 192 bits", real_erf(Real<3>::of(small)), real_erf(Real<8>::of(small)), 192 - 40);
  relative("root in 192 bits", root(Real<3>::of(x)), root(Real<8>::of(x)), 192 - 40);
}

}  // namespace

int main(int, char** arguments) {
  generator.seed(std::strtoull(arguments[1], nullptr, 10));
  for (int q = std::atoi(arguments[2]); q > 0; q--) exponentials(), logarithms(), near_one(), circles();
  for (const auto& [name, share] : worst) std::printf("%s: %.3g\n", name.c_str(), share);
}

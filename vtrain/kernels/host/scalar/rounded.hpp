// The correctly rounded functions themselves, one for each of the C library's.
#pragma once

namespace vtrain::scalar {

double f_exp(double), f_exp2(double), f_expm1(double), f_log(double), f_log2(double), f_log10(double);
double f_log1p(double), f_sin(double), f_cos(double), f_tan(double), f_asin(double), f_acos(double), f_atan(double);
double f_sinh(double), f_cosh(double), f_tanh(double), f_asinh(double), f_acosh(double), f_atanh(double);
double f_cbrt(double), f_erf(double), f_erfc(double);
double f_pow(double, double), f_atan2(double, double), f_hypot(double, double);

}  // namespace vtrain::scalar

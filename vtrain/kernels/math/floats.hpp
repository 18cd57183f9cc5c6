// Functions of a float, correctly rounded: in double to about one unit in its last place (quick_*.hpp) or by the functions of
// a double, then rounded.
#pragma once
#include "arc.hpp"
#include "area.hpp"
#include "erf.hpp"
#include "exp.hpp"
#include "hyperbolic.hpp"
#include "log.hpp"
#include "quick_erf.hpp"
#include "quick_exp.hpp"
#include "quick_log.hpp"
#include "quick_root.hpp"
#include "trig.hpp"

VT_BEGIN

#define VT_FLOAT(name) \
  VT_FN float name##_float(float x) { return static_cast<float>(m_##name(static_cast<double>(x))); }
VT_FLOAT(exp2) VT_FLOAT(expm1) VT_FLOAT(log2) VT_FLOAT(log10) VT_FLOAT(log1p) VT_FLOAT(erfc) VT_FLOAT(tan) VT_FLOAT(asin)
VT_FLOAT(acos) VT_FLOAT(atan) VT_FLOAT(sinh) VT_FLOAT(cosh) VT_FLOAT(asinh) VT_FLOAT(acosh) VT_FLOAT(atanh)
#undef VT_FLOAT

VT_END

// Functions of a float: in double, then rounded.
#pragma once
#include "erf.hpp"
#include "exp.hpp"
#include "hyperbolic.hpp"
#include "log.hpp"

VT_BEGIN

VT_FN float exp_float(float x) { return static_cast<float>(m_exp(static_cast<double>(x))); }
VT_FN float tanh_float(float x) { return static_cast<float>(m_tanh(static_cast<double>(x))); }
VT_FN float erf_float(float x) { return static_cast<float>(m_erf(static_cast<double>(x))); }
VT_FN float sigmoid_float(float x) { return static_cast<float>(m_sigmoid(static_cast<double>(x))); }
VT_FN float log1p_float(float x) { return static_cast<float>(m_log1p(static_cast<double>(x))); }

VT_END

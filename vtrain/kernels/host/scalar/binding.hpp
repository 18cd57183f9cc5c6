// The Python binding of the host's scalar functions, a part of the host module's.
#pragma once
#include <nanobind/nanobind.h>

namespace vtrain::scalar {

void bind(nanobind::module_& m);

}  // namespace vtrain::scalar

// Entry points of the device target: vt_<name>(arguments by value), one for each kernel of entries.hpp.
#include "entries.hpp"

#define VT_ENTRY(name, Arguments)                                                                            \
  extern "C" __global__ void __launch_bounds__(128) vt_##name(const vtrain::in_device::Arguments arguments) { \
    vtrain::in_device::kernel_##name(vtrain::in_device::Grid(), arguments);                                  \
  }
VT_KERNELS(VT_ENTRY)

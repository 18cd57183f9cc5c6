// The kernels of entries.hpp as the host calls them: by name, with their arguments as bytes.
#pragma once
#include <cstddef>

namespace vtrain {

struct HostKernel {
  const char* name;
  size_t size;  // of the arguments, bytes
  void (*run)(const void* arguments, int threads);
};

struct HostTable {
  const HostKernel* kernels;
  size_t count;
};

// Three tables, so that they compile side by side.
HostTable products_generic();
HostTable products_avx2();
HostTable products_avx512();
HostTable maps_generic();
HostTable maps_avx2();
HostTable maps_avx512();
HostTable rows_generic();
HostTable rows_avx2();
HostTable rows_avx512();

}  // namespace vtrain

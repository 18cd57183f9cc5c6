// One third of the kernels (VTRAIN_PART) for one instruction set (VTRAIN_VARIANT); see CMakeLists.txt.
#include "table.hpp"

#include <cstring>

#include "../entries.hpp"

namespace vtrain {
namespace {

using namespace VT_CAT(in_, VTRAIN_VARIANT);

template <class Arguments, void (*kernel)(const Grid&, const Arguments&)> void run(const void* bytes, int threads) {
  Arguments arguments;
  std::memcpy(&arguments, bytes, sizeof arguments);
  kernel(Grid{threads}, arguments);
}

#define VT_LINE(name, Arguments)                                                            \
  void call_##name(const Grid& grid, const Arguments& arguments) { kernel_##name(grid, arguments); }
#define VT_ROW(name, Arguments) {#name, sizeof(Arguments), run<Arguments, call_##name>},

#if VTRAIN_PART == 0
#define VT_PART VT_PRODUCTS
#define VT_TABLE products
#elif VTRAIN_PART == 1
#define VT_PART VT_MAPS
#define VT_TABLE maps
#else
#define VT_PART VT_ROWS
#define VT_TABLE rows
#endif

VT_PART(VT_LINE)
const HostKernel KERNELS[] = {VT_PART(VT_ROW)};

}  // namespace

#define VT_TABLE_OF(part, variant) VT_CAT(VT_CAT(part, _), variant)
HostTable VT_TABLE_OF(VT_TABLE, VTRAIN_VARIANT)() { return {KERNELS, sizeof KERNELS / sizeof KERNELS[0]}; }

}  // namespace vtrain

// The one header that knows host from device: what is compiled for which, and the marks that all code carries.
//
// Levels, the lowest first. A header includes what is on its own level or below:
//
//   config.hpp              this file, which includes nothing of ours
//   tile/                   the vocabulary: arithmetic, lanes, tiles, the grid
//   math/                   functions of one number
//   reductions/             the orders in which products and sums are added up
//   families/               kernels; no family includes another
//   entries.hpp             the list of kernels
//   device.cu, host/*.cpp   what compilers are given
//
// What must be written for each target has two bodies, in device/ and host/, under the name of the header that includes
// them by VT_BODY(name), and stands on its level. What only the host does is in host/ too.
//
// Host: compiled once for each instruction set (VTRAIN_VARIANT); a block is an OpenMP thread and a warp's 32 lanes are a
// loop. Device: compiled by NVRTC; a block is a thread block, a lane is a thread.
//
// All templates and functions of the kernels stand between VT_BEGIN and VT_END, in a namespace of the variant: the linker
// would otherwise be free to use one variant's copy of an inline function in another.
#pragma once

#define VT_CAT2(a, b) a##b
#define VT_CAT(a, b) VT_CAT2(a, b)
#define VT_TEXT(x) #x

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define VTRAIN_VARIANT device
#define VT_FN __device__ __forceinline__
#define VT_INLINE
#define VT_EACH(q) for (int q = 0; q < WARP; q++)
#define VT_BODY(name) VT_TEXT(device/name.hpp)  // NVRTC knows headers by their paths from this folder
using int8_t = signed char;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using size_t = decltype(sizeof(0));
#else
#ifndef VTRAIN_VARIANT
#define VTRAIN_VARIANT generic
#endif
#define VT_FN inline __attribute__((always_inline))
// After a lambda's parameters: the loop around a body that the compiler finds too long to inline has no vectors.
#define VT_INLINE __attribute__((always_inline))
// Over the lanes that a thread holds, which never touch each other's elements: one vector loop.
#define VT_EACH(q) _Pragma("GCC ivdep") for (int q = 0; q < WARP; q++)
#define VT_BODY(name) VT_TEXT(../host/name.hpp)
#include <cstddef>
#include <cstdint>
#endif

#define VT_BEGIN namespace vtrain { namespace VT_CAT(in_, VTRAIN_VARIANT) {
#define VT_END } }

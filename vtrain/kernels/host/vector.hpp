// Host: machine vectors for the register blocks of matrix products. One operation a lane, in any width: the same bits.
#pragma once
#include "../tile/arithmetic.hpp"
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

VT_BEGIN

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T> struct Machine;
template <> struct Machine<float> { typedef float type __attribute__((vector_size(VECTOR_BYTES))); };
template <> struct Machine<double> { typedef double type __attribute__((vector_size(VECTOR_BYTES))); };
template <class T> using Vector = typename Machine<T>::type;
template <class T> constexpr int WIDTH = VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T> VT_FN Vector<T> load_vector(const T* p) { Vector<T> v; __builtin_memcpy(&v, p, sizeof v); return v; }
template <class T> VT_FN void store_vector(T* p, Vector<T> v) { __builtin_memcpy(p, &v, sizeof v); }
template <class T> VT_FN Vector<T> spread(T x) { return x - Vector<T>{}; }  // x - 0 is x, signed zeros and all

#if defined(__AVX512F__)
VT_FN Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
VT_FN Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) { return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX2__)
VT_FN Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
VT_FN Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) { return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
template <class V> VT_FN V fused(V a, V b, V c) {
  V y;
  for (unsigned q = 0; q < sizeof(V) / sizeof a[0]; q++) y[q] = fused(a[q], b[q], c[q]);
  return y;
}
#endif

// Whether numbers are finite, as a flag of integers: such a loop has no order, and is one of vectors.
inline bool all_finite(const float* x, int64_t n) {
  uint32_t odd = 0;
  for (int64_t i = 0; i < n; i++) odd |= (as_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  return !odd;
}

VT_END

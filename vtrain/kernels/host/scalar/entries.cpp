// What a caller of the C library's functions calls instead, and NumPy's loops.
#include <atomic>
#include <cstring>

#include "functions.hpp"
#include "ziv.hpp"

namespace vtrain::scalar {

namespace {

template <int ID> struct Counter {
  static std::atomic<uint64_t> calls;
  static void count() { calls.store(calls.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
};
template <int ID> std::atomic<uint64_t> Counter<ID>::calls{0};

template <int ID, Unary F, class T> T entry(T x) {
  Counter<ID>::count();
  return static_cast<T>(F(static_cast<double>(x)));
}
template <int ID, Binary F, class T> T entry(T x, T y) {
  Counter<ID>::count();
  return static_cast<T>(F(static_cast<double>(x), static_cast<double>(y)));
}
void entry_sincos(double x, double* sine, double* cosine) {
  Counter<-1>::count();
  *sine = f_sin(x), *cosine = f_cos(x);
}

template <int ID, Unary F, class T> void unary_loop(char** at, const intptr_t* n, const intptr_t* step, void*) {
  for (intptr_t q = 0; q < *n; q++) {
    T x;
    std::memcpy(&x, at[0] + q * step[0], sizeof x);
    const T y = entry<ID, F, T>(x);
    std::memcpy(at[1] + q * step[1], &y, sizeof y);
  }
}
template <int ID, Binary F, class T> void binary_loop(char** at, const intptr_t* n, const intptr_t* step, void*) {
  for (intptr_t q = 0; q < *n; q++) {
    T x, y;
    std::memcpy(&x, at[0] + q * step[0], sizeof x);
    std::memcpy(&y, at[1] + q * step[1], sizeof y);
    const T z = entry<ID, F, T>(x, y);
    std::memcpy(at[2] + q * step[2], &z, sizeof z);
  }
}

static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));
template <int ID> const uint64_t* calls_of() { return reinterpret_cast<const uint64_t*>(&Counter<ID>::calls); }

// A function for double, and its form for float, which is called by the next name and counted apart.
template <int ID, Unary F> void add(std::vector<Function>& all, const char* name, const char* single) {
  all.push_back({name, F, nullptr, reinterpret_cast<void*>(static_cast<Unary>(&entry<ID, F, double>)), calls_of<ID>(),
                 &unary_loop<ID, F, double>, &unary_loop<ID, F, float>});
  all.push_back({single, nullptr, nullptr, reinterpret_cast<void*>(static_cast<float (*)(float)>(&entry<100 + ID, F, float>)),
                 calls_of<100 + ID>(), nullptr, nullptr});
}
template <int ID, Binary F> void add(std::vector<Function>& all, const char* name, const char* single) {
  all.push_back({name, nullptr, F, reinterpret_cast<void*>(static_cast<Binary>(&entry<ID, F, double>)), calls_of<ID>(),
                 &binary_loop<ID, F, double>, &binary_loop<ID, F, float>});
  all.push_back({single, nullptr, nullptr, reinterpret_cast<void*>(static_cast<float (*)(float, float)>(&entry<100 + ID, F, float>)),
                 calls_of<100 + ID>(), nullptr, nullptr});
}

std::vector<Function> all_functions() {
  std::vector<Function> all;
  add<0, f_exp>(all, "exp", "expf");
  add<1, f_exp2>(all, "exp2", "exp2f");
  add<2, f_expm1>(all, "expm1", "expm1f");
  add<3, f_log>(all, "log", "logf");
  add<4, f_log2>(all, "log2", "log2f");
  add<5, f_log10>(all, "log10", "log10f");
  add<6, f_log1p>(all, "log1p", "log1pf");
  add<7, f_sin>(all, "sin", "sinf");
  add<8, f_cos>(all, "cos", "cosf");
  add<9, f_tan>(all, "tan", "tanf");
  add<10, f_asin>(all, "asin", "asinf");
  add<11, f_acos>(all, "acos", "acosf");
  add<12, f_atan>(all, "atan", "atanf");
  add<13, f_sinh>(all, "sinh", "sinhf");
  add<14, f_cosh>(all, "cosh", "coshf");
  add<15, f_tanh>(all, "tanh", "tanhf");
  add<16, f_asinh>(all, "asinh", "asinhf");
  add<17, f_acosh>(all, "acosh", "acoshf");
  add<18, f_atanh>(all, "atanh", "atanhf");
  add<19, f_cbrt>(all, "cbrt", "cbrtf");
  add<20, f_erf>(all, "erf", "erff");
  add<21, f_erfc>(all, "erfc", "erfcf");
  add<22, f_pow>(all, "pow", "powf");
  add<23, f_atan2>(all, "atan2", "atan2f");
  add<24, f_hypot>(all, "hypot", "hypotf");
  all.push_back({"sincos", nullptr, nullptr, reinterpret_cast<void*>(&entry_sincos), calls_of<-1>(), nullptr, nullptr});
  return all;
}

}  // namespace

const std::vector<Function>& functions() {
  static const std::vector<Function> all = all_functions();
  return all;
}

void set_slow(bool slow) { slow_only.store(slow); }

void prepare() { tables(); }

}  // namespace vtrain::scalar

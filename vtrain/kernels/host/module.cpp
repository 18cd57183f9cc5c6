// Python binding of the host target. Tensors arrive as addresses: the caller (vtrain.kernels) has checked dtype,
// contiguity and sizes; this file checks only what the log says.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdlib>
#include <stdexcept>

#include "codes.hpp"
#include "columns.hpp"
#include "memory.hpp"
#include "scalar/binding.hpp"
#include "table.hpp"

namespace nb = nanobind;
using namespace vtrain;

namespace {

using Ptr = uintptr_t;
using FormatTuple = std::tuple<int, int, int, int>;                        // container, p, emin, emax
// y, y_is_f64, out, batch, rows, cols, threads, whether a zero keeps its sign
using GeometryTuple = std::tuple<Ptr, bool, Ptr, int64_t, int64_t, int64_t, int, bool>;
using ScaleTuple = std::tuple<double, double, Ptr, Ptr, Ptr, Ptr, bool>;   // tau, eta, r, c, d, s, relative

const Variant* choose() {
  const char* forced = std::getenv("VTRAIN_CPU");
  std::string want = forced ? forced : "";
  if (!want.empty() && want != "generic" && want != "avx2" && want != "avx512")
    throw std::runtime_error("VTRAIN_CPU is '" + want + "', want generic, avx2 or avx512");
#if defined(VTRAIN_X86)
  __builtin_cpu_init();
  bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if ((want == "avx512" && !has512) || (want == "avx2" && !has2))
    throw std::runtime_error("VTRAIN_CPU is '" + want + "', which this processor lacks");
  if (has512 && (want.empty() || want == "avx512")) return variant_avx512();
  if (has2 && want != "generic") return variant_avx2();
#else
  if (want == "avx512" || want == "avx2") throw std::runtime_error("VTRAIN_CPU is '" + want + "', which this processor lacks");
#endif
  return variant_generic();
}

const Variant& variant() {
  static const Variant* v = choose();
  return *v;
}

// The tables of the variant in use.
const std::array<HostTable, 3>& tables() {
  static const std::array<HostTable, 3> t = [] {
    const std::string name = variant().name;
#if defined(VTRAIN_X86)
    if (name == "avx512") return std::array<HostTable, 3>{products_avx512(), maps_avx512(), rows_avx512()};
    if (name == "avx2") return std::array<HostTable, 3>{products_avx2(), maps_avx2(), rows_avx2()};
#endif
    return std::array<HostTable, 3>{products_generic(), maps_generic(), rows_generic()};
  }();
  return t;
}

// Names and sizes of arguments of all kernels, in the order in which `launch` numbers them.
std::vector<std::pair<std::string, size_t>> kernels() {
  std::vector<std::pair<std::string, size_t>> found;
  for (const HostTable& t : tables())
    for (size_t q = 0; q < t.count; q++) found.emplace_back(t.kernels[q].name, t.kernels[q].size);
  return found;
}

void launch(size_t number, nb::bytes arguments, int threads) {
  for (const HostTable& t : tables()) {
    if (number >= t.count) { number -= t.count; continue; }
    const HostKernel& k = t.kernels[number];
    if (arguments.size() != k.size) throw std::invalid_argument(std::string(k.name) + ": wrong size of arguments");
    const void* bytes = arguments.c_str();
    nb::gil_scoped_release release;
    k.run(bytes, threads);
    return;
  }
  throw std::invalid_argument("no such kernel");
}

Job job_of(const GeometryTuple& g, const FormatTuple& f) {
  auto [y, f64, out, batch, rows, cols, threads, keeps_sign] = g;
  auto [container, p, emin, emax] = f;
  return Job{reinterpret_cast<const void*>(y), f64, reinterpret_cast<void*>(out), Format{container, p, emin, emax},
             batch, rows, cols, threads, keeps_sign ? -0.0 : 0.0};
}

const double* vec(Ptr p) { return reinterpret_cast<const double*>(p); }

Scale scale_of(const ScaleTuple& t) {
  auto [tau, eta, r, c, d, s, relative] = t;
  return Scale{tau, eta, vec(r), vec(c), vec(d), vec(s), relative};
}

template <class T> nb::object bytes_of(const std::vector<T>& v) {
  return nb::bytes(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
}

constexpr int64_t FEW_ZEROS = 32;  // entries that are cheaper to log than to look into
constexpr int64_t ZEROS = -1, ENDLESS = -2;  // what is returned in place of a number of entries

// What one step logs. One a run; settle() appends, take() hands the columns over and starts anew.
class Sink {
 public:
  explicit Sink(int encoding) : encoding_(encoding) {}

  // Number of entries. ZEROS, and nothing is kept, where many zeros are in doubt and the caller asked to know: finding
  // out which of them are sums of zeros costs it another product. ENDLESS, and nothing is kept, where a finite value has a
  // half-width that is infinite.
  int64_t settle(uint64_t seq, const GeometryTuple& geometry, const FormatTuple& format, const ScaleTuple& scale, bool ask) {
    Job job = job_of(geometry, format);
    Scale s = scale_of(scale);
    std::vector<std::vector<Entry>> parts;
    nb::gil_scoped_release release;
    variant().settle(job, s, parts);
    int64_t zeros = 0;
    if (ask)
      for (const auto& part : parts)
        for (const Entry& e : part) zeros += e.value == 0 && e.low < 0;
    if (zeros > FEW_ZEROS) return ZEROS;
    return put(seq, static_cast<uint64_t>(job.batch * job.rows * job.cols), parts, job.format);
  }

  // Entries found elsewhere (another device): parallel little-endian arrays as bytes.
  int64_t add(uint64_t seq, uint64_t numel, const FormatTuple& format, nb::bytes index, nb::bytes y, nb::bytes w) {
    auto [container, p, emin, emax] = format;
    Format f{container, p, emin, emax};
    size_t n = index.size() / 8;
    if (y.size() != 8 * n || w.size() != 8 * n) throw std::invalid_argument("index, y and w differ in length");
    const auto* pi = reinterpret_cast<const uint64_t*>(index.c_str());
    const auto* py = reinterpret_cast<const double*>(y.c_str());
    const auto* pw = reinterpret_cast<const double*>(w.c_str());
    std::vector<std::vector<Entry>> parts(1);
    for (size_t q = 0; q < n; q++) {
      Entry e;
      e.index = pi[q];
      double low = py[q] - pw[q], high = py[q] + pw[q];
      e.low = ordered(low != low ? -HUGE_VAL : round_format(low, f), f);
      e.high = ordered(high != high ? HUGE_VAL : round_format(high, f), f);
      if (py[q] != py[q] || pw[q] == 0 || e.low == e.high) continue;
      e.value = ordered(round_format(py[q], f), f);
      e.ternary = e.high - e.low == 1 && py[q] - 3.0 * pw[q] > from_ordered(e.low, f) &&
                  py[q] + 3.0 * pw[q] < from_ordered(e.high, f);
      e.endless = std::isinf(pw[q]) && !std::isinf(py[q]);
      parts[0].push_back(e);
    }
    return put(seq, numel, parts, f);
  }

  nb::tuple take() {
    nb::tuple t = nb::make_tuple(bytes_of(c_.sites), bytes_of(c_.gaps), bytes_of(c_.codes), bytes_of(c_.values));
    c_ = Columns();
    return t;
  }

 private:
  int64_t put(uint64_t seq, uint64_t numel, const std::vector<std::vector<Entry>>& parts, const Format& f) {
    int64_t n = 0;
    for (const auto& part : parts) {
      n += static_cast<int64_t>(part.size());
      for (const Entry& e : part)
        if (e.endless) return ENDLESS;
    }
    if (n) put_site(c_, seq, numel, parts, f, encoding_);
    return n;
  }
  int encoding_;
  Columns c_;
};

void round_only(const GeometryTuple& geometry, const FormatTuple& format) {
  Job job = job_of(geometry, format);
  nb::gil_scoped_release release;
  variant().round(job);
}

// (corrections, fault, index, y', w', logged value); out holds round(y') with the corrections applied.
std::tuple<uint64_t, int, uint64_t, double, double, double> replay(const GeometryTuple& geometry, const FormatTuple& format,
    const ScaleTuple& scale, std::tuple<uint64_t, uint64_t, uint64_t, uint64_t> site, nb::bytes gaps, nb::bytes codes,
    nb::bytes values) {
  Job job = job_of(geometry, format);
  Scale s = scale_of(scale);
  auto [numel, encoding, narrow_count, wide] = site;
  if (values.size() != 4 * wide) return {0, BAD_COUNT, 0, 0, 0, 0};
  SiteBytes log{numel, encoding, narrow_count, wide, reinterpret_cast<const uint8_t*>(gaps.c_str()),
                reinterpret_cast<const uint8_t*>(codes.c_str()), reinterpret_cast<const uint32_t*>(values.c_str()),
                gaps.size(), codes.size()};
  nb::gil_scoped_release release;
  variant().round(job);
  Verdict v = Replay(job, s).run(log);
  return {v.corrections, v.fault, v.index, v.y, v.w, v.logged};
}

// x[batch, outer, rows, cols] reduced over outer and cols.
void reduce(int op, Ptr x, int type, std::array<int64_t, 4> shape, std::array<int64_t, 4> stride, Ptr y, Ptr s, int threads) {
  auto [batch, outer, rows, cols] = shape;
  auto [sb, so, sr, sc] = stride;
  Reduction g{op, reinterpret_cast<const void*>(x), type, batch, outer, rows, cols, sb, so, sr, sc,
              reinterpret_cast<double*>(y), reinterpret_cast<double*>(s), threads};
  nb::gil_scoped_release release;
  variant().reduce(g);
}

Patches patches_of(const std::array<int64_t, 14>& g, int threads) {
  return Patches{g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12], g[13], threads};
}

using Array = std::pair<Ptr, int64_t>;  // address, number of elements

Source source(const Array& a) { return {reinterpret_cast<const void*>(a.first), a.second}; }
Target target(const Array& a) { return {reinterpret_cast<void*>(a.first), a.second}; }

void columns(const std::array<int64_t, 14>& g, int type, const Array& x, bool f64, const Array& cols, int threads) {
  nb::gil_scoped_release release;
  to_columns(patches_of(g, threads), type, source(x), f64, target(cols));
}

void image(const std::array<int64_t, 14>& g, bool f64, const Array& cols, const Array& x, int threads) {
  nb::gil_scoped_release release;
  from_columns(patches_of(g, threads), f64, source(cols), target(x));
}

void taps(const std::array<int64_t, 14>& g, int type, const Array& x, const Array& out, int threads) {
  nb::gil_scoped_release release;
  tap_squares(patches_of(g, threads), type, source(x), target(out));
}

using BlockTuple = std::tuple<Ptr, Ptr, size_t>;  // addresses of the copy and of what it is of, bytes

std::vector<Block> blocks_of(const std::vector<BlockTuple>& given) {
  std::vector<Block> blocks;
  blocks.reserve(given.size());
  for (const auto& [mine, theirs, size] : given)
    blocks.push_back({reinterpret_cast<char*>(mine), reinterpret_cast<const char*>(theirs), size});
  return blocks;
}

void copy(const std::vector<BlockTuple>& given, int threads) {
  nb::gil_scoped_release release;
  copy_blocks(blocks_of(given), threads);
}

std::vector<size_t> differing(const std::vector<BlockTuple>& given, int threads) {
  nb::gil_scoped_release release;
  return differing_blocks(blocks_of(given), threads);
}

double round_scalar(double y, const FormatTuple& format) {
  auto [container, p, emin, emax] = format;
  return round_format(y, Format{container, p, emin, emax});
}

int64_t ordered_scalar(double y, const FormatTuple& format) {
  auto [container, p, emin, emax] = format;
  Format f{container, p, emin, emax};
  return ordered(round_format(y, f), f);
}

}  // namespace

NB_MODULE(_host, m) {
  m.def("variant", [] { return std::string(variant().name); });
  m.def("kernels", &kernels);
  m.def("launch", &launch);
  m.def("round_only", &round_only);
  m.def("replay", &replay);
  m.def("reduce", &reduce);
  m.def("columns", &columns);
  m.def("image", &image);
  m.def("taps", &taps);
  m.def("copy", &copy);
  m.def("differing", &differing);
  m.def("round_scalar", &round_scalar);
  m.def("ordered_scalar", &ordered_scalar);
  scalar::bind(m);
  nb::class_<Sink>(m, "Sink").def(nb::init<int>()).def("settle", &Sink::settle).def("add", &Sink::add).def("take", &Sink::take);
}

// Runs every kernel of entries.hpp on the host, on odd shapes, with one thread and with several: for sanitizers to watch.
// Each array is a heap block of exactly its size. Prints the name of each kernel before it runs.
//
//   -DBREAK_BOUNDS   results are one element too short: AddressSanitizer must say so
//   -DBREAK_SHIFT    an undefined shift: UndefinedBehaviorSanitizer must say so
//   -DBREAK_RACE     two pieces of work write one element: ThreadSanitizer must say so
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "entries.hpp"

using namespace vtrain::in_generic;

namespace {

#ifdef BREAK_BOUNDS
constexpr int64_t MISSING = 1;
#else
constexpr int64_t MISSING = 0;
#endif

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Integers = std::vector<int64_t>;

// n numbers from -4 to 4, from Knuth's multiplicative generator.
template <class T = float> std::vector<T> numbers(int64_t n, uint64_t seed = 1) {
  std::vector<T> x(static_cast<size_t>(n));
  for (T& v : x) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    v = static_cast<T>(static_cast<double>(seed >> 40) * 0x1p-21 - 4.0);
  }
  return x;
}

template <class T = float> std::vector<T> results(int64_t n) { return std::vector<T>(static_cast<size_t>(n - MISSING)); }

template <class Arguments> struct Cases;  // each(run): run(arguments) for some arguments of this kind

template <> struct Cases<ProductArgs> {
  template <class F> static void each(const F& run) {
    for (const Extent& e : {Extent{13, 70, 257, 2}, {1, 1, 1, 1}, {3, 5, 0, 1}, {241, 515, 3, 1}, {6, 33, 31, 3}}) {
      const Floats a = numbers(e.batch * e.m * e.k), b = numbers(e.batch * e.k * e.n), bias = numbers(e.n);
      Floats y = results(e.batch * e.m * e.n);
      ProductArgs p{a.data(), b.data(), nullptr, y.data(), e.m, e.n, e.k, e.batch, e.k, 1, e.m * e.k, 1, e.n,
                    e.k * e.n, e.n, e.m * e.n, 0, 0, 0, 1.0, 1.0};
      run(p);
      p.a_rs = 1, p.a_ks = e.m, p.b_rs = e.k, p.b_ks = 1;  // both transposed
      p.bias = bias.data(), p.bias_j = 1, p.alpha = -0.5, p.beta = 2.0;
      run(p);
    }
  }
};

template <> struct Cases<ConvolutionArgs> {
  template <class F> static void each(const F& run) {
    // n, c, h, w, o, kh, kw, stride, padding, dilation, oh, ow, groups
    one(run, {nullptr, nullptr, nullptr, nullptr, nullptr, 2, 3, 19, 23, 13, 3, 3, 1, 1, 1, 1, 1, 1, 19, 23, 1});
    one(run, {nullptr, nullptr, nullptr, nullptr, nullptr, 3, 4, 11, 9, 6, 3, 2, 2, 3, 2, 0, 2, 1, 6, 3, 2});
    one(run, {nullptr, nullptr, nullptr, nullptr, nullptr, 1, 2, 2, 3, 2, 3, 3, 1, 1, 4, 5, 1, 1, 8, 11, 1});
    one(run, {nullptr, nullptr, nullptr, nullptr, nullptr, 1, 1, 8, 8, 1, 2, 2, 3, 3, 0, 0, 1, 1, 3, 3, 1});
  }
  // The result's array serves for each of the three products.
  template <class F> static void one(const F& run, ConvolutionArgs g) {
    const int64_t in = g.n * g.c * g.h * g.w, out = g.n * g.o * g.oh * g.ow, weights = g.o * g.cg() * g.kernel();
    const Floats x = numbers(in), weight = numbers(weights), grad = numbers(out), bias = numbers(g.o);
    Floats y = results(run.size(out, in, weights));
    g.x = x.data(), g.weight = weight.data(), g.grad = grad.data(), g.bias = bias.data(), g.y = y.data();
    run(g);
  }
};

template <> struct Cases<MapArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t n : {33, 1, 4096, 40001}) {
      const Floats x = numbers(n), other = numbers(n, 2);
      const Doubles wide = numbers<double>(n), exponents = numbers<double>(n, 2);
      Floats out = results(n);
      Doubles wide_out = results<double>(n);
      const MapArgs a{x.data(), other.data(), out.data(), n, 0, 0, 0.75, 5.0};
      const MapArgs b{wide.data(), exponents.data(), wide_out.data(), n, 1, 1, -1.5, 5.0};
      if (!run.is("power")) run(a);
      run(b);
    }
  }
};

template <> struct Cases<SumArgs> {
  template <class F> static void each(const F& run) {
    // batch, outer, rows, cols and strides: along, across, side by side with a stride, by channel
    for (const Layout& x : {Layout{1, 1, 3, 40001, 0, 0, 40001, 1}, {1, 1, 37, 20001, 0, 0, 1, 37},
                            {1, 1, 9, 33, 0, 0, 2, 18}, {1, 5, 37, 49, 0, 37 * 49, 49, 1}, {1, 5, 9, 4, 0, 36, 4, 1},
                            {3, 1, 33, 65, 33 * 65, 0, 1, 33}, {1, 1, 1, 0, 0, 0, 0, 1}}) {
      const int64_t last = (x.batch - 1) * x.sb + (x.outer - 1) * x.so + (x.rows - 1) * x.sr + (x.cols - 1) * x.sc;
      const Floats a = numbers(last + 1), b = numbers(last + 1, 2), rows = numbers(x.rows);
      const Floats means = numbers(x.terms(), 3), rstds = numbers(x.terms(), 4);
      const Doubles wide = numbers<double>(last + 1);
      Doubles y = results<double>(x.batch * x.rows);
      const auto with = [&](int64_t term, const void* p, const void* q, const void* r, const void* s) {
        run(SumArgs{p, q, r, s, y.data(), term, x.batch, x.outer, x.rows, x.cols, x.sb, x.so, x.sr, x.sc});
      };
      with(0, a.data(), nullptr, nullptr, nullptr);
      with(1, wide.data(), nullptr, nullptr, nullptr);
      with(2, a.data(), nullptr, nullptr, nullptr);
      with(3, a.data(), rows.data(), nullptr, nullptr);
      with(4, a.data(), b.data(), nullptr, nullptr);
      with(5, a.data(), b.data(), rows.data(), nullptr);
      with(6, a.data(), b.data(), means.data(), rstds.data());
    }
  }
};

template <> struct Cases<RowArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t n : {1, 33, 100}) {
      const int64_t rows = 601;
      const Floats x = numbers(rows * n), y = numbers(rows * n, 2), grad = numbers(rows * n, 3);
      const Floats weight = numbers(n, 4), bias = numbers(n, 5);
      Floats mean = numbers(rows, 6), rstd = numbers(rows, 7), out = results(rows * n);
      RowArgs a{x.data(), y.data(), grad.data(), weight.data(), bias.data(), mean.data(), rstd.data(), out.data(),
                rows, n, 1e-5};
      run(a);
      a.weight = a.bias = nullptr;
      run(a);
    }
  }
};

template <> struct Cases<ChannelArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t area : {1, 9, 300}) {
      const int64_t samples = 5, channels = 37;
      const Floats x = numbers(samples * channels * area), grad = numbers(samples * channels * area, 2);
      const Floats v = numbers(channels, 3);
      Floats out = results(samples * channels * area);
      run(ChannelArgs{x.data(), grad.data(), v.data(), v.data(), v.data(), v.data(), v.data(), out.data(), samples,
                      channels, area});
    }
  }
};

template <> struct Cases<ScatterArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t width : {1, 33, 100}) {
      const int64_t terms = 1000, used = 97;
      const Floats values = numbers(terms * width), x = numbers((used + 3) * width);
      Integers order(terms), starts(used + 1), rows(used);
      for (int64_t t = 0; t < terms; t++) order[t] = terms - 1 - t;
      for (int64_t r = 0; r <= used; r++) starts[r] = r * terms / used;
      for (int64_t r = 0; r < used; r++) rows[r] = r + 3;
      Doubles y = results<double>((used + 3) * width);
      run(ScatterArgs{values.data(), order.data(), starts.data(), rows.data(), x.data(), y.data(), used, width, 0.5});
    }
  }
};

template <> struct Cases<AttentionArgs> {
  template <class F> static void each(const F& run) {
    const int64_t batch = 1, heads = 2, queries = 53, keys = 70, d = 5, width = 33, rows = batch * heads * queries;
    Floats q = numbers(rows * d), k = numbers(batch * keys * d, 2), v = numbers(batch * keys * width, 3);
    const Floats grad = numbers(rows * width, 4), bias = numbers(queries * keys, 5);
    std::vector<uint8_t> mask(static_cast<size_t>(queries * keys), 1);
    for (size_t i = 0; i < mask.size(); i += 3) mask[i] = 0;
    Floats out = results(rows * width), top(rows, 2.0f), total(rows, 3.0f), delta = results(rows), dq = results(rows * d);
    Floats dk = results(batch * heads * keys * d), dv = results(batch * heads * keys * width);
    AttentionArgs a{q.data(), k.data(), v.data(), nullptr, nullptr, nullptr, nullptr, out.data(), top.data(), total.data(),
                    delta.data(), dq.data(), dk.data(), dv.data(), batch, heads, heads, queries, keys, d, width,
                    heads * queries * d, queries * d, d, keys * d, 0, d, keys * width, 0, width,
                    heads * queries * width, queries * width, width, 0, 0, keys, 1, 0, keys - queries, 1, 0, 0, 0,
                    0, int64_t(1) << 31, 3, 4, 5, 0.5, 0.5, 2.0};
    if (run.is("attention_backward")) a.grad = grad.data();
    for (const int64_t part : {0, 1, 2}) {
      a.part = part;
      run(a);
      a.drops = 1;
      run(a);
      const Integers padding{13};
      a.padding = padding.data();
      run(a);
      a.padding = nullptr, a.window = 9, a.mask = mask.data();
      run(a);
      a.window = 0, a.block = 16, a.mask = nullptr, a.bias = bias.data();
      run(a);
      a.offset = 37, a.start = 50;
      run(a);
      a.block = 0, a.bias = nullptr, a.offset = 0, a.start = keys - queries;
    }
    v[7] = static_cast<float>(infinity());  // the other way through
    a.part = 0;
    run(a);
  }
};

template <> struct Cases<ScanArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t length : {0, 1, 70, 129})
      for (const int64_t reach : {0, 1, 2}) {
        const int64_t heads = 3, rows = 11, columns = 37, n = heads * length;
        const Floats read = numbers(n * rows), key = numbers(n * rows, 2), value = numbers(n * columns, 3);
        const Floats decay = numbers(n * columns, 4), first = numbers(heads * rows * columns, 5);
        Floats out = results(n * columns + MISSING * !length), state = results(heads * rows * columns);
        ScanArgs a{read.data(), key.data(), value.data(), nullptr, first.data(), out.data(), state.data(), 1, heads, length,
                   rows, columns, 0, length * rows, rows, 0, length * rows, rows, 0, length * columns, columns,
                   0, length * columns, columns, 1, 0, rows * columns, columns, 1, reach, 5, 0, 0};
        run(a);
        a.decay = decay.data();
        for (const int64_t back : {0, 1})
          for (const int64_t across : {0, 1}) {
            a.backwards = back, a.across = across;
            run(a);
          }
      }
  }
};

template <> struct Cases<DecayArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t reach : {0, 1, 2}) {
      const int64_t heads = 3, length = 70, rows = 37, columns = 5, n = heads * length * rows, m = heads * rows * columns;
      const Floats read = numbers(n), key = numbers(n, 2), state = numbers(m, 3);
      Floats out = results(n);
      run(DecayArgs{read.data(), key.data(), key.data(), read.data(), state.data(), state.data(), out.data(), 1, heads,
                    length, rows, columns, reach, 6});
    }
  }
};

template <> struct Cases<DepthwiseArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t taps : {1, 4, 150})
      for (const int64_t shift : {int64_t(0), taps - 1, int64_t(-2), int64_t(20)})
        for (const int64_t kind : {0, 1, 2}) {
          const int64_t batch = 2, channels = 3, n = 131, length = 129;
          Floats u = numbers(batch * channels * n);
          const Floats w = numbers(channels * taps, 2), grad = numbers(batch * channels * length, 3);
          Floats out = results(kind == 2 ? channels * taps : batch * channels * (kind ? n : length));
          run(DepthwiseArgs{u.data(), w.data(), grad.data(), out.data(), batch, channels, n, taps, length, shift, kind});
          u[5] = static_cast<float>(infinity());
          run(DepthwiseArgs{u.data(), w.data(), grad.data(), out.data(), batch, channels, n, taps, length, shift, kind});
        }
  }
};

template <> struct Cases<RunningArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t inner : {1, 33, 70}) {
      const Floats x = numbers(7 * 101 * inner);
      Doubles y = results<double>(7 * 101 * inner);
      run(RunningArgs{x.data(), y.data(), 7, 101, inner});
    }
  }
};

template <> struct Cases<StepArgs> {
  template <class F> static void each(const F& run) {
    for (const int64_t n : {33, 1, 40001}) {
      const Floats grad = numbers(n);
      Floats param = numbers(n - MISSING, 2), first = numbers(n, 3), second = numbers(n, 4), most = numbers(n, 5);
      StepArgs a{param.data(), grad.data(), first.data(), second.data(), most.data(), n, 1, 0, 0, 1,
                 0.1, 0.01, 0.9, 0.99, 1e-8, 0.3, 0.7, 0.9, 0.1};
      run(a);
      a.most = nullptr, a.decoupled = 1, a.fresh = 1;
      run(a);
    }
  }
};

template <> struct Cases<DoubtArgs> {
  template <class F> static void each(const F& run) {
    const int64_t batch = 3, rows = 41, cols = 101, n = batch * rows * cols;
    const Floats y = numbers(n);
    const Doubles wide = numbers<double>(n), row(batch * rows, 1.0), col(batch * cols, 2.0), bias(cols, 0.5), full(n, 1.0);
    for (const int64_t holder : {HOLDS_FLOAT, HOLDS_BFLOAT16, HOLDS_HALF})
      for (const double tau : {0.0, 0x1p-10, 8.0}) {
        Floats out = results(n);
        std::vector<uint16_t> narrow = results<uint16_t>(n);
        Integers counts((n + STRIP - 1) / STRIP), index = results<int64_t>(n);
        Doubles value(n), width(n);
        for (size_t s = 0; s < counts.size(); s++) counts[s] = static_cast<int64_t>(s) * STRIP;  // where strips may write
        const bool half = holder == HOLDS_HALF, bf = holder == HOLDS_BFLOAT16;
        DoubtArgs a{y.data(), out.data(), row.data(), col.data(), bias.data(), nullptr, counts.data(), index.data(),
                    value.data(), width.data(), 0, holder, half ? 11 : bf ? 8 : 24, half ? -14 : -126, half ? 15 : 127,
                    batch, rows, cols, 0, tau, 0x1p-140, -0.0};
        if (holder != HOLDS_FLOAT) a.out = narrow.data();
        if (half) a.y = wide.data(), a.y_double = 1;
        if (bf) a.full = full.data();
        run(a);
      }
  }
};

int64_t size_of_result(const char* kernel, int64_t out, int64_t in, int64_t weights) {
  return kernel[0] == 'c' ? out : kernel[0] == 'i' ? in : weights;  // convolution, input_gradient, weight_gradient
}

// A kernel with its name, run with one thread and with several.
template <class Arguments> struct Run {
  const char* name;
  void (*kernel)(const Grid&, const Arguments&);
  bool is(const char* other) const { return std::strcmp(name, other) == 0; }
  int64_t size(int64_t out, int64_t in, int64_t weights) const { return size_of_result(name, out, in, weights); }
  void operator()(const Arguments& a) const {
    for (const int threads : {1, 4}) kernel(Grid{threads}, a);
  }
};

#define VT_CALL(name, Arguments) \
  void call_##name(const Grid& grid, const Arguments& a) { kernel_##name(grid, a); }
VT_KERNELS(VT_CALL)

void broken() {
#ifdef BREAK_RACE
  float shared = 0.0f;
  Grid{4}.each(1000, [&](int64_t piece, Scratch&) { shared = static_cast<float>(piece); });
  Grid{4}.warps(1000, 1000, [&](int64_t piece) { shared = static_cast<float>(piece); });
  std::printf("%g\n", static_cast<double>(shared));
#endif
#ifdef BREAK_SHIFT
  volatile int by = 40;
  std::printf("%d\n", 1 << by);
#endif
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IONBF, 0);
  broken();
#define VT_RUN(name, Arguments) \
  std::printf("%s\n", #name);   \
  Cases<Arguments>::each(Run<Arguments>{#name, call_##name});
  VT_KERNELS(VT_RUN)
  std::printf("done\n");
}

// Host: a block is an OpenMP thread; with VTRAIN_STD_THREADS a std::thread, which ThreadSanitizer can follow.
#pragma once
#include <cstdlib>
#include <new>
#ifdef VTRAIN_STD_THREADS
#include <thread>
#include <vector>
#endif

#include "../config.hpp"

VT_BEGIN

// Memory of one thread, kept between calls: fresh pages cost more than the work that uses them.
class Scratch {
 public:
  ~Scratch() { std::free(held_); }
  template <class T> T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 4095) / 4096 * 4096;
    if (bytes > size_) {
      std::free(held_);
      held_ = std::aligned_alloc(4096, bytes);
      size_ = held_ ? bytes : 0;
      if (!held_) throw std::bad_alloc();
    }
    return static_cast<T*>(held_);
  }

 private:
  void* held_ = nullptr;
  size_t size_ = 0;
};

inline Scratch& scratch_of_thread() {
  thread_local Scratch memory;
  return memory;
}

#ifdef VTRAIN_STD_THREADS
// f(piece) for all pieces, the n threads taking turns: nothing orders them, not even a counter, so that races show.
template <class F> void on_threads(int n, int64_t count, const F& f) {
  std::vector<std::thread> all;
  for (int t = 0; t < n; t++)
    all.emplace_back([&f, n, count, t] {
      for (int64_t piece = t; piece < count; piece += n) f(piece);
    });
  for (std::thread& one : all) one.join();
}
#endif

struct Grid {
  int threads;
  int64_t blocks() const { return threads; }
  template <class F> void each(int64_t count, const F& f) const {
    if (count <= 0) return;
    const int n = static_cast<int>(count < threads ? count : threads);
#ifdef VTRAIN_STD_THREADS
    on_threads(n, count, [&](int64_t piece) { f(piece, scratch_of_thread()); });
#else
#pragma omp parallel num_threads(n) if (n > 1)
    {
      Scratch& memory = scratch_of_thread();
#pragma omp for schedule(dynamic, 1)
      for (int64_t piece = 0; piece < count; piece++) f(piece, memory);
    }
#endif
  }
  template <class F> void warps(int64_t count, int64_t each, const F& f) const {
    constexpr int64_t WORTH = 16384;  // elements that make up for waking a thread
    const int64_t useful = count * (each > 0 ? each : 1) / WORTH + 1;
    const int n = static_cast<int>(useful < threads ? useful : threads);
#ifdef VTRAIN_STD_THREADS
    on_threads(n, count, f);
#else
#pragma omp parallel for num_threads(n) schedule(static) if (n > 1)
    for (int64_t piece = 0; piece < count; piece++) f(piece);
#endif
  }
};

VT_END

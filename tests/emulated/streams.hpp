// Streams whose work is late: what one stream has written, another one and the host find as poison until they have
// waited for it. Work is done at once here; who may see it is what vector clocks say (Lamport 1978, Mattern 1989):
// each stream counts its writes, and knows up to which of every other one it comes after.
#pragma once

#include <c10/core/Stream.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace streams {

constexpr int A_DEVICE = 16;  // streams; the first is the default one
constexpr int SLOTS = 2 * A_DEVICE;
using Clock = std::array<int64_t, SLOTS>;

inline Clock host{};            // what the host has waited for
inline Clock clocks[SLOTS]{};   // what comes before the next work of each stream; of itself, what it was given
inline std::atomic<bool> several{false};
inline std::atomic<int> made{0};
inline thread_local c10::StreamId chosen[2] = {0, 0};

inline int slot(c10::DeviceIndex device, c10::StreamId id) { return device * A_DEVICE + static_cast<int>(id % A_DEVICE); }
inline int slot(const c10::Stream& s) { return slot(s.device_index(), s.id()); }
inline int now(c10::DeviceIndex device) { return slot(device, chosen[device]); }

inline c10::Stream stream(c10::Device d, c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, d, id); }

inline c10::Stream another(c10::Device d) {
  several = true;
  return stream(d, 1 + made++ % (A_DEVICE - 1));
}

inline void join(Clock& into, const Clock& from) {
  for (int i = 0; i < SLOTS; i++) into[i] = std::max(into[i], from[i]);
}

// A write, by whom and the how many-th it was of his; by nobody is known to all.
struct Write {
  int by = -1;
  int64_t at = 0;
};

inline Write next(int s) { return {s, ++clocks[s][s]}; }
inline bool host_has(const Write& w) { return w.by < 0 || w.at <= host[w.by]; }
inline bool has(int s, const Write& w) { return w.by == s || host_has(w) || w.at <= clocks[s][w.by]; }

}  // namespace streams

// An accelerator that isn't there: torch's PrivateUse1 device, twice, with memory in the host's and arithmetic by the
// CPU's operators. It is as strict as a real one: operands on two devices are refused, new and freed memory is poison,
// writes beyond a block or after its end are counted, and what need not be waited for comes late: copies to the host's
// pinned memory, copies from it, and all work for who is on another stream (streams.hpp). Memory
// has a limit where one is set, and it is counted how often the host waits.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>

#include "streams.hpp"

namespace {

using at::Tensor;
constexpr auto KEY = c10::DispatchKey::PrivateUse1;
constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr int DEVICES = 2;
constexpr size_t EDGE = 64;              // bytes on each side of a block
constexpr size_t QUARANTINE = 8u << 20;  // freed bytes that are watched before they go
constexpr int POISON = 0xFF;             // NaN in every format, -1 in every integer

thread_local c10::DeviceIndex current = 0;

// ---- memory -----------------------------------------------------------------------------------------------------------
struct Block {
  size_t size;
  c10::DeviceIndex device;
  streams::Write last = {};
};
std::recursive_mutex lock;
std::map<uintptr_t, Block> blocks;  // by the address that torch knows
std::deque<std::pair<uintptr_t, size_t>> freed;
size_t freed_bytes = 0;
int64_t violations = 0;
int64_t limits[DEVICES], used[DEVICES], peaks[DEVICES];  // bytes of blocks; a limit of 0 is none

bool poisoned(const uint8_t* p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i] != POISON) return false;
  return true;
}

void let_go(size_t keep) {
  while (freed_bytes > keep) {
    auto [address, size] = freed.front();
    freed.pop_front();
    freed_bytes -= size;
    auto* begin = reinterpret_cast<uint8_t*>(address) - EDGE;
    violations += !poisoned(begin, size + 2 * EDGE);
    std::free(begin);
  }
}

void release(void* data) {
  if (data == nullptr) return;
  std::lock_guard<std::recursive_mutex> held(lock);
  auto found = blocks.find(reinterpret_cast<uintptr_t>(data));
  const size_t size = found->second.size;
  used[found->second.device] -= size;
  auto* begin = static_cast<uint8_t*>(data);
  violations += !poisoned(begin - EDGE, EDGE) || !poisoned(begin + size, EDGE);
  std::memset(begin - EDGE, POISON, size + 2 * EDGE);
  freed.emplace_back(found->first, size);
  freed_bytes += size;
  blocks.erase(found);
  let_go(QUARANTINE);
}

// As CUDA's allocator says it.
void check_room(size_t n, c10::DeviceIndex i) {
  const int64_t left = limits[i] - used[i];
  TORCH_CHECK_WITH(OutOfMemoryError, limits[i] == 0 || static_cast<int64_t>(n) <= left,
                   "emulated out of memory. Tried to allocate ", n, " bytes. GPU ", static_cast<int>(i),
                   " has a total capacity of ", limits[i], " bytes of which ", left, " bytes is free.");
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    const c10::Device device(TYPE, current);
    if (n == 0) return {nullptr, nullptr, &release, device};
    std::lock_guard<std::recursive_mutex> held(lock);
    check_room(n, current);
    auto* begin = static_cast<uint8_t*>(std::aligned_alloc(EDGE, (n + 3 * EDGE - 1) / EDGE * EDGE));
    TORCH_CHECK(begin != nullptr, "emulated: out of memory");
    std::memset(begin, POISON, n + 2 * EDGE);
    used[current] += n;
    peaks[current] = std::max(peaks[current], used[current]);
    blocks[reinterpret_cast<uintptr_t>(begin + EDGE)] = {n, current};
    return {begin + EDGE, begin + EDGE, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} memory;

std::set<uintptr_t> pins;
void unpin(void* data) {
  std::lock_guard<std::recursive_mutex> held(lock);
  pins.erase(reinterpret_cast<uintptr_t>(data));
  std::free(data);
}

struct Pinned final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = std::aligned_alloc(EDGE, (n + EDGE) / EDGE * EDGE);
    std::lock_guard<std::recursive_mutex> held(lock);
    pins.insert(reinterpret_cast<uintptr_t>(data));
    return {data, data, &unpin, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} pinned;

// ---- the current device, its streams and their events -------------------------------------------------------------------
void arrive();
void depart(int slot);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device d) const override {
    const c10::Device old(TYPE, current);
    setDevice(d);
    return old;
  }
  c10::Device getDevice() const override { return {TYPE, current}; }
  void setDevice(c10::Device d) const override {
    TORCH_CHECK(d.index() < DEVICES, "emulated: no device ", d);
    if (d.index() >= 0) current = d.index();
  }
  void uncheckedSetDevice(c10::Device d) const noexcept override { current = d.index(); }

  c10::Device whole(c10::Device d) const { return {TYPE, d.index() < 0 ? current : d.index()}; }
  c10::Stream getStream(c10::Device d) const override {
    return streams::stream(whole(d), streams::chosen[whole(d).index()]);
  }
  c10::Stream getDefaultStream(c10::Device d) const override { return streams::stream(whole(d), 0); }
  c10::Stream getNewStream(c10::Device d, int) const override { return streams::another(whole(d)); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override { return streams::another(whole(d)); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    return streams::stream(s.device(), std::exchange(streams::chosen[s.device_index()], s.id()));
  }
  void* getStreamNativeHandle(const c10::Stream s) const override { return reinterpret_cast<void*>(s.id()); }

  void record(void** event, const c10::Stream& s, c10::DeviceIndex, c10::EventFlag) const override {
    std::lock_guard<std::recursive_mutex> held(lock);
    if (*event == nullptr) *event = new streams::Clock();
    *static_cast<streams::Clock*>(*event) = streams::clocks[streams::slot(s)];
  }
  void block(void* event, const c10::Stream& s) const override {
    std::lock_guard<std::recursive_mutex> held(lock);
    depart(-1);
    if (event) streams::join(streams::clocks[streams::slot(s)], *static_cast<streams::Clock*>(event));
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<streams::Clock*>(event); }
  bool queryEvent(void* event) const override {
    std::lock_guard<std::recursive_mutex> held(lock);
    streams::Clock both = streams::host;
    if (event) streams::join(both, *static_cast<streams::Clock*>(event));
    return both == streams::host;
  }
  void synchronizeEvent(void* event) const override {
    if (event) waited(*static_cast<streams::Clock*>(event));
  }
  bool queryStream(const c10::Stream& s) const override {
    const int i = streams::slot(s);
    return streams::clocks[i][i] <= streams::host[i];
  }
  void synchronizeStream(const c10::Stream& s) const override { waited(streams::clocks[streams::slot(s)]); }
  void synchronizeDevice(c10::DeviceIndex i) const override {
    for (int id = 0; id < streams::A_DEVICE; id++) waited(streams::clocks[streams::slot(i, id)]);
  }
  // The host waits for what a clock says.
  void waited(const streams::Clock& clock) const {
    std::lock_guard<std::recursive_mutex> held(lock);
    depart(-1);
    streams::join(streams::host, clock);
    arrive();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- generators: a seed and an offset, as CUDA's ------------------------------------------------------------------------
struct Numbers final : c10::GeneratorImpl {
  explicit Numbers(c10::DeviceIndex i) : GeneratorImpl({TYPE, i}, c10::DispatchKeySet(KEY)) {}
  void set_current_seed(uint64_t value) override { at_seed = value, at_offset = 0; }
  void set_offset(uint64_t value) override { at_offset = value; }
  uint64_t get_offset() const override { return at_offset; }
  uint64_t current_seed() const override { return at_seed; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return at_seed;
  }
  void set_state(const c10::TensorImpl& state) override {
    TORCH_CHECK(state.numel() == 16 && state.device().is_cpu(), "emulated: a generator's state has 16 bytes");
    std::memcpy(&at_seed, static_cast<const uint8_t*>(state.data()), 8);
    std::memcpy(&at_offset, static_cast<const uint8_t*>(state.data()) + 8, 8);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    Tensor state = at::empty({16}, at::kByte);
    std::memcpy(state.data_ptr<uint8_t>(), &at_seed, 8);
    std::memcpy(state.data_ptr<uint8_t>() + 8, &at_offset, 8);
    return state.getIntrusivePtr();
  }
  Numbers* clone_impl() const override {
    auto* copy = new Numbers(device().index());
    copy->at_seed = at_seed, copy->at_offset = at_offset;
    return copy;
  }
  uint64_t at_seed = c10::default_rng_seed_val, at_offset = 0;
};

at::Generator& default_generator(c10::DeviceIndex i) {
  static at::Generator all[DEVICES] = {at::make_generator<Numbers>(0), at::make_generator<Numbers>(1)};
  return all[i < 0 ? current : i];
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex i) const override { current = i; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex i) const override { return std::exchange(current, i); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex i) const override { return std::exchange(current, i); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex i) const override { return default_generator(i); }
  at::Generator getNewGenerator(c10::DeviceIndex i) const override {
    return at::make_generator<Numbers>(i < 0 ? current : i);
  }
  c10::Device getDeviceFromPtr(void*) const override { return {TYPE, current}; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::recursive_mutex> held(lock);
    return pins.count(reinterpret_cast<uintptr_t>(data)) != 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    c10::OptionalDeviceGuard guard(storage.device());
    c10::DataPtr data = memory.allocate(size);
    if (storage.nbytes() && size) std::memcpy(data.get(), storage.data(), std::min(storage.nbytes(), size));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

// ---- new tensors and views --------------------------------------------------------------------------------------------
Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(KEY), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(KEY), c10::dtype_or_default(dtype));
}

// The same memory as the CPU sees it: what operators are given here.
Tensor whole(const Tensor& t) {
  if (t.nbytes() == 0) return at::detail::empty_strided_cpu(t.sizes(), t.strides(), t.scalar_type());
  c10::Storage held = t.storage();
  c10::DataPtr data(held.mutable_data(), new c10::Storage(held), [](void* s) { delete static_cast<c10::Storage*>(s); },
                    c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), held.nbytes(), std::move(data));
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                         t.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  view._set_conj(t.is_conj());
  view._set_neg(t.is_neg());
  return view;
}

// The block that a tensor lies in; none of one without elements.
Block* block(const Tensor& t) {
  if (t.nbytes() == 0) return nullptr;
  auto found = blocks.find(reinterpret_cast<uintptr_t>(t.storage().data()));
  return found == blocks.end() ? nullptr : &found->second;
}

// To read on the current stream: poison, if another one wrote it and was not waited for.
Tensor seen(const Tensor& t) {
  std::lock_guard<std::recursive_mutex> held(lock);
  const int s = streams::now(t.device().index());
  depart(s);
  const Block* found = block(t);
  Tensor view = whole(t);
  if (found == nullptr || streams::has(s, found->last)) return view;
  view = view.clone();
  std::memset(view.storage().mutable_data(), POISON, view.storage().nbytes());
  return view;
}

// To write: if another stream wrote there and was not waited for, it writes later and this is lost.
Tensor written(const Tensor& t) {
  std::lock_guard<std::recursive_mutex> held(lock);
  const int s = streams::now(t.device().index());
  depart(s);
  Block* found = block(t);
  if (found == nullptr) return whole(t);
  if (!streams::has(s, found->last)) return whole(t).clone();
  found->last = streams::next(s);
  return whole(t);
}

const Tensor& resized(const Tensor& t, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format.has_value() && *format != at::MemoryFormat::Contiguous) impl->empty_tensor_restride(*format);
  const size_t need = (t.storage_offset() + t.numel()) * t.itemsize();
  if (need > t.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(t.storage(), need);
  return t;
}

// ---- what a stream could not capture: the host waits, or memory of its own is read ------------------------------------
std::atomic<int64_t> waited = 0, sent = 0;
thread_local int inside = 0;  // operators of the CPU's, whose copies are the emulation's own
struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};
// Their results, or the sizes of these, are read by the host on an accelerator.
const std::set<std::string> WAITING = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal",   "aten::repeat_interleave", "aten::bincount", "aten::histc",
};

// ---- copies -----------------------------------------------------------------------------------------------------------
struct Late {
  Tensor from, to;
  streams::Write write;
};
std::deque<Late> late;     // to the host: when it has waited for them
std::deque<Late> unsent;   // from the host's pinned memory: when their stream next does something

void arrive() {
  std::lock_guard<std::recursive_mutex> held(lock);
  for (auto next = late.begin(); next != late.end();) {
    if (streams::host_has(next->write)) {
      next->to.copy_(next->from);
      next = late.erase(next);
    } else {
      ++next;
    }
  }
}

void depart(int slot) {
  std::lock_guard<std::recursive_mutex> held(lock);
  for (auto next = unsent.begin(); next != unsent.end();) {
    if (slot < 0 || next->write.by == slot) {
      whole(next->to).copy_(next->from);
      next = unsent.erase(next);
    } else {
      ++next;
    }
  }
}

bool is_pinned(const Tensor& t) { return at::detail::getPrivateUse1Hooks().isPinnedPtr(t.storage().data()); }

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  at::AutoDispatchBelowADInplaceOrView below;
  const bool in = from.device().is_cpu(), out = to.device().is_cpu();
  const int s = streams::now(out ? from.device().index() : to.device().index());
  const Tensor a = in ? from : seen(from), b = out ? to : written(to);
  if (inside == 0 && non_blocking && out && is_pinned(to)) {
    std::memset(to.storage().mutable_data(), POISON, to.storage().nbytes());
    std::lock_guard<std::recursive_mutex> held(lock);
    late.push_back({a.clone(), b, streams::next(s)});
    return to;
  }
  if (inside == 0 && non_blocking && in && is_pinned(from)) {
    std::lock_guard<std::recursive_mutex> held(lock);
    unsent.push_back({a, to, {s, 0}});
    return to;
  }
  if (inside == 0 && (in || out)) Guard().waited(streams::clocks[s]);
  if (!inside && out && !in) waited++;
  if (!inside && !out && in) sent++;
  b.copy_(a);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resized(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& t) {
  Guard().waited(streams::clocks[streams::now(t.device().index())]);
  waited += !inside;
  return at::native::_local_scalar_dense_cpu(seen(t));
}

Tensor& set_storage(Tensor& t, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  TORCH_CHECK(storage.device() == t.device(), "emulated: a storage on ", storage.device(), " for a tensor on ", t.device());
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  if (stride.data() == nullptr)
    t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  else
    t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  t.unsafeGetTensorImpl()->set_storage_offset(offset);
  return t;
}

Tensor& set_whole(Tensor& t, at::Storage storage) {
  const int64_t n = static_cast<int64_t>(storage.nbytes() / t.itemsize());
  return set_storage(t, std::move(storage), 0, {n}, {1});
}

Tensor& set_tensor(Tensor& t, const Tensor& other) {
  return set_storage(t, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

// ---- all other operators: the CPU's ----------------------------------------------------------------------------------
// As CUDA's, they take operands of one device; beside them only CPU tensors of no dimension, and indices.
void check_devices(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::optional<c10::Device> device;
  const Tensor* odd = nullptr;
  const auto look = [&](const Tensor& t) {
    if (!t.defined()) return;
    if (t.device().is_cpu())
      odd = t.dim() == 0 ? odd : &t;
    else if (!device)
      device = t.device();
    else
      TORCH_CHECK(*device == t.device(), op.schema().name(), ": expected all tensors to be on the same device, but found ",
                  *device, " and ", t.device());
  };
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& t : value.toTensorVector()) look(t);
  }
  TORCH_CHECK(!(odd && device), op.schema().name(), ": expected all tensors to be on the same device, but found ",
              device.value_or(c10::Device(TYPE)), " and cpu");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  check_devices(op, stack);
  waited += !inside && WAITING.count(op.schema().name());
  Inside mark;
  const size_t count = op.schema().arguments().size(), first = stack->size() - count;
  for (size_t i = first; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (!value.isGenerator() || value.toGenerator().device().is_cpu()) continue;
    at::Generator mine = value.toGenerator();
    const uint64_t offset = mine.get_offset();
    mine.set_offset(offset + 4);
    value = at::detail::createCPUGenerator(mine.current_seed() * 0x9E3779B97F4A7C15u + offset);
  }
  at::native::cpu_fallback(op, stack);
}

// ---- where the contract leaves arithmetic open, it is another than the CPU's -------------------------------------------
Tensor moved(const Tensor& cpu, const Tensor& like) {
  Tensor out = at::empty_like(cpu, at::device(like.device()));
  written(out).copy_(cpu);
  return out;
}

void together(const char* name, std::initializer_list<const Tensor*> operands) {
  const Tensor& first = **operands.begin();
  for (const Tensor* t : operands)
    TORCH_CHECK(t->device() == first.device(), name, ": expected all tensors to be on the same device, but found ",
                first.device(), " and ", t->device());
}

// Products sum backwards.
#define PRODUCT(op)                                                                                  \
  Tensor& op##_into(const Tensor& a, const Tensor& b, Tensor& out) {                                 \
    together(#op, {&a, &b, &out});                                                                   \
    Tensor y = at::op(seen(a).flip({-1}), seen(b).flip({-2}));                                       \
    if (!out.sizes().equals(y.sizes())) resized(out, y.sizes(), std::nullopt);                       \
    written(out).copy_(y);                                                                              \
    return out;                                                                                      \
  }                                                                                                  \
  Tensor op##_new(const Tensor& a, const Tensor& b) {                                                \
    together(#op, {&a, &b});                                                                         \
    return moved(at::op(seen(a).flip({-1}), seen(b).flip({-2})), a);                                 \
  }
PRODUCT(mm)
PRODUCT(bmm)

#define PRODUCT_SUM(op)                                                                              \
  Tensor& op##_into(const Tensor& c, const Tensor& a, const Tensor& b, const at::Scalar& beta,       \
                    const at::Scalar& alpha, Tensor& out) {                                          \
    together(#op, {&a, &b, &c, &out});                                                               \
    Tensor y = at::op(seen(c), seen(a).flip({-1}), seen(b).flip({-2}), beta, alpha);                 \
    if (!out.sizes().equals(y.sizes())) resized(out, y.sizes(), std::nullopt);                       \
    written(out).copy_(y);                                                                              \
    return out;                                                                                      \
  }                                                                                                  \
  Tensor op##_new(const Tensor& c, const Tensor& a, const Tensor& b, const at::Scalar& beta,         \
                  const at::Scalar& alpha) {                                                         \
    together(#op, {&a, &b, &c});                                                                     \
    return moved(at::op(seen(c), seen(a).flip({-1}), seen(b).flip({-2}), beta, alpha), a);           \
  }
PRODUCT_SUM(addmm)
PRODUCT_SUM(baddbmm)

// Functions of float64 err by one more unit in the last place, in every second element.
Tensor nudged(const Tensor& y) {
  if (y.scalar_type() != at::kDouble || y.numel() < 2) return y;
  Tensor flat = y.contiguous().clone();
  auto* words = static_cast<int64_t*>(flat.mutable_data_ptr());
  for (int64_t i = 1; i < flat.numel(); i += 2) {
    const double v = reinterpret_cast<double*>(words)[i];
    if (std::isnormal(v)) words[i] ^= 1;
  }
  return flat;
}

#define FUNCTION(op)                                                                                 \
  Tensor op##_new(const Tensor& x) { return moved(nudged(at::op(seen(x))), x); }                     \
  Tensor& op##_into(const Tensor& x, Tensor& out) {                                                  \
    together(#op, {&x, &out});                                                                       \
    if (!out.sizes().equals(x.sizes())) resized(out, x.sizes(), std::nullopt);                       \
    written(out).copy_(nudged(at::op(seen(x))));                                                        \
    return out;                                                                                      \
  }
FUNCTION(exp)
FUNCTION(log)
FUNCTION(tanh)
FUNCTION(erf)
FUNCTION(sigmoid)

// As CUDA's: a divisor that lies in the host's memory is made its inverse, and multiplied by.
bool inverted(const Tensor& x, const Tensor& y) {
  return y.device().is_cpu() && y.dim() == 0 && at::isFloatingType(x.scalar_type());
}
Tensor inverse(const Tensor& x, const Tensor& y) {
  const double single = 1.0f / y.item<float>();
  return at::scalar_tensor(x.scalar_type() == at::kDouble ? 1.0 / y.item<double>() : single, at::kDouble);
}
Tensor divided(const Tensor& x, const Tensor& y) {
  if (inverted(x, y)) return at::mul(x, inverse(x, y).item());
  return at::native::call_fallback_fn<&fallback, ATEN_OP2(div, Tensor)>::call(x, y);
}
Tensor& divided_here(Tensor& x, const Tensor& y) {
  if (inverted(x, y)) return x.mul_(inverse(x, y).item());
  return at::native::call_fallback_fn<&fallback, ATEN_OP2(div_, Tensor)>::call(x, y);
}
Tensor& divided_into(const Tensor& x, const Tensor& y, Tensor& out) {
  if (inverted(x, y)) return at::mul_out(out, x, at::full({}, inverse(x, y).item(), x.options()));
  return at::native::call_fallback_fn<&fallback, ATEN_OP2(div, out)>::call(x, y, out);
}

// ---- for Python -------------------------------------------------------------------------------------------------------
// The block that holds an address: where it begins and how long it is; -1 where no block of the device does.
std::tuple<int64_t, int64_t> block_of(int64_t address, int64_t device) {
  std::lock_guard<std::recursive_mutex> held(lock);
  auto after = blocks.upper_bound(static_cast<uintptr_t>(address));
  if (after == blocks.begin()) return {-1, 0};
  auto [begin, block] = *std::prev(after);
  const bool inside = static_cast<uintptr_t>(address) < begin + block.size && block.device == device;
  return inside ? std::make_tuple<int64_t, int64_t>(begin, block.size) : std::make_tuple<int64_t, int64_t>(-1, 0);
}

int64_t found_violations() {
  std::lock_guard<std::recursive_mutex> held(lock);
  let_go(0);
  for (auto& [address, block] : blocks) {
    auto* begin = reinterpret_cast<uint8_t*>(address);
    violations += !poisoned(begin - EDGE, EDGE) || !poisoned(begin + block.size, EDGE);
  }
  return violations;
}

void set_limit(int64_t bytes, int64_t device) {
  std::lock_guard<std::recursive_mutex> held(lock);
  limits[device] = bytes, peaks[device] = used[device];
}
std::tuple<int64_t, int64_t> memory_of(int64_t device) {
  std::lock_guard<std::recursive_mutex> held(lock);
  return {used[device], peaks[device]};
}
std::tuple<int64_t, int64_t> crossings() { return {waited, sent}; }

Tensor host_view(const Tensor& t) { return seen(t); }

// A kernel on a stream: it finds poison in blocks whose last writer that stream has not waited for, and what it writes
// there is lost. What else has changed when it ends, it wrote.
struct Found {
  uintptr_t address;
  std::string bytes;
  bool late;
};
thread_local std::vector<Found> running;

void begin(at::IntArrayRef addresses, int64_t device, int64_t id) {
  std::lock_guard<std::recursive_mutex> held(lock);
  const int s = streams::slot(static_cast<c10::DeviceIndex>(device), id);
  depart(s);
  running.clear();
  if (!streams::several) return;
  for (const int64_t address : addresses) {
    const Block& block = blocks.at(static_cast<uintptr_t>(address));
    auto* data = reinterpret_cast<char*>(address);
    running.push_back({static_cast<uintptr_t>(address), {data, block.size}, !streams::has(s, block.last)});
    if (running.back().late) std::memset(data, POISON, block.size);
  }
}

void end(int64_t device, int64_t id) {
  std::lock_guard<std::recursive_mutex> held(lock);
  const int s = streams::slot(static_cast<c10::DeviceIndex>(device), id);
  for (const Found& f : running) {
    auto* data = reinterpret_cast<char*>(f.address);
    if (f.late)
      std::memcpy(data, f.bytes.data(), f.bytes.size());
    else if (std::memcmp(data, f.bytes.data(), f.bytes.size()) != 0)
      blocks.at(f.address).last = streams::next(s);
  }
  running.clear();
}

int64_t current_stream(int64_t device) { return streams::chosen[device]; }
void synchronize(int64_t device) { Guard().synchronizeDevice(static_cast<c10::DeviceIndex>(device)); }
void record_stream(Tensor&, c10::Stream) {}  // freed memory is not used again while it is watched
int64_t current_device() { return current; }
void set_device(int64_t i) { Guard().setDevice({TYPE, static_cast<c10::DeviceIndex>(i)}); }

TORCH_LIBRARY(emulated, m) {
  m.def("block_of(int address, int device) -> (int, int)", &block_of);
  m.def("violations() -> int", &found_violations);
  m.def("synchronize(int device) -> ()", &synchronize);
  m.def("current_stream(int device) -> int", &current_stream);
  m.def("begin(int[] blocks, int device, int stream) -> ()", &begin);
  m.def("end(int device, int stream) -> ()", &end);
  m.def("set_limit(int bytes, int device) -> ()", &set_limit);
  m.def("memory_of(int device) -> (int, int)", &memory_of);
  m.def("crossings() -> (int, int)", &crossings);
  m.def("current_device() -> int", &current_device);
  m.def("set_device(int device) -> ()", &set_device);
  m.def("default_generator", [](int64_t i) { return default_generator(i); });
  m.def("host_view(Tensor t) -> Tensor", &host_view);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// the operators that CUDA's autocast has
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(SINGLE)
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &resized);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("record_stream", &record_stream);
#define BOTH(op) m.impl(#op, &op##_new), m.impl(#op ".out", &op##_into)
  BOTH(mm), BOTH(bmm), BOTH(addmm), BOTH(baddbmm);
  BOTH(exp), BOTH(log), BOTH(tanh), BOTH(erf), BOTH(sigmoid);
  m.impl("div.Tensor", &divided);
  m.impl("div_.Tensor", &divided_here);
  m.impl("div.out", &divided_into);
}

// What is composed where a device brings no kernel, and CUDA brings one.
void complete(torch::Library& m) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const auto op = dispatcher.findOp(name);
    const auto has = [&](c10::DispatchKey key) { return op->hasKernelForDispatchKey(key); };
    if (!has(c10::DispatchKey::CompositeImplicitAutograd) || has(KEY)) continue;
    if (!has(c10::DispatchKey::CPU) && !has(c10::DispatchKey::CUDA)) continue;
    const std::string full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    m.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) { complete(m); }

const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  c10::SetAllocator(TYPE, &memory);
  return true;
}();

}  // namespace

#include "intercept.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "functions.hpp"

#if defined(__ELF__) && defined(__LP64__) && (defined(__x86_64__) || defined(__aarch64__))
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#define VTRAIN_ELF 1
#endif

namespace vtrain::scalar {

#ifdef VTRAIN_ELF

namespace {

#if defined(__x86_64__)
constexpr uint32_t SLOTS[] = {R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT, R_X86_64_64};
#else
constexpr uint32_t SLOTS[] = {R_AARCH64_JUMP_SLOT, R_AARCH64_GLOB_DAT, R_AARCH64_ABS64};
#endif

struct Slot {
  void** place;
  void* before;
  bool read_only;  // once the object is relocated
};
std::vector<Slot>& taken() {
  static std::vector<Slot> slots;
  return slots;
}

void write(const Slot& slot, void* value) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(slot.place) & ~(page - 1);
  if (slot.read_only && mprotect(reinterpret_cast<void*>(start), page, PROT_READ | PROT_WRITE))
    throw std::runtime_error(std::string("a table of calls can't be made writable: ") + std::strerror(errno));
  __atomic_store_n(slot.place, value, __ATOMIC_RELEASE);  // other threads may be calling through it
  if (slot.read_only) mprotect(reinterpret_cast<void*>(start), page, PROT_READ);
}

void* ours(const char* name) {
  for (const Function& f : functions())
    if (!std::strcmp(f.name, name)) return f.entry;
  return nullptr;
}

struct Search {
  const std::vector<uintptr_t>* addresses;
  std::vector<std::string> found;
  std::string error;
};

// What an object's dynamic section says of its relocations.
struct Dynamic {
  const ElfW(Sym)* symbols = nullptr;
  const char* strings = nullptr;
  const ElfW(Rela)* tables[2] = {};  // of data, of calls
  size_t sizes[2] = {};

  Dynamic(ElfW(Addr) base, const ElfW(Dyn)* entries) {
    // glibc relocates these addresses in place, musl does not
    const auto at = [base](ElfW(Addr) address) { return address < base ? address + base : address; };
    for (const ElfW(Dyn)* d = entries; d->d_tag != DT_NULL; d++) {
      if (d->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(at(d->d_un.d_ptr));
      if (d->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(at(d->d_un.d_ptr));
      if (d->d_tag == DT_RELA) tables[0] = reinterpret_cast<const ElfW(Rela)*>(at(d->d_un.d_ptr));
      if (d->d_tag == DT_RELASZ) sizes[0] = d->d_un.d_val;
      if (d->d_tag == DT_JMPREL) tables[1] = reinterpret_cast<const ElfW(Rela)*>(at(d->d_un.d_ptr));
      if (d->d_tag == DT_PLTRELSZ) sizes[1] = d->d_un.d_val;
    }
  }
};

bool holds_any(const dl_phdr_info& object, const std::vector<uintptr_t>& addresses) {
  for (int q = 0; q < object.dlpi_phnum; q++) {
    const auto& part = object.dlpi_phdr[q];
    const uintptr_t start = object.dlpi_addr + part.p_vaddr;
    if (part.p_type != PT_LOAD) continue;
    for (uintptr_t address : addresses)
      if (address >= start && address < start + part.p_memsz) return true;
  }
  return false;
}

int visit(dl_phdr_info* object, size_t, void* context) {
  auto& search = *static_cast<Search*>(context);
  if (!holds_any(*object, *search.addresses)) return 0;
  const ElfW(Dyn)* entries = nullptr;
  uintptr_t first_read_only = 0, end_read_only = 0;
  for (int q = 0; q < object->dlpi_phnum; q++) {
    const auto& part = object->dlpi_phdr[q];
    const uintptr_t start = object->dlpi_addr + part.p_vaddr;
    if (part.p_type == PT_DYNAMIC) entries = reinterpret_cast<const ElfW(Dyn)*>(start);
    if (part.p_type == PT_GNU_RELRO) first_read_only = start, end_read_only = start + part.p_memsz;
  }
  if (!entries) return 0;
  const Dynamic dynamic(object->dlpi_addr, entries);
  if (!dynamic.symbols || !dynamic.strings) return 0;
  for (int table = 0; table < 2; table++)
    for (size_t q = 0; q < dynamic.sizes[table] / sizeof(ElfW(Rela)); q++) {
      const ElfW(Rela)& r = dynamic.tables[table][q];
      const auto kind = static_cast<uint32_t>(ELF64_R_TYPE(r.r_info));
      if (std::find(std::begin(SLOTS), std::end(SLOTS), kind) == std::end(SLOTS) || !ELF64_R_SYM(r.r_info)) continue;
      const char* name = dynamic.strings + dynamic.symbols[ELF64_R_SYM(r.r_info)].st_name;
      void* function = ours(name);
      if (!function) continue;
      auto** place = reinterpret_cast<void**>(object->dlpi_addr + r.r_offset);
      search.found.emplace_back(name);
      if (*place == function) continue;
      const auto address = reinterpret_cast<uintptr_t>(place);
      const Slot slot{place, *place, address >= first_read_only && address < end_read_only};
      try {
        write(slot, function);
      } catch (const std::runtime_error& error) {  // no exception may pass through the linker's frames
        search.error = error.what();
        return 1;
      }
      taken().push_back(slot);
    }
  return 0;
}

}  // namespace

bool can_intercept() { return true; }

std::vector<std::string> intercept(const std::vector<uintptr_t>& addresses) {
  Search search{&addresses, {}, {}};
  dl_iterate_phdr(visit, &search);
  if (!search.error.empty()) throw std::runtime_error(search.error);
  std::sort(search.found.begin(), search.found.end());
  return search.found;
}

void restore() {
  for (const Slot& slot : taken()) write(slot, slot.before);
  taken().clear();
}

#else

bool can_intercept() { return false; }
std::vector<std::string> intercept(const std::vector<uintptr_t>&) { return {}; }
void restore() {}

#endif

}  // namespace vtrain::scalar

// Puts our functions in the place of the C library's, for single loaded objects: the interpreter, its `math` module, NumPy.
//
// An ELF object calls a function of another one through a slot of its own, which the dynamic linker fills by relocations
// (System V ABI, "Dynamic Linking"). The slots of functions that we have are overwritten, and later put back; nothing else in
// the process is touched, and which library the linker would have taken does not matter.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace vtrain::scalar {

// Whether this is a platform on which it can be done.
bool can_intercept();

// Intercepts calls by the objects that hold these addresses; gives the names of the functions, sorted, one a slot.
// Throws std::runtime_error where memory can't be made writable. What was intercepted before stays so.
std::vector<std::string> intercept(const std::vector<uintptr_t>& addresses);

// Puts back everything that was there.
void restore();

}  // namespace vtrain::scalar

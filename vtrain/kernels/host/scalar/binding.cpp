#include "binding.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "functions.hpp"
#include "intercept.hpp"

namespace nb = nanobind;

namespace vtrain::scalar {

namespace {

const Function& find(const std::string& name) {
  for (const Function& f : functions())
    if (name == f.name) return f;
  throw std::invalid_argument("no scalar function " + name);
}

double call(const std::string& name, double x, double y) {
  const Function& f = find(name);
  if (!f.unary && !f.binary) throw std::invalid_argument(name + " has no single result");
  return f.unary ? f.unary(x) : f.binary(x, y);
}

// How often a function was called in the place of the C library's.
uint64_t calls(const std::string& name) { return *find(name).calls; }

// An address in the object that holds a built-in function, or a type's `**`.
uintptr_t address_of(nb::handle object) {
  if (PyCFunction_Check(object.ptr())) return reinterpret_cast<uintptr_t>(PyCFunction_GetFunction(object.ptr()));
  if (PyType_Check(object.ptr()))
    if (void* power = PyType_GetSlot(reinterpret_cast<PyTypeObject*>(object.ptr()), Py_nb_power))
      return reinterpret_cast<uintptr_t>(power);
  throw std::invalid_argument("neither a built-in function nor a type with a power");
}

std::vector<std::string> intercept_of(const std::vector<nb::object>& objects) {
  std::vector<uintptr_t> addresses;
  for (const nb::object& object : objects) addresses.push_back(address_of(object));
  prepare();
  return intercept(addresses);
}

uintptr_t loop_of(const std::string& name, const std::string& letter) {
  const Function& f = find(name);
  return reinterpret_cast<uintptr_t>(letter == "f" ? f.float32 : f.float64);
}

// Replaces a loop of a universal function; gives the address of the one that was there. `api` is NumPy's table of its C
// functions for these (a capsule), number 30 of which does it; `types` names operands by 'd' or 'f'.
uintptr_t replace_loop(nb::object api, nb::object function, const std::vector<std::string>& types, uintptr_t loop) {
  using Replace = int (*)(PyObject*, Loop, const int*, Loop*);
  constexpr int REPLACE_LOOP_BY_SIGNATURE = 30, FLOAT = 11, DOUBLE = 12;
  auto** table = static_cast<void**>(PyCapsule_GetPointer(api.ptr(), nullptr));
  if (!table) throw nb::python_error();
  std::vector<int> signature;
  for (const std::string& type : types) signature.push_back(type == "f" ? FLOAT : DOUBLE);
  Loop before = nullptr;
  const auto replace = reinterpret_cast<Replace>(table[REPLACE_LOOP_BY_SIGNATURE]);
  if (replace(function.ptr(), reinterpret_cast<Loop>(loop), signature.data(), &before) || !before)
    throw std::runtime_error("NumPy has no loop of these types");
  return reinterpret_cast<uintptr_t>(before);
}

}  // namespace

void bind(nb::module_& m) {
  m.def("scalar_function", &call, nb::arg("name"), nb::arg("x"), nb::arg("y") = 0.0);
  m.def("scalar_slow", &set_slow);
  m.def("scalar_calls", &calls);
  m.def("scalar_can_intercept", &can_intercept);
  m.def("scalar_intercept", &intercept_of);
  m.def("scalar_loop", &loop_of);
  m.def("scalar_replace_loop", &replace_loop);
  m.def("scalar_restore", &restore);
}

}  // namespace vtrain::scalar

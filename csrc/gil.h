// The interpreter's lock, given up while kernels run.
#pragma once

#include <pybind11/pybind11.h>

#include <unistd.h>

namespace ebmvk {

// As py::gil_scoped_release, but for daemon threads that are still at work when the interpreter ends. Asking for the
// lock then ends the thread by unwinding it, which no implicit destructor survives: the process would abort. Such a
// thread sleeps until the process is gone, as those of newer interpreters do.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;
  ~ReleaseGil() noexcept(false) {
    while (Ending()) ::pause();
    PyEval_RestoreThread(state_);
  }

 private:
  static bool Ending() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
  }

  PyThreadState* state_;
};

}  // namespace ebmvk

// Releases the interpreter's lock while kernels run.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace ebmvk {

// Like py::gil_scoped_release, but safe for daemon threads that still work when the interpreter
// ends. Requesting the lock would then end the thread by unwinding it, and implicit destructors
// would abort the process. Here such a thread sleeps until the process is gone, as in newer
// interpreters.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;
  ~ReleaseGil() noexcept(false) {
    while (Ending()) std::this_thread::sleep_for(std::chrono::hours(1));
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

// What differs between operating systems.
#pragma once

#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace ebmvk {

// The number of this process. A forked child has another number, which shows that the threads and
// devices aren't its own. Windows can't fork, so there such a check always passes.
inline long process_id() {
#ifdef _WIN32
  return static_cast<long>(_getpid());
#else
  return static_cast<long>(getpid());
#endif
}

}  // namespace ebmvk

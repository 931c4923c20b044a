// A few threads that process numbered tasks. Not OpenMP, because torch and faiss each bring an
// OpenMP runtime of their own.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace ebmvk {

class ThreadPool {
 public:
  // task: 0 .. tasks-1, each exactly once; thread: 0 .. threads()-1, one task at a time per thread,
  // ascending.
  using Work = std::function<void(size_t task, size_t thread)>;

  // threads 0: one per processor this process may run on.
  explicit ThreadPool(size_t threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t threads() const { return threads_; }

  // Blocks until all tasks are done. The caller works, too; a single task it does alone. Calls from
  // several threads take turns.
  // If a task throws, the first exception is rethrown here and the remaining tasks are dropped.
  // Restarts its threads after fork().
  void Run(size_t tasks, const Work& work);

 private:
  struct State;
  size_t threads_;
  std::unique_ptr<State> state_;
};

// The pool that all operations share. SetThreads replaces it and must not be called while an
// operation runs.
ThreadPool& SharedPool();
void SetThreads(size_t threads);

}  // namespace ebmvk

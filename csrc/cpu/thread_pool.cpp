#include "cpu/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "platform.h"

namespace ebmvk {
namespace {

size_t Processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<size_t>(CPU_COUNT(&set));
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? count : 1;
}

}  // namespace

struct ThreadPool::State {
  std::mutex turn;  // one Run at a time
  std::mutex mutex;
  std::condition_variable begin, end;
  std::vector<std::thread> workers;
  long process = process_id();

  const Work* work = nullptr;
  size_t tasks = 0;
  std::atomic<size_t> next{0};
  size_t round = 0;    // counts the calls of Run, so that a worker takes part in each one once
  size_t working = 0;  // workers that have not finished this round
  bool stop = false;
  std::exception_ptr error;

  explicit State(size_t threads) {
    workers.reserve(threads);
    try {
      for (size_t thread = 1; thread < threads; ++thread) workers.emplace_back([this, thread] { Loop(thread); });
    } catch (const std::exception&) {  // no more threads can be started; continue with these and the caller
    }
  }

  ~State() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    begin.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void Loop(size_t thread) {
    size_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      begin.wait(lock, [&] { return stop || round != seen; });
      if (stop) return;
      seen = round;
      lock.unlock();
      WorkOff(thread);
      lock.lock();
      if (--working == 0) end.notify_one();
    }
  }

  void WorkOff(size_t thread) {
    try {
      for (size_t task = next++; task < tasks; task = next++) (*work)(task, thread);
    } catch (...) {
      next = tasks;
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
};

ThreadPool::ThreadPool(size_t threads)
    : threads_(threads ? threads : Processors()), state_(std::make_unique<State>(threads_)) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::Run(size_t tasks, const Work& work) {
  if (tasks == 0) return;
  if (state_->process != process_id()) {
    // A forked child has the pool's memory but none of its threads, so abandon the old state, which
    // can't be joined.
    (void)state_.release();
    state_ = std::make_unique<State>(threads_);
  }
  State& s = *state_;
  std::lock_guard<std::mutex> turn(s.turn);
  if (tasks == 1) {  // waking workers takes longer than most tasks, and on a busy machine we wait for each
    work(0, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.work = &work;
    s.tasks = tasks;
    s.next = 0;
    s.error = nullptr;
    s.working = s.workers.size();
    ++s.round;
  }
  s.begin.notify_all();
  s.WorkOff(0);
  std::unique_lock<std::mutex> lock(s.mutex);
  s.end.wait(lock, [&] { return s.working == 0; });
  if (s.error) std::rethrow_exception(s.error);
}

namespace {
std::unique_ptr<ThreadPool>& Shared() {
  // Never destroyed: at exit a worker may still hold the lock, and joining it in a static
  // destructor can hang.
  static auto* pool = new std::unique_ptr<ThreadPool>(std::make_unique<ThreadPool>());
  return *pool;
}
}  // namespace

ThreadPool& SharedPool() { return *Shared(); }

void SetThreads(size_t threads) { Shared() = std::make_unique<ThreadPool>(threads); }

}  // namespace ebmvk

// How kernels of one row are run for all rows: on the shared pool, with a space for each thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace ebmvk {

// Runs `each(i)` for all i below `count`; a task has `at_once` of them, enough to be worth waking a
// thread.
template <class Each>
void ForEach(size_t count, size_t at_once, const Each& each) {
  SharedPool().Run((count + at_once - 1) / at_once, [&](size_t task, size_t) {
    for (size_t i = task * at_once; i < std::min(count, (task + 1) * at_once); ++i) each(i);
  });
}

// A thread's own memory for a row with candidates.
struct RowSpace {
  GatherSpace candidates;
  AlignedFloats floats;
};

// Runs `run(row, space)` for all rows of the lists; a space has `floats` floats, zero at the start.
template <class Run>
void ForCandidateRows(const EnergyScoreArguments& lists, size_t floats, const Run& run) {
  ThreadPool& pool = SharedPool();
  std::vector<RowSpace> spaces;
  for (size_t thread = 0; thread < pool.threads(); ++thread) {
    spaces.push_back({GatherSpace(lists.k, lists.d), AllocateFloats(floats)});
  }
  pool.Run(lists.rows, [&](size_t row, size_t thread) { run(row, spaces[thread]); });
}

}  // namespace ebmvk

// float32 scores of the points that the coarse top-k leaves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/topk.h"
#include "cpu/topk_select.h"

namespace ebmvk {

// A point, and the upper end of the interval of its float32 score.
struct Candidate {
  float high;
  uint32_t id;
};

// What remains of a row: scores, and candidates that have none yet.
struct Remaining {
  std::vector<Hit> hits;
  std::vector<Candidate> rest;
};

// Moves the k points that are likely the best to the front, appends their scores to `hits`, and
// returns the lowest of these, which is a bar. `count` is at least k.
float RescoreBest(const TopKProblem& p, size_t query, Candidate* first, size_t count, std::vector<Hit>& hits);

// Copies the candidates that can reach `bar`, without branches; returns the end of the copies. `to`
// may equal `first`.
Candidate* Keep(const Candidate* first, const Candidate* last, float bar, Candidate* to);

// Appends the scores of the rest to the hits, for the queries from `first` on.
void RescoreRest(const TopKProblem& p, size_t first, std::vector<Remaining>& rows);

}  // namespace ebmvk

// Selects the best k from a stream of (score, id) with ascending ids.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace ebmvk {

struct Hit {
  float score;
  uint32_t id;
};

// The order of results: higher scores first, ties by lower id.
inline bool Better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// Selections for `rows` queries, with space for 2 k entries and a panel, so that a selection is cut
// at most once per k arrivals.
class Selection {
 public:
  Selection(size_t rows, size_t k, size_t panel)
      : k_(k),
        capacity_(2 * k + panel),
        hits_(rows * capacity_),
        count_(rows, 0),
        threshold_(rows, std::numeric_limits<float>::quiet_NaN()) {}

  // A score enters unless it is <= this. It is NaN until k scores were seen, so that all of them
  // enter. Later arrivals have higher ids, so an equal score loses.
  float threshold(size_t row) const { return threshold_[row]; }

  void Push(size_t row, Hit hit) {
    hits_[row * capacity_ + count_[row]] = hit;
    ++count_[row];
  }

  // Call this after at most `panel` pushes.
  void CutIfFull(size_t row) {
    if (count_[row] < 2 * k_) return;
    Hit* first = hits_.data() + row * capacity_;
    std::nth_element(first, first + (k_ - 1), first + count_[row], Better);
    count_[row] = k_;
    threshold_[row] = first[k_ - 1].score;
  }

  const Hit* begin(size_t row) const { return hits_.data() + row * capacity_; }
  const Hit* end(size_t row) const { return begin(row) + count_[row]; }

 private:
  size_t k_, capacity_;
  std::vector<Hit> hits_;
  std::vector<size_t> count_;
  std::vector<float> threshold_;
};

}  // namespace ebmvk

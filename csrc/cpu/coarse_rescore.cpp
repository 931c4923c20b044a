#include "cpu/coarse_rescore.h"

#include <algorithm>

#include "cpu/coarse_loops.h"
#include "cpu/coarse_product.h"
#include "cpu/thread_pool.h"

#if EBMVK_COARSE
namespace ebmvk {
namespace {

// From this number of rows on, a point is likely a candidate of several.
constexpr size_t kManyRows = 256;

// Appends the float32 scores of candidates to `hits`.
void Rescore(const TopKProblem& p, size_t query, const Candidate* first, size_t count, std::vector<Hit>& hits) {
  const auto rows = [&](size_t from, const float*(&row)[16]) {
    for (size_t h = 0; h < 16; ++h) {
      row[h] = p.points + static_cast<size_t>(first[std::min(from + h, count - 1)].id) * p.d;
    }
  };
  const float *row[16], *next[16];
  for (size_t at = 0; at < count; at += 16) {
    rows(at, row);
    rows(at + 16, next);
    float scale[16] = {}, bias[16] = {}, score[16];
    const size_t some = std::min<size_t>(16, count - at);
    for (size_t h = 0; h < some; ++h) {
      const uint32_t id = first[at + h].id;
      scale[h] = p.scale ? p.scale[id] : 1.0f;
      bias[h] = p.bias ? p.bias[id] : 0.0f;
    }
    LoopsInUse().score16(p.queries + query * p.d, row, next, p.d, scale, bias, score);
    for (size_t h = 0; h < some; ++h) hits.push_back({score[h], first[at + h].id});
  }
}

// A candidate: its row, and its place in the row's rest.
struct Place {
  uint32_t row, at;
};

// The candidates of all rows, by panels: those of panel i begin at start[i].
struct Places {
  std::vector<size_t> start;
  std::vector<Place> all;

  Places(size_t n, const std::vector<Remaining>& rows) : start((n + kPanel - 1) / kPanel + 2, 0) {
    for (const Remaining& row : rows) {
      for (const Candidate& candidate : row.rest) ++start[candidate.id / kPanel + 2];
    }
    for (size_t i = 2; i < start.size(); ++i) start[i] += start[i - 1];
    all.resize(start.back());
    for (size_t row = 0; row < rows.size(); ++row) {
      for (size_t at = 0; at < rows[row].rest.size(); ++at) {
        all[start[rows[row].rest[at].id / kPanel + 1]++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(at)};
      }
    }
  }
};

// Scores the candidates among the points of one panel. The score of a candidate replaces its upper
// end.
void ScorePlaces(const TopKProblem& p, size_t first, const Place* begin, const Place* end,
                 std::vector<Remaining>& rows) {
  for (; begin < end; begin += 16) {
    const float *query[16], *point[16], *next[16];
    float scale[16], bias[16], score[16];
    const size_t some = std::min<size_t>(16, static_cast<size_t>(end - begin));
    for (size_t h = 0; h < 16; ++h) {
      const Place place = begin[std::min(h, some - 1)];
      const size_t id = rows[place.row].rest[place.at].id;
      const Place& later = begin[std::min<size_t>(16 + h, static_cast<size_t>(end - begin) - 1)];
      query[h] = p.queries + (first + place.row) * p.d;
      next[h] = p.queries + (first + later.row) * p.d;
      point[h] = p.points + id * p.d;
      scale[h] = p.scale ? p.scale[id] : 1.0f;
      bias[h] = p.bias ? p.bias[id] : 0.0f;
    }
    LoopsInUse().score_pairs16(query, point, next, p.d, scale, bias, score);
    for (size_t h = 0; h < some; ++h) rows[begin[h].row].rest[begin[h].at].high = score[h];
  }
}

}  // namespace

float RescoreBest(const TopKProblem& p, size_t query, Candidate* first, size_t count, std::vector<Hit>& hits) {
  std::nth_element(first, first + (p.k - 1), first + count,
                   [](const Candidate& a, const Candidate& b) { return a.high > b.high; });
  Rescore(p, query, first, p.k, hits);
  float least = hits.front().score;
  for (const Hit& hit : hits) least = std::min(least, hit.score);
  return least;
}

Candidate* Keep(const Candidate* first, const Candidate* last, float bar, Candidate* to) {
  for (; first != last; ++first) {
    *to = *first;
    to += !(first->high < bar);
  }
  return to;
}

void RescoreRest(const TopKProblem& p, size_t first, std::vector<Remaining>& rows) {
  ThreadPool& pool = SharedPool();
  if (rows.size() < kManyRows || !LoopsInUse().score_pairs16) {
    pool.Run(rows.size(), [&](size_t row, size_t) {
      Rescore(p, first + row, rows[row].rest.data(), rows[row].rest.size(), rows[row].hits);
    });
    return;
  }
  // Panel by panel, so that a point is read from memory once for all its rows.
  const Places places(p.n, rows);
  pool.Run(places.start.size() - 2, [&](size_t panel, size_t) {
    const Place* all = places.all.data();
    ScorePlaces(p, first, all + places.start[panel], all + places.start[panel + 1], rows);
  });
  pool.Run(rows.size(), [&](size_t row, size_t) {
    for (const Candidate& candidate : rows[row].rest) rows[row].hits.push_back({candidate.high, candidate.id});
  });
}

}  // namespace ebmvk
#endif

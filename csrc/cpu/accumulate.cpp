#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/accumulate.cpp"
#include "cpu/simd.h"
//
#include "cpu/accumulate.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// to += share * x
void AddShare(float share, const float* x, size_t d, float* to) { Combine(share, x, 1, to, d, to); }

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "cpu/groups.h"
#include "cpu/rows.h"

namespace ebmvk {
namespace {
HWY_EXPORT(AddShare);

struct TokenShare {
  int64_t token;
  double count;
};

// Sorts a splat's (token, share) pairs by token and adds up those of equal tokens, in their order.
// Returns the number of pairs left.
size_t AddEqualTokens(TokenShare* first, TokenShare* last) {
  std::stable_sort(first, last, [](const TokenShare& a, const TokenShare& b) { return a.token < b.token; });
  TokenShare* end = first;
  for (const TokenShare* at = first; at != last; ++at) {
    if (end != first && end[-1].token == at->token) {
      end[-1].count += at->count;
    } else {
      *end++ = *at;
    }
  }
  return static_cast<size_t>(end - first);
}

}  // namespace

TokenCounts Accumulate(const AccumulateArguments& s, float* mass, float* resultant) {
  const Groups groups = GroupById(s.ids, s.rows * s.k, s.n);
  std::vector<TokenShare> tokens(s.rows * s.k);
  std::vector<size_t> kept(s.n);
  ForEach(s.n, kGroupsPerTask, [&](size_t g) {
    float* to = resultant + g * s.d;
    std::fill_n(to, s.d, 0.0f);
    double total = 0;
    TokenShare *const first = tokens.data() + groups.first[g], *end = first;
    for (size_t i = groups.first[g]; i < groups.first[g + 1]; ++i) {
      const size_t pair = groups.order[i], row = pair / s.k;
      const float share = s.responsibilities[pair];
      if (!(share > 0)) continue;
      total += share;
      HWY_DYNAMIC_DISPATCH(AddShare)(share, s.x + row * s.d, s.d, to);
      *end++ = {s.tokens[row], share};
    }
    mass[g] = static_cast<float>(total);
    kept[g] = AddEqualTokens(first, end);
  });
  TokenCounts out;
  for (size_t g = 0; g < s.n; ++g) {
    for (size_t i = groups.first[g]; i < groups.first[g] + kept[g]; ++i) {
      out.splat_token.push_back(static_cast<int64_t>(g));
      out.splat_token.push_back(tokens[i].token);
      out.counts.push_back(static_cast<float>(tokens[i].count));
    }
  }
  return out;
}

}  // namespace ebmvk
#endif

// Segments of sorted entries: those that belong to one point, or to one point and one token.
#pragma once

#include "vulkan/ops/sort.h"

namespace ebmvk {

// What makes a segment: entry e has the key keys_e and, if per_token is not 0, the token
// tokens_(e / per_token). Entries with keys from `limit` on belong to no segment.
struct SegmentKeys {
  View keys, tokens;
  std::uint32_t per_token, limit;
};

class Segments {
 public:
  // For up to `most` entries in up to `room` segments.
  Segments(Engine& engine, std::uint64_t most, std::uint64_t room, bool with_tokens);

  // Records the search in sorted entries. params: the number of entries.
  void record(Engine& engine, Program& program, const View& params, const SegmentKeys& of, const View& order) const;

  std::uint64_t room() const { return room_; }
  const Buffer& found() const { return found_; }  // the number of segments
  const Buffer& starts() const { return starts_; }
  const Buffer& keys() const { return keys_; }      // one for each segment
  const Buffer& tokens() const { return tokens_; }  // one for each segment, with_tokens

 private:
  Spread spread_;
  std::uint64_t room_;
  Buffer counts_, found_, starts_, keys_, tokens_;
};

}  // namespace ebmvk

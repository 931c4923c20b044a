// Runs the sort and the search for segments alone, for tests.
#include "vulkan/ops/segments.h"

#include <algorithm>

namespace ebmvk {
namespace {

struct SortProbe {
  Buffer params;
  Table keys, tokens, order, starts, segment_keys, segment_tokens, found;
  Sort sort;
  Segments segments;
  Program program;

  SortProbe(Engine& engine, const SortQuestion& of)
      : params(engine.device(), Buffer::Kind::upload, 16),
        keys(column(engine, of.count, Buffer::Kind::upload)),
        tokens(column(engine, of.per_token ? of.count / of.per_token + 1 : 1, Buffer::Kind::upload)),
        order(column(engine, of.count, Buffer::Kind::readback)),
        starts(column(engine, of.count + 1, Buffer::Kind::readback)),
        segment_keys(column(engine, of.count, Buffer::Kind::readback)),
        segment_tokens(column(engine, of.count, Buffer::Kind::readback)),
        found(column(engine, 1, Buffer::Kind::readback)),
        sort(engine, of.count),
        segments(engine, of.count, of.count, of.per_token != 0),
        program(engine.device()) {
    *params.as<std::uint32_t>() = of.count;
    std::vector<SortKey> by;
    if (of.per_token) {
      const auto tokens_read = (of.count + of.per_token - 1) / of.per_token;
      std::copy_n(of.tokens, tokens_read, tokens.on_host().as<std::uint32_t>());
      by.push_back({tokens.on_device(), of.per_token, bits_of(largest(of.tokens, tokens_read))});
    }
    std::copy_n(of.keys, of.count, keys.on_host().as<std::uint32_t>());
    by.push_back({keys.on_device(), 1, bits_of(largest(of.keys, of.count))});
    for (const auto* table : {&keys, &tokens}) program.copy(table->on_host(), table->on_device());
    const auto sorted = sort.record(engine, program, params, by);
    segments.record(engine, program, params, {keys.on_device(), tokens.on_device(), of.per_token, of.limit}, sorted);
    program.copy(sorted, order.on_host());
    program.copy(segments.starts(), starts.on_host());
    program.copy(segments.keys(), segment_keys.on_host());
    program.copy(segments.tokens(), segment_tokens.on_host());
    program.copy(segments.found(), found.on_host());
    program.finish();
  }

  static Table column(Engine& engine, std::uint32_t count, Buffer::Kind host) {
    return {engine.device(), std::max(count, 1u), 1, 1, host};
  }

  static std::uint32_t largest(const std::uint32_t* values, std::uint32_t count) {
    return count ? *std::max_element(values, values + count) : 0;
  }
};

}  // namespace

SortAnswer Engine::probe_sort(const SortQuestion& of) {
  Call call(*this, "probe_sort");
  SortAnswer out;
  device_.attempt("sorting", [&] {
    SortProbe work(*this, of);
    call.run(work.program);
    const auto words = [](const Table& table, std::size_t count) {
      const auto* from = table.on_host().as<std::uint32_t>();
      return std::vector<std::uint32_t>(from, from + count);
    };
    const auto found = *work.found.on_host().as<std::uint32_t>();
    out.order = words(work.order, of.count);
    out.starts = words(work.starts, found ? found + 1 : 0);
    out.keys = words(work.segment_keys, found);
    out.tokens = words(work.segment_tokens, of.per_token ? found : 0);
  });
  call.count();
  return out;
}

}  // namespace ebmvk

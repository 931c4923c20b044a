#include "vulkan/ops/segments.h"

namespace ebmvk {

Segments::Segments(Engine& engine, std::uint64_t most, std::uint64_t room, bool with_tokens)
    : spread_(spread_over(engine.device().capabilities(), most, 2)),
      room_(room),
      counts_(engine.device(), Buffer::Kind::device, std::uint64_t{4} * (spread_.groups + 1)),
      found_(engine.device(), Buffer::Kind::device, 16),
      starts_(engine.device(), Buffer::Kind::device, checked_product(room + 1, 4)),
      keys_(engine.device(), Buffer::Kind::device, checked_product(room, 4)),
      tokens_(engine.device(), Buffer::Kind::device, with_tokens ? checked_product(room, 4) : 16) {}

void Segments::record(Engine& engine, Program& program, const View& params, const SegmentKeys& of,
                      const View& order) const {
  const kernels::SegmentCount push{of.limit, of.per_token};
  program.kernel(engine.kernels().get(push.name, spread_.group, {}), {params, of.keys, of.tokens, order, counts_}, push,
                 spread_.groups);
  record_scan(engine, program, params, counts_, spread_.groups + 1);
  program.kernel(engine.kernels().get(kernels::SegmentPlace::name, spread_.group, {}),
                 {params, of.keys, of.tokens, order, counts_, starts_, keys_, tokens_, found_},
                 kernels::SegmentPlace{of.limit, of.per_token}, spread_.groups);
}

}  // namespace ebmvk

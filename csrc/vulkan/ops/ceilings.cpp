// Moves within a buffer, for tests. The limits of the device, for benchmarks: copies between its
// buffers, fused multiply-adds in registers, and the scoring kernel as a plain matrix product. Times
// are in seconds from submission to completion, as in Program::run.
#include "vulkan/ops/engine.h"
#include "vulkan/ops/tiling.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

constexpr std::uint32_t kHalf = 0x3f000000u;  // 0.5f; some devices treat zeros and denormals differently

std::vector<double> repeated(Program& program, std::uint32_t repeats) {
  program.run();  // the first run pages memory in and may compile
  std::vector<double> seconds(repeats);
  for (auto& one : seconds) one = program.run();
  return seconds;
}

void fill(Device& device, const std::vector<const Buffer*>& buffers) {
  Program program(device);
  for (const auto* buffer : buffers) program.fill(*buffer, kHalf);
  program.finish();
  program.run();
}

}  // namespace

std::vector<std::uint32_t> Engine::move_words(std::vector<std::uint32_t> words, const std::vector<Move>& moves) {
  Call call(*this, "move_words");
  const auto width = static_cast<std::uint32_t>(words.size());
  Table table(device_, 1, width, width, Buffer::Kind::readback);
  table.write(words.data(), 1);
  Program program(device_);
  program.copy(table.on_host(), table.on_device());
  for (const auto& move : moves) {
    if (move.count == 0 || move.count > width || std::max(move.from, move.to) > width - move.count)
      throw std::invalid_argument("a move outside the words");
    program.copy(View(table.on_device(), 4 * move.from, 4 * move.count),
                 View(table.on_device(), 4 * move.to, 4 * move.count));
  }
  program.copy(table.on_device(), table.on_host());
  program.finish();
  call.run(program);
  table.read(words.data(), 1);
  call.count();
  return words;
}

std::vector<double> Engine::time_copy(std::uint64_t bytes, std::uint32_t times, std::uint32_t repeats) {
  Call call(*this, "ceilings");
  const Buffer from(device_, Buffer::Kind::device, bytes), to(device_, Buffer::Kind::device, bytes);
  fill(device_, {&from, &to});
  Program program(device_);
  for (std::uint32_t i = 0; i < times; ++i) program.copy(from, to);
  program.finish();
  auto seconds = repeated(program, repeats);
  call.count();
  return seconds;
}

std::vector<double> Engine::time_fma(std::uint32_t rows, std::uint32_t rounds, std::uint32_t repeats) {
  Call call(*this, "ceilings");
  constexpr auto group = kernels::CeilingFma::group;
  const auto groups = (rows + group - 1) / group;
  if (groups > device_.capabilities().max_groups) throw Unsupported("more workgroups than the device allows");
  const Buffer params(device_, Buffer::Kind::upload, 16);
  const Buffer result(device_, Buffer::Kind::device, std::uint64_t{16} * rows);
  *params.as<kernels::CeilingFma::Params>() = {rows, 0.5f, 0.5f};
  Program program(device_);
  program.kernel(kernels_.get(kernels::CeilingFma::name, group, {}), {params, result}, kernels::CeilingFma{rounds},
                 groups);
  program.finish();
  auto seconds = repeated(program, repeats);
  call.count();
  return seconds;
}

std::vector<double> Engine::time_product(std::uint32_t rows, std::uint32_t columns, std::uint32_t d,
                                         std::uint32_t repeats) {
  Call call(*this, "ceilings");
  const auto quads = quads_of(d);
  const Buffer params(device_, Buffer::Kind::upload, 32);
  const Buffer queries(device_, Buffer::Kind::device, checked_product(std::uint64_t{16} * quads, rows));
  const Buffer points(device_, Buffer::Kind::device, checked_product(std::uint64_t{16} * quads, columns));
  const Buffer bars(device_, Buffer::Kind::device, std::uint64_t{4} * rows);
  const Buffer unused(device_, Buffer::Kind::device, 16);
  fill(device_, {&queries, &points});
  *params.as<kernels::ScoreTiled::Params>() = {rows, columns, 0, 0, 0};
  const auto tiling = choose_tiling(device_.capabilities(), scoring(), rows);
  Program program(device_);
  program.fill(bars, 0xffffffffu);  // higher than every score, so that none is kept
  program.kernel(kernels_.get(tiling.kernel, tiling.group, tiling.constants(), Storage::float32),
                 {params, queries, points, unused, unused, unused, unused, bars, unused, unused},
                 kernels::ScoreTiled{quads, columns, 0, 0}, (rows + tiling.rows - 1) / tiling.rows,
                 (columns + tiling.columns - 1) / tiling.columns);
  program.finish();
  auto seconds = repeated(program, repeats);
  call.count();
  return seconds;
}

}  // namespace ebmvk

// Rows of points on the device, in float32 or float16.
#include "vulkan/ops/engine.h"
#include "vulkan/ops/half.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <atomic>

namespace ebmvk {
namespace {

constexpr std::uint64_t kUploadBytes = std::uint64_t{16} << 20;

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Rows::Rows(Device& device, std::uint32_t n, std::uint32_t d, Storage storage) : n_(n), d_(d), storage_(storage) {
  // A multiple of 16 or 32 rows, so that a shard begins at an offset that every device allows for
  // bindings.
  const std::uint64_t step = storage == Storage::float16 ? 32 : 16;
  const auto fit = device.storage_range() / row_bytes() / step * step;
  if (fit == 0)
    throw Unsupported("rows of " + std::to_string(d) + " floats: the device binds at most " +
                      std::to_string(device.storage_range()) + " bytes at once");
  shard_rows_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, (std::uint64_t{n} + step - 1) / step * step));
  rows_ = Buffer(device, Buffer::Kind::device, checked_product(row_bytes(), n));
}

std::uint32_t Rows::shard_end(std::uint32_t shard) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(n_, std::uint64_t{shard + 1} * shard_rows_));
}

View Rows::shard(std::uint32_t shard) const {
  return {rows_, shard_begin(shard) * row_bytes(), (shard_end(shard) - shard_begin(shard)) * row_bytes()};
}

Coarse::Coarse(Device& device, const Rows& rows)
    : halves(device, rows.n(), rows.d(), Storage::float16),
      radius(device, Buffer::Kind::device, std::uint64_t{4} * rows.n()) {}

void Coarse::round(Engine& engine, const Rows& rows) {
  const auto& pipeline = engine.kernels().get(kernels::Halve::name, engine.row_group(rows.quads()), {});
  const auto across = engine.device().capabilities().max_groups;
  // Shards of the two storages end in different places, so copy as many rows as both have left.
  for (std::uint32_t begin = 0, from = 0, to = 0; begin < rows.n();) {
    while (rows.shard_end(from) <= begin) ++from;
    while (halves.shard_end(to) <= begin) ++to;
    const auto end = std::min(rows.shard_end(from), halves.shard_end(to));
    Buffer params(engine.device(), Buffer::Kind::upload, 16);
    *params.as<std::uint32_t>() = end - begin;
    Program program(engine.device());
    const auto x = std::min(end - begin, across);
    program.kernel(pipeline, {params, rows.shard(from), halves.shard(to), radius},
                   kernels::Halve{rows.quads(), begin - rows.shard_begin(from), begin - halves.shard_begin(to), begin},
                   x, (end - begin + x - 1) / x);
    program.finish();
    program.run();
    begin = end;
  }
}

Points::Points(std::shared_ptr<Engine> engine, std::uint32_t n, std::uint32_t d, const float* rows, Storage storage)
    : engine_(std::move(engine)), id_(next_id()) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  static_cast<Rows&>(*this) = Rows(engine_->device(), n, d, storage);
  upload(rows);
}

Points::~Points() {
  if (engine_->device().abandoned()) return;  // a mutex may have been held when this process was forked
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  engine_->workspaces().forget(id_);
  coarse_.reset();
  rows_ = Buffer();
}

void Points::update(const float* rows) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  rounded_ = false;
  asked_ = 0;
  upload(rows);
}

const Coarse* Points::coarse(std::uint32_t calls, bool forced) const {
  if (rounded_) return coarse_.get();
  if (++asked_ < calls) return nullptr;
  auto& device = engine_->device();
  try {
    device.attempt("rounding points", [&] {
      if (!coarse_) coarse_ = std::make_unique<Coarse>(device, *this);
      coarse_->round(*engine_, *this);
    });
  } catch (const OutOfMemory&) {
    if (forced) throw;
    asked_ = 0;
    return nullptr;
  }
  rounded_ = true;
  return coarse_.get();
}

void Points::upload(const float* rows) {
  auto& device = engine_->device();
  const auto chunk = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kUploadBytes / row_bytes(), 1, n_));
  Buffer staging(device, Buffer::Kind::upload, chunk * row_bytes());
  const auto pitch = std::size_t{4} * quads();
  const auto fill = [&](auto* to, std::uint32_t begin, std::uint32_t count, auto convert) {
    for (std::size_t row = 0; row < count; ++row) {
      const auto* from = rows + (begin + row) * d_;
      std::transform(from, from + d_, to + row * pitch, convert);
      std::fill(to + row * pitch + d_, to + (row + 1) * pitch, 0);
    }
  };
  whole_ = false;
  for (std::uint32_t begin = 0; begin < n_; begin += chunk) {
    const auto count = std::min(chunk, n_ - begin);
    if (storage_ == Storage::float16)
      fill(staging.as<std::uint16_t>(), begin, count, nearest_half);
    else
      fill(staging.as<float>(), begin, count, [](float value) { return value; });
    Program program(device);
    device.attempt("uploading points", [&] {
      program.copy(View(staging, 0, count * row_bytes()), View(rows_, begin * row_bytes(), count * row_bytes()));
      program.finish();
    });
    program.run();
  }
  whole_ = true;
}

std::uint64_t Points::bytes() const {
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  return Rows::bytes() + (coarse_ ? coarse_->halves.bytes() + coarse_->radius.bytes() : 0);
}

}  // namespace ebmvk

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
  const auto most = std::min(device.storage_range(), device.capabilities().max_allocation);
  const auto fit = most / row_bytes() / step * step;
  if (fit == 0)
    throw Unsupported("rows of " + std::to_string(d) + " floats: the device binds at most " +
                      std::to_string(device.storage_range()) + " bytes at once, and allocates at most " +
                      std::to_string(device.capabilities().max_allocation));
  shard_rows_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, (std::uint64_t{n} + step - 1) / step * step));
  for (std::uint32_t i = 0; i < shards(); ++i)
    rows_.emplace_back(device, Buffer::Kind::device, checked_product(row_bytes(), shard_end(i) - shard_begin(i)));
}

std::uint64_t Rows::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& shard : rows_) sum += shard.bytes();
  return sum;
}

std::uint32_t Rows::shard_end(std::uint32_t shard) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(n_, std::uint64_t{shard + 1} * shard_rows_));
}

View Rows::shard(std::uint32_t shard) const {
  return {rows_[shard], 0, (shard_end(shard) - shard_begin(shard)) * row_bytes()};
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
  upload(rows, 0, n);
  whole_ = true;
}

Points::~Points() {
  if (engine_->device().abandoned()) return;  // a mutex may have been held when this process was forked
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  engine_->workspaces().forget(id_);
  coarse_.reset();
  rows_.clear();
}

void Points::update(const float* rows) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  begin_update();
  upload(rows, 0, n_);
  whole_ = true;
}

void Points::update(const float* rows, std::uint32_t first, std::uint32_t count) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  require_whole();
  begin_update();
  upload(rows, first, count);
  whole_ = true;
}

void Points::update(const float* rows, const std::int64_t* ids, std::uint32_t count) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  require_whole();
  begin_update();
  scatter(rows, ids, count);
  whole_ = true;
}

void Points::require_whole() const {
  if (!whole_) throw Torn("an earlier update of the points failed and left them half replaced");
}

void Points::begin_update() {
  engine_->device().require_alive();
  rounded_ = false;
  asked_ = 0;
  whole_ = false;
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

// Writes rows as the device keeps them.
void Points::fill(const Buffer& staging, const float* rows, std::uint32_t count) const {
  const auto pitch = std::size_t{4} * quads();
  const auto convert = [&](auto* to, auto nearest) {
    for (std::size_t row = 0; row < count; ++row, to += pitch) {
      std::transform(rows + row * d_, rows + (row + 1) * d_, to, nearest);
      std::fill(to + d_, to + pitch, 0);
    }
  };
  if (storage_ == Storage::float16)
    convert(staging.as<std::uint16_t>(), nearest_half);
  else
    convert(staging.as<float>(), [](float value) { return value; });
}

void Points::upload(const float* rows, std::uint32_t first, std::uint32_t count) {
  auto& device = engine_->device();
  if (count == 0) return;
  const auto most = std::min(kUploadBytes, device.capabilities().max_allocation);
  const auto chunk = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(most / row_bytes(), 1, count));
  Buffer staging(device, Buffer::Kind::upload, chunk * row_bytes());
  for (std::uint32_t done = 0; done < count;) {
    const auto at = first + done, shard = at / shard_rows_;
    const auto rows_now = std::min({chunk, count - done, shard_end(shard) - at});
    fill(staging, rows + std::size_t{done} * d_, rows_now);
    Program program(device);
    device.attempt("uploading points", [&] {
      const auto bytes = rows_now * row_bytes();
      program.copy(View(staging, 0, bytes), View(rows_[shard], (at - shard_begin(shard)) * row_bytes(), bytes));
      program.finish();
    });
    program.run();
    done += rows_now;
  }
}

void Points::scatter(const float* rows, const std::int64_t* ids, std::uint32_t count) {
  auto& device = engine_->device();
  if (count == 0) return;
  const auto most = std::min({kUploadBytes, device.storage_range(), device.capabilities().max_allocation});
  const auto chunk = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(most / row_bytes(), 1, count));
  Buffer params(device, Buffer::Kind::upload, 16), staging(device, Buffer::Kind::upload, chunk * row_bytes()),
      wanted(device, Buffer::Kind::upload, std::uint64_t{4} * chunk);
  const auto& pipeline = engine_->kernels().get(kernels::ScatterRows::name, kernels::ScatterRows::group, {});
  const auto across = device.capabilities().max_groups;
  for (std::uint32_t done = 0; done < count; done += chunk) {
    const auto now = std::min(chunk, count - done);
    fill(staging, rows + std::size_t{done} * d_, now);
    std::transform(ids + done, ids + done + now, wanted.as<std::uint32_t>(),
                   [](std::int64_t id) { return static_cast<std::uint32_t>(id); });
    *params.as<std::uint32_t>() = now;
    Program program(device);
    device.attempt("uploading points", [&] {
      const auto words = static_cast<std::uint32_t>(row_bytes() / 4);
      for (std::uint32_t i = 0; i < shards(); ++i)
        program.kernel(pipeline, {params, wanted, staging, shard(i)},
                       kernels::ScatterRows{words, shard_begin(i), shard_end(i), 0, now}, std::min(now, across),
                       (now + across - 1) / across);
      program.finish();
    });
    program.run();
  }
}

std::uint64_t Points::bytes() const {
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  return Rows::bytes() + (coarse_ ? coarse_->halves.bytes() + coarse_->radius.bytes() : 0);
}

}  // namespace ebmvk

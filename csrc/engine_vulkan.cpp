#include "engine_vulkan.h"

#include "vulkan_errors.h"

#include <algorithm>
#include <atomic>

namespace ebmvk {
namespace {

constexpr std::uint32_t kTileBytes = 2 * 4 * 129 * 16;  // of score_tiled.comp's workgroups
constexpr std::uint64_t kUploadBytes = std::uint64_t{16} << 20;

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Points::Points(std::shared_ptr<Engine> engine, std::uint32_t n, std::uint32_t d, const float* rows)
    : engine_(std::move(engine)), n_(n), d_(d), id_(next_id()) {
  auto& device = engine_->device();
  device.require_own_process();
  const std::lock_guard<std::mutex> lock(device.mutex());
  const std::uint64_t row_bytes = std::uint64_t{16} * quads();
  // A multiple of 16 rows, so that a shard begins where every device allows a binding to begin.
  const auto fit = device.storage_range() / row_bytes / 16 * 16;
  if (fit == 0)
    throw Unsupported("rows of " + std::to_string(d) + " floats: the device binds at most " +
                      std::to_string(device.storage_range()) + " bytes at once");
  shard_rows_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, (std::uint64_t{n} + 15) / 16 * 16));
  rows_ = Buffer(device, Buffer::Kind::device, checked_product(row_bytes, n));
  upload(rows);
}

Points::~Points() {
  if (engine_->device().abandoned()) return;  // a mutex may have been held while this process was forked
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  engine_->workspaces().forget(id_);
  rows_ = Buffer();
}

void Points::update(const float* rows) {
  engine_->device().require_own_process();
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  upload(rows);
}

void Points::upload(const float* rows) {
  auto& device = engine_->device();
  const auto row_bytes = std::uint64_t{16} * quads();
  const auto chunk = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kUploadBytes / row_bytes, 1, n_));
  Buffer staging(device, Buffer::Kind::upload, chunk * row_bytes);
  auto* to = staging.as<float>();
  whole_ = false;
  for (std::uint32_t begin = 0; begin < n_; begin += chunk) {
    const auto count = std::min(chunk, n_ - begin);
    const auto pitch = std::size_t{4} * quads();
    for (std::size_t row = 0; row < count; ++row) {
      std::copy_n(rows + (begin + row) * d_, d_, to + row * pitch);
      std::fill(to + row * pitch + d_, to + (row + 1) * pitch, 0.0f);
    }
    Program program(device);
    device.attempt("uploading points", [&] {
      program.copy(View(staging, 0, count * row_bytes), View(rows_, begin * row_bytes, count * row_bytes));
      program.finish();
    });
    program.run();
  }
  whole_ = true;
}

std::uint32_t Points::shard_end(std::uint32_t shard) const {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(n_, std::uint64_t{shard + 1} * shard_rows_));
}

View Points::shard(std::uint32_t shard) const {
  const std::uint64_t row_bytes = std::uint64_t{16} * quads();
  return {rows_, shard_begin(shard) * row_bytes, (shard_end(shard) - shard_begin(shard)) * row_bytes};
}

Engine::Engine(std::uint32_t index, const Options& options)
    : device_(index, options), kernels_(device_), workspaces_(device_) {}

std::map<std::string, Count> Engine::counts() {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  return counts_;
}

Scoring Engine::scoring() const {
  if (scoring_ != Scoring::automatic) return scoring_;
  // Tiles in shared memory gain nothing where that is ordinary memory behind emulated barriers; and some devices give
  // no more than the 16 KiB and 128 invocations that all must.
  const auto& device = device_.capabilities();
  const bool fits = device.max_group_size >= 256 && device.max_shared_bytes >= kTileBytes;
  return device.type == "cpu" || !fits ? Scoring::direct : Scoring::tiled;
}

std::uint64_t Engine::units_per_slice(const std::string& kernel, double flops_per_unit) const {
  const auto known = speed_.find(kernel);
  // Before anything is measured: slow enough for the slowest device of its kind to stay well under a driver's 2 s.
  const double speed = known != speed_.end() ? known->second : device_.capabilities().type == "cpu" ? 5e8 : 5e10;
  const double units = speed * device_.options().slice_seconds / std::max(flops_per_unit, 1.0);
  return static_cast<std::uint64_t>(std::clamp(units, 1.0, 1e12));
}

std::uint32_t Engine::row_group(std::uint32_t quads) const {
  const auto& device = device_.capabilities();
  const std::uint32_t subgroup = device.subgroup_size ? device.subgroup_size : 32;
  std::uint32_t fit = std::max(std::min(256u, device.max_group_size) / subgroup, 1u);
  if (device.max_subgroups) fit = std::min(fit, device.max_subgroups);
  // On a processor few invocations with some quads each, as barriers there are emulated; but not many quads, as loops
  // over them are unrolled. On a GPU a quad each, as long as they fit.
  const std::uint32_t each = device.type == "cpu" ? 4 : 1;
  const std::uint32_t wanted = (quads + each * subgroup - 1) / (each * subgroup);
  return subgroup * std::clamp(wanted, 1u, fit);
}

Engine::Call::Call(Engine& engine, std::string operation, const Points* points)
    : engine_((engine.device_.require_own_process(), engine)),
      lock_(engine.device_.mutex()),
      operation_(std::move(operation)),
      start_(std::chrono::steady_clock::now()) {
  engine.device_.require_alive();
  if (points && !points->whole()) throw Torn("the points were left half replaced by an update that failed");
}

Engine::Call::~Call() {
  if (!ended_) engine_.workspaces_.clear();
}

void Engine::Call::run(Program& program, const char* kernel, double flops) {
  const double seconds = program.run();
  dispatches_ += program.dispatches();
  if (flops < 1e5 || seconds <= 0) return;  // too little to tell speed from overhead
  const double speed = flops / seconds;
  auto& known = engine_.speed_.try_emplace(kernel, speed).first->second;
  // A first run may have had to compile: believe in speed at once, in slowness by halves.
  known = std::max(speed, 0.5 * (known + speed));
}

void Engine::Call::count() {
  ended_ = true;
  auto& count = engine_.counts_[operation_];
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
  ++count.calls;
  count.dispatches += dispatches_;
  count.seconds += seconds.count();
}

}  // namespace ebmvk

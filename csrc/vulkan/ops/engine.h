// The operations on one Vulkan device. Arguments are checked by the caller; each is dense rows on the
// host, or a tensor of this device. Every operation takes the device's mutex, works in slices of
// bounded time, and leaves nothing half done if it throws.
#pragma once

#include "kernels.h"
#include "vulkan/ops/tiling.h"
#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/pace.h"
#include "vulkan/runtime/plan.h"
#include "vulkan/runtime/workspace.h"
#include "vulkan_operations.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

struct Count {
  std::uint64_t calls = 0;
  double seconds = 0;
  std::uint64_t submissions = 0;
  Traffic traffic;
};

// The gradient of the points is dense on the host, (N, d), zero at the start. Or `points` is null, and
// tensors take the ids of the points that occur, ascending, and their rows. These tensors have space
// for Engine::touched_points rows, and are cut to the number of points that occur.
struct GradientResults {
  Result<float> x, logw, kappa, background;
  float* points;
  Tensor *point_ids, *point_rows;
};

struct VmfArguments {
  std::uint32_t rows, d;
  Argument<float> mu, cosine_sine;  // (B, d), (B, 2)
  std::uint64_t seed;
  std::uint32_t first_row;
};

// Statistics that stay on the device: (n,), (n, d), (E, 2) splat and token, (E,), with E = max(rows, 1)
// k. The last two are cut to the number of pairs.
struct AccumulatedTensors {
  Tensor *mass, *resultant, *pairs, *counts;
};

struct Move {  // `count` words from `from` to `to`
  std::uint64_t from, to, count;
};

struct CoarseCount {
  std::uint64_t rows = 0, unproved = 0;
};

struct Accumulated {
  std::vector<float> sums;           // (n, d + 1): each resultant, followed by its mass
  std::vector<std::uint64_t> pairs;  // splat << 32 | token, ascending
  std::vector<float> counts;         // one for each pair
};

// For tests: entries with keys, and a token for every `per_token` entries if that isn't 0. Entries
// with keys from `limit` on belong to no segment.
struct SortQuestion {
  std::uint32_t count;
  const std::uint32_t *keys, *tokens;
  std::uint32_t per_token, limit;
};

// The sorted entries; the start of each segment and the end of the last; each segment's key and token.
struct SortAnswer {
  std::vector<std::uint32_t> order, starts, keys, tokens;
};

class Engine;

// (N, d) rows in device memory, in shards. Each shard is an allocation of its own, and fits the
// storage-buffer range.
class Rows {
 public:
  Rows(Device& device, std::uint32_t n, std::uint32_t d, Storage storage);

  std::uint32_t n() const { return n_; }
  std::uint32_t d() const { return d_; }
  std::uint32_t quads() const { return quads_of(d_); }
  Storage storage() const { return storage_; }
  std::uint64_t bytes() const;  // bytes of device memory
  std::uint64_t row_bytes() const { return std::uint64_t{storage_ == Storage::float16 ? 8u : 16u} * quads(); }
  std::uint32_t shards() const { return (n_ + shard_rows_ - 1) / shard_rows_; }
  std::uint32_t shard_begin(std::uint32_t shard) const { return shard * shard_rows_; }
  std::uint32_t shard_end(std::uint32_t shard) const;
  View shard(std::uint32_t shard) const;

 protected:
  Rows() = default;

  std::uint32_t n_ = 0, d_ = 0, shard_rows_ = 0;
  Storage storage_ = Storage::float32;
  std::vector<Buffer> rows_;  // of each shard
};

// A copy of float32 rows in float16, with the radius of each row (halve.comp).
struct Coarse {
  Coarse(Device& device, const Rows& rows);
  void round(Engine& engine, const Rows& rows);

  Rows halves;
  Buffer radius;
};

class Points : public Rows {
 public:
  Points(std::shared_ptr<Engine> engine, std::uint32_t n, std::uint32_t d, const float* rows, Storage storage);
  ~Points();
  Points(const Points&) = delete;
  Points& operator=(const Points&) = delete;

  // Replaces all rows. After a failure of this or of another update the points can't be used until
  // it succeeds.
  void update(const float* rows);
  // Replaces `count` rows: from `first` on, or those with the given ids, which are all different.
  // Throws Torn if the points can't be used.
  void update(const float* rows, std::uint32_t first, std::uint32_t count);
  void update(const float* rows, const std::int64_t* ids, std::uint32_t count);
  // Throws Torn if an update failed.
  void require_whole() const;
  std::uint64_t id() const { return id_; }
  std::uint64_t bytes() const;  // including the float16 rows for topk
  const std::shared_ptr<Engine>& engine() const { return engine_; }
  // The same rows in float16. They are made at the `calls`-th request since the rows last changed.
  // Null before that, or if the device has no memory for them and `forced` is not set.
  const Coarse* coarse(std::uint32_t calls, bool forced) const;

 private:
  void begin_update();
  void fill(const Buffer& staging, const float* rows, std::uint32_t count) const;
  void upload(const float* rows, std::uint32_t first, std::uint32_t count);
  void scatter(const float* rows, const std::int64_t* ids, std::uint32_t count);

  // False while rows are being replaced and after an update failed, because some of them may be
  // old.
  bool whole_ = false;
  std::shared_ptr<Engine> engine_;
  std::uint64_t id_;
  mutable std::unique_ptr<Coarse> coarse_;  // made and used under the device's mutex, like a workspace
  mutable bool rounded_ = false;            // coarse_ belongs to the current rows
  mutable std::uint32_t asked_ = 0;
};

// The kernel of an operation that works row by row. Throws invalid_argument if it has no kernel.
const KernelSource& row_kernel(const std::string& operation);

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  Engine(std::uint32_t index, const Options& options);

  // A tensor without values, for results.
  std::shared_ptr<Tensor> tensor(const Tensor::Shape& shape);
  // The rows are dense: float, or int64 for an index tensor.
  void upload(Tensor& tensor, const void* rows);
  void download(const std::vector<std::pair<const Tensor*, void*>>& tensors);

  // `kernel`: of row_kernel().
  void rows(const KernelSource& kernel, std::uint32_t rows, std::uint32_t d,
            const std::vector<Argument<float>>& arguments, const Result<float>& result);
  // The operations of operations.toml, for example
  //   void energy_score(const Points& points, const EnergyScoreArguments& in, const EnergyScoreResults& out);
#include "vulkan_methods.h"
  void energy_score_backward(const Points& points, const EnergyScoreBackwardArguments& in, const GradientResults& out);
  // The largest number of points that can occur in (rows, k) candidates.
  static std::uint32_t touched_points(const Points& points, std::uint32_t rows, std::uint32_t k);
  void vmf_sample(const VmfArguments& in, const Result<float>& result);
  // The statistics go to the tensors of `to`; if it is null, they are returned.
  Accumulated accumulate(const AccumulateArguments& in, const AccumulatedTensors* to = nullptr);
  // A number above all tokens.
  static std::uint64_t tokens_below(const AccumulateArguments& in);
  // Runs functions of math.glsl and philox.glsl on this device. `arguments`, `key` and `result`:
  // (rows, 4) words.
  void probe(std::uint32_t function, std::uint32_t rows, const std::uint32_t* arguments, const std::uint32_t* key,
             std::uint32_t* result);
  SortAnswer probe_sort(const SortQuestion& question);

  // For tests of barriers: copies words within one buffer, one move after another, and returns the
  // buffer.
  std::vector<std::uint32_t> move_words(std::vector<std::uint32_t> words, const std::vector<Move>& moves);

  // Each of these three times `repeats` submissions: of `times` copies of `bytes` bytes on the device;
  // of `rows` invocations with 128 * rounds fused multiply-adds; of the scores of `rows` queries and
  // `columns` points of dimension d.
  std::vector<double> time_copy(std::uint64_t bytes, std::uint32_t times, std::uint32_t repeats);
  std::vector<double> time_fma(std::uint32_t rows, std::uint32_t rounds, std::uint32_t repeats);
  std::vector<double> time_product(std::uint32_t rows, std::uint32_t columns, std::uint32_t d, std::uint32_t repeats);

  std::map<std::string, Count> counts();
  Device& device() { return device_; }
  const Device& device() const { return device_; }
  KernelRegistry& kernels() { return kernels_; }
  WorkspaceCache& workspaces() { return workspaces_; }
  TensorPool& pool() { return pool_; }
  // For tests and benchmarks: which tiling of scores to use, whether topk starts in float16, and
  // whether integrators keep candidates in registers if these fit. By default the device decides.
  void set_scoring(Scoring scoring) { scoring_ = scoring; }
  void set_coarse(std::optional<bool> coarse) { coarse_ = coarse; }
  void set_resident(std::optional<bool> resident) { resident_ = resident; }
  Scoring scoring() const { return scoring_; }
  std::optional<bool> resident() const { return resident_; }
  // The number of topk rows that started in float16, and the number that float16 did not prove.
  CoarseCount coarse_count();
  std::vector<KernelSource> used_kernels();
  std::vector<PipelineKey> used_pipelines();
  // The pipelines that operations on this device use for `queries` queries, dimension d and k
  // candidates. Makes none of them.
  std::vector<PipelineKey> pipelines(std::uint32_t queries, std::uint32_t d, std::uint32_t k);
  // The number of units of work that fit into one submission at the kernel's speed so far; at least
  // 1.
  std::uint64_t units_per_slice(const std::string& kernel, double flops_per_unit) const {
    return pace_.units(kernel, flops_per_unit);
  }
  // True if the kernel's speed was measured. Before that, units_per_slice() is a cautious guess, so a
  // first slice should be run alone.
  bool measured(const std::string& kernel) const { return pace_.measured(kernel); }
  Pace& pace() { return pace_; }
  // Calls f(), which makes buffers; if memory runs out, frees what can be made again and calls it
  // once more. Needs the device's mutex.
  template <typename F>
  auto with_room(F f) -> decltype(f()) {
    try {
      return f();
    } catch (const OutOfMemory&) {
      workspaces_.clear();
      pool_.clear();
    }
    return f();
  }
  // The workgroup size of a kernel with one workgroup per row.
  std::uint32_t row_group(std::uint32_t quads) const;

  class Call;

 private:
  bool use_coarse(const Points& points, const TopkArguments& in) const;
  // For the rows from `begin` up to `end` - 1.
  void exact_topk(Call& call, const Points& points, const TopkArguments& in, const TopkResults& to, std::uint64_t begin,
                  std::uint64_t end);
  void coarse_topk(Call& call, const Points& points, const Coarse& coarse, const TopkArguments& in,
                   const TopkResults& to);
  template <typename Push>
  void integrate(const Points& points, const Push& push, const LangevinArguments& in, const LangevinResults& out);

  Device device_;
  KernelRegistry kernels_;
  TensorPool pool_;
  WorkspaceCache workspaces_;
  Scoring scoring_ = Scoring::automatic;
  std::optional<bool> coarse_, resident_;
  CoarseCount coarse_count_;
  std::map<std::string, Count> counts_;
  Pace pace_;
};

// Slices of one kernel that a plan may have. Each has a slot of its own for what it reads.
constexpr std::uint32_t kSlots = 16;
constexpr std::uint64_t kSlotBytes = 256;  // a multiple of every alignment that Vulkan allows

// One call of an operation. Holds the device's mutex, runs programs as plans, and counts the call if
// it succeeds. If it fails, nothing that may be half done is used again.
class Engine::Call {
 public:
  // `points`: those that the operation reads, if any.
  Call(Engine& engine, std::string operation, const Points* points = nullptr);
  ~Call();
  // Adds a section of a program to the plan. `flops`: its work, mostly in the kernel, from which the
  // engine learns how much fits into a slice; 0: don't learn.
  void add(Program& program, std::uint32_t section, const std::string& kernel = {}, double flops = 0);
  // The number of slices of a kernel that the next plan may have: one until its speed is known.
  std::uint32_t slots(const std::string& kernel) const;
  // Runs the plan and empties it.
  void run();
  // The same for a program with one section.
  void run(Program& program, const std::string& kernel = {}, double flops = 0);
  void count();

 private:
  Engine& engine_;
  std::lock_guard<std::mutex> lock_;
  std::string operation_;
  std::chrono::steady_clock::time_point start_;
  struct Work {
    std::string kernel;
    double flops;
  };
  Plan plan_;
  std::vector<Work> work_;  // of each section of the plan
  Count count_;
  bool ended_ = false;
};

}  // namespace ebmvk

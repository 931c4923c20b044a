// The operations on one Vulkan device. Arguments are dense rows on the host, checked by the caller.
// Every operation takes the device's mutex, works in slices of bounded time, and leaves nothing
// half done if it throws.
#pragma once

#include "integrators.h"
#include "kernels.h"
#include "vulkan/ops/tiling.h"
#include "vulkan/runtime/workspace.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebmvk {

struct Count {
  std::uint64_t calls = 0;
  std::uint64_t dispatches = 0;
  double seconds = 0;
};

struct EnergyArguments {  // B rows, K candidates, dimension d
  std::uint32_t rows, k, d;
  const float* x;
  const std::int64_t* ids;
  const float *logw, *kappa, *background;
};

struct EnergyResults {
  float *energy, *score, *responsibilities, *rest;
};

struct LangevinArguments {
  EnergyArguments energy;
  const float* v;
  std::uint32_t levels, level_rows;  // level_rows: 1 or B
  const float *kappa_scale, *logw_shift, *step_size, *gamma;
  std::vector<std::uint32_t> steps;
  std::uint64_t seed;
  std::uint32_t first_step, first_chain;
  double temperature;
  integrators::Description integrator;
  std::uint32_t leapfrogs;  // per step, if the integrator is a Metropolis one; else 1
};

struct LangevinResults {
  float *x, *v, *energy, *kinetic, *energy_error, *acceptance, *tangency;
};

struct GradientArguments {
  EnergyArguments energy;
  const float *grad_energy, *grad_score;  // (B,), (B, d)
};

struct GradientResults {
  float *x, *points, *logw, *kappa, *background;  // points: (N, d), zero at the start
};

struct VmfArguments {
  std::uint32_t rows, d;
  const float *mu, *cosine_sine;  // (B, d), (B, 2)
  std::uint64_t seed;
  std::uint32_t first_row;
};

struct AccumulateArguments {
  std::uint32_t rows, k, d, n;
  const float* x;
  const std::int64_t* ids;
  const float* responsibilities;
  const std::int64_t* tokens;
};

struct CoarseCount {
  std::uint64_t rows = 0, unproved = 0;
};

struct Accumulated {
  std::vector<float> sums;           // (n, d + 1): each resultant with its mass behind it
  std::vector<std::uint64_t> pairs;  // splat << 32 | token, ascending
  std::vector<float> counts;         // one for each pair
};

struct TopkArguments {
  std::uint32_t rows, k, d;
  const float* queries;
  const float *scale, *bias;  // (N,) or null
};

class Engine;

// (N, d) rows in device memory, in shards that fit the storage-buffer range.
class Rows {
 public:
  Rows(Device& device, std::uint32_t n, std::uint32_t d, Storage storage);

  std::uint32_t n() const { return n_; }
  std::uint32_t d() const { return d_; }
  std::uint32_t quads() const { return quads_of(d_); }
  Storage storage() const { return storage_; }
  std::uint64_t bytes() const { return rows_.bytes(); }  // bytes of device memory
  std::uint64_t row_bytes() const { return std::uint64_t{storage_ == Storage::float16 ? 8u : 16u} * quads(); }
  std::uint32_t shards() const { return (n_ + shard_rows_ - 1) / shard_rows_; }
  std::uint32_t shard_begin(std::uint32_t shard) const { return shard * shard_rows_; }
  std::uint32_t shard_end(std::uint32_t shard) const;
  View shard(std::uint32_t shard) const;

 protected:
  Rows() = default;

  std::uint32_t n_ = 0, d_ = 0, shard_rows_ = 0;
  Storage storage_ = Storage::float32;
  Buffer rows_;
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

  // After a failure the points can't be used until an update succeeds.
  void update(const float* rows);
  bool whole() const { return whole_; }
  std::uint64_t id() const { return id_; }
  std::uint64_t bytes() const;  // including the float16 rows for topk
  const std::shared_ptr<Engine>& engine() const { return engine_; }
  // The same rows in float16. They are made at the `calls`-th request since the rows last changed.
  // Null before that, or if the device has no memory for them and `forced` is not set.
  const Coarse* coarse(std::uint32_t calls, bool forced) const;

 private:
  void upload(const float* rows);

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

class Engine {
 public:
  Engine(std::uint32_t index, const Options& options);

  // `kernel`: of row_kernel().
  void rows(const KernelSource& kernel, std::uint32_t rows, std::uint32_t d, const std::vector<const float*>& arguments,
            float* result);
  void energy_score(const Points& points, const EnergyArguments& in, const EnergyResults& out);
  void langevin(const Points& points, const LangevinArguments& in, const LangevinResults& out);
  void energy_score_backward(const Points& points, const GradientArguments& in, const GradientResults& out);
  void vmf_sample(const VmfArguments& in, float* result);
  Accumulated accumulate(const AccumulateArguments& in);
  void topk(const Points& points, const TopkArguments& in, float* scores, std::int64_t* ids);
  // Runs functions of math.glsl and philox.glsl on this device. `arguments`, `key` and `result`:
  // (rows, 4) words.
  void probe(std::uint32_t function, std::uint32_t rows, const std::uint32_t* arguments, const std::uint32_t* key,
             std::uint32_t* result);

  // Time `repeats` submissions each of: `times` copies of `bytes` bytes on the device; `rows`
  // invocations with 128 `rounds` fused multiply-adds; the scores of `rows` queries and `columns`
  // points of dimension d.
  std::vector<double> time_copy(std::uint64_t bytes, std::uint32_t times, std::uint32_t repeats);
  std::vector<double> time_fma(std::uint32_t rows, std::uint32_t rounds, std::uint32_t repeats);
  std::vector<double> time_product(std::uint32_t rows, std::uint32_t columns, std::uint32_t d, std::uint32_t repeats);

  std::map<std::string, Count> counts();
  Device& device() { return device_; }
  KernelRegistry& kernels() { return kernels_; }
  WorkspaceCache& workspaces() { return workspaces_; }
  // For tests and benchmarks: which tiling of scores to use, whether topk starts in float16, and
  // whether integrators keep candidates in registers if these fit. By default the device decides.
  void set_scoring(Scoring scoring) { scoring_ = scoring; }
  void set_coarse(std::optional<bool> coarse) { coarse_ = coarse; }
  void set_resident(std::optional<bool> resident) { resident_ = resident; }
  Scoring scoring() const { return scoring_; }
  std::optional<bool> resident() const { return resident_; }
  // The number of topk rows that started in float16, and of those that it did not prove.
  CoarseCount coarse_count();
  std::vector<KernelSource> used_kernels();
  // The number of units of work that fit into one submission at the kernel's speed so far; at least
  // 1.
  std::uint64_t units_per_slice(const std::string& kernel, double flops_per_unit) const;
  // The workgroup size of a kernel with one workgroup per row.
  std::uint32_t row_group(std::uint32_t quads) const;

  class Call;

 private:
  bool use_coarse(const Points& points, const TopkArguments& in) const;
  void exact_topk(Call& call, const Points& points, const TopkArguments& in, float* scores, std::int64_t* ids);
  // Returns the rows that float16 did not prove; nothing is written for them.
  std::vector<std::uint32_t> coarse_topk(Call& call, const Points& points, const Coarse& coarse,
                                         const TopkArguments& in, float* scores, std::int64_t* ids);
  template <typename Push>
  void integrate(const Points& points, const Push& push, const LangevinArguments& in, const LangevinResults& out);

  Device device_;
  KernelRegistry kernels_;
  WorkspaceCache workspaces_;
  Scoring scoring_ = Scoring::automatic;
  std::optional<bool> coarse_, resident_;
  CoarseCount coarse_count_;
  std::map<std::string, Count> counts_;
  std::map<std::string, double> speed_;  // FLOP/s
};

// One call of an operation. Holds the device's mutex, runs programs, and counts the call if it
// succeeds. If it fails, nothing that may be half done is used again.
class Engine::Call {
 public:
  // `points`: those that the operation reads, if any.
  Call(Engine& engine, std::string operation, const Points* points = nullptr);
  ~Call();
  // `flops`: the work of the program, to learn how much fits into a slice; 0: don't learn.
  void run(Program& program, const char* kernel = "", double flops = 0);
  void count();

 private:
  Engine& engine_;
  std::lock_guard<std::mutex> lock_;
  std::string operation_;
  std::chrono::steady_clock::time_point start_;
  std::uint64_t dispatches_ = 0;
  bool ended_ = false;
};

}  // namespace ebmvk

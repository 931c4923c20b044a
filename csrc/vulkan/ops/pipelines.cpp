// Which pipelines the operations use, without running them, so that their machine code can be read
// for a card that is not there. A test runs the operations and compares. A new kernel must be added
// here unless it has one workgroup of row_group() invocations per row.
#include "vulkan/ops/candidates.h"
#include "vulkan/ops/engine.h"
#include "vulkan/ops/groups.h"
#include "vulkan/ops/scan.h"
#include "vulkan/ops/sort.h"

#include <algorithm>
#include <set>
#include <string>

namespace ebmvk {
namespace {

class List {
 public:
  explicit List(Engine& engine) : engine_(engine) {}

  void add(const char* name, std::uint32_t group, std::vector<std::uint32_t> constants = {},
           Storage storage = Storage::float32, bool resident = false) {
    keys_.push_back({name, group, std::move(constants), storage, resident});
  }
  // A kernel whose group the manifest states.
  template <typename Kernel>
  void add() {
    add(Kernel::name, Kernel::group);
  }
  // One workgroup per row.
  void add_rows(const char* name, std::uint32_t quads, std::vector<std::uint32_t> constants = {},
                Storage storage = Storage::float32) {
    add(name, engine_.row_group(quads), std::move(constants), storage);
  }
  // The other kernels of the engine's operations, except scoring kernels that this device doesn't
  // choose.
  void add_rest(std::uint32_t quads) {
    std::set<std::string> known{kernels::ScoreDirect::name, kernels::ScoreMatvec::name, kernels::ScoreTiled::name};
    for (const auto& key : keys_) known.insert(key.name);
    for (const auto& kernel : kernel_table())
      if (kernel.params && !known.count(kernel.name) && kernel.variant == Variant::portable)
        add_rows(kernel.name, quads, {}, kernel.storage);
  }
  std::vector<PipelineKey> take() { return std::move(keys_); }

 private:
  Engine& engine_;
  std::vector<PipelineKey> keys_;
};

constexpr Storage kStorages[] = {Storage::float32, Storage::float16};

void add_energy(List& list, Engine& engine, std::uint32_t d, std::uint32_t k) {
  const auto quads = quads_of(d);
  for (const auto storage : kStorages) {
    list.add_rows(kernels::EnergyScore::name, quads, energy_constants(engine, quads, k), storage);
    list.add_rows(kernels::EnergyGradients::name, quads, energy_constants(engine, quads, k, 8), storage);
    list.add_rows(kernels::Gather::name, quads, {}, storage);
    for (const auto& integrator : integrators::table) {
      const auto plan = chain_plan(engine, storage, quads, k, integrator);
      list.add(integrator.name, plan.group, plan.constants, storage, plan.resident);
    }
  }
  list.add<kernels::ChainReport>();
}

// The sums of gradients and of statistics, after a sort with digits of any size.
void add_sums(List& list, Engine& engine, std::uint32_t quads) {
  const auto& device = engine.device().capabilities();
  const auto group = spread_over(device, 0, 1).group;
  for (std::uint32_t bits = 1; bits <= digit_bits(group); ++bits)
    for (const auto* name : {kernels::SortCount::name, kernels::SortScatter::name}) list.add(name, group, {1u << bits});
  list.add(kernels::ScanCounts::name, scan_group(device));
  for (const auto* name : {kernels::SegmentCount::name, kernels::SegmentPlace::name}) list.add(name, group);
  list.add<kernels::SegmentTotal>();
  list.add<kernels::ShareKeys>();
  list.add<kernels::PairWords>();
  list.add_rows(kernels::SegmentSum::name, quads);
}

void add_tokens(List& list, const Engine& engine, std::uint32_t quads) {
  const auto group = engine.row_group(quads);
  list.add(kernels::ChainStart::name, group, {(quads + group - 1) / group});
  for (const auto* name : {kernels::CandidateLaw::name, kernels::DrawToken::name}) list.add(name, token_group(engine));
  list.add<kernels::LevelLaw>();
}

void add_topk(List& list, Engine& engine, std::uint32_t queries, std::uint32_t quads, std::uint32_t k) {
  const auto& device = engine.device().capabilities();
  const auto tiling = choose_tiling(device, engine.scoring(), queries);
  for (const auto storage : kStorages) list.add(tiling.kernel, tiling.group, tiling.constants(), storage);
  for (const auto kept : {k, rescored(k)})  // and the number that the scan in float16 keeps
    list.add(kernels::SelectTopk::name, select_group(device), select_constants(device, kept));
  list.add<kernels::Rescore>();
  list.add(kernels::ProveTopk::name, select_group(device), {power_of_two(rescored(k))});
  list.add_rows(kernels::RowNorms::name, quads);
  list.add_rows(kernels::Halve::name, quads);
}

}  // namespace

std::vector<PipelineKey> Engine::pipelines(std::uint32_t queries, std::uint32_t d, std::uint32_t k) {
  const auto quads = quads_of(d);
  List list(*this);
  list.add_rows(kernels::VmfSample::name, quads, {(quads + row_group(quads) - 1) / row_group(quads)});
  add_energy(list, *this, d, k);
  add_sums(list, *this, quads);
  add_tokens(list, *this, quads);
  add_topk(list, *this, queries, quads, k);
  list.add<kernels::ScatterRows>();
  list.add<kernels::CopyRows>();
  list.add<kernels::Probe>();
  list.add<kernels::CeilingFma>();
  list.add_rest(quads);
  return list.take();
}

}  // namespace ebmvk

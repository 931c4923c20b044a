#include "vulkan/ops/engine.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

// FLOP/s assumed before anything is measured: so low that the slowest device of its kind stays well
// under a driver's 2 s.
double assumed_speed(const Capabilities& device) {
  if (device.type == "cpu") return 5e8;
  return device.type == "discrete" ? 5e10 : 1e10;
}

}  // namespace

Engine::Engine(std::uint32_t index, const Options& options)
    : device_(index, options),
      kernels_(device_),
      pool_(device_),
      workspaces_(device_, pool_),
      pace_(assumed_speed(device_.capabilities()), options.slice_seconds) {}

std::map<std::string, Count> Engine::counts() {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  return counts_;
}

CoarseCount Engine::coarse_count() {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  return coarse_count_;
}

std::vector<KernelSource> Engine::used_kernels() {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  return kernels_.used();
}

std::vector<PipelineKey> Engine::used_pipelines() {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  return kernels_.used_keys();
}

std::uint32_t Engine::row_group(std::uint32_t quads) const {
  const auto& device = device_.capabilities();
  const std::uint32_t subgroup = device.subgroup_size ? device.subgroup_size : 32;
  std::uint32_t fit = std::max(std::min(256u, device.max_group_size) / subgroup, 1u);
  if (device.max_subgroups) fit = std::min(fit, device.max_subgroups);
  // On a processor: few invocations, because barriers are emulated, but few quads for each, because
  // loops over quads are unrolled. On a GPU: one quad per invocation, if a workgroup is large enough.
  const std::uint32_t each = device.type == "cpu" ? 4 : 1;
  const std::uint32_t wanted = (quads + each * subgroup - 1) / (each * subgroup);
  return subgroup * std::clamp(wanted, 1u, fit);
}

Engine::Call::Call(Engine& engine, std::string operation, const Points* points)
    : engine_((engine.device_.require_own_process(), engine)),
      lock_(engine.device_.mutex()),
      operation_(std::move(operation)),
      start_(std::chrono::steady_clock::now()),
      plan_(engine.device_) {
  engine.device_.require_alive();
  if (points) points->require_whole();
}

Engine::Call::~Call() {
  if (ended_) return;
  engine_.workspaces_.clear();
  engine_.pool_.clear();
}

void Engine::Call::add(Program& program, std::uint32_t section, const std::string& kernel, double flops) {
  plan_.add(program, section, flops > 0 ? flops / engine_.pace_.speed(kernel) : 0.0);
  work_.push_back({kernel, flops});
}

std::uint32_t Engine::Call::slots(const std::string& kernel) const {
  return kernel.empty() || engine_.measured(kernel) ? kSlots : 1;
}

void Engine::Call::run() {
  const auto ran = plan_.run();
  count_.submissions += ran.submissions;
  count_.traffic += ran.traffic;
  double all = 0;
  for (const auto& work : work_) all += work.flops;
  for (std::size_t i = 0; i < work_.size(); ++i) {
    const auto& [kernel, flops] = work_[i];
    if (!(flops > 0)) continue;
    const auto seconds = ran.section_seconds[i] > 0 ? ran.section_seconds[i] : ran.seconds * flops / all;
    engine_.pace_.learn(kernel, flops, seconds, ran.first);
  }
  work_.clear();
}

void Engine::Call::run(Program& program, const std::string& kernel, double flops) {
  add(program, 0, kernel, flops);
  run();
}

void Engine::Call::count() {
  ended_ = true;
  auto& count = engine_.counts_[operation_];
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
  ++count.calls;
  count.seconds += seconds.count();
  count.submissions += count_.submissions;
  count.traffic += count_.traffic;
}

}  // namespace ebmvk

// The operations that work row by row, and the probe of math.glsl and philox.glsl.
#include "vulkan/ops/groups.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace ebmvk {
namespace {

struct RowWork {
  Buffer params;
  std::vector<Operand> arguments;
  Operand result;
  Program program;

  RowWork(Engine& engine, const KernelSource& kernel, std::uint32_t capacity, std::uint32_t d,
          const std::vector<Place>& from, const Place& to)
      : params(engine.device(), Buffer::Kind::upload, 16), program(engine.device()) {
    auto& device = engine.device();
    const auto quads = quads_of(d);
    std::vector<View> bindings{params};
    arguments.reserve(kernel.arguments());  // so that views of the buffers stay valid
    for (const auto& place : from) {
      arguments.emplace_back(device, place, capacity, d, 4 * quads, Buffer::Kind::upload);
      arguments.back().load(engine.kernels(), program, params);
    }
    for (const auto& argument : arguments) bindings.emplace_back(argument.on_device());
    const auto width = kernel.scalar ? 1 : d;
    result = Operand(device, to, capacity, width, kernel.scalar ? 1 : 4 * quads, Buffer::Kind::readback);
    bindings.emplace_back(result.on_device());
    const auto& pipeline = engine.kernels().get(kernel.name, engine.row_group(quads), {});
    program.kernel(pipeline, bindings, quads, capacity);
    result.store(engine.kernels(), program, params);
    program.finish();
  }
};

struct VmfWork {
  Buffer params;
  Operand mu, cosine_sine, result;
  Program program;

  VmfWork(Engine& engine, std::uint32_t capacity, const kernels::VmfSample& push, const Place& from_mu,
          const Place& from_cosine_sine, const Place& to)
      : params(engine.device(), Buffer::Kind::upload, 16),
        mu(engine.device(), from_mu, capacity, push.d, 4 * push.quads, Buffer::Kind::upload),
        cosine_sine(engine.device(), from_cosine_sine, capacity, 2, 2, Buffer::Kind::upload),
        result(engine.device(), to, capacity, push.d, 4 * push.quads, Buffer::Kind::readback),
        program(engine.device()) {
    for (const auto* operand : {&mu, &cosine_sine}) operand->load(engine.kernels(), program, params);
    const auto group = engine.row_group(push.quads);
    program.kernel(engine.kernels().get(push.name, group, {(push.quads + group - 1) / group}),
                   {params, mu.on_device(), cosine_sine.on_device(), result.on_device()}, push, capacity);
    result.store(engine.kernels(), program, params);
    program.finish();
  }
};

struct ProbeWork {
  Buffer params;
  Table arguments, key, result;
  Program program;

  ProbeWork(Engine& engine, std::uint32_t function, std::uint32_t capacity)
      : params(engine.device(), Buffer::Kind::upload, 16),
        arguments(engine.device(), capacity, 4, 4, Buffer::Kind::upload),
        key(engine.device(), capacity, 4, 4, Buffer::Kind::upload),
        result(engine.device(), capacity, 4, 4, Buffer::Kind::readback),
        program(engine.device()) {
    program.copy(arguments.on_host(), arguments.on_device());
    program.copy(key.on_host(), key.on_device());
    program.kernel(engine.kernels().get(kernels::Probe::name, kernels::Probe::group, {}),
                   {params, arguments.on_device(), key.on_device(), result.on_device()}, kernels::Probe{function},
                   (capacity + kernels::Probe::group - 1) / kernels::Probe::group);
    program.copy(result.on_device(), result.on_host());
    program.finish();
  }
};

}  // namespace

std::uint32_t rows_at_once(const Device& device, std::uint32_t rows, std::uint32_t d) {
  const std::uint64_t row_bytes = std::uint64_t{16} * quads_of(d);
  const auto most = std::min<std::uint64_t>(
      {device.capabilities().max_groups, device.storage_range() / row_bytes, (std::uint64_t{64} << 20) / row_bytes});
  return power_of_two(std::min<std::uint64_t>(rows, std::max<std::uint64_t>(most / 2, 1)));
}

const KernelSource& row_kernel(const std::string& operation) {
  const auto name = "sphere_" + operation;
  for (const auto& kernel : kernel_table())
    if (name == kernel.name) return kernel;
  throw std::invalid_argument("no operation on rows is named " + operation);
}

void Engine::rows(const KernelSource& kernel, std::uint32_t rows, std::uint32_t d,
                  const std::vector<Argument<float>>& arguments, const Result<float>& result) {
  Call call(*this, kernel.name + std::strlen("sphere_"));
  const auto capacity = rows_at_once(device_, rows, d);
  for (std::uint64_t begin = 0; begin < rows; begin += capacity) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, rows - begin));
    std::vector<Place> from;
    for (const auto& argument : arguments) from.push_back(argument.from(begin));
    const auto to = result.from(begin);
    auto& work = workspaces_.get<RowWork>(
        std::string(kernel.name) + "/" + std::to_string(capacity) + "/" + std::to_string(d) + keys_of(from, {to}), 0,
        [&] { return std::make_shared<RowWork>(*this, kernel, capacity, d, from, to); });
    *work.params.as<std::uint32_t>() = count;
    for (std::size_t i = 0; i < kernel.arguments(); ++i) work.arguments[i].write(arguments[i], begin, count);
    call.run(work.program);
    work.result.read(result, begin, count);
  }
  call.count();
}

void Engine::vmf_sample(const VmfArguments& in, const Result<float>& result) {
  Call call(*this, "vmf_sample");
  const kernels::VmfSample push{quads_of(in.d), in.d};
  const auto capacity = rows_at_once(device_, in.rows, in.d);
  for (std::uint64_t begin = 0; begin < in.rows; begin += capacity) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto mu = in.mu.from(begin), cosine_sine = in.cosine_sine.from(begin), to = result.from(begin);
    auto& work = workspaces_.get<VmfWork>(
        std::string(push.name) + "/" + std::to_string(capacity) + "/" + std::to_string(in.d) +
            keys_of({mu, cosine_sine}, {to}),
        0, [&] { return std::make_shared<VmfWork>(*this, capacity, push, mu, cosine_sine, to); });
    *work.params.as<kernels::VmfSample::Params>() = {count, in.first_row + static_cast<std::uint32_t>(begin),
                                                     static_cast<std::uint32_t>(in.seed),
                                                     static_cast<std::uint32_t>(in.seed >> 32)};
    work.mu.write(in.mu, begin, count);
    work.cosine_sine.write(in.cosine_sine, begin, count);
    call.run(work.program);
    work.result.read(result, begin, count);
  }
  call.count();
}

void Engine::probe(std::uint32_t function, std::uint32_t rows, const std::uint32_t* arguments, const std::uint32_t* key,
                   std::uint32_t* result) {
  Call call(*this, "probe");
  const auto capacity = power_of_two(std::min<std::uint32_t>(std::max(rows, 64u), 1u << 16));
  auto& work = workspaces_.get<ProbeWork>("probe/" + std::to_string(function) + "/" + std::to_string(capacity), 0,
                                          [&] { return std::make_shared<ProbeWork>(*this, function, capacity); });
  for (std::uint64_t begin = 0; begin < rows; begin += capacity) {
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, rows - begin));
    *work.params.as<std::uint32_t>() = count;
    work.arguments.write(arguments + 4 * begin, count);
    work.key.write(key + 4 * begin, count);
    call.run(work.program);
    work.result.read(result + 4 * begin, count);
  }
  call.count();
}

}  // namespace ebmvk

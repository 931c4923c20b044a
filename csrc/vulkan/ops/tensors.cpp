// Tensors: made, filled from the host, read back.
#include "vulkan/ops/engine.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cstring>

namespace ebmvk {
namespace {

constexpr std::uint64_t kStagingBytes = std::uint64_t{16} << 20;

// Rows of tensors on their way from or to the host.
struct Part {
  const Tensor* tensor;
  std::uint64_t begin, rows;

  std::uint64_t bytes() const { return 4 * rows * tensor->pitch(); }
};

struct TransferWork {
  Buffer staging;
  Program program;

  TransferWork(Engine& engine, const std::vector<Part>& parts, std::uint64_t bytes, Buffer::Kind kind)
      : staging(engine.device(), kind, bytes), program(engine.device()) {
    std::uint64_t at = 0;
    for (const auto& part : parts) {
      const View there(part.tensor->memory(), 4 * part.begin * part.tensor->pitch(), part.bytes());
      const View here(staging, at, part.bytes());
      at += part.bytes();
      if (kind == Buffer::Kind::upload)
        program.copy(here, there);
      else
        program.copy(there, here);
    }
    program.finish();
  }
};

// Groups of parts that are moved together: as many as fit the staging buffer, or one larger part.
std::vector<std::vector<Part>> divide(const std::vector<const Tensor*>& tensors) {
  std::vector<std::vector<Part>> groups;
  std::uint64_t room = 0;
  for (const auto* tensor : tensors) {
    const std::uint64_t row = std::uint64_t{4} * tensor->pitch();
    for (std::uint64_t begin = 0; begin < tensor->rows();) {
      if (groups.empty() || room < row) {
        groups.emplace_back();
        room = std::max(kStagingBytes, row);
      }
      const auto rows = std::min<std::uint64_t>(tensor->rows() - begin, room / row);
      groups.back().push_back({tensor, begin, rows});
      room -= rows * row;
      begin += rows;
    }
  }
  return groups;
}

// The work that moves the parts.
TransferWork& work_for(Engine& engine, const std::vector<Part>& parts, Buffer::Kind kind) {
  std::string key = kind == Buffer::Kind::upload ? "upload" : "download";
  std::uint64_t bytes = 0;
  for (const auto& part : parts) {
    key += Place{part.tensor, part.begin}.key() + "+" + std::to_string(part.rows);
    bytes += part.bytes();
  }
  return engine.workspaces().get<TransferWork>(
      key, 0, [&] { return std::make_shared<TransferWork>(engine, parts, bytes, kind); });
}

void write(const Part& part, const void* rows, std::uint32_t* to) {
  const auto width = part.tensor->width(), pitch = part.tensor->pitch();
  for (auto row = part.begin; row < part.begin + part.rows; ++row, to += pitch) {
    if (part.tensor->shape().element == Element::index)
      std::transform(static_cast<const std::int64_t*>(rows) + row * width,
                     static_cast<const std::int64_t*>(rows) + (row + 1) * width, to,
                     [](std::int64_t value) { return static_cast<std::uint32_t>(value); });
    else
      std::memcpy(to, static_cast<const float*>(rows) + row * width, std::size_t{4} * width);
    std::fill(to + width, to + pitch, 0u);
  }
}

void read(const Part& part, const std::uint32_t* from, void* rows) {
  const auto width = part.tensor->width(), pitch = part.tensor->pitch();
  for (auto row = part.begin; row < part.begin + part.rows; ++row, from += pitch) {
    if (part.tensor->shape().element == Element::index)
      std::copy_n(from, width, static_cast<std::int64_t*>(rows) + row * width);
    else
      std::memcpy(static_cast<float*>(rows) + row * width, from, std::size_t{4} * width);
  }
}

}  // namespace

std::shared_ptr<Tensor> Engine::tensor(const Tensor::Shape& shape) {
  device_.require_own_process();
  const std::lock_guard<std::mutex> lock(device_.mutex());
  device_.require_alive();
  const auto make = [&] {
    return device_.attempt("making a tensor",
                           [&] { return std::make_shared<Tensor>(shared_from_this(), device_, pool_, shape); });
  };
  try {
    return make();
  } catch (const OutOfMemory&) {
    workspaces_.clear();
    return make();
  }
}

void Engine::upload(Tensor& tensor, const void* rows) {
  Call call(*this, "upload");
  for (const auto& parts : divide({&tensor})) {
    auto& work = work_for(*this, parts, Buffer::Kind::upload);
    write(parts.front(), rows, work.staging.as<std::uint32_t>());
    call.run(work.program);
  }
  call.count();
}

void Engine::download(const std::vector<std::pair<const Tensor*, void*>>& tensors) {
  Call call(*this, "download");
  std::vector<const Tensor*> from;
  for (const auto& [tensor, rows] : tensors) from.push_back(tensor);
  std::size_t next = 0;  // of `tensors`; parts come in their order
  for (const auto& parts : divide(from)) {
    auto& work = work_for(*this, parts, Buffer::Kind::readback);
    call.run(work.program);
    const auto* words = work.staging.as<std::uint32_t>();
    for (const auto& part : parts) {
      while (tensors[next].first->rows() == 0) ++next;
      read(part, words, tensors[next].second);
      words += part.bytes() / 4;
      if (part.begin + part.rows == part.tensor->rows()) ++next;
    }
  }
  call.count();
}

}  // namespace ebmvk

#include "vulkan/runtime/pipeline_file.h"

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "platform.h"

namespace ebmvk {
namespace {

constexpr std::uint64_t kMost = std::uint64_t{256} << 20;

struct Header {
  char magic[8] = {'e', 'b', 'm', 'v', 'k', 'p', 'c', '1'};
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};

// FNV-1a, 64 bits: protects against damage, not against attacks.
std::uint64_t checksum(const std::vector<std::uint8_t>& data) {
  std::uint64_t sum = 0xcbf29ce484222325u;
  for (const auto byte : data) sum = (sum ^ byte) * 0x100000001b3u;
  return sum;
}

}  // namespace

std::vector<std::uint8_t> read_pipelines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Header header;
  if (path.empty() || !file.read(reinterpret_cast<char*>(&header), sizeof(header))) return {};
  if (std::memcmp(header.magic, Header{}.magic, sizeof(header.magic)) != 0 || header.bytes > kMost) return {};
  std::vector<std::uint8_t> data(header.bytes);
  if (!file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size()))) return {};
  return checksum(data) == header.checksum ? data : std::vector<std::uint8_t>{};
}

void write_pipelines(const std::string& path, const std::vector<std::uint8_t>& data) {
  static std::atomic<unsigned> number{0};
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  const auto part = path + "." + std::to_string(process_id()) + "." + std::to_string(++number);
  Header header;
  header.bytes = data.size();
  header.checksum = checksum(data);
  std::ofstream file(part, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof(header));
  file.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  file.close();
  if (file) std::filesystem::rename(part, path, ignored);
  if (!file || ignored) std::filesystem::remove(part, ignored);
}

}  // namespace ebmvk

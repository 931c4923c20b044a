// Compiled pipelines between runs. The file has its length and a checksum: drivers check whose data it is, but not all
// check whether it is whole, and some crash on what is not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ebmvk {

// What was written; empty where the file is missing, damaged or of another version.
std::vector<std::uint8_t> read_pipelines(const std::string& path);

// Written beside and renamed, so that a reader sees all or nothing. What can't be written is not kept.
void write_pipelines(const std::string& path, const std::vector<std::uint8_t>& data);

}  // namespace ebmvk

// Keeps compiled pipelines between runs. The file has its length and a checksum, because drivers
// check whose data it is, but not all of them check that it is complete, and some crash if it
// isn't.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ebmvk {

// The data in the file; empty if it is missing, damaged or from another version.
std::vector<std::uint8_t> read_pipelines(const std::string& path);

// Writes a temporary file and renames it, so that a reader sees all or nothing. If that fails,
// nothing is kept.
void write_pipelines(const std::string& path, const std::vector<std::uint8_t>& data);

}  // namespace ebmvk

// The compiled shaders and their descriptions from the manifest. The table itself is generated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

enum class Access { read, write, update };
enum class Variant { subgroup, portable, resident };
enum class Storage { float32, float16 };  // of the points that a kernel binds

struct KernelSource {
  const char* name;
  Variant variant;
  Storage storage;
  const std::uint32_t* code;
  std::size_t bytes;
  std::vector<Access> access;  // per binding
  std::uint32_t push_bytes;
  std::uint32_t specialise;  // number of specialisation constants, without the workgroup's size
  std::uint32_t group;       // workgroup size if the kernel fixes it, else 0
  bool scalar;               // the last binding has one float per row
  bool params = false;       // the first binding is `params`, as in all kernels of the engine's operations

  // The number of bindings between `params` and the last one.
  std::size_t arguments() const { return access.size() - 2; }
};

const std::vector<KernelSource>& kernel_table();

}  // namespace ebmvk

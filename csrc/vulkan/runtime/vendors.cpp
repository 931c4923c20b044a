#include "vulkan/runtime/vendors.h"

namespace ebmvk {
namespace {

// The first row that fits is used.
//
// AMD     RDNA reports 64 lanes but also runs 32. With 32, 640 coordinates leave no lane idle, and each
//         chain needs fewer registers. A lane has up to 256 registers, and a SIMD 1,024 for waves of
//         32 ("RDNA 2" Instruction Set Architecture, 2020): with 160, six waves hide latency. GCN and
//         Vega have waves of 64 only. Their chains with 96 words of candidates in each lane spill
//         (python -m bench.isa --family vega10), so they get fewer registers.
// NVIDIA  A thread has up to 255 registers, and a multiprocessor 64K (CUDA C++ Programming Guide,
//         "Technical Specifications per Compute Capability"): with 160, 256 threads take 160 KiB of
//         its 256 KiB.
// Intel   A hardware thread has 128 registers of 32 bytes; since Xe2, whose smallest subgroup has 16
//         invocations, of 64 bytes (oneAPI GPU Optimization Guide, "Registers and Performance"). 16
//         invocations share 4 or 8 KiB, which is 64 or 128 words each. 32 would have half of that
//         and spill.
// Apple   A thread has up to 128 registers of 32 bits (D. Johnson, "Apple G13 GPU Architecture
//         Reference", 2021).
// Arm     Bifrost and Valhall give a thread 64 registers of 32 bits (Arm Mali GPU OpenCL Developer
//         Guide, "Mali Bifrost and Valhall GPU specific optimizations").
// Mesa    The software renderers run on a processor and have no such limit. They get that of a large
//         card, so that tests run the kernels that need many registers.
// Others  They get the smallest number of registers of all these.
constexpr Vendor kVendors[] = {
    {kAmd, 64, 64, 128}, {kAmd, 0, 32, 160},   {kNvidia, 0, 32, 160}, {kIntel, 16, 16, 128},
    {kIntel, 0, 16, 64}, {kApple, 0, 32, 128}, {kArm, 0, 16, 64},     {kMesa, 0, 32, 160},
};
constexpr Vendor kOther = {0, 0, 32, 64};

}  // namespace

const Vendor& facts_of(std::uint32_t vendor, std::uint32_t min_subgroup) {
  for (const auto& row : kVendors)
    if (row.id == vendor && min_subgroup >= row.from_min_subgroup) return row;
  return kOther;
}

}  // namespace ebmvk

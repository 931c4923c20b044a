// The words of a SPIR-V module: the numbers that we read in them, and a walk over its instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace ebmvk::spirv {

// Numbers of the SPIR-V specification, 1.5.
constexpr std::uint32_t kMagic = 0x07230203;
constexpr std::size_t kHeaderWords = 5;
constexpr std::uint32_t kLocalSize = 17;                                                 // an execution mode
constexpr std::uint32_t kSpecId = 1, kBuiltIn = 11, kBinding = 33, kDescriptorSet = 34;  // decorations
constexpr std::uint32_t kWorkgroupSize = 25;                                             // a built-in value
constexpr std::uint32_t kWorkgroup = 4;                                                  // a storage class
enum Op : std::uint32_t {
  ExecutionMode = 16,
  Capability = 17,
  TypeInt = 21,
  TypeFloat = 22,
  TypeVector = 23,
  TypeArray = 28,
  TypeStruct = 30,
  TypePointer = 32,
  ConstantTrue = 41,
  ConstantFalse = 42,
  Constant = 43,
  ConstantComposite = 44,
  SpecConstantTrue = 48,
  SpecConstantFalse = 49,
  SpecConstant = 50,
  SpecConstantComposite = 51,
  SpecConstantOp = 52,
  FunctionEnd = 56,
  Variable = 59,
  Decorate = 71,
  IAdd = 128,
  ISub = 130,
  IMul = 132,
  UDiv = 134,
  UMod = 137,
  Select = 169,
  IEqual = 170,
  INotEqual = 171,
  UGreaterThan = 172,
  UGreaterThanEqual = 174,
  ULessThan = 176,
  ULessThanEqual = 178,
  ShiftRightLogical = 194,
  ShiftLeftLogical = 196,
};

// Calls take(operation, words, length) for each instruction; the first of its words has its length
// and operation. Returns the last operation. Throws std::invalid_argument if the module is cut off.
template <typename Take>
std::uint32_t walk(const std::uint32_t* code, std::size_t words, Take take) {
  std::uint32_t last = 0;
  for (std::size_t at = kHeaderWords; at < words;) {
    const std::uint32_t length = code[at] >> 16;
    if (length == 0 || at + length > words) throw std::invalid_argument("a SPIR-V module is cut off");
    last = code[at] & 0xffffu;
    take(last, code + at, length);
    at += length;
  }
  return last;
}

}  // namespace ebmvk::spirv

#include "vulkan/runtime/module_needs.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "vulkan/runtime/spirv.h"

namespace ebmvk {
namespace {

using namespace spirv;

class Reader {
 public:
  ModuleNeeds run(const std::vector<std::uint32_t>& code) {
    const auto last =
        walk(code.data(), code.size(),
             [this](std::uint32_t op, const std::uint32_t* word, std::uint32_t length) { take(op, word, length); });
    if (last != FunctionEnd) throw std::invalid_argument("a SPIR-V module is cut off");
    return needs_;
  }

 private:
  void take(std::uint32_t op, const std::uint32_t* word, std::uint32_t length) {
    if (op == Capability && length == 2) needs_.capabilities.push_back(word[1]);
    if (op == ExecutionMode && length == 6 && word[2] == kLocalSize)
      needs_.invocations = std::uint64_t{word[3]} * word[4] * word[5];
    if (op == Decorate && length == 4 && word[2] == kBinding) needs_.bindings = std::max(needs_.bindings, word[3] + 1);
    if (op == Decorate && length == 4 && word[2] == kDescriptorSet && word[3] != 0) needs_.other_sets = true;
    if (op == TypeFloat && length >= 3) bytes_[word[1]] = word[2] / 8;
    if (op == TypeStruct)
      for (std::uint32_t i = 2; i < length; ++i) bytes_[word[1]] += bytes_[word[i]];
    if (length >= 4) measure(op, word);
  }

  void measure(std::uint32_t op, const std::uint32_t* word) {
    switch (op) {
      case TypeInt: bytes_[word[1]] = word[2] / 8; return;
      case TypeVector: bytes_[word[1]] = bytes_[word[2]] * word[3]; return;
      case TypeArray: bytes_[word[1]] = bytes_[word[2]] * constants_[word[3]]; return;
      case TypePointer: pointed_[word[1]] = word[3]; return;
      case Constant: constants_[word[2]] = word[3]; return;
      case Variable:
        if (word[3] == kWorkgroup) needs_.shared_bytes += bytes_[pointed_[word[1]]];
        return;
      default: return;
    }
  }

  ModuleNeeds needs_;
  std::map<std::uint32_t, std::uint64_t> bytes_, constants_;  // of types; values
  std::map<std::uint32_t, std::uint32_t> pointed_;            // the type behind a pointer's type
};

}  // namespace

ModuleNeeds needs_of(const std::vector<std::uint32_t>& code) { return Reader().run(code); }

}  // namespace ebmvk

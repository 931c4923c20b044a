#include "vulkan/runtime/specialise.h"

#include <map>
#include <stdexcept>
#include <string>

#include "vulkan/runtime/spirv.h"

namespace ebmvk {
namespace {

using Words = std::vector<std::uint32_t>;

using namespace spirv;

bool gives_bool(std::uint32_t operation) { return IEqual <= operation && operation <= ULessThanEqual; }

std::uint32_t evaluate(std::uint32_t operation, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const bool divides = operation == UDiv || operation == UMod;
  if (divides && b == 0) throw std::logic_error("a constant expression of a kernel divides by zero");
  switch (operation) {
    case IAdd: return a + b;
    case ISub: return a - b;
    case IMul: return a * b;
    case UDiv: return a / b;
    case UMod: return a % b;
    case Select: return a ? b : c;
    case IEqual: return a == b;
    case INotEqual: return a != b;
    case UGreaterThan: return a > b;
    case UGreaterThanEqual: return a >= b;
    case ULessThan: return a < b;
    case ULessThanEqual: return a <= b;
    case ShiftRightLogical: return b < 32 ? a >> b : 0;
    case ShiftLeftLogical: return b < 32 ? a << b : 0;
    default:
      throw std::logic_error("a constant expression of a kernel has the unknown operation " +
                             std::to_string(operation));
  }
}

class Specialiser {
 public:
  explicit Specialiser(const Words& values) : values_(values) {}

  Words run(const std::uint32_t* code, std::size_t words) {
    if (words < kHeaderWords || code[0] != kMagic) throw std::logic_error("a kernel is not SPIR-V");
    out_.assign(code, code + kHeaderWords);
    walk(code, words,
         [this](std::uint32_t op, const std::uint32_t* word, std::uint32_t length) { take(op, word, length); });
    set_local_size();
    return out_;
  }

 private:
  void take(std::uint32_t op, const std::uint32_t* word, std::uint32_t length) {
    switch (op) {
      case ExecutionMode:
        if (word[2] == kLocalSize) local_size_at_ = out_.size() + 3;
        return keep(word, length);
      case Decorate:
        if (word[2] == kSpecId) {
          spec_ids_[word[1]] = word[3];
          return;
        }
        if (word[2] == kBuiltIn && word[3] == kWorkgroupSize) workgroup_size_ = word[1];
        return keep(word, length);
      case Constant:
        if (length == 4) known_[word[2]] = word[3];
        return keep(word, length);
      case ConstantTrue:
      case ConstantFalse: known_[word[2]] = op == ConstantTrue; return keep(word, length);
      case SpecConstantTrue:
      case SpecConstantFalse: return constant_bool(word[1], word[2], value(word[2], op == SpecConstantTrue));
      case SpecConstant:
        if (length != 4) throw std::logic_error("a constant of a kernel is not one word");
        return constant(word[1], word[2], value(word[2], word[3]));
      case SpecConstantOp: return expression(word, length);
      case SpecConstantComposite:
        keep(word, length);
        out_[out_.size() - length] = length << 16 | ConstantComposite;
        if (word[2] == workgroup_size_) group_.assign(word + 3, word + length);
        return;
      default: return keep(word, length);
    }
  }

  void keep(const std::uint32_t* word, std::uint32_t length) { out_.insert(out_.end(), word, word + length); }

  std::uint32_t value(std::uint32_t id, std::uint32_t otherwise) const {
    const auto spec = spec_ids_.find(id);
    return spec != spec_ids_.end() && spec->second < values_.size() ? values_[spec->second] : otherwise;
  }

  void constant(std::uint32_t type, std::uint32_t id, std::uint32_t number) {
    known_[id] = number;
    for (const auto word : {4u << 16 | Constant, type, id, number}) out_.push_back(word);
  }

  void constant_bool(std::uint32_t type, std::uint32_t id, bool truth) {
    known_[id] = truth;
    for (const auto word : {3u << 16 | (truth ? ConstantTrue : ConstantFalse), type, id}) out_.push_back(word);
  }

  void expression(const std::uint32_t* word, std::uint32_t length) {
    std::uint32_t operand[3] = {};
    if (length < 6 || length > 7)
      throw std::logic_error("a constant expression of a kernel does not have 2 or 3 operands");
    for (std::uint32_t i = 4; i < length; ++i) operand[i - 4] = number(word[i]);
    const auto result = evaluate(word[3], operand[0], operand[1], operand[2]);
    if (gives_bool(word[3])) return constant_bool(word[1], word[2], result);
    constant(word[1], word[2], result);
  }

  std::uint32_t number(std::uint32_t id) const {
    const auto known = known_.find(id);
    if (known == known_.end()) throw std::logic_error("a constant expression of a kernel has an unknown operand");
    return known->second;
  }

  // A module has the workgroup's size in two places; the built-in constant is the one that counts.
  void set_local_size() {
    if (!local_size_at_ || group_.size() != 3) return;
    for (std::size_t i = 0; i < 3; ++i) out_[local_size_at_ + i] = number(group_[i]);
  }

  const Words& values_;
  Words out_, group_;
  std::map<std::uint32_t, std::uint32_t> spec_ids_, known_;
  std::size_t local_size_at_ = 0;
  std::uint32_t workgroup_size_ = 0;
};

}  // namespace

std::vector<std::uint32_t> specialise(const std::uint32_t* code, std::size_t bytes,
                                      const std::vector<std::uint32_t>& values) {
  return Specialiser(values).run(code, bytes / sizeof(std::uint32_t));
}

}  // namespace ebmvk

#include "cpu/target.h"

#include <stdexcept>

#include "cpu/simd.h"

namespace ebmvk {

#if EBMVK_HAVE_HIGHWAY
namespace {

// The scalar target runs the plain loops (see simd.h).
std::string Name(int64_t target) {
  return target == HWY_SCALAR || target == HWY_EMU128 ? "plain" : hwy::TargetName(target);
}

std::vector<int64_t> Available() { return hwy::SupportedAndGeneratedTargets(); }

int64_t& Chosen() {
  static int64_t chosen = Available().front();
  return chosen;
}

}  // namespace

std::vector<std::string> Targets() {
  std::vector<std::string> names;
  for (const int64_t target : Available()) names.push_back(Name(target));
  return names;
}

std::string Target() { return Name(Chosen()); }

void UseTarget(const std::string& name) {
  for (const int64_t target : Available()) {
    if (Name(target) != name) continue;
    Chosen() = target;
    hwy::GetChosenTarget().Update(target);
    return;
  }
  throw std::invalid_argument("no instruction set " + name);
}
#else
std::vector<std::string> Targets() { return {"plain"}; }

std::string Target() { return "plain"; }

void UseTarget(const std::string& name) {
  if (name != "plain") throw std::invalid_argument("no instruction set " + name + " (built without Highway)");
}
#endif

}  // namespace ebmvk

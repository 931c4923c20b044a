#include "vulkan/ops/recording.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace ebmvk {
namespace {

constexpr std::uint64_t kSlotAlignment = 16;

// Holds the device's mutex if the device can be used.
class Use {
 public:
  explicit Use(Device& device) : lock_((device.require_own_process(), device.mutex())) { device.require_alive(); }

 private:
  std::lock_guard<std::mutex> lock_;
};

bool overlap(const Range& a, const Range& b) {
  return a.memory == b.memory && a.bytes && b.bytes && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

// A binding can't be empty, so for an empty range it is some bytes that the kernel doesn't touch.
View binding_of(const Range& range) {
  if (range.bytes) return {range.memory->buffer(), range.offset, range.bytes};
  return {range.memory->buffer(), 0, std::min<std::uint64_t>(range.memory->buffer().bytes(), 16)};
}

View view_of(const Range& range) { return {range.memory->buffer(), range.offset, range.bytes}; }

}  // namespace

Memory::Memory(std::shared_ptr<Engine> engine, std::uint64_t bytes) : engine_(std::move(engine)), bytes_(bytes) {
  const Use use(engine_->device());
  buffer_ = engine_->with_room([&] { return Buffer(engine_->device(), Buffer::Kind::device, bytes); });
}

Memory::~Memory() {
  if (engine_->device().abandoned()) return;  // a mutex may have been held when this process was forked
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  buffer_ = Buffer();
}

Module make_module(std::shared_ptr<Engine> engine, const GivenModule& given) {
  const Use use(engine->device());
  const auto& pipeline = engine->device().attempt("making kernel " + given.name,
                                                  [&]() -> const Pipeline& { return engine->kernels().get(given); });
  return {std::move(engine), &pipeline};
}

Module make_module(std::shared_ptr<Engine> engine, const std::string& name, std::uint32_t group,
                   const std::vector<std::uint32_t>& constants) {
  const Use use(engine->device());
  const auto known = kernel_table();
  const auto found = std::find_if(known.begin(), known.end(), [&](const auto& source) { return name == source.name; });
  if (found == known.end()) throw std::invalid_argument("unknown kernel: " + name);
  if (constants.size() != found->specialise)
    throw std::invalid_argument("kernel " + name + " has " + std::to_string(found->specialise) +
                                " specialisation constants, not " + std::to_string(constants.size()));
  const auto& pipeline = engine->device().attempt(
      "making kernel " + name, [&]() -> const Pipeline& { return engine->kernels().get(name, group, constants); });
  return {std::move(engine), &pipeline};
}

Recording::~Recording() {
  if (engine_->device().abandoned()) {
    program_.reset();  // keeps what may still be running
    return;
  }
  const std::lock_guard<std::mutex> lock(engine_->device().mutex());
  program_.reset();
  up_ = Buffer();
  down_ = Buffer();
}

void Recording::require_open() const {
  if (program_) throw std::logic_error("the recording is finished; nothing can be added");
}

void Recording::require_inside(const Range& range, const char* what) const {
  if (range.memory->engine() != engine_) throw std::invalid_argument(std::string(what) + " is on another device");
  const auto all = range.memory->bytes();
  if (range.bytes > all || range.offset > all - range.bytes)
    throw std::invalid_argument(std::string(what) + " is bytes " + std::to_string(range.offset) + " to " +
                                std::to_string(range.offset + range.bytes) + " of a memory of " + std::to_string(all));
}

void Recording::add(Step step) {
  if (std::exchange(cut_, false)) steps_.emplace_back([](Program& program) { program.cut(); });
  steps_.push_back(std::move(step));
  open_ = true;
}

void Recording::kernel(const Module& module, const std::vector<Range>& bindings, std::vector<std::uint32_t> push,
                       const Groups& groups) {
  require_open();
  const auto& source = *module.pipeline->source;
  const auto& device = engine_->device();
  const auto& limits = device.capabilities();
  const std::string name = source.name;
  if (module.engine != engine_) throw std::invalid_argument("kernel " + name + " was made for another device");
  if (bindings.size() != source.access.size())
    throw std::invalid_argument("kernel " + name + " binds " + std::to_string(source.access.size()) + " ranges, not " +
                                std::to_string(bindings.size()));
  if (4 * push.size() != source.push_bytes)
    throw std::invalid_argument("kernel " + name + " takes " + std::to_string(source.push_bytes) +
                                " bytes of push constants, not " + std::to_string(4 * push.size()));
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    const auto what = "binding " + std::to_string(i) + " of kernel " + name;
    require_inside(bindings[i], what.c_str());
    if (bindings[i].bytes > device.storage_range())
      throw Unsupported(what + " has " + std::to_string(bindings[i].bytes) + " bytes: the device allows " +
                        std::to_string(device.storage_range()) + " in one range");
    if (bindings[i].bytes && bindings[i].offset % limits.storage_alignment)
      throw std::invalid_argument(what + " begins at " + std::to_string(bindings[i].offset) +
                                  ", which isn't a multiple of " + std::to_string(limits.storage_alignment));
    for (std::size_t j = 0; j < i; ++j)
      if (overlap(bindings[i], bindings[j]) && (source.access[i] != Access::read || source.access[j] != Access::read))
        throw std::invalid_argument(what + " overlaps binding " + std::to_string(j) + ", and one of them is written");
  }
  if (groups.x > limits.max_groups || groups.y > limits.max_groups_yz || groups.z > limits.max_groups_yz)
    throw Unsupported("kernel " + name + " has " + std::to_string(groups.x) + " x " + std::to_string(groups.y) + " x " +
                      std::to_string(groups.z) + " workgroups: the device allows " + std::to_string(limits.max_groups) +
                      " in the first dimension and " + std::to_string(limits.max_groups_yz) + " in the others");
  if (groups.x == 0 || groups.y == 0 || groups.z == 0) return;
  std::vector<View> views;
  for (const auto& range : bindings) {
    views.push_back(binding_of(range));
    memories_.insert(range.memory);
  }
  add([pipeline = module.pipeline, views = std::move(views), push = std::move(push), groups](Program& program) {
    program.kernel(*pipeline, views, push, groups);
  });
}

void Recording::copy(const Range& from, const Range& to) {
  require_open();
  require_inside(from, "the source of a copy");
  require_inside(to, "the target of a copy");
  if (from.bytes != to.bytes)
    throw std::invalid_argument("a copy of " + std::to_string(from.bytes) + " bytes to " + std::to_string(to.bytes));
  if (overlap(from, to)) throw std::invalid_argument("the source and the target of a copy overlap");
  if (from.bytes == 0) return;
  memories_.insert(from.memory);
  memories_.insert(to.memory);
  add([source = view_of(from), target = view_of(to)](Program& program) { program.copy(source, target); });
}

void Recording::fill(const Range& where, std::uint32_t word) {
  require_open();
  require_inside(where, "the target of a fill");
  if (where.offset % 4 || where.bytes % 4) throw std::invalid_argument("the target of a fill isn't whole words");
  if (where.bytes == 0) return;
  memories_.insert(where.memory);
  add([target = view_of(where), word](Program& program) { program.fill(target, word); });
}

std::uint32_t Recording::add_slot(bool up, std::uint64_t bytes) {
  auto& end = up ? up_bytes_ : down_bytes_;
  slots_.push_back({up, end, bytes});
  end += (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  return static_cast<std::uint32_t>(slots_.size() - 1);
}

std::uint32_t Recording::upload(const Range& to) {
  require_open();
  require_inside(to, "the target of an upload");
  const auto number = add_slot(true, to.bytes);
  if (to.bytes == 0) return number;
  memories_.insert(to.memory);
  add([this, number, target = view_of(to)](Program& program) {
    program.copy(View(up_, slots_[number].offset, slots_[number].bytes), target);
  });
  return number;
}

std::uint32_t Recording::download(const Range& from) {
  require_open();
  require_inside(from, "the source of a download");
  const auto number = add_slot(false, from.bytes);
  if (from.bytes == 0) return number;
  memories_.insert(from.memory);
  add([this, number, source = view_of(from)](Program& program) {
    program.copy(source, View(down_, slots_[number].offset, slots_[number].bytes));
  });
  return number;
}

void Recording::cut(double seconds) {
  require_open();
  if (!open_) return;
  estimates_.push_back(std::max(seconds, 0.0));
  open_ = false;
  cut_ = true;
}

void Recording::finish(double seconds) {
  require_open();
  const Use use(engine_->device());
  if (open_ || estimates_.empty()) {
    estimates_.push_back(std::max(seconds, 0.0));
    open_ = false;
  }
  engine_->with_room([&] { build(); });
  steps_.clear();
}

void Recording::build() {
  auto& device = engine_->device();
  up_ = up_bytes_ ? Buffer(device, Buffer::Kind::upload, up_bytes_) : Buffer();
  down_ = down_bytes_ ? Buffer(device, Buffer::Kind::readback, down_bytes_) : Buffer();
  auto program = std::make_unique<Program>(device);
  for (const auto& step : steps_) step(*program);
  program->finish();
  program_ = std::move(program);
}

const Recording::Slot& Recording::slot(std::uint32_t number, bool up, std::uint64_t bytes) const {
  if (number >= slots_.size() || slots_[number].up != up)
    throw std::invalid_argument("slot " + std::to_string(number) + (up ? " isn't an upload" : " isn't a download"));
  if (slots_[number].bytes != bytes)
    throw std::invalid_argument("slot " + std::to_string(number) + " has " + std::to_string(slots_[number].bytes) +
                                " bytes, and the array has " + std::to_string(bytes));
  return slots_[number];
}

Recording::Ran Recording::run(const std::vector<Source>& sources, const std::vector<Target>& targets) {
  if (!program_) throw std::logic_error("the recording isn't finished");
  const Use use(engine_->device());
  std::vector<bool> given(slots_.size());
  for (const auto& target : targets) slot(target.slot, false, target.bytes);
  for (const auto& source : sources) {
    const auto& place = slot(source.slot, true, source.bytes);
    if (source.bytes) std::memcpy(up_.as<char>() + place.offset, source.from, source.bytes);
    given[source.slot] = true;
  }
  for (std::size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].up && !given[i]) throw std::invalid_argument("slot " + std::to_string(i) + " has no source");

  Plan plan(engine_->device());
  for (std::uint32_t i = 0; i < program_->sections(); ++i) plan.add(*program_, i, estimates_[i]);
  const bool at_once = plan.submissions() <= 1;
  Plan::Ran ran;
  try {
    ran = plan.run();
  } catch (const DeviceLost&) {
    intact_ = false;
    throw;
  } catch (...) {  // a submission was refused; those before it ran
    intact_ = intact_ && at_once;
    throw;
  }
  Ran result{ran.seconds, std::move(ran.section_seconds), ran.submissions, ran.traffic};
  learn(result);
  for (const auto& target : targets) {
    const auto& place = slots_[target.slot];
    if (place.bytes) std::memcpy(target.to, down_.as<const char>() + place.offset, place.bytes);
  }
  return result;
}

// A slower run sets the estimate at once, so that no submission becomes too long. A faster run changes
// it by half only, because estimates that jump up and down would change the submissions of every run.
void Recording::learn(const Ran& ran) {
  if (std::exchange(first_, false)) return;  // the first run may include compilation and page faults
  double all = 0;
  for (const auto seconds : estimates_) all += seconds;
  for (std::size_t i = 0; i < estimates_.size(); ++i) {
    auto measured = ran.segment_seconds[i];
    if (measured <= 0 && all > 0) measured = ran.seconds * estimates_[i] / all;
    if (measured <= 0) continue;
    estimates_[i] = measured > estimates_[i] ? measured : 0.5 * (estimates_[i] + measured);
  }
}

}  // namespace ebmvk

// The operation energy_score_backward. The device sorts the entries (row, candidate) by point and
// sums the gradient of each point that occurs, so the work does not depend on the number of points.
#include "vulkan/ops/candidates.h"
#include "vulkan/ops/sums.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <optional>
#include <string>

namespace ebmvk {
namespace {

constexpr const char* kSpeed = "energy_score_backward";
constexpr std::uint64_t kTableBytes = std::uint64_t{64} << 20;  // largest table; longer batches are done in parts

// The number of rows, at most `wanted`, that the tables of one workspace can hold. Workspaces for rows
// on the host serve all numbers of rows up to a power of two.
std::uint32_t table_rows(const Device& device, const Points& points, std::uint64_t wanted, std::uint32_t k,
                         bool tensors) {
  const auto largest = std::max(std::uint64_t{16} * points.quads(), std::uint64_t{8} * k);
  auto fit = std::min<std::uint64_t>(device.capabilities().max_groups, device.storage_range() / largest);
  if (!tensors) fit = std::min(fit, std::max(kTableBytes / largest, std::uint64_t{1}));
  if (fit == 0)
    throw Unsupported(std::to_string(k) + " candidates of " + std::to_string(points.d()) +
                      " dimensions do not fit one binding of " + std::to_string(device.storage_range()) + " bytes");
  const auto rows = std::min(wanted, fit);
  if (tensors) return static_cast<std::uint32_t>(rows);
  const auto capacity = power_of_two(rows);
  return capacity > fit ? capacity / 2 : capacity;
}

struct GradientShape {
  std::uint32_t capacity;  // rows
  std::uint32_t block;     // rows whose candidates are gathered at once, if points span several shards
  std::uint64_t begin;     // the first row
  bool whole;              // all in one submission, from zero; otherwise in slices

  std::string key() const {
    return std::to_string(capacity) + "/" + std::to_string(block) + "/" + std::to_string(whole);
  }
};

Sums::Shape sums_shape(Engine& engine, const Points& points, std::uint32_t capacity, std::uint32_t k) {
  const auto entries = std::uint64_t{capacity} * k;
  return {entries, std::min<std::uint64_t>(entries, points.n()), points.d(), 4 * points.quads(),
          entries_per_window(engine, points.quads())};
}

double flops_per_entry(const Points& points) { return kernels::SegmentSum{points.quads(), 1, 0}.flops(1); }

double row_flops(const Points& points, std::uint32_t k) {
  return kernels::EnergyGradients{points.quads(), k}.flops(1) + k * flops_per_entry(points);
}

class GradientWork {
 public:
  GradientWork(Engine& engine, const Points& points, const GradientShape& shape, const EnergyScoreBackwardArguments& in,
               const GradientResults& out);

  void write(const EnergyScoreBackwardArguments& in, std::uint64_t begin, std::uint32_t rows);
  // `slice`: the number of rows per submission.
  void run(Engine::Call& call, std::uint64_t begin, std::uint32_t rows, std::uint64_t slice,
           const GradientResults& out);

 private:
  kernels::EnergyGradients::Params& params_of(std::uint32_t slot) const {
    return *reinterpret_cast<kernels::EnergyGradients::Params*>(now_.as<char>() + kSlotBytes * slot);
  }
  std::uint64_t most() const { return std::uint64_t{shape_.capacity} * k_; }
  Operand rows_of(const Place& place, Buffer::Kind host) const;
  Operand lists_of(const Place& place, Buffer::Kind host) const;
  Operand numbers_of(const Place& place, Buffer::Kind host) const;
  void record_load(Program& program, const View& touched);
  void record_gradients(Program& program, std::uint32_t slot);
  void add_gradients(Engine::Call& call, std::uint32_t rows, std::uint64_t slice);
  void record_store(Program& program);
  void read(std::uint64_t begin, std::uint32_t rows, const GradientResults& out) const;

  Engine& engine_;
  const Points& points_;
  GradientShape shape_;
  std::uint32_t k_, quads_;
  Buffer rows_, entries_;  // the numbers of rows and of entries
  Buffer now_;             // a slot for each slice: the number of its rows, and the first
  Operand x_, ids_, logw_, kappa_, background_, grad_energy_, grad_score_;
  Operand grad_x_, grad_logw_, grad_kappa_, grad_background_;
  Buffer tangent_, weights_;
  Buffer gathered_;     // candidates of a block
  Table gathered_ids_;  // their places in it, for all rows
  Sort sort_;
  Segments segments_;
  std::optional<View> order_;
  Sums sums_;
  Buffer found_, touched_;  // on the host: the number of points that occur, and their ids
  Program load_;
  std::optional<Program> gradients_, store_;  // null if shape_.whole: then all is in load_
};

GradientWork::GradientWork(Engine& engine, const Points& points, const GradientShape& shape,
                           const EnergyScoreBackwardArguments& in, const GradientResults& out)
    : engine_(engine),
      points_(points),
      shape_(shape),
      k_(in.k),
      quads_(points.quads()),
      rows_(engine.device(), Buffer::Kind::upload, 16),
      entries_(engine.device(), Buffer::Kind::upload, 16),
      now_(engine.device(), Buffer::Kind::upload, kSlotBytes * (shape.whole ? 1 : kSlots)),
      x_(rows_of(in.x.from(shape.begin), Buffer::Kind::upload)),
      ids_(lists_of(in.ids.from(shape.begin), Buffer::Kind::upload)),
      logw_(lists_of(in.logw.from(shape.begin), Buffer::Kind::upload)),
      kappa_(lists_of(in.kappa.from(shape.begin), Buffer::Kind::upload)),
      background_(numbers_of(in.log_background.from(shape.begin), Buffer::Kind::upload)),
      grad_energy_(numbers_of(in.grad_energy.from(shape.begin), Buffer::Kind::upload)),
      grad_score_(rows_of(in.grad_score.from(shape.begin), Buffer::Kind::upload)),
      grad_x_(rows_of(out.x.from(shape.begin), Buffer::Kind::readback)),
      grad_logw_(lists_of(out.logw.from(shape.begin), Buffer::Kind::readback)),
      grad_kappa_(lists_of(out.kappa.from(shape.begin), Buffer::Kind::readback)),
      grad_background_(numbers_of(out.background.from(shape.begin), Buffer::Kind::readback)),
      tangent_(engine.device(), Buffer::Kind::device, std::uint64_t{16} * quads_ * shape.capacity),
      weights_(engine.device(), Buffer::Kind::device, 8 * most()),
      sort_(engine, most()),
      segments_(engine, most(), std::min<std::uint64_t>(most(), points.n()), false),
      sums_(engine, sums_shape(engine, points, shape.capacity, k_),
            out.point_rows ? &out.point_rows->memory() : nullptr,
            [this](Program& program, const View& window, const View& sums, std::uint64_t room) {
              record_sums(engine_, program, segments_, *order_, window,
                          {weights_, x_.on_device(), tangent_, quads_, k_}, sums, room);
            }),
      found_(engine.device(), Buffer::Kind::readback, 16),
      touched_(engine.device(), Buffer::Kind::readback, out.point_ids ? 16 : 4 * segments_.room()),
      load_(engine.device()) {
  if (points.shards() > 1) {
    const auto block = std::uint64_t{shape.block} * k_;
    gathered_ = Buffer(engine.device(), Buffer::Kind::device, checked_product(block, points.row_bytes()));
    gathered_ids_ = Table(engine.device(), shape.capacity, k_, k_, Buffer::Kind::upload);
    auto* to = gathered_ids_.on_host().as<std::uint32_t>();
    for (std::uint64_t i = 0; i < most(); ++i) to[i] = static_cast<std::uint32_t>(i % block);
  }
  record_load(load_, out.point_ids ? View(out.point_ids->memory()) : View(touched_));
  if (shape.whole) {
    record_gradients(load_, 0);
    sums_.record(load_);
    record_store(load_);
  } else {
    gradients_.emplace(engine.device());
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
      if (slot > 0) gradients_->cut();
      record_gradients(*gradients_, slot);
    }
    gradients_->finish();
    sums_.record_slices();
    record_store(store_.emplace(engine.device()));
    store_->finish();
  }
  load_.finish();
}

Operand GradientWork::rows_of(const Place& place, Buffer::Kind host) const {
  return {engine_.device(), place, shape_.capacity, points_.d(), 4 * quads_, host};
}

Operand GradientWork::lists_of(const Place& place, Buffer::Kind host) const {
  return {engine_.device(), place, shape_.capacity, k_, k_, host};
}

Operand GradientWork::numbers_of(const Place& place, Buffer::Kind host) const {
  return {engine_.device(), place, shape_.capacity, 1, 1, host};
}

void GradientWork::write(const EnergyScoreBackwardArguments& in, std::uint64_t begin, std::uint32_t rows) {
  *rows_.as<std::uint32_t>() = rows;
  *entries_.as<std::uint32_t>() = rows * k_;
  x_.write(in.x, begin, rows);
  ids_.write(in.ids, begin, rows);
  logw_.write(in.logw, begin, rows);
  kappa_.write(in.kappa, begin, rows);
  background_.write(in.log_background, begin, rows);
  grad_energy_.write(in.grad_energy, begin, rows);
  grad_score_.write(in.grad_score, begin, rows);
}

// Records the transport of the arguments, the sort, and the search for segments.
void GradientWork::record_load(Program& program, const View& touched) {
  for (const auto* operand : {&x_, &ids_, &logw_, &kappa_, &background_, &grad_energy_, &grad_score_})
    operand->load(engine_.kernels(), program, rows_);
  if (gathered_) program.copy(gathered_ids_.on_host(), gathered_ids_.on_device());
  const View ids = ids_.on_device();
  order_ = sort_.record(engine_, program, entries_, {{ids, 1, bits_of(points_.n() - 1)}});
  segments_.record(engine_, program, entries_, {ids, ids, 0, points_.n()}, *order_);
  program.copy(segments_.found(), found_);
  program.copy(segments_.keys(), touched);
}

// Records all gradients except those of the points, for the rows that a slot of `now_` names.
void GradientWork::record_gradients(Program& program, std::uint32_t slot) {
  const View now(now_, kSlotBytes * slot, sizeof(kernels::EnergyGradients::Params));
  if (gathered_) {
    const auto& gather = engine_.kernels().get(kernels::Gather::name, engine_.row_group(quads_), {}, points_.storage());
    const auto grid = grid_of(engine_.device().capabilities(), std::uint64_t{shape_.block} * k_);
    for (std::uint32_t shard = 0; shard < points_.shards(); ++shard)
      program.kernel(gather, {now, ids_.on_device(), points_.shard(shard), gathered_},
                     kernels::Gather{quads_, k_, points_.shard_begin(shard), points_.shard_end(shard), 1}, grid.x,
                     grid.y);
  }
  const auto& pipeline = engine_.kernels().get(kernels::EnergyGradients::name, engine_.row_group(quads_),
                                               energy_constants(engine_, quads_, k_, 8), points_.storage());
  program.kernel(pipeline,
                 {now, x_.on_device(), gathered_ ? View(gathered_) : points_.shard(0),
                  gathered_ ? View(gathered_ids_.on_device()) : ids_.on_device(), logw_.on_device(), kappa_.on_device(),
                  background_.on_device(), grad_energy_.on_device(), grad_score_.on_device(), grad_x_.on_device(),
                  tangent_, weights_, grad_logw_.on_device(), grad_kappa_.on_device(), grad_background_.on_device()},
                 kernels::EnergyGradients{quads_, k_}, gathered_ ? shape_.block : shape_.capacity);
}

void GradientWork::record_store(Program& program) {
  for (const auto* operand : {&grad_x_, &grad_logw_, &grad_kappa_, &grad_background_})
    operand->store(engine_.kernels(), program, rows_);
}

// Adds the gradients of all rows to the plan, `slice` rows per submission.
void GradientWork::add_gradients(Engine::Call& call, std::uint32_t rows, std::uint64_t slice) {
  const kernels::EnergyGradients cost{quads_, k_};
  const auto most = static_cast<std::uint32_t>(gathered_ ? shape_.block : std::min<std::uint64_t>(slice, rows));
  for (std::uint32_t first = 0, slot = 0; first < rows; first += most, ++slot) {
    if (slot >= call.slots(kSpeed)) {
      call.run();
      slot = 0;
    }
    const auto now = std::min(most, rows - first);
    params_of(slot) = {now, first};
    call.add(*gradients_, slot, kSpeed, cost.flops(now));
  }
}

void GradientWork::run(Engine::Call& call, std::uint64_t begin, std::uint32_t rows, std::uint64_t slice,
                       const GradientResults& out) {
  const HostRows points{out.points, points_.d(), touched_.as<std::uint32_t>()};
  const auto* found = found_.as<std::uint32_t>();
  if (shape_.whole) {
    params_of(0) = {rows, 0};
    call.run(load_, kSpeed, row_flops(points_, k_) * rows);
    sums_.read(points, *found);
    return read(begin, rows, out);
  }
  const EntryCost cost{kSpeed, flops_per_entry(points_)};
  const auto entries = std::uint64_t{rows} * k_;
  call.add(load_, 0);
  add_gradients(call, rows, slice);
  call.add(*store_, 0);
  if (begin == 0 &&
      Sums::at_once(engine_.device(), sums_shape(engine_, points_, shape_.capacity, k_), out.point_rows != nullptr)) {
    sums_.add(call, entries, slice * k_, cost);
    call.run();
    sums_.read(points, *found);
  } else {
    call.run();
    sums_.add_in_turns(call, entries, slice * k_, cost, points, *found);
  }
  read(begin, rows, out);
}

void GradientWork::read(std::uint64_t begin, std::uint32_t rows, const GradientResults& out) const {
  grad_x_.read(out.x, begin, rows);
  grad_logw_.read(out.logw, begin, rows);
  grad_kappa_.read(out.kappa, begin, rows);
  grad_background_.read(out.background, begin, rows);
  if (!out.point_ids) return;
  const auto found = *found_.as<std::uint32_t>();
  out.point_ids->keep(found);
  out.point_rows->keep(found);
}

std::string places_of(const EnergyScoreBackwardArguments& in, const GradientResults& out, std::uint64_t begin) {
  return keys_of({in.x.from(begin), in.ids.from(begin), in.logw.from(begin), in.kappa.from(begin),
                  in.log_background.from(begin), in.grad_energy.from(begin), in.grad_score.from(begin)},
                 {out.x.from(begin), out.logw.from(begin), out.kappa.from(begin), out.background.from(begin),
                  Place{out.point_ids}, Place{out.point_rows}});
}

}  // namespace

std::uint32_t Engine::touched_points(const Points& points, std::uint32_t rows, std::uint32_t k) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(std::uint64_t{rows} * k, points.n()));
}

void Engine::energy_score_backward(const Points& points, const EnergyScoreBackwardArguments& in,
                                   const GradientResults& out) {
  Call call(*this, kSpeed, &points);
  const auto& shape = in;
  const bool tensors = out.point_rows != nullptr;
  if (tensors && shape.rows == 0) {
    out.point_ids->keep(0);
    out.point_rows->keep(0);
  }
  for (std::uint64_t begin = 0; begin < shape.rows;) {
    const auto capacity = table_rows(device_, points, shape.rows - begin, shape.k, tensors);
    if (tensors && capacity < shape.rows)
      throw Unsupported(std::to_string(shape.rows) + " rows of " + std::to_string(shape.k) + " candidates and " +
                        std::to_string(shape.d) + " dimensions: at most " + std::to_string(capacity) +
                        " fit the device's bindings, unless rows are on the host");
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, shape.rows - begin));
    const auto slice = std::min<std::uint64_t>(units_per_slice(kSpeed, row_flops(points, shape.k)), rows);
    const auto block = points.shards() == 1 ? capacity : energy_capacity(*this, points, slice, shape.k, 8 * shape.k);
    const bool whole = begin == 0 && rows == shape.rows && slice == rows && block >= rows &&
                       Sums::at_once(device_, sums_shape(*this, points, capacity, shape.k), tensors);
    const GradientShape of{capacity, block, begin, whole};
    auto& work = workspaces_.get<GradientWork>(
        std::string(kSpeed) + "/" + std::to_string(points.id()) + "/" + std::to_string(shape.k) + "/" + of.key() +
            places_of(in, out, begin),
        points.id(), [&] { return std::make_shared<GradientWork>(*this, points, of, in, out); });
    work.write(in, begin, rows);
    work.run(call, begin, rows, slice, out);
    begin += rows;
  }
  call.count();
}

}  // namespace ebmvk

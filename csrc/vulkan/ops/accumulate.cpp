// The operation accumulate: statistics of entries (row, candidate), sorted by splat, and by splat and
// token, on the device.
#include "vulkan/ops/sums.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace ebmvk {
namespace {

constexpr const char* kSpeed = "accumulate";
constexpr std::uint64_t kTableBytes = std::uint64_t{64} << 20;  // largest table; longer batches are done in parts

struct AccumulateShape {
  std::uint32_t capacity, k, d, n;  // capacity: rows
  std::uint32_t token_bits;
  bool whole;  // all in one submission, from zero; otherwise in slices

  std::uint64_t entries() const { return std::uint64_t{capacity} * k; }
  std::uint64_t splats() const { return std::min<std::uint64_t>(entries(), n); }  // the most that can occur
  std::uint32_t pitch() const { return 4 * quads_of(d); }
  std::string key() const {
    std::string key = kSpeed;
    for (const auto part : {capacity, k, d, n, token_bits, std::uint32_t{whole}}) key += "/" + std::to_string(part);
    return key;
  }
};

double flops_per_entry(std::uint32_t d) { return kernels::SegmentSum{quads_of(d), 1, 0}.flops(1); }

Sums::Shape resultant_shape(Engine& engine, const AccumulateShape& of) {
  return {of.entries(), of.splats(), of.d, of.pitch(), entries_per_window(engine, quads_of(of.d))};
}

// The shape of totals: a number for each of up to `segments` segments.
Sums::Shape total_shape(Engine& engine, const AccumulateShape& of, std::uint64_t segments) {
  return {of.entries(), segments, 1, 1, entries_per_window(engine, 1)};
}

std::uint64_t pair_of(std::uint32_t splat, std::uint32_t token) { return std::uint64_t{splat} << 32 | token; }

class AccumulateWork {
 public:
  AccumulateWork(Engine& engine, const AccumulateShape& shape, const AccumulateArguments& in,
                 const AccumulatedTensors* to);

  void write(const AccumulateArguments& in, std::uint64_t begin, std::uint32_t rows);
  // `slice`: the number of entries per submission. Continues the statistics in `out`.
  void run(Engine::Call& call, std::uint32_t rows, std::uint64_t slice, Accumulated& out);
  // The same for all rows; the statistics start from zero and go to tensors.
  void run(Engine::Call& call, std::uint32_t rows, std::uint64_t slice, const AccumulatedTensors& to);

 private:
  void record_load();
  void record_store(Program& program, const AccumulatedTensors& to);
  void add_sums(Engine::Call& call, std::uint64_t entries, std::uint64_t slice);
  Sums::Record totals_of(const Segments& segments, const std::optional<View>& order);
  std::vector<std::uint32_t> merge_pairs(Accumulated& out) const;

  Engine& engine_;
  AccumulateShape shape_;
  Buffer rows_, entries_;  // the numbers of rows and of entries
  Operand x_, ids_, shares_, tokens_;
  Buffer keys_, weights_;
  Buffer resultants_, masses_;  // of segments, if the statistics stay on the device
  Sort by_splat_, by_pair_;
  Segments splats_, pairs_;
  std::optional<View> splat_order_, pair_order_;
  Sums resultant_, mass_, counts_;
  Buffer found_splats_, found_pairs_, splat_ids_, pair_ids_, pair_tokens_;  // on the host
  Program load_;                                                            // everything if shape_.whole
  std::optional<Program> store_;
};

AccumulateWork::AccumulateWork(Engine& engine, const AccumulateShape& shape, const AccumulateArguments& in,
                               const AccumulatedTensors* to)
    : engine_(engine),
      shape_(shape),
      rows_(engine.device(), Buffer::Kind::upload, 16),
      entries_(engine.device(), Buffer::Kind::upload, 16),
      x_(engine.device(), in.x.from(0), shape.capacity, shape.d, shape.pitch(), Buffer::Kind::upload),
      ids_(engine.device(), in.ids.from(0), shape.capacity, shape.k, shape.k, Buffer::Kind::upload),
      shares_(engine.device(), in.responsibilities.from(0), shape.capacity, shape.k, shape.k, Buffer::Kind::upload),
      tokens_(engine.device(), in.tokens.from(0), shape.capacity, 1, 1, Buffer::Kind::upload),
      keys_(engine.device(), Buffer::Kind::device, 4 * shape.entries()),
      weights_(engine.device(), Buffer::Kind::device, 8 * shape.entries()),
      resultants_(engine.device(), Buffer::Kind::device, to ? 4 * shape.pitch() * shape.splats() : 16),
      masses_(engine.device(), Buffer::Kind::device, to ? 4 * shape.splats() : 16),
      by_splat_(engine, shape.entries()),
      by_pair_(engine, shape.entries()),
      splats_(engine, shape.entries(), shape.splats(), false),
      pairs_(engine, shape.entries(), shape.entries(), true),
      resultant_(engine, resultant_shape(engine, shape), to ? &resultants_ : nullptr,
                 [this](Program& program, const View& window, const View& sums, std::uint64_t room) {
                   record_sums(engine_, program, splats_, *splat_order_, window,
                               {weights_, x_.on_device(), x_.on_device(), quads_of(shape_.d), shape_.k}, sums, room);
                 }),
      mass_(engine, total_shape(engine, shape, splats_.room()), to ? &masses_ : nullptr,
            totals_of(splats_, splat_order_)),
      counts_(engine, total_shape(engine, shape, pairs_.room()), to ? &to->counts->memory() : nullptr,
              totals_of(pairs_, pair_order_)),
      found_splats_(engine.device(), Buffer::Kind::readback, 16),
      found_pairs_(engine.device(), Buffer::Kind::readback, 16),
      splat_ids_(engine.device(), Buffer::Kind::readback, to ? 16 : 4 * splats_.room()),
      pair_ids_(engine.device(), Buffer::Kind::readback, to ? 16 : 4 * pairs_.room()),
      pair_tokens_(engine.device(), Buffer::Kind::readback, to ? 16 : 4 * pairs_.room()),
      load_(engine.device()) {
  record_load();
  if (!to) {
    load_.copy(splats_.found(), found_splats_);
    load_.copy(splats_.keys(), splat_ids_);
    load_.copy(pairs_.keys(), pair_ids_);
    load_.copy(pairs_.tokens(), pair_tokens_);
  }
  for (auto* sums : {&resultant_, &mass_, &counts_}) {
    if (shape.whole)
      sums->record(load_);
    else
      sums->record_slices();
  }
  if (to) {
    auto& program = shape.whole ? load_ : store_.emplace(engine.device());
    record_store(program, *to);
    if (!shape.whole) program.finish();
  }
  load_.finish();
}

Sums::Record AccumulateWork::totals_of(const Segments& segments, const std::optional<View>& order) {
  return [this, &segments, &order](Program& program, const View& window, const View& totals, std::uint64_t room) {
    record_totals(engine_, program, segments, *order, window, weights_, totals, room);
  };
}

void AccumulateWork::record_load() {
  for (const auto* operand : {&x_, &ids_, &shares_, &tokens_}) operand->load(engine_.kernels(), load_, rows_);
  constexpr auto group = kernels::ShareKeys::group;
  const auto grid = grid_of(engine_.device().capabilities(), (shape_.entries() + group - 1) / group);
  load_.kernel(engine_.kernels().get(kernels::ShareKeys::name, group, {}),
               {entries_, ids_.on_device(), shares_.on_device(), keys_, weights_}, kernels::ShareKeys{shape_.n}, grid.x,
               grid.y);
  const SortKey splat{keys_, 1, bits_of(shape_.n)}, token{tokens_.on_device(), shape_.k, shape_.token_bits};
  splat_order_ = by_splat_.record(engine_, load_, entries_, {splat});
  splats_.record(engine_, load_, entries_, {keys_, keys_, 0, shape_.n}, *splat_order_);
  pair_order_ = by_pair_.record(engine_, load_, entries_, {token, splat});
  pairs_.record(engine_, load_, entries_, {keys_, tokens_.on_device(), shape_.k, shape_.n}, *pair_order_);
  load_.copy(pairs_.found(), found_pairs_);
}

// Writes the sums of segments to the rows of their splats, and the pairs to their tensor.
void AccumulateWork::record_store(Program& program, const AccumulatedTensors& to) {
  const auto& device = engine_.device().capabilities();
  const auto& scatter = engine_.kernels().get(kernels::ScatterRows::name, kernels::ScatterRows::group, {});
  const auto put = [&](const Buffer& sums, std::uint32_t words, const Tensor& tensor) {
    const auto row = std::uint64_t{4} * words;
    program.fill(View(tensor.memory(), 0, row * shape_.n), 0);
    const auto from_part = rows_per_binding(engine_.device(), shape_.splats(), words);
    const auto to_part = rows_per_binding(engine_.device(), shape_.n, words);
    for (std::uint64_t from = 0; from < shape_.splats(); from += from_part) {
      const auto room = std::min(from_part, shape_.splats() - from);
      const auto grid = grid_of(device, room);
      for (std::uint64_t first = 0; first < shape_.n; first += to_part) {
        const auto end = std::min<std::uint64_t>(first + to_part, shape_.n);
        program.kernel(scatter,
                       {splats_.found(), splats_.keys(), View(sums, row * from, row * room),
                        View(tensor.memory(), row * first, row * (end - first))},
                       kernels::ScatterRows{words, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(end),
                                            static_cast<std::uint32_t>(from), static_cast<std::uint32_t>(room)},
                       grid.x, grid.y);
      }
    }
  };
  put(resultants_, shape_.pitch(), *to.resultant);
  put(masses_, 1, *to.mass);
  constexpr auto group = kernels::PairWords::group;
  const auto grid = grid_of(device, (shape_.entries() + group - 1) / group);
  program.kernel(engine_.kernels().get(kernels::PairWords::name, group, {}),
                 {pairs_.found(), pairs_.keys(), pairs_.tokens(), to.pairs->memory()}, 0u, grid.x, grid.y);
}

void AccumulateWork::write(const AccumulateArguments& in, std::uint64_t begin, std::uint32_t rows) {
  *rows_.as<std::uint32_t>() = rows;
  *entries_.as<std::uint32_t>() = rows * in.k;
  x_.write(in.x, begin, rows);
  ids_.write(in.ids, begin, rows);
  shares_.write(in.responsibilities, begin, rows);
  tokens_.write(in.tokens, begin, rows);
}

// Adds the pairs that were found to those of `out`, with counts of zero. Returns the place of each.
std::vector<std::uint32_t> AccumulateWork::merge_pairs(Accumulated& out) const {
  std::vector<std::uint64_t> now(*found_pairs_.as<std::uint32_t>());
  for (std::size_t i = 0; i < now.size(); ++i)
    now[i] = pair_of(pair_ids_.as<std::uint32_t>()[i], pair_tokens_.as<std::uint32_t>()[i]);
  std::vector<std::uint64_t> all;
  all.reserve(out.pairs.size() + now.size());
  std::set_union(out.pairs.begin(), out.pairs.end(), now.begin(), now.end(), std::back_inserter(all));
  std::vector<float> counts(all.size());
  for (std::size_t i = 0, from = 0; from < out.pairs.size(); ++i)
    if (all[i] == out.pairs[from]) counts[i] = out.counts[from++];
  std::vector<std::uint32_t> places(now.size());
  for (std::size_t i = 0, from = 0; from < now.size(); ++i)
    if (all[i] == now[from]) places[from++] = static_cast<std::uint32_t>(i);
  out.pairs = std::move(all);
  out.counts = std::move(counts);
  return places;
}

// Adds all sums to the plan, from zero.
void AccumulateWork::add_sums(Engine::Call& call, std::uint64_t entries, std::uint64_t slice) {
  resultant_.add(call, entries, slice, {kSpeed, flops_per_entry(shape_.d)});
  for (auto* totals : {&mass_, &counts_}) totals->add(call, entries, slice, {"", 0});
}

void AccumulateWork::run(Engine::Call& call, std::uint32_t rows, std::uint64_t slice, const AccumulatedTensors& to) {
  const auto entries = std::uint64_t{rows} * shape_.k;
  call.add(load_, 0, kSpeed, shape_.whole ? flops_per_entry(shape_.d) * static_cast<double>(entries) : 0);
  if (!shape_.whole) {
    add_sums(call, entries, slice);
    call.add(*store_, 0);
  }
  call.run();
  for (auto* tensor : {to.pairs, to.counts}) tensor->keep(*found_pairs_.as<std::uint32_t>());
}

void AccumulateWork::run(Engine::Call& call, std::uint32_t rows, std::uint64_t slice, Accumulated& out) {
  const auto entries = std::uint64_t{rows} * shape_.k;
  const auto flops = flops_per_entry(shape_.d);
  call.run(load_, kSpeed, shape_.whole ? flops * static_cast<double>(entries) : 0);
  const auto places = merge_pairs(out);
  const std::size_t stride = shape_.d + 1;  // a resultant, then its mass
  const auto* splats = splat_ids_.as<std::uint32_t>();
  const HostRows resultants{out.sums.data(), stride, splats}, masses{out.sums.data() + shape_.d, stride, splats};
  const HostRows counts{out.counts.data(), 1, places.data()};
  const auto found = *found_splats_.as<std::uint32_t>();
  if (shape_.whole) {
    resultant_.read(resultants, found);
    mass_.read(masses, found);
    counts_.read(counts, places.size());
    return;
  }
  resultant_.add_in_turns(call, entries, slice, {kSpeed, flops}, resultants, found);
  mass_.add_in_turns(call, entries, slice, {"", 0}, masses, found);
  counts_.add_in_turns(call, entries, slice, {"", 0}, counts, places.size());
}

std::string places_of(const AccumulateArguments& in, const AccumulatedTensors* to) {
  std::vector<Place> results;
  if (to)
    for (const auto* tensor : {to->mass, to->resultant, to->pairs, to->counts}) results.push_back({tensor});
  return keys_of({in.x.from(0), in.ids.from(0), in.responsibilities.from(0), in.tokens.from(0)}, results);
}

}  // namespace

std::uint64_t Engine::tokens_below(const AccumulateArguments& in) {
  if (in.tokens.tensor) return in.tokens.tensor->below();
  return in.rows == 0 ? 1 : static_cast<std::uint64_t>(*std::max_element(in.tokens.host, in.tokens.host + in.rows)) + 1;
}

Accumulated Engine::accumulate(const AccumulateArguments& in, const AccumulatedTensors* to) {
  Call call(*this, kSpeed);
  Accumulated out;
  if (!to) out.sums.resize(checked_product(in.n, in.d + 1));
  if (in.rows == 0 && !to) {
    call.count();
    return out;
  }
  const auto row_bytes = std::max(std::uint64_t{16} * quads_of(in.d), std::uint64_t{8} * in.k);
  const auto fit = (to ? device_.storage_range() : std::min(device_.storage_range(), kTableBytes)) / row_bytes;
  if (fit == 0)
    throw Unsupported(std::to_string(in.k) + " candidates do not fit one binding of " +
                      std::to_string(device_.storage_range()) + " bytes");
  if (to && in.rows > fit)
    throw Unsupported(std::to_string(in.rows) + " rows of " + std::to_string(in.k) + " candidates and " +
                      std::to_string(in.d) + " dimensions: at most " + std::to_string(fit) +
                      " fit the device's bindings, unless rows are on the host");
  auto capacity = to ? std::max(in.rows, 1u) : power_of_two(std::min<std::uint64_t>(in.rows, fit));
  if (capacity > fit) capacity /= 2;
  // Bits are rounded up to a multiple of 4, so that few workspaces serve all batches.
  const auto bits = (bits_of(std::max<std::uint64_t>(tokens_below(in), 1) - 1) + 3) / 4 * 4;
  const auto slice = units_per_slice(kSpeed, flops_per_entry(in.d));
  AccumulateShape shape{capacity, in.k, in.d, in.n, bits, false};
  shape.whole = in.rows <= capacity && std::uint64_t{in.rows} * in.k <= slice &&
                Sums::at_once(device_, resultant_shape(*this, shape), to) &&
                Sums::at_once(device_, total_shape(*this, shape, shape.entries()), to);
  auto& work = workspaces_.get<AccumulateWork>(shape.key() + places_of(in, to), 0,
                                               [&] { return std::make_shared<AccumulateWork>(*this, shape, in, to); });
  if (to) {
    work.write(in, 0, in.rows);
    work.run(call, in.rows, slice, *to);
  }
  for (std::uint64_t begin = 0; begin < in.rows && !to; begin += capacity) {
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    work.write(in, begin, rows);
    work.run(call, rows, slice, out);
  }
  call.count();
  return out;
}

}  // namespace ebmvk

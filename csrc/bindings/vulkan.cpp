// The Python side of the Vulkan engine: NumPy arrays in and out. Shapes are checked again here, so
// that no call from Python reads or writes outside an array; the caller checks values.
#include "bindings/gil.h"
#include "bindings/kernels.h"
#include "bindings/operand.h"
#include "bindings/planning.h"
#include "bindings/recording.h"
#include "bindings/tensors.h"
#include "vulkan/ops/engine.h"
#include "vulkan/runtime/dispatch.h"
#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/guard.h"
#include "vulkan/runtime/kernel_registry.h"
#include "vulkan/runtime/profiles.h"
#include "vulkan_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

using namespace ebmvk;

namespace {

py::object rows(Engine& engine, const std::string& operation, const std::vector<py::object>& arguments) {
  const auto& kernel = row_kernel(operation);
  if (arguments.size() != kernel.arguments()) throw std::invalid_argument("wrong number of arguments");
  py::ssize_t rows = kAny, d = kAny;
  std::vector<Argument<float>> in;
  bool on_device = false;
  for (const auto& value : arguments) {
    in.push_back(argument<float>(engine, value, "an argument", {&rows, &d}));
    on_device = on_device || in.back().tensor;
  }
  require_some(d, "d");
  const auto result = kernel.scalar ? make_result<float>(engine, on_device, {rows})
                                    : make_result<float>(engine, on_device, {rows, d}, true);
  {
    const ReleaseGil release;
    engine.rows(kernel, count(rows, "B"), count(d, "d"), in, result.to);
  }
  return result.value;
}

py::tuple energy_score_backward(Engine& engine, const py::object& x, const Points& points, const py::object& ids,
                                const py::object& logw, const py::object& kappa, const py::object& log_background,
                                const py::object& grad_energy, const py::object& grad_score) {
  const auto in =
      read_energy_score_backward(engine, x, points, ids, logw, kappa, log_background, grad_energy, grad_score);
  const bool on_device = any_tensor({x, ids, logw, kappa, log_background, grad_energy, grad_score});
  const auto of_x = make_result<float>(engine, on_device, {in.rows, in.d}, true);
  const auto of_logw = make_result<float>(engine, on_device, {in.rows, in.k});
  const auto of_kappa = make_result<float>(engine, on_device, {in.rows, in.k});
  const auto of_background = make_result<float>(engine, on_device, {in.rows});
  GradientResults out{of_x.to, of_logw.to, of_kappa.to, of_background.to, nullptr, nullptr, nullptr};
  py::object of_points;
  if (on_device) {
    const auto room = Engine::touched_points(points, in.rows, in.k);
    const auto point_ids = engine.tensor({room, 1, 1, true, Element::index});
    const auto point_rows = engine.tensor({room, in.d, 4 * quads_of(in.d), false, Element::float32});
    point_ids->set_below(points.n());
    out.point_ids = point_ids.get();
    out.point_rows = point_rows.get();
    of_points = py::make_tuple(point_ids, point_rows, points.n());
  } else {
    const py::ssize_t n = points.n(), d = in.d;
    Floats dense({n, d});
    out.points = dense.mutable_data();
    of_points = dense;
  }
  {
    const ReleaseGil release;
    if (out.points) std::fill_n(out.points, static_cast<std::size_t>(points.n()) * in.d, 0.0f);
    engine.energy_score_backward(points, in, out);
  }
  return py::make_tuple(of_x.value, of_points, of_logw.value, of_kappa.value, of_background.value);
}

py::object vmf_sample(Engine& engine, const py::object& mu, const py::object& cosine_sine, std::uint64_t seed,
                      std::uint32_t first_row) {
  py::ssize_t rows = kAny, d = kAny, two = 2;
  const auto from_mu = argument<float>(engine, mu, "mu", {&rows, &d});
  const auto from_angles = argument<float>(engine, cosine_sine, "cosine_sine", {&rows, &two});
  const VmfArguments in{count(rows, "B"), count(d, "d"), from_mu, from_angles, seed, first_row};
  const auto result = make_result<float>(engine, any_tensor({mu, cosine_sine}), {rows, d}, true);
  {
    const ReleaseGil release;
    engine.vmf_sample(in, result.to);
  }
  return result.value;
}

py::tuple accumulate_on_device(Engine& engine, const AccumulateArguments& in) {
  const auto tensor = [&](std::uint32_t rows, std::uint32_t width, std::uint32_t pitch, bool vector, Element element) {
    const ReleaseGil release;
    return engine.tensor({rows, width, pitch, vector, element});
  };
  const auto room = std::max(in.rows, 1u) * in.k;  // the program's tensors have at least one row
  const auto mass = tensor(in.n, 1, 1, true, Element::float32);
  const auto resultant = tensor(in.n, in.d, 4 * quads_of(in.d), false, Element::float32);
  const auto splat_token = tensor(room, 2, 2, false, Element::index);
  const auto counts = tensor(room, 1, 1, true, Element::float32);
  splat_token->set_below(std::max(std::uint64_t{in.n}, Engine::tokens_below(in)));
  const AccumulatedTensors to{mass.get(), resultant.get(), splat_token.get(), counts.get()};
  {
    const ReleaseGil release;
    engine.accumulate(in, &to);
  }
  return py::make_tuple(mass, resultant, splat_token, counts);
}

// mass (n,), resultant (n, d), splat and token of each pair (P, 2), counts (P,).
py::tuple accumulate(Engine& engine, const py::object& x, const py::object& ids, const py::object& responsibilities,
                     const py::object& tokens, std::uint32_t n) {
  const auto in = read_accumulate(engine, x, ids, responsibilities, tokens, n);
  count(py::ssize_t{in.rows} * in.k, "B x K");
  if (any_tensor({x, ids, responsibilities, tokens})) return accumulate_on_device(engine, in);
  Accumulated found;
  {
    const ReleaseGil release;
    found = engine.accumulate(in);
  }
  const py::ssize_t pairs = static_cast<py::ssize_t>(found.pairs.size()), splats = n, d = in.d;
  Floats mass({splats}), resultant({splats, d}), counts({pairs});
  Ids splat_token({pairs, py::ssize_t{2}});
  for (py::ssize_t i = 0; i < splats; ++i) {
    const auto* sums = found.sums.data() + i * (d + 1);
    std::copy_n(sums, d, resultant.mutable_data() + i * d);
    mass.mutable_data()[i] = sums[d];
  }
  std::copy(found.counts.begin(), found.counts.end(), counts.mutable_data());
  auto* to = splat_token.mutable_data();
  for (const auto pair : found.pairs) {
    *to++ = static_cast<std::int64_t>(pair >> 32);
    *to++ = static_cast<std::int64_t>(pair & 0xffffffffu);
  }
  return py::make_tuple(mass, resultant, splat_token, counts);
}

Words probe(Engine& engine, std::uint32_t function, const Words& arguments, const Words& key) {
  if (arguments.ndim() != 2) throw std::invalid_argument("arguments is not (rows, 4)");
  const auto rows = arguments.shape(0);
  require(arguments, "arguments", {rows, 4});
  require(key, "key", {rows, 4});
  Words result({rows, py::ssize_t{4}});
  const auto* in = arguments.data();
  const auto* keys = key.data();
  auto* out = result.mutable_data();
  const ReleaseGil release;
  engine.probe(function, count(rows, "rows"), in, keys, out);
  return result;
}

py::tuple probe_sort(Engine& engine, const Words& keys, const Words& tokens, std::uint32_t per_token,
                     std::uint32_t limit) {
  if (keys.ndim() != 1 || tokens.ndim() != 1) throw std::invalid_argument("keys or tokens is not (entries,)");
  const auto entries = count(keys.size(), "entries");
  if (per_token && tokens.size() < (keys.size() + per_token - 1) / per_token)
    throw std::invalid_argument("there are fewer tokens than the entries need");
  SortAnswer out;
  {
    const SortQuestion question{entries, keys.data(), tokens.data(), per_token, limit};
    const ReleaseGil release;
    out = engine.probe_sort(question);
  }
  const auto array = [](const std::vector<std::uint32_t>& words) {
    return Words(static_cast<py::ssize_t>(words.size()), words.data());
  };
  return py::make_tuple(array(out.order), array(out.starts), array(out.keys), array(out.tokens));
}

std::shared_ptr<Points> make_points(std::shared_ptr<Engine> engine, const Floats& rows, Storage storage) {
  matrix(rows, "points");
  const auto n = count(rows.shape(0), "N");
  const auto d = count(rows.shape(1), "d");
  if (n < 1) throw std::invalid_argument("points has no rows");
  const auto* data = rows.data();
  const ReleaseGil release;
  return std::make_shared<Points>(std::move(engine), n, d, data, storage);
}

void update_points(Points& points, const Floats& rows) {
  require(rows, "points", {static_cast<py::ssize_t>(points.n()), static_cast<py::ssize_t>(points.d())});
  const auto* data = rows.data();
  const ReleaseGil release;
  points.update(data);
}

void update_some(Points& points, const Floats& rows, std::uint32_t first) {
  const auto some = matrix(rows, "points").shape(0);
  require(rows, "points", {some, static_cast<py::ssize_t>(points.d())});
  if (some > static_cast<py::ssize_t>(points.n()) - static_cast<py::ssize_t>(first))
    throw std::invalid_argument("the rows from first on are more than the points have");
  const auto* data = rows.data();
  const ReleaseGil release;
  points.update(data, first, static_cast<std::uint32_t>(some));
}

void update_named(Points& points, const Floats& rows, const Ids& ids) {
  const auto some = matrix(rows, "points").shape(0);
  require(rows, "points", {some, static_cast<py::ssize_t>(points.d())});
  require(ids, "ids", {some});
  require_below({ids.data(), nullptr}, some, "ids", points.n());
  const auto* data = rows.data();
  const auto* names = ids.data();
  const ReleaseGil release;
  points.update(data, names, count(some, "the number of rows"));
}

void register_errors(py::module_& module) {
  py::register_exception<Unavailable>(module, "Unavailable");
  py::register_exception<OutOfMemory>(module, "OutOfMemory");
  py::register_exception<DeviceLost>(module, "DeviceLost");
  py::register_exception<Torn>(module, "Torn");
  py::register_exception<Unsupported>(module, "Unsupported", PyExc_ValueError);
}

void register_device(py::module_& module) {
  py::class_<Capabilities>(module, "Capabilities")
      .def(py::init<>())
      .def_readonly("index", &Capabilities::index)
      .def_readonly("name", &Capabilities::name)
      .def_readwrite("type", &Capabilities::type)
      .def_readonly("driver", &Capabilities::driver)
      .def_readwrite("vendor", &Capabilities::vendor)
      .def_readwrite("moltenvk", &Capabilities::moltenvk)
      .def_readonly("api_version", &Capabilities::api_version)
      .def_readonly("memory_bytes", &Capabilities::memory_bytes)
      .def_readonly("heaps", &Capabilities::heaps)
      .def_readonly("max_storage_range", &Capabilities::max_storage_range)
      .def_readonly("max_allocation", &Capabilities::max_allocation)
      .def_readonly("max_groups", &Capabilities::max_groups)
      .def_readonly("max_groups_yz", &Capabilities::max_groups_yz)
      .def_readonly("max_push_bytes", &Capabilities::max_push_bytes)
      .def_readonly("storage_alignment", &Capabilities::storage_alignment)
      .def_readonly("loop_rounds", &Capabilities::loop_rounds)
      .def_readonly("max_group_size", &Capabilities::max_group_size)
      .def_readonly("max_bindings", &Capabilities::max_bindings)
      .def_readonly("max_shared_bytes", &Capabilities::max_shared_bytes)
      .def_readwrite("subgroup_reported", &Capabilities::subgroup_reported)
      .def_readwrite("subgroup_min", &Capabilities::subgroup_min)
      .def_readwrite("subgroup_max", &Capabilities::subgroup_max)
      .def_readwrite("subgroup_full", &Capabilities::subgroup_full)
      .def_readwrite("subgroup_selectable", &Capabilities::subgroup_selectable)
      .def_readonly("subgroup_size", &Capabilities::subgroup_size)
      .def_readonly("subgroup_arithmetic", &Capabilities::subgroup_arithmetic)
      .def_readonly("subgroup_control", &Capabilities::subgroup_control)
      .def_readonly("subgroup_required", &Capabilities::subgroup_required)
      .def_readonly("registers", &Capabilities::registers)
      .def_readonly("float16", &Capabilities::float16)
      .def_readonly("missing", &Capabilities::missing)
      .def("decide", &Capabilities::decide)
      .def("pretend", [](Capabilities device, const std::string& profile) {
        pretend(device, profile);
        return device;
      });
  py::class_<Options>(module, "Options")
      .def(py::init<>())
      .def_readwrite("validate", &Options::validate)
      .def_readwrite("instrument", &Options::instrument)
      .def_readwrite("portable", &Options::portable)
      .def_readwrite("guard", &Options::guard)
      .def_readwrite("shard_bytes", &Options::shard_bytes)
      .def_readwrite("allocation_bytes", &Options::allocation_bytes)
      .def_readwrite("memory_limit", &Options::memory_limit)
      .def_readwrite("slice_seconds", &Options::slice_seconds)
      .def_readwrite("timeout_seconds", &Options::timeout_seconds)
      .def_readwrite("compile_only", &Options::compile_only)
      .def_readwrite("pretend", &Options::pretend)
      .def_readwrite("modules", &Options::modules)
      .def_readwrite("cache_dir", &Options::cache_dir);
  module.def("devices", &Device::list, py::call_guard<ReleaseGil>());
  module.def("loader_version", &Device::loader_version);
  module.def(
      "inject_fault",
      [](const std::string& function, std::uint64_t nth, std::int32_t result) {
        inject_fault(function, nth, static_cast<vk::Result>(result));
      },
      py::arg("function"), py::arg("nth"), py::arg("result"));
  module.def("calls_of", &calls_of);
  module.def("wrapped_functions", &wrapped_functions);
  py::enum_<Scoring>(module, "Scoring")
      .value("automatic", Scoring::automatic)
      .value("direct", Scoring::direct)
      .value("matvec", Scoring::matvec)
      .value("slim", Scoring::slim)
      .value("square", Scoring::square);
  module.def("tilings", &describe_tilings);
  py::enum_<Storage>(module, "Storage").value("float32", Storage::float32).value("float16", Storage::float16);
  py::enum_<Variant>(module, "Variant")
      .value("subgroup", Variant::subgroup)
      .value("portable", Variant::portable)
      .value("resident", Variant::resident);
  module.def("kernels", [] { return names_of(kernel_table()); });
  module.def("module_of", &module_of, py::arg("name"), py::arg("variant"), py::arg("storage"),
             py::arg("values") = py::none());
  module.def("profiles", &profile_names);
}

}  // namespace

PYBIND11_MODULE(_vulkan, module) {
  register_errors(module);
  register_device(module);
  register_planning(module);
  register_machine_code(module);
  register_pace(module);
  py::class_<Count>(module, "Count")
      .def_readonly("calls", &Count::calls)
      .def_readonly("seconds", &Count::seconds)
      .def_readonly("submissions", &Count::submissions)
      .def_property_readonly("dispatches", [](const Count& count) { return count.traffic.dispatches; })
      .def_property_readonly("barriers", [](const Count& count) { return count.traffic.barriers; })
      .def_property_readonly("bytes_up", [](const Count& count) { return count.traffic.up; })
      .def_property_readonly("bytes_down", [](const Count& count) { return count.traffic.down; });
  py::class_<Points, std::shared_ptr<Points>>(module, "Points")
      .def("update", &update_points)
      .def("update_some", &update_some)
      .def("update_named", &update_named)
      .def_property_readonly("n", &Points::n)
      .def_property_readonly("d", &Points::d)
      .def_property_readonly("storage", &Points::storage)
      .def_property_readonly("shards", &Points::shards)
      .def_property_readonly("nbytes", &Points::bytes);
  py::class_<Engine, std::shared_ptr<Engine>> methods(module, "Engine");
  register_tensors(module, methods);
  register_operations(methods);
  register_recording(module, methods);
  methods.def(py::init<std::uint32_t, const Options&>(), py::call_guard<ReleaseGil>())
      .def_property_readonly("capabilities", [](Engine& engine) { return engine.device().capabilities(); })
      .def("points", &make_points)
      .def("rows", &rows)
      .def("energy_score_backward", &energy_score_backward)
      .def("vmf_sample", &vmf_sample)
      .def("accumulate", &accumulate)
      .def("probe", &probe)
      .def(
          "move_words",
          [](Engine& engine, const std::vector<std::uint32_t>& words,
             const std::vector<std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>>& moves) {
            std::vector<Move> checked;
            for (const auto& [from, to, n] : moves) checked.push_back({from, to, n});
            return engine.move_words(words, checked);
          },
          py::call_guard<ReleaseGil>())
      .def("probe_sort", &probe_sort)
      .def("time_copy", &Engine::time_copy, py::call_guard<ReleaseGil>())
      .def("time_fma", &Engine::time_fma, py::call_guard<ReleaseGil>())
      .def("time_product", &Engine::time_product, py::call_guard<ReleaseGil>())
      .def("counts", &Engine::counts, py::call_guard<ReleaseGil>())
      .def("set_scoring", &Engine::set_scoring)
      .def_property_readonly("allocated", [](Engine& engine) { return engine.device().allocated(); })
      .def("set_coarse", &Engine::set_coarse)
      .def("set_resident", &Engine::set_resident)
      .def("throttle", [](Engine& engine, double seconds) { engine.pace().throttle(seconds); })
      .def("coarse_count",
           [](Engine& engine) {
             const auto count = engine.coarse_count();
             return std::make_pair(count.rows, count.unproved);
           })
      .def("pipelines", &Engine::pipelines)
      .def("used_pipelines", &Engine::used_pipelines)
      .def("variant_of", [](Engine& engine, const PipelineKey& key) { return engine.kernels().source_of(key).variant; })
      .def("inspect", [](Engine& engine, const PipelineKey& key) { return engine.kernels().inspect(key); })
      .def("inspect_spirv", &inspect_spirv)
      .def("used_kernels", [](Engine& engine) { return names_of(engine.used_kernels()); })
      .def(
          "damaged_guards", [](Engine& engine) { return damaged_guards(engine.device()); },
          py::call_guard<ReleaseGil>())
      .def("take_messages", [](Engine& engine) { return engine.device().take_messages(); });
}

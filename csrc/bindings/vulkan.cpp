// The Python side of the Vulkan engine: NumPy arrays in and out. Shapes are checked again here, so
// that no call from Python reads or writes outside an array; the caller checks values.
#include "bindings/gil.h"
#include "vulkan/ops/engine.h"
#include "vulkan/runtime/dispatch.h"
#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/guard.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>

namespace py = pybind11;
using namespace ebmvk;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Words = py::array_t<std::uint32_t, py::array::c_style>;

std::uint32_t count(py::ssize_t n, const char* what) {
  if (n < 0 || n > std::numeric_limits<std::int32_t>::max())
    throw Unsupported(std::string(what) + " is " + std::to_string(n) + "; the limit is 2^31 - 1");
  return static_cast<std::uint32_t>(n);
}

void require(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = array.shape(static_cast<py::ssize_t>(i)) == shape.begin()[i];
  if (!fits) throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arguments");
}

const Floats& matrix(const Floats& array, const char* name) {
  if (array.ndim() != 2 || array.shape(1) < 1) throw std::invalid_argument(std::string(name) + " is not (rows, d)");
  return array;
}

EnergyArguments energy_arguments(const Points& points, const Floats& x, const Ids& ids, const Floats& logw,
                                 const Floats& kappa, const Floats& background) {
  matrix(x, "x");
  const auto rows = x.shape(0);
  if (ids.ndim() != 2 || ids.shape(1) < 1) throw std::invalid_argument("ids is not (B, K)");
  const auto k = ids.shape(1);
  require(x, "x", {rows, static_cast<py::ssize_t>(points.d())});
  require(ids, "ids", {rows, k});
  require(logw, "logw", {rows, k});
  require(kappa, "kappa", {rows, k});
  require(background, "log_background", {rows});
  const auto* id = ids.data();
  for (py::ssize_t i = 0; i < rows * k; ++i)
    if (id[i] < 0 || id[i] >= points.n()) throw std::invalid_argument("ids contains an index outside the points");
  return {count(rows, "B"), count(k, "K"), points.d(), x.data(), id, logw.data(), kappa.data(), background.data()};
}

Floats rows(Engine& engine, const std::string& operation, const std::vector<Floats>& arguments) {
  const auto& kernel = row_kernel(operation);
  if (arguments.size() != kernel.arguments()) throw std::invalid_argument("wrong number of arguments");
  const auto n = matrix(arguments.front(), "x").shape(0);
  const auto d = arguments.front().shape(1);
  std::vector<const float*> data;
  for (const auto& argument : arguments) {
    require(argument, "an argument", {n, d});
    data.push_back(argument.data());
  }
  Floats result = kernel.scalar ? Floats({n}) : Floats({n, d});
  float* out = result.mutable_data();
  const ReleaseGil release;
  engine.rows(kernel, count(n, "B"), count(d, "d"), data, out);
  return result;
}

py::tuple energy_score(Engine& engine, const Points& points, const Floats& x, const Ids& ids, const Floats& logw,
                       const Floats& kappa, const Floats& background) {
  const auto in = energy_arguments(points, x, ids, logw, kappa, background);
  const py::ssize_t rows = in.rows, k = in.k, d = in.d;
  Floats energy({rows}), score({rows, d}), responsibilities({rows, k}), rest({rows});
  const EnergyResults out{energy.mutable_data(), score.mutable_data(), responsibilities.mutable_data(),
                          rest.mutable_data()};
  {
    const ReleaseGil release;
    engine.energy_score(points, in, out);
  }
  return py::make_tuple(energy, score, responsibilities, rest);
}

py::tuple langevin(Engine& engine, const Points& points, const Floats& x, const Floats& v, const Ids& ids,
                   const Floats& logw, const Floats& kappa, const Floats& background, const Floats& kappa_scale,
                   const Floats& logw_shift, const Floats& step_size, const Floats& gamma,
                   const std::vector<std::uint32_t>& steps, std::uint64_t seed, std::uint32_t first_step,
                   std::uint32_t first_chain, double temperature, const std::string& scheme, std::uint32_t leapfrogs) {
  const auto energy = energy_arguments(points, x, ids, logw, kappa, background);
  const py::ssize_t rows = energy.rows, d = energy.d;
  require(v, "v", {rows, d});
  const auto levels = static_cast<py::ssize_t>(steps.size());
  const auto level_rows = matrix(kappa_scale, "kappa_scale").shape(0);
  if (levels < 1 || (level_rows != 1 && level_rows != rows)) throw std::invalid_argument("schedule is not (1 or B, L)");
  for (const auto* table : {&kappa_scale, &logw_shift, &step_size, &gamma})
    require(*table, "schedule", {level_rows, levels});
  std::uint64_t total = 0;
  for (const auto n : steps) total += n;
  count(static_cast<py::ssize_t>(total), "the number of steps");
  const auto& integrator = integrators::table[integrators::find(scheme)];
  const LangevinArguments in{energy,
                             v.data(),
                             count(levels, "L"),
                             count(level_rows, "schedule rows"),
                             kappa_scale.data(),
                             logw_shift.data(),
                             step_size.data(),
                             gamma.data(),
                             steps,
                             seed,
                             first_step,
                             first_chain,
                             temperature,
                             integrator,
                             integrator.metropolis ? leapfrogs : 1};
  Floats out_x({rows, d}), out_v({rows, d}), energies({rows}), kinetic({rows}), error({rows}), accepted({rows}),
      tangency({rows});
  const LangevinResults out{out_x.mutable_data(),   out_v.mutable_data(), energies.mutable_data(),
                            kinetic.mutable_data(), error.mutable_data(), accepted.mutable_data(),
                            tangency.mutable_data()};
  {
    const ReleaseGil release;
    engine.langevin(points, in, out);
  }
  return py::make_tuple(out_x, out_v, energies, kinetic, error, accepted, tangency);
}

py::tuple energy_score_backward(Engine& engine, const Points& points, const Floats& x, const Ids& ids,
                                const Floats& logw, const Floats& kappa, const Floats& background,
                                const Floats& grad_energy, const Floats& grad_score) {
  const auto energy = energy_arguments(points, x, ids, logw, kappa, background);
  const py::ssize_t rows = energy.rows, k = energy.k, d = energy.d, n = points.n();
  require(grad_energy, "grad_energy", {rows});
  require(grad_score, "grad_score", {rows, d});
  Floats grad_x({rows, d}), grad_points({n, d}), grad_logw({rows, k}), grad_kappa({rows, k}), grad_background({rows});
  const GradientArguments in{energy, grad_energy.data(), grad_score.data()};
  const GradientResults out{grad_x.mutable_data(), grad_points.mutable_data(), grad_logw.mutable_data(),
                            grad_kappa.mutable_data(), grad_background.mutable_data()};
  {
    const ReleaseGil release;
    std::fill_n(out.points, static_cast<std::size_t>(n) * d, 0.0f);
    engine.energy_score_backward(points, in, out);
  }
  return py::make_tuple(grad_x, grad_points, grad_logw, grad_kappa, grad_background);
}

Floats vmf_sample(Engine& engine, const Floats& mu, const Floats& cosine_sine, std::uint64_t seed,
                  std::uint32_t first_row) {
  matrix(mu, "mu");
  const auto rows = mu.shape(0), d = mu.shape(1);
  require(cosine_sine, "cosine_sine", {rows, 2});
  Floats result({rows, d});
  const VmfArguments in{count(rows, "B"), count(d, "d"), mu.data(), cosine_sine.data(), seed, first_row};
  float* out = result.mutable_data();
  const ReleaseGil release;
  engine.vmf_sample(in, out);
  return result;
}

void require_below(const Ids& array, const char* name, std::int64_t end) {
  for (py::ssize_t i = 0; i < array.size(); ++i)
    if (array.data()[i] < 0 || array.data()[i] >= end)
      throw std::invalid_argument(std::string(name) + " contains a number outside its range");
}

py::tuple accumulate(Engine& engine, const Floats& x, const Ids& ids, const Floats& responsibilities, const Ids& tokens,
                     std::uint32_t n) {
  matrix(x, "x");
  const auto rows = x.shape(0), d = x.shape(1);
  if (ids.ndim() != 2 || ids.shape(1) < 1) throw std::invalid_argument("ids is not (B, K)");
  const auto k = ids.shape(1);
  require(ids, "ids", {rows, k});
  require(responsibilities, "responsibilities", {rows, k});
  require(tokens, "tokens", {rows});
  require_below(ids, "ids", n);
  require_below(tokens, "tokens", std::int64_t{1} << 31);
  count(rows * k, "B x K");
  const AccumulateArguments in{count(rows, "B"), count(k, "K"), count(d, "d"),           n,
                               x.data(),         ids.data(),    responsibilities.data(), tokens.data()};
  Accumulated sums;
  {
    const ReleaseGil release;
    sums = engine.accumulate(in);
  }
  const auto pairs = static_cast<py::ssize_t>(sums.pairs.size());
  Floats table({static_cast<py::ssize_t>(n), d + 1}), counts({pairs});
  Ids splat_token({pairs, py::ssize_t{2}});
  std::copy(sums.sums.begin(), sums.sums.end(), table.mutable_data());
  std::copy(sums.counts.begin(), sums.counts.end(), counts.mutable_data());
  auto* to = splat_token.mutable_data();
  for (const auto pair : sums.pairs) {
    *to++ = static_cast<std::int64_t>(pair >> 32);
    *to++ = static_cast<std::int64_t>(pair & 0xffffffffu);
  }
  return py::make_tuple(table, splat_token, counts);
}

py::tuple topk(Engine& engine, const Points& points, const Floats& queries, std::uint32_t k,
               const std::optional<Floats>& scale, const std::optional<Floats>& bias) {
  const py::ssize_t rows = matrix(queries, "queries").shape(0);
  require(queries, "queries", {rows, static_cast<py::ssize_t>(points.d())});
  if (k < 1 || k > points.n()) throw std::invalid_argument("k is outside [1, N]");
  for (const auto* weights : {&scale, &bias})
    if (*weights) require(**weights, "scale or bias", {static_cast<py::ssize_t>(points.n())});
  Floats scores({rows, static_cast<py::ssize_t>(k)});
  Ids ids({rows, static_cast<py::ssize_t>(k)});
  const TopkArguments in{
      count(rows, "B"), k, points.d(), queries.data(), scale ? scale->data() : nullptr, bias ? bias->data() : nullptr};
  float* out = scores.mutable_data();
  std::int64_t* found = ids.mutable_data();
  {
    const ReleaseGil release;
    engine.topk(points, in, out, found);
  }
  return py::make_tuple(scores, ids);
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

using KernelName = std::tuple<std::string, Variant, Storage>;

std::vector<KernelName> names_of(const std::vector<KernelSource>& kernels) {
  std::vector<KernelName> names;
  for (const auto& kernel : kernels) names.emplace_back(kernel.name, kernel.variant, kernel.storage);
  return names;
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
      .def_readonly("index", &Capabilities::index)
      .def_readonly("name", &Capabilities::name)
      .def_readonly("type", &Capabilities::type)
      .def_readonly("driver", &Capabilities::driver)
      .def_readonly("api_version", &Capabilities::api_version)
      .def_readonly("memory_bytes", &Capabilities::memory_bytes)
      .def_readonly("heaps", &Capabilities::heaps)
      .def_readonly("max_storage_range", &Capabilities::max_storage_range)
      .def_readonly("max_allocation", &Capabilities::max_allocation)
      .def_readonly("max_groups", &Capabilities::max_groups)
      .def_readonly("max_group_size", &Capabilities::max_group_size)
      .def_readonly("max_bindings", &Capabilities::max_bindings)
      .def_readonly("max_shared_bytes", &Capabilities::max_shared_bytes)
      .def_readonly("subgroup_size", &Capabilities::subgroup_size)
      .def_readonly("subgroup_arithmetic", &Capabilities::subgroup_arithmetic)
      .def_readonly("subgroup_control", &Capabilities::subgroup_control)
      .def_readonly("float16", &Capabilities::float16)
      .def_readonly("missing", &Capabilities::missing);
  py::class_<Options>(module, "Options")
      .def(py::init<>())
      .def_readwrite("validate", &Options::validate)
      .def_readwrite("instrument", &Options::instrument)
      .def_readwrite("portable", &Options::portable)
      .def_readwrite("guard", &Options::guard)
      .def_readwrite("shard_bytes", &Options::shard_bytes)
      .def_readwrite("memory_limit", &Options::memory_limit)
      .def_readwrite("slice_seconds", &Options::slice_seconds)
      .def_readwrite("timeout_seconds", &Options::timeout_seconds)
      .def_readwrite("pretend", &Options::pretend)
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
}

}  // namespace

PYBIND11_MODULE(_vulkan, module) {
  register_errors(module);
  register_device(module);
  py::class_<Count>(module, "Count")
      .def_readonly("calls", &Count::calls)
      .def_readonly("dispatches", &Count::dispatches)
      .def_readonly("seconds", &Count::seconds);
  py::class_<Points, std::shared_ptr<Points>>(module, "Points")
      .def("update", &update_points)
      .def_property_readonly("n", &Points::n)
      .def_property_readonly("d", &Points::d)
      .def_property_readonly("storage", &Points::storage)
      .def_property_readonly("shards", &Points::shards)
      .def_property_readonly("nbytes", &Points::bytes);
  py::class_<Engine, std::shared_ptr<Engine>>(module, "Engine")
      .def(py::init<std::uint32_t, const Options&>(), py::call_guard<ReleaseGil>())
      .def_property_readonly("capabilities", [](Engine& engine) { return engine.device().capabilities(); })
      .def("points", &make_points)
      .def("rows", &rows)
      .def("energy_score", &energy_score)
      .def("energy_score_backward", &energy_score_backward)
      .def("langevin", &langevin)
      .def("vmf_sample", &vmf_sample)
      .def("accumulate", &accumulate)
      .def("topk", &topk)
      .def("probe", &probe)
      .def("time_copy", &Engine::time_copy, py::call_guard<ReleaseGil>())
      .def("time_fma", &Engine::time_fma, py::call_guard<ReleaseGil>())
      .def("time_product", &Engine::time_product, py::call_guard<ReleaseGil>())
      .def("counts", &Engine::counts, py::call_guard<ReleaseGil>())
      .def("set_scoring", &Engine::set_scoring)
      .def_property_readonly("allocated", [](Engine& engine) { return engine.device().allocated(); })
      .def("set_coarse", &Engine::set_coarse)
      .def("set_resident", &Engine::set_resident)
      .def("coarse_count",
           [](Engine& engine) {
             const auto count = engine.coarse_count();
             return std::make_pair(count.rows, count.unproved);
           })
      .def("used_kernels", [](Engine& engine) { return names_of(engine.used_kernels()); })
      .def(
          "damaged_guards", [](Engine& engine) { return damaged_guards(engine.device()); },
          py::call_guard<ReleaseGil>())
      .def("take_messages", [](Engine& engine) { return engine.device().take_messages(); });
}

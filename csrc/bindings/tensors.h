// Tensors in Python, and the operations that samplers need beside those of every backend.
#pragma once

#include "bindings/gil.h"
#include "bindings/operand.h"

#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

namespace ebmvk {

inline py::tuple energy(Engine& engine, const Points& points, const py::object& x, const py::object& ids,
                        const py::object& logw, const py::object& kappa, const py::object& background) {
  const auto in = energy_arguments(engine, points, x, ids, logw, kappa, background);
  const py::ssize_t rows = in.rows, k = in.k;
  const bool on_device = any_tensor({x, ids, logw, kappa, background});
  const auto value = make_result<float>(engine, on_device, {rows});
  const auto responsibilities = make_result<float>(engine, on_device, {rows, k});
  const auto rest = make_result<float>(engine, on_device, {rows});
  {
    const ReleaseGil release;
    engine.energy_score(points, in, {value.to, {}, responsibilities.to, rest.to});
  }
  return py::make_tuple(value.value, responsibilities.value, rest.value);
}

inline LawArguments law_arguments(const Engine& engine, const py::object& log_p, const py::object& ids) {
  const auto shape = shape_of<float>(engine, log_p, "log_p", {kAny, kAny});
  const auto k = shape_of<std::int64_t>(engine, ids, "ids", {shape[0], kAny})[1];
  if (k < 1) throw std::invalid_argument("ids has no candidates");
  const LawArguments in{count(shape[0], "B"), count(k, "K"), count(shape[1], "V"),
                        argument<float>(engine, log_p, "log_p", {shape[0], shape[1]}),
                        argument<std::int64_t>(engine, ids, "ids", {shape[0], k})};
  require_below(in.ids, shape[0] * k, "ids", shape[1]);
  return in;
}

inline py::tuple candidate_law(Engine& engine, const py::object& log_p, const py::object& ids) {
  const auto in = law_arguments(engine, log_p, ids);
  const py::ssize_t rows = in.rows, k = in.k;
  const bool on_device = any_tensor({log_p, ids});
  const auto logp = make_result<float>(engine, on_device, {rows, k});
  const auto log_rest = make_result<float>(engine, on_device, {rows});
  const auto entropy = make_result<float>(engine, false, {rows});  // a schedule needs it on the host
  {
    const ReleaseGil release;
    engine.candidate_law(in, {logp.to, log_rest.to, entropy.to});
  }
  return py::make_tuple(logp.value, log_rest.value, entropy.value);
}

inline py::tuple chain_start(Engine& engine, std::uint32_t rows, std::uint32_t d, std::uint64_t seed,
                             std::uint32_t first_chain, std::uint32_t x_stream, std::uint32_t v_stream, float scale) {
  const StartArguments in{count(rows, "B"), count(d, "d"), seed, first_chain, x_stream, v_stream, scale};
  const auto x = make_result<float>(engine, true, {rows, d}, true),
             v = make_result<float>(engine, true, {rows, d}, true);
  {
    const ReleaseGil release;
    engine.chain_start(in, x.to, v.to);
  }
  return py::make_tuple(x.value, v.value);
}

inline py::object decode(Engine& engine, const Points& points, const py::object& x, const py::object& ids,
                         const py::object& logp, const py::object& log_rest, const py::object& kappa,
                         const py::object& shift, const py::object& log_p, std::uint64_t seed,
                         std::uint32_t first_chain, std::uint32_t choice_stream, std::uint32_t rest_stream) {
  const auto law = law_arguments(engine, log_p, ids);
  const py::ssize_t rows = law.rows, k = law.k, d = points.d();
  if (law.width != points.n()) throw std::invalid_argument("log_p doesn't have one column for each point");
  const DecodeArguments in{law,
                           points.d(),
                           argument<float>(engine, x, "x", {rows, d}),
                           argument<float>(engine, logp, "logp", {rows, k}),
                           argument<float>(engine, log_rest, "log_rest", {rows}),
                           argument<float>(engine, kappa, "kappa", {rows}),
                           argument<float>(engine, shift, "shift", {rows}),
                           seed,
                           first_chain,
                           choice_stream,
                           rest_stream};
  const auto tokens = make_result<std::int64_t>(engine, false, {rows});  // the end of a chain of operations
  {
    const ReleaseGil release;
    engine.decode(points, in, tokens.to);
  }
  return tokens.value;
}

inline std::shared_ptr<Tensor> make_tensor(Engine& engine, const py::object& array) {
  const bool index = py::isinstance<Ids>(array);
  const auto any = array.cast<py::array>();
  if (!index && !py::isinstance<Floats>(array)) throw std::invalid_argument("not a float32 or int64 array in C order");
  if (any.ndim() < 1 || any.ndim() > 2 || any.shape(any.ndim() - 1) < (any.ndim() == 2))
    throw std::invalid_argument("not (rows,) or (rows, width)");
  const bool vector = any.ndim() == 1;
  const auto width = vector ? 1 : count(any.shape(1), "a row's width");
  const Tensor::Shape layout{count(any.shape(0), "the number of rows"), width,
                             vector || index ? width : 4 * quads_of(width), vector,
                             index ? Element::index : Element::float32};
  std::uint64_t below = 0;
  if (index) {
    const auto* ids = static_cast<const std::int64_t*>(any.data());
    std::int64_t low = 0, high = -1;
    for (py::ssize_t i = 0; i < any.size(); ++i) {
      low = std::min(low, ids[i]);
      high = std::max(high, ids[i]);
    }
    if (low < 0 || high >= std::int64_t{1} << 32) throw std::invalid_argument("an index is outside [0, 2^32)");
    below = static_cast<std::uint64_t>(high + 1);
  }
  const auto* rows = any.data();
  const ReleaseGil release;
  const auto tensor = engine.tensor(layout);
  tensor->set_below(below);
  engine.upload(*tensor, rows);
  return tensor;
}

inline py::list read_tensors(Engine& engine, const std::vector<std::shared_ptr<Tensor>>& tensors) {
  py::list arrays;
  std::vector<std::pair<const Tensor*, void*>> reads;
  for (const auto& tensor : tensors) {
    if (&tensor->device() != &engine.device()) throw std::invalid_argument("the tensor is on another device");
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(tensor->rows())};
    if (!tensor->shape().vector) shape.push_back(tensor->width());
    const auto read = [&](auto array) {
      reads.emplace_back(tensor.get(), array.mutable_data());
      arrays.append(array);
    };
    if (tensor->shape().element == Element::index)
      read(Ids(shape));
    else
      read(Floats(shape));
  }
  const ReleaseGil release;
  engine.download(reads);
  return arrays;
}

// Registers Tensor, and more methods of Engine.
inline void register_tensors(py::module_& module, py::class_<Engine, std::shared_ptr<Engine>>& engine) {
  py::class_<Tensor, std::shared_ptr<Tensor>>(module, "Tensor")
      .def_property_readonly("shape",
                             [](const Tensor& tensor) {
                               if (tensor.shape().vector) return py::tuple(py::make_tuple(tensor.rows()));
                               return py::tuple(py::make_tuple(tensor.rows(), tensor.width()));
                             })
      .def_property_readonly("index", [](const Tensor& tensor) { return tensor.shape().element == Element::index; })
      .def_property_readonly("below", &Tensor::below)
      .def_property_readonly("nbytes", [](const Tensor& tensor) { return tensor.memory().bytes(); });
  engine.def("tensor", &make_tensor)
      .def("read", &read_tensors)
      .def_property_readonly("idle", [](Engine& self) { return self.pool().idle(); })
      .def("energy", &energy)
      .def("candidate_law", &candidate_law)
      .def("chain_start", &chain_start)
      .def("decode", &decode);
}

}  // namespace ebmvk

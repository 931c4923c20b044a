// ebmvk._cpu: the CPU kernels as Python functions on NumPy arrays. ebmvk/engine/checks.py has
// checked the values; this file checks again whatever memory safety depends on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/gil.h"
#include "cpu/accumulate.h"
#include "cpu/backward.h"
#include "cpu/coarse.h"
#include "cpu/dropout.h"
#include "cpu/energy.h"
#include "cpu/langevin.h"
#include "cpu/sphere.h"
#include "cpu/target.h"
#include "cpu/thread_pool.h"
#include "cpu/topk.h"
#include "cpu/vmf.h"
#include "integrators.h"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<int64_t, py::array::c_style>;

template <class Array>
void Expect(const Array& array, std::vector<size_t> shape, const char* name) {
  bool fits = static_cast<size_t>(array.ndim()) == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = static_cast<size_t>(array.shape(static_cast<int>(i))) == shape[i];
  if (!fits) throw std::invalid_argument(std::string(name) + " has the wrong shape");
}

size_t Size(const py::array& array, int axis) {
  if (array.ndim() <= axis) throw std::invalid_argument("an array has too few dimensions");
  return static_cast<size_t>(array.shape(axis));
}

Floats NewFloats(std::vector<size_t> shape) { return Floats(std::move(shape)); }

void CheckIds(const Ids& ids, size_t n) {
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    if (ids.data()[i] < 0 || static_cast<size_t>(ids.data()[i]) >= n) throw std::out_of_range("ids");
  }
}

ebmvk::CandidateLists Lists(const Floats& x, const Floats& points, const Ids& ids, const Floats& logw,
                            const Floats& kappa, const Floats& log_background) {
  const size_t rows = Size(x, 0), d = Size(x, 1), k = Size(ids, 1), n = Size(points, 0);
  Expect(points, {n, d}, "points");
  Expect(ids, {rows, k}, "ids");
  Expect(logw, {rows, k}, "logw");
  Expect(kappa, {rows, k}, "kappa");
  Expect(log_background, {rows}, "log_background");
  CheckIds(ids, n);
  return {rows, k, d, points.data(), ids.data(), logw.data(), kappa.data(), log_background.data()};
}

// CoarseTopK rescores with 16 lanes and fused multiply-adds; only targets of that kind give the
// same bits.
bool UseCoarse() { return ebmvk::CoarseKernel() != "none" && ebmvk::Target().rfind("AVX3", 0) == 0; }

std::unique_ptr<ebmvk::CoarsePoints> NewCoarsePoints(const Floats& points) {
  if (!UseCoarse()) throw std::invalid_argument("no coarse kernel for this instruction set");
  const size_t n = Size(points, 0), d = Size(points, 1);
  if (d > ebmvk::CoarsePoints::kMostDimensions) throw std::invalid_argument("too many dimensions");
  const float* data = points.data();
  ebmvk::ReleaseGil release;
  return std::make_unique<ebmvk::CoarsePoints>(data, n, d);
}

// First by the coarse product; then, without it, the rows that its bound did not prove. Returns the
// number of these rows.
size_t TopKInTwo(const ebmvk::TopKProblem& problem, const ebmvk::CoarsePoints& coarse, float* scores, int64_t* ids) {
  std::vector<size_t> failed;
  ebmvk::CoarseTopK(problem, coarse, scores, ids, failed);
  if (failed.empty()) return 0;
  const size_t d = problem.d, k = problem.k;
  std::vector<float> queries(failed.size() * d), some_scores(failed.size() * k);
  std::vector<int64_t> some_ids(failed.size() * k);
  for (size_t i = 0; i < failed.size(); ++i) {
    std::copy_n(problem.queries + failed[i] * d, d, queries.data() + i * d);
  }
  ebmvk::TopKProblem rest = problem;
  rest.rows = failed.size();
  rest.queries = queries.data();
  ebmvk::TopK(rest, some_scores.data(), some_ids.data());
  for (size_t i = 0; i < failed.size(); ++i) {
    std::copy_n(some_scores.data() + i * k, k, scores + failed[i] * k);
    std::copy_n(some_ids.data() + i * k, k, ids + failed[i] * k);
  }
  return failed.size();
}

py::tuple TopK(const Floats& queries, const Floats& points, size_t k, const std::optional<Floats>& scale,
               const std::optional<Floats>& bias, const ebmvk::CoarsePoints* coarse) {
  const size_t rows = Size(queries, 0), d = Size(queries, 1), n = Size(points, 0);
  Expect(points, {n, d}, "points");
  if (scale) Expect(*scale, {n}, "scale");
  if (bias) Expect(*bias, {n}, "bias");
  if (k < 1 || k > n || n >= (size_t{1} << 32)) throw std::invalid_argument("k");
  if (coarse && (coarse->n() != n || coarse->d() != d || !UseCoarse())) throw std::invalid_argument("coarse");
  Floats scores = NewFloats({rows, k});
  Ids ids(std::vector<size_t>{rows, k});
  const ebmvk::TopKProblem problem{
      rows, n, d, k, queries.data(), points.data(), scale ? scale->data() : nullptr, bias ? bias->data() : nullptr};
  float* scores_data = scores.mutable_data();
  int64_t* ids_data = ids.mutable_data();
  size_t unproved = 0;
  {
    ebmvk::ReleaseGil release;
    if (coarse) {
      unproved = TopKInTwo(problem, *coarse, scores_data, ids_data);
    } else {
      ebmvk::TopK(problem, scores_data, ids_data);
    }
  }
  return py::make_tuple(scores, ids, unproved);
}

py::tuple EnergyScore(const Floats& x, const Floats& points, const Ids& ids, const Floats& logw, const Floats& kappa,
                      const Floats& log_background) {
  const ebmvk::CandidateLists lists = Lists(x, points, ids, logw, kappa, log_background);
  Floats energy = NewFloats({lists.rows}), score = NewFloats({lists.rows, lists.d});
  Floats rho = NewFloats({lists.rows, lists.k}), background = NewFloats({lists.rows});
  const ebmvk::EnergyScoreOut out{energy.mutable_data(), score.mutable_data(), rho.mutable_data(),
                                  background.mutable_data()};
  const float* at = x.data();
  {
    ebmvk::ReleaseGil release;
    ebmvk::EnergyScore(lists, at, out);
  }
  return py::make_tuple(energy, score, rho, background);
}

// levels: (L or rows * L, 4) = kappa_scale, logw_shift, step_size, gamma; steps (L).
std::vector<ebmvk::Level> Levels(const Floats& levels, const std::vector<uint32_t>& steps, size_t rows,
                                 bool per_chain) {
  const size_t count = (per_chain ? rows : 1) * steps.size();
  Expect(levels, {count, 4}, "levels");
  std::vector<ebmvk::Level> list(count);
  for (size_t i = 0; i < count; ++i) {
    const float* v = levels.data() + 4 * i;
    list[i] = {v[0], v[1], v[2], v[3], steps[i % steps.size()]};
  }
  return list;
}

// x and v are changed in place.
py::tuple Langevin(Floats x, Floats v, const Floats& points, const Ids& ids, const Floats& logw, const Floats& kappa,
                   const Floats& log_background, const Floats& levels, const std::vector<uint32_t>& steps,
                   bool per_chain, uint64_t seed, uint32_t first_step, uint32_t first_chain, double temperature,
                   const std::string& scheme, uint32_t leapfrogs) {
  const ebmvk::CandidateLists lists = Lists(x, points, ids, logw, kappa, log_background);
  Expect(v, {lists.rows, lists.d}, "v");
  const std::vector<ebmvk::Level> list = Levels(levels, steps, lists.rows, per_chain);
  Floats energy = NewFloats({lists.rows}), kinetic = NewFloats({lists.rows});
  Floats error = NewFloats({lists.rows}), tangency = NewFloats({lists.rows});
  Floats acceptance = NewFloats({lists.rows});
  const ebmvk::LangevinParams params{list.data(), steps.size(), per_chain,   seed,
                                     first_step,  first_chain,  temperature, ebmvk::integrators::find(scheme),
                                     leapfrogs};
  const ebmvk::LangevinState state{x.mutable_data(),         v.mutable_data(),     energy.mutable_data(),
                                   kinetic.mutable_data(),   error.mutable_data(), tangency.mutable_data(),
                                   acceptance.mutable_data()};
  {
    ebmvk::ReleaseGil release;
    ebmvk::Langevin(lists, params, state);
  }
  return py::make_tuple(energy, kinetic, error, tangency, acceptance);
}

py::tuple EnergyScoreBackward(const Floats& x, const Floats& points, const Ids& ids, const Floats& logw,
                              const Floats& kappa, const Floats& log_background, const Floats& grad_energy,
                              const Floats& grad_score) {
  const ebmvk::CandidateLists lists = Lists(x, points, ids, logw, kappa, log_background);
  Expect(grad_energy, {lists.rows}, "grad_energy");
  Expect(grad_score, {lists.rows, lists.d}, "grad_score");
  const size_t n = Size(points, 0);
  Floats at = NewFloats({lists.rows, lists.d}), mu = NewFloats({n, lists.d}), background = NewFloats({lists.rows});
  Floats weight = NewFloats({lists.rows, lists.k}), concentration = NewFloats({lists.rows, lists.k});
  const ebmvk::EnergyGradientsOut out{at.mutable_data(), mu.mutable_data(), weight.mutable_data(),
                                      concentration.mutable_data(), background.mutable_data()};
  const float *state = x.data(), *cotangent_energy = grad_energy.data(), *cotangent_score = grad_score.data();
  {
    ebmvk::ReleaseGil release;
    ebmvk::EnergyScoreBackward(lists, n, state, cotangent_energy, cotangent_score, out);
  }
  return py::make_tuple(at, mu, weight, concentration, background);
}

Floats VmfPlace(const Floats& mu, const py::array_t<double, py::array::c_style>& deficit, uint64_t seed,
                uint32_t first_row) {
  const size_t rows = Size(mu, 0), d = Size(mu, 1);
  Expect(deficit, {rows}, "deficit");
  Floats out = NewFloats({rows, d});
  float* data = out.mutable_data();
  ebmvk::ReleaseGil release;
  ebmvk::VmfPlace(rows, d, mu.data(), deficit.data(), seed, first_row, data);
  return out;
}

py::tuple Accumulate(const Floats& x, const Ids& ids, const Floats& responsibilities, const Ids& tokens, size_t n) {
  const size_t rows = Size(x, 0), d = Size(x, 1), k = Size(ids, 1);
  Expect(ids, {rows, k}, "ids");
  Expect(responsibilities, {rows, k}, "responsibilities");
  Expect(tokens, {rows}, "tokens");
  CheckIds(ids, n);
  Floats mass = NewFloats({n}), resultant = NewFloats({n, d});
  const ebmvk::Shares shares{rows, k, d, n, x.data(), ids.data(), responsibilities.data(), tokens.data()};
  float *mass_data = mass.mutable_data(), *resultant_data = resultant.mutable_data();
  ebmvk::TokenCounts found;
  {
    ebmvk::ReleaseGil release;
    found = ebmvk::Accumulate(shares, mass_data, resultant_data);
  }
  Ids pairs(std::vector<size_t>{found.counts.size(), 2});
  Floats counts = NewFloats({found.counts.size()});
  std::copy(found.splat_token.begin(), found.splat_token.end(), pairs.mutable_data());
  std::copy(found.counts.begin(), found.counts.end(), counts.mutable_data());
  return py::make_tuple(mass, resultant, pairs, counts);
}

// x and out: arrays of one size, float32, or uint16 that hold bfloat16.
template <class T>
void Dropout(const py::array_t<T, py::array::c_style>& x, py::array_t<T, py::array::c_style> out, uint64_t seed,
             uint32_t step, uint32_t place, uint64_t first, uint32_t threshold) {
  const size_t n = static_cast<size_t>(x.size());
  if (x.size() != out.size()) throw std::invalid_argument("x and out differ in size");
  if (threshold > 255) throw std::invalid_argument("threshold");
  if ((first + n) / 16 >= (uint64_t{1} << 32)) throw std::invalid_argument("first");
  const ebmvk::Masks masks{seed, step, place, first, threshold};
  const T* from = x.data();
  T* to = out.mutable_data();
  ebmvk::ReleaseGil release;
  if constexpr (std::is_same_v<T, float>) {
    ebmvk::Dropout(masks, n, from, to);
  } else {
    ebmvk::DropoutBfloat16(masks, n, from, to);
  }
}

Floats Normals(uint64_t seed, uint32_t first_step, size_t steps, uint32_t first_chain, size_t chains, uint32_t stream,
               size_t d) {
  Floats out = NewFloats({steps, chains, d});
  float* data = out.mutable_data();
  ebmvk::ReleaseGil release;
  ebmvk::Normals(seed, first_step, steps, first_chain, chains, stream, d, data);
  return out;
}

Floats Rows(const std::string& name, const std::vector<Floats>& arguments) {
  const auto& all = ebmvk::RowOperations();
  const auto found = std::find_if(all.begin(), all.end(), [&](const auto& one) { return name == one.name; });
  if (found == all.end()) throw std::invalid_argument("no operation on rows is named " + name);
  if (arguments.size() != found->arguments) throw std::invalid_argument("wrong number of arguments");
  const size_t rows = Size(arguments[0], 0), d = Size(arguments[0], 1);
  std::vector<const float*> in;
  for (const Floats& argument : arguments) {
    Expect(argument, {rows, d}, "an argument");
    in.push_back(argument.data());
  }
  Floats out = found->scalar ? NewFloats({rows}) : NewFloats({rows, d});
  float* data = out.mutable_data();
  ebmvk::ReleaseGil release;
  found->run(rows, d, in.data(), data);
  return out;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of ebmvk; use them through ebmvk.engine.cpu.";
  // noconvert: an array of another dtype or layout is a mistake and must not be copied silently.
  const auto arg = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("rows", Rows, py::arg("operation"), arg("arguments"));
  m.def("topk", TopK, arg("queries"), arg("points"), py::arg("k"), arg("scale"), arg("bias"), py::arg("coarse"));
  py::class_<ebmvk::CoarsePoints>(m, "CoarsePoints")
      .def(py::init(&NewCoarsePoints), arg("points"))
      .def_property_readonly("nbytes", &ebmvk::CoarsePoints::bytes);
  m.def("use_coarse", UseCoarse);
  m.def("coarse_kernels", ebmvk::CoarseKernels);
  m.def("coarse_kernel", ebmvk::CoarseKernel);
  m.def("use_coarse_kernel", ebmvk::UseCoarseKernel, py::arg("name"));
  m.def("energy_score", EnergyScore, arg("x"), arg("points"), arg("ids"), arg("logw"), arg("kappa"),
        arg("log_background"));
  m.def("energy_score_backward", EnergyScoreBackward, arg("x"), arg("points"), arg("ids"), arg("logw"), arg("kappa"),
        arg("log_background"), arg("grad_energy"), arg("grad_score"));
  m.def("vmf_place", VmfPlace, arg("mu"), arg("deficit"), py::arg("seed"), py::arg("first_row"));
  m.def("accumulate", Accumulate, arg("x"), arg("ids"), arg("responsibilities"), arg("tokens"), py::arg("n"));
  m.def("langevin", Langevin, arg("x"), arg("v"), arg("points"), arg("ids"), arg("logw"), arg("kappa"),
        arg("log_background"), arg("levels"), py::arg("steps"), py::arg("per_chain"), py::arg("seed"),
        py::arg("first_step"), py::arg("first_chain"), py::arg("temperature"), py::arg("scheme"), py::arg("leapfrogs"));
  m.def("normals", Normals, py::arg("seed"), py::arg("first_step"), py::arg("steps"), py::arg("first_chain"),
        py::arg("chains"), py::arg("stream"), py::arg("d"));
  m.def("dropout", Dropout<float>, arg("x"), arg("out"), py::arg("seed"), py::arg("step"), py::arg("place"),
        py::arg("first"), py::arg("threshold"));
  m.def("dropout_bfloat16", Dropout<uint16_t>, arg("x"), arg("out"), py::arg("seed"), py::arg("step"), py::arg("place"),
        py::arg("first"), py::arg("threshold"));
  m.def("threads", [] { return ebmvk::SharedPool().threads(); });
  m.def("set_threads", ebmvk::SetThreads, py::arg("threads"));
  m.def("targets", ebmvk::Targets);
  m.def("target", ebmvk::Target);
  m.def("use_target", ebmvk::UseTarget, py::arg("name"));
}

// ebmvk._cpu: the CPU kernels as Python functions on NumPy arrays. ebmvk/engine/checks.py has
// checked the values; this file checks again whatever memory safety depends on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/array.h"
#include "bindings/gil.h"
#include "cpu/accumulate.h"
#include "cpu/coarse.h"
#include "cpu/dropout.h"
#include "cpu/langevin.h"
#include "cpu/sphere.h"
#include "cpu/target.h"
#include "cpu/thread_pool.h"
#include "cpu/topk.h"
#include "cpu/vmf.h"
#include "cpu_bindings.h"
#include "cpu_operations.h"

using namespace ebmvk;

namespace {

// CoarseTopK rescores with fused multiply-adds; only targets with these give the same bits. With
// AVX-512, float32 needs no more instructions than 8-bit products with AVX2.
bool UseCoarse() {
  const std::string kernel = CoarseKernel();
  return kernel == "avx2" ? Target() == "AVX2" : kernel != "none" && Target().rfind("AVX3", 0) == 0;
}

std::unique_ptr<CoarsePoints> NewCoarsePoints(const Floats& points) {
  if (!UseCoarse()) throw std::invalid_argument("no coarse kernel for this instruction set");
  py::ssize_t n = kAny, d = kAny;
  const float* data = argument<float>(points, "points", {&n, &d});
  if (static_cast<size_t>(d) > CoarsePoints::kMostDimensions) throw std::invalid_argument("too many dimensions");
  const ReleaseGil release;
  return std::make_unique<CoarsePoints>(data, n, d);
}

// Computes top-k with the coarse product, then without it for the rows that its bound did not prove.
// Returns the number of these rows.
size_t TopKInTwo(const TopKProblem& problem, const CoarsePoints& coarse, float* scores, int64_t* ids) {
  std::vector<size_t> failed;
  CoarseTopK(problem, coarse, scores, ids, failed);
  if (failed.empty()) return 0;
  const size_t d = problem.d, k = problem.k;
  std::vector<float> queries(failed.size() * d), some_scores(failed.size() * k);
  std::vector<int64_t> some_ids(failed.size() * k);
  for (size_t i = 0; i < failed.size(); ++i) {
    std::copy_n(problem.queries + failed[i] * d, d, queries.data() + i * d);
  }
  TopKProblem rest = problem;
  rest.rows = failed.size();
  rest.queries = queries.data();
  TopK(rest, some_scores.data(), some_ids.data());
  for (size_t i = 0; i < failed.size(); ++i) {
    std::copy_n(some_scores.data() + i * k, k, scores + failed[i] * k);
    std::copy_n(some_ids.data() + i * k, k, ids + failed[i] * k);
  }
  return failed.size();
}

py::tuple SearchTopK(const Floats& queries, const Floats& points, size_t k, const std::optional<Floats>& scale,
                     const std::optional<Floats>& bias, const CoarsePoints* coarse) {
  py::ssize_t size = kAny, d = kAny, n = kAny;
  TopKProblem in{};
  in.queries = argument<float>(queries, "queries", {&size, &d});
  in.points = argument<float>(points, "points", {&n, &d});
  in.scale = optional_argument<float>(scale, "scale", {&n});
  in.bias = optional_argument<float>(bias, "bias", {&n});
  in.rows = count(size, "B");
  in.n = count(n, "N");
  in.d = count(d, "d");
  in.k = k;
  if (k < 1 || k > in.n || in.n >= (size_t{1} << 32)) throw std::invalid_argument("k");
  if (coarse && (coarse->n() != in.n || coarse->d() != in.d || !UseCoarse())) throw std::invalid_argument("coarse");
  const auto scores = make_result<float>({in.rows, k});
  const auto ids = make_result<int64_t>({in.rows, k});
  size_t unproved = 0;
  {
    const ReleaseGil release;
    if (coarse) {
      unproved = TopKInTwo(in, *coarse, scores.to, ids.to);
    } else {
      TopK(in, scores.to, ids.to);
    }
  }
  return py::make_tuple(scores.value, ids.value, unproved);
}

Floats PlaceVmf(const Floats& mu, const Array<double>& deficit, uint64_t seed, uint32_t first_row) {
  py::ssize_t size = kAny, d = kAny;
  const float* means = argument<float>(mu, "mu", {&size, &d});
  const double* falls = argument<double>(deficit, "deficit", {&size});
  const auto out = make_result<float>({count(size, "B"), count(d, "d")});
  {
    const ReleaseGil release;
    VmfPlace(size, d, means, falls, seed, first_row, out.to);
  }
  return out.value;
}

py::tuple SumShares(const Floats& x, const Ids& ids, const Floats& responsibilities, const Ids& tokens, uint32_t n) {
  const auto in = read_accumulate(x, ids, responsibilities, tokens, n);
  const auto mass = make_result<float>({n});
  const auto resultant = make_result<float>({n, in.d});
  TokenCounts found;
  {
    const ReleaseGil release;
    found = Accumulate(in, mass.to, resultant.to);
  }
  const auto pairs = make_result<int64_t>({found.counts.size(), 2});
  const auto counts = make_result<float>({found.counts.size()});
  std::copy(found.splat_token.begin(), found.splat_token.end(), pairs.to);
  std::copy(found.counts.begin(), found.counts.end(), counts.to);
  return py::make_tuple(mass.value, resultant.value, pairs.value, counts.value);
}

Floats NormalsOf(uint64_t seed, uint32_t first_step, size_t steps, uint32_t first_chain, size_t chains, uint32_t stream,
                 size_t d) {
  const auto out = make_result<float>({steps, chains, d});
  {
    const ReleaseGil release;
    Normals(seed, first_step, steps, first_chain, chains, stream, d, out.to);
  }
  return out.value;
}

// x and out: arrays of one size, either float32 or bfloat16 stored as uint16.
template <class T>
void DropInto(const Array<T>& x, Array<T> out, uint64_t seed, uint32_t step, uint32_t place, uint64_t first,
              uint32_t threshold) {
  const size_t n = static_cast<size_t>(x.size());
  if (x.size() != out.size()) throw std::invalid_argument("x and out differ in size");
  if (threshold > 255) throw std::invalid_argument("threshold");
  if ((first + n) / 16 >= (uint64_t{1} << 32)) throw std::invalid_argument("first");
  const Masks masks{seed, step, place, first, threshold};
  const T* from = x.data();
  T* to = out.mutable_data();
  const ReleaseGil release;
  if constexpr (std::is_same_v<T, float>) {
    Dropout(masks, n, from, to);
  } else {
    DropoutBfloat16(masks, n, from, to);
  }
}

Floats Rows(const std::string& name, const std::vector<Floats>& arguments) {
  const auto& all = RowOperations();
  const auto found = std::find_if(all.begin(), all.end(), [&](const auto& one) { return name == one.name; });
  if (found == all.end()) throw std::invalid_argument("no operation on rows is named " + name);
  if (arguments.size() != found->arguments) throw std::invalid_argument("wrong number of arguments");
  py::ssize_t size = kAny, d = kAny;
  std::vector<const float*> in;
  for (const Floats& one : arguments) in.push_back(argument<float>(one, "an argument", {&size, &d}));
  const size_t rows = count(size, "B"), width = count(d, "d");
  const auto out = found->scalar ? make_result<float>({rows}) : make_result<float>({rows, width});
  {
    const ReleaseGil release;
    found->run(rows, width, in.data(), out.to);
  }
  return out.value;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of ebmvk; use them through ebmvk.engine.cpu.";
  // noconvert: an array of another dtype or layout is a mistake and must not be copied silently.
  const auto arg = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("rows", Rows, py::arg("operation"), arg("arguments"));
  m.def("topk", SearchTopK, arg("queries"), arg("points"), py::arg("k"), arg("scale"), arg("bias"), py::arg("coarse"));
  py::class_<CoarsePoints>(m, "CoarsePoints")
      .def(py::init(&NewCoarsePoints), arg("points"))
      .def_property_readonly("nbytes", &CoarsePoints::bytes);
  m.def("use_coarse", UseCoarse);
  m.def("coarse_kernels", CoarseKernels);
  m.def("coarse_kernel", CoarseKernel);
  m.def("use_coarse_kernel", UseCoarseKernel, py::arg("name"));
  register_operations(m);
  m.def("vmf_place", PlaceVmf, arg("mu"), arg("deficit"), py::arg("seed"), py::arg("first_row"));
  m.def("accumulate", SumShares, arg("x"), arg("ids"), arg("responsibilities"), arg("tokens"), py::arg("n"));
  m.def("normals", NormalsOf, py::arg("seed"), py::arg("first_step"), py::arg("steps"), py::arg("first_chain"),
        py::arg("chains"), py::arg("stream"), py::arg("d"));
  m.def("dropout", DropInto<float>, arg("x"), arg("out"), py::arg("seed"), py::arg("step"), py::arg("place"),
        py::arg("first"), py::arg("threshold"));
  m.def("dropout_bfloat16", DropInto<uint16_t>, arg("x"), arg("out"), py::arg("seed"), py::arg("step"),
        py::arg("place"), py::arg("first"), py::arg("threshold"));
  m.def("threads", [] { return SharedPool().threads(); });
  m.def("set_threads", SetThreads, py::arg("threads"));
  m.def("targets", Targets);
  m.def("target", Target);
  m.def("use_target", UseTarget, py::arg("name"));
}

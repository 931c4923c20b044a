// The operations candidate_law, chain_start and decode, which sample tokens together with topk and
// langevin.
#include "vulkan/ops/candidates.h"
#include "vulkan/ops/groups.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cmath>

namespace ebmvk {
namespace {

constexpr std::uint64_t kTableBytes = std::uint64_t{64} << 20;  // largest table; longer batches are done in parts

// A tensor keeps its pitch; rows from the host are dense.
std::uint32_t pitch_of(const Argument<float>& log_p, std::uint32_t width) {
  return log_p.tensor ? log_p.tensor->pitch() : width;
}

std::string law_key(const char* name, std::uint32_t capacity, std::uint32_t k, std::uint32_t width) {
  return std::string(name) + "/" + std::to_string(capacity) + "/" + std::to_string(k) + "/" + std::to_string(width);
}

struct LawWork {
  Buffer params;
  Operand log_p, ids, logp, log_rest, entropy;
  Program program;

  LawWork(Engine& engine, std::uint32_t capacity, const CandidateLawArguments& in, const CandidateLawResults& out,
          std::uint64_t begin)
      : params(engine.device(), Buffer::Kind::upload, 16),
        log_p(engine.device(), in.log_p.from(begin), capacity, in.width, pitch_of(in.log_p, in.width),
              Buffer::Kind::upload),
        ids(engine.device(), in.ids.from(begin), capacity, in.k, in.k, Buffer::Kind::upload),
        logp(engine.device(), out.logp.from(begin), capacity, in.k, in.k, Buffer::Kind::readback),
        log_rest(engine.device(), out.log_rest.from(begin), capacity, 1, 1, Buffer::Kind::readback),
        entropy(engine.device(), out.entropy.from(begin), capacity, 1, 1, Buffer::Kind::readback),
        program(engine.device()) {
    for (const auto* operand : {&log_p, &ids}) operand->load(engine.kernels(), program, params);
    program.kernel(
        engine.kernels().get(kernels::CandidateLaw::name, token_group(engine), {}),
        {params, log_p.on_device(), ids.on_device(), logp.on_device(), log_rest.on_device(), entropy.on_device()},
        kernels::CandidateLaw{in.k, in.width, pitch_of(in.log_p, in.width)}, capacity);
    for (const auto* operand : {&logp, &log_rest, &entropy}) operand->store(engine.kernels(), program, params);
    program.finish();
  }
};

struct StartWork {
  Buffer params;
  Operand x, v;
  Program program;

  StartWork(Engine& engine, std::uint32_t capacity, const kernels::ChainStart& push, const Place& to_x,
            const Place& to_v)
      : params(engine.device(), Buffer::Kind::upload, 32),
        x(engine.device(), to_x, capacity, push.d, 4 * push.quads, Buffer::Kind::readback),
        v(engine.device(), to_v, capacity, push.d, 4 * push.quads, Buffer::Kind::readback),
        program(engine.device()) {
    const auto group = engine.row_group(push.quads);
    program.kernel(engine.kernels().get(push.name, group, {(push.quads + group - 1) / group}),
                   {params, x.on_device(), v.on_device()}, push, capacity);
    for (const auto* operand : {&x, &v}) operand->store(engine.kernels(), program, params);
    program.finish();
  }
};

// A (rows, k) table that one kernel writes and the next ones read.
Tensor::Shape table_of(std::uint32_t rows, std::uint32_t k) { return {rows, k, k, false, Element::float32}; }

EnergyScoreArguments energy_of(const DecodeArguments& in, const Tensor& logw, const Tensor& kappa,
                               std::uint64_t begin) {
  return {in.rows, in.d, in.k, in.x, in.ids, {nullptr, &logw, begin}, {nullptr, &kappa, begin}, in.log_rest};
}

struct DecodeWork {
  Buffer params;
  Operand x, logp, concentration, shift, log_p, tokens;
  Tensor logw, kappa;  // of this work's rows; no result keeps them
  Buffer energy, score, responsibilities, rest;
  Candidates candidates;
  Program program;

  DecodeWork(Engine& engine, const Points& points, std::uint32_t capacity, const DecodeArguments& in,
             const DecodeResults& out, std::uint64_t begin)
      : params(engine.device(), Buffer::Kind::upload, 32),
        x(engine.device(), in.x.from(begin), capacity, in.d, 4 * points.quads(), Buffer::Kind::upload),
        logp(engine.device(), in.logp.from(begin), capacity, in.k, in.k, Buffer::Kind::upload),
        concentration(engine.device(), in.kappa.from(begin), capacity, 1, 1, Buffer::Kind::upload),
        shift(engine.device(), in.shift.from(begin), capacity, 1, 1, Buffer::Kind::upload),
        log_p(engine.device(), in.log_p.from(begin), capacity, points.n(), pitch_of(in.log_p, points.n()),
              Buffer::Kind::upload),
        tokens(engine.device(), out.tokens.from(begin), capacity, 1, 1, Buffer::Kind::readback),
        logw(nullptr, engine.device(), engine.pool(), table_of(capacity, in.k)),
        kappa(nullptr, engine.device(), engine.pool(), table_of(capacity, in.k)),
        energy(engine.device(), Buffer::Kind::device, std::uint64_t{4} * capacity),
        score(engine.device(), Buffer::Kind::device, std::uint64_t{16} * points.quads() * capacity),
        responsibilities(engine.device(), Buffer::Kind::device, std::uint64_t{4} * in.k * capacity),
        rest(engine.device(), Buffer::Kind::device, std::uint64_t{4} * capacity),
        candidates(engine, points, capacity, energy_of(in, logw, kappa, begin), begin),
        program(engine.device()) {
    auto& kernels = engine.kernels();
    for (const auto* operand : {&x, &logp, &concentration, &shift, &log_p}) operand->load(kernels, program, params);
    constexpr auto group = kernels::LevelLaw::group;
    const auto groups = (std::uint64_t{capacity} * in.k + group - 1) / group;
    const auto across =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(groups, engine.device().capabilities().max_groups));
    program.kernel(
        kernels.get(kernels::LevelLaw::name, group, {}),
        {params, logp.on_device(), concentration.on_device(), shift.on_device(), logw.memory(), kappa.memory()}, in.k,
        across, static_cast<std::uint32_t>((groups + across - 1) / across));
    candidates.record(engine, program, params);
    record_energy_score(engine, program, points, params, x.on_device(), candidates, in.k,
                        {energy, score, responsibilities, rest}, capacity);
    program.kernel(
        kernels.get(kernels::DrawToken::name, token_group(engine), {}),
        {params, responsibilities, rest, candidates.named.on_device(), log_p.on_device(), tokens.on_device()},
        kernels::DrawToken{in.k, points.n(), pitch_of(in.log_p, points.n())}, capacity);
    tokens.store(kernels, program, params);
    program.finish();
  }

  void write(const DecodeArguments& in, std::uint64_t begin, std::uint32_t rows) {
    x.write(in.x, begin, rows);
    logp.write(in.logp, begin, rows);
    concentration.write(in.kappa, begin, rows);
    shift.write(in.shift, begin, rows);
    log_p.write(in.log_p, begin, rows);
    candidates.named.write(in.ids, begin, rows);
    candidates.background.write(in.log_rest, begin, rows);
  }
};

}  // namespace

void Engine::candidate_law(const CandidateLawArguments& in, const CandidateLawResults& out) {
  Call call(*this, "candidate_law");
  const kernels::CandidateLaw push{in.k, in.width, pitch_of(in.log_p, in.width)};
  const auto row_bytes = std::uint64_t{4} * std::max(pitch_of(in.log_p, in.width), in.k);
  const auto most = std::min(std::max(kTableBytes / row_bytes, std::uint64_t{1}), device_.storage_range() / row_bytes);
  if (most == 0)
    throw Unsupported("a row of " + std::to_string(in.width) + " log probabilities: the device binds at most " +
                      std::to_string(device_.storage_range()) + " bytes at once");
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto fit = std::min({most, std::uint64_t{device_.capabilities().max_groups},
                               units_per_slice(push.name, push.flops(1)), in.rows - begin});
    auto capacity = power_of_two(fit);
    if (capacity > std::min<std::uint64_t>(most, device_.capabilities().max_groups)) capacity /= 2;
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto keys = keys_of({in.log_p.from(begin), in.ids.from(begin)},
                              {out.logp.from(begin), out.log_rest.from(begin), out.entropy.from(begin)});
    auto& work = workspaces_.get<LawWork>(law_key(push.name, capacity, in.k, in.width) + keys, 0,
                                          [&] { return std::make_shared<LawWork>(*this, capacity, in, out, begin); });
    *work.params.as<std::uint32_t>() = rows;
    work.log_p.write(in.log_p, begin, rows);
    work.ids.write(in.ids, begin, rows);
    call.run(work.program, push.name, push.flops(rows));
    work.logp.read(out.logp, begin, rows);
    work.log_rest.read(out.log_rest, begin, rows);
    work.entropy.read(out.entropy, begin, rows);
    begin += rows;
  }
  call.count();
}

void Engine::chain_start(const ChainStartArguments& in, const ChainStartResults& out) {
  Call call(*this, kernels::ChainStart::name);
  const kernels::ChainStart push{quads_of(in.d), in.d};
  const auto capacity = rows_at_once(device_, in.rows, in.d);
  for (std::uint64_t begin = 0; begin < in.rows; begin += capacity) {
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto to_x = out.x.from(begin), to_v = out.v.from(begin);
    auto& work =
        workspaces_.get<StartWork>(std::string(push.name) + "/" + std::to_string(capacity) + "/" +
                                       std::to_string(in.d) + keys_of({}, {to_x, to_v}),
                                   0, [&] { return std::make_shared<StartWork>(*this, capacity, push, to_x, to_v); });
    *work.params.as<kernels::ChainStart::Params>() = {rows,
                                                      in.first_chain + static_cast<std::uint32_t>(begin),
                                                      static_cast<std::uint32_t>(in.seed),
                                                      static_cast<std::uint32_t>(in.seed >> 32),
                                                      in.x_stream,
                                                      in.v_stream,
                                                      static_cast<float>(std::sqrt(in.temperature))};
    call.run(work.program);
    work.x.read(out.x, begin, rows);
    work.v.read(out.v, begin, rows);
  }
  call.count();
}

void Engine::decode(const Points& points, const DecodeArguments& in, const DecodeResults& out) {
  Call call(*this, "decode", &points);
  const kernels::DrawToken push{in.k, points.n(), pitch_of(in.log_p, points.n())};
  const auto slice = units_per_slice(push.name, push.flops(1));
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(in.rows - begin, slice), in.k,
                                          std::uint64_t{4} * pitch_of(in.log_p, points.n()));
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto keys = keys_of({in.x.from(begin), in.ids.from(begin), in.logp.from(begin), in.log_rest.from(begin),
                               in.kappa.from(begin), in.shift.from(begin), in.log_p.from(begin)},
                              {out.tokens.from(begin)});
    auto& work = workspaces_.get<DecodeWork>(
        law_key("decode", capacity, in.k, points.n()) + "/" + std::to_string(points.id()) + keys, points.id(),
        [&] { return std::make_shared<DecodeWork>(*this, points, capacity, in, out, begin); });
    *work.params.as<kernels::DrawToken::Params>() = {rows,
                                                     in.first_chain + static_cast<std::uint32_t>(begin),
                                                     static_cast<std::uint32_t>(in.seed),
                                                     static_cast<std::uint32_t>(in.seed >> 32),
                                                     in.choice_stream,
                                                     in.rest_stream};
    work.write(in, begin, rows);
    call.run(work.program, push.name, push.flops(rows));
    work.tokens.read(out.tokens, begin, rows);
    begin += rows;
  }
  call.count();
}

}  // namespace ebmvk

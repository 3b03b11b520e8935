// The one list of operations: every function of framework/ops/*.h, one call of each on tensors that fit. All tests of
// tests/ops run over it, so that a new operation gets them all; every_operation_test.cpp compares it with the headers.
//
// To add an operation: an entry here, its adjoint in adjoint_test.cpp, and what it refuses in operands_test.cpp. An
// operation without one of the two says why.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "framework/ops/activation.h"
#include "framework/ops/attention.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/embedding.h"
#include "framework/ops/experts.h"
#include "framework/ops/fp8.h"
#include "framework/ops/head_routing.h"
#include "framework/ops/linear.h"
#include "framework/ops/linear_attention.h"
#include "framework/ops/norm.h"
#include "framework/ops/optimizer.h"
#include "framework/ops/pool.h"
#include "framework/ops/residual.h"
#include "kernels/range.h"

namespace choir::tests {

/// What an operation returned, and what its header promises.
struct Returned {
  std::string what;
  Tensor tensor;
  Shape shape;
  DType type;
};

/// Operands for the calls: sizes that no vector divides, every element filled, so that on the CPU every value is a
/// number.
struct Operands {
  static constexpr std::int64_t N = 15, D = 13, out = 11, V = 17, positions = 9, length = 5, n = 37;
  static constexpr std::int64_t E = 6, H = 3, K = 2;  // three query heads of two key/value heads

  explicit Operands(Runtime& the_runtime) : runtime(the_runtime) {
    runtime.scalars = of_host(std::vector<kernels::StepScalars>{{.step = 3}}, DType::u8);
  }

  Tensor filled(const Shape& shape, DType of, float value = 0.5f) {
    const Tensor x = runtime.empty(shape, of);
    ops::fill(runtime, x, value);
    return x;
  }
  template <class T>
  Tensor of_host(const std::vector<T>& host, DType of) {
    return ops::to_device(runtime, host, of);
  }
  void expect(const char* what, const Tensor& tensor, const Shape& shape, DType of) {
    returned.push_back({what, tensor, shape, of});
  }

  Tensor x() { return filled({N, D}, type); }
  Tensor dy() { return filled({N, out}, type); }
  Tensor weight() { return filled({out, D}, type); }
  Tensor bias() { return filled({out}, type); }
  // Rows or columns of 0.5 in bf16, whatever the run's type, and their exponents.
  ops::ScaledRows scaled(ops::ScaledBy by, const Tensor& of) {
    const Tensor exponents = runtime.empty({by == ops::ScaledBy::rows ? of.rows() : of.width()}, DType::u8);
    ops::scale_exponents(runtime, of, by, exponents);
    expect("scale_exponents", exponents, exponents.shape(), DType::u8);
    return ops::quantise(runtime, of, by, exponents);
  }
  Tensor dbias() { return filled({out}, accumulate); }
  Tensor ids() { return of_host(std::vector<std::int32_t>(N, 4), DType::i32); }
  // q, k and v are columns of one buffer; three sequences of five tokens.
  Tensor qkv() { return filled({N, (H + 2 * K) * E}, type); }
  static Tensor q(const Tensor& all) { return all.slice_columns(0, H * E); }
  static Tensor k(const Tensor& all) { return all.slice_columns(H * E, (H + K) * E); }
  static Tensor v(const Tensor& all) { return all.slice_columns((H + K) * E, (H + 2 * K) * E); }
  // Linear attention has as many key/value heads as heads.
  static ops::LinearAttentionOptions linear() { return {.batch = 3, .heads = H, .head_width = E}; }
  static Tensor third(const Tensor& all, int which) { return all.slice_columns(which * H * E, (which + 1) * H * E); }
  Tensor decays() { return filled({N, H}, accumulate, -0.1f); }
  // The optimizers' are f32 whatever the run.
  Tensor flat(DType of = DType::f32) { return filled({n}, of); }
  ops::UpdateTable updates(const Tensor& weight, const Tensor& value) {
    const auto part = [&](const Tensor& of, std::int64_t begin, std::int64_t end) {
      return of ? of.slice_columns(begin, end) : Tensor{};
    };
    gradient = flat();
    return ops::make_update_table(runtime, {{20, 0, part(weight, 20, n), part(gradient, 20, n), part(value, 20, n)},
                                            {0, 0.1f, part(weight, 0, 20), part(gradient, 0, 20), part(value, 0, 20)}});
  }

  // Three sequences of five tokens that choose two of four experts, and their slots.
  static constexpr std::int64_t experts = 4, chosen = 2;
  static kernels::RowMap sequences() { return kernels::whole_sequences(3, length); }
  Tensor logits() { return filled({N, experts}, accumulate); }
  ops::Routed routed() { return ops::route(runtime, logits(), {}, {}, chosen, ops::ExpertScore::softmax); }
  static ops::SlotRule slot_rule() { return {.capacity = 4, .per_sequence = 4, .places = {experts, 1}}; }
  ops::Slots slots(const ops::Routed& r) {
    return ops::assign_slots(runtime, r.choices, ops::count_choices(runtime, r.choices, experts, sequences()), {},
                             slot_rule(), sequences());
  }
  static constexpr std::int64_t num_slots = experts * 3 * 4;

  // The same choices of heads 1 to 4 of a layer, of which heads 0 to 2 are here, and head 0 is always on.
  static ops::HeadRowsRule head_rule() {
    return {.always = 1,
            .first_head = 0,
            .heads = H,
            .routed_per_sequence = slot_rule().per_sequence,
            .per_sequence = length,
            .keys = length,
            .band = kernels::causal_band(length, length)};
  }
  ops::HeadRows head_rows(const ops::Routed& r) {
    return ops::head_rows(runtime, r, slots(r), head_rule(), sequences());
  }

  Runtime& runtime;
  const DType type = runtime.compute_type, accumulate = accumulate_type(runtime.compute_type);
  const ops::AttentionOptions options{.batch = 3,
                                      .heads = H,
                                      .kv_heads = K,
                                      .head_width = E,
                                      .group_size = 2,
                                      .band = kernels::causal_band(length, length, 4)};
  std::vector<Returned> returned;
  Tensor gradient;  // of the last table of updates
};

struct Operation {
  std::string name;
  std::function<void(Operands&)> call;
  std::string why_no_adjoint = "";  ///< empty: adjoint_test.cpp has one
  std::string why_no_rule = "";     ///< empty: operands_test.cpp has operands that it refuses
};

inline void PrintTo(const Operation& operation, std::ostream* to) { *to << operation.name; }

inline std::vector<Operation> every_operation() {
  using enum ops::Activation;
  static constexpr ops::Activation kinds[] = {gelu, gelu_erf, silu_gated};
  const std::string moves = "it moves elements and computes nothing", updates = "it does not compute activations";
  const std::string rounds = "it rounds to 8 bits, or takes what is so rounded";
  const std::string any = "it takes any tensor", flat_only = "the optimizer gives it flat arrays of one length";
  return {
      // Moves
      {"fill",
       [](Operands& o) {
         ops::fill(o.runtime, o.runtime.empty({3, 5}, o.type), 2);
       },
       moves},
      {"zero_ranges",
       [](Operands& o) {
         const Tensor x = o.flat();
         ops::zero_ranges(o.runtime, x, ops::to_device(o.runtime, std::vector<kernels::Range>{{1, 2}}, DType::u8), 1);
         o.expect("zero_ranges", x, {o.n}, DType::f32);
       },
       moves},
      {"accumulate",
       [](Operands& o) {
         const Tensor sum = o.flat();
         ops::accumulate(o.runtime, o.flat(), sum);
         o.expect("accumulate", sum, {o.n}, DType::f32);
       },
       moves},
      {"narrow",
       [](Operands& o) {
         const Tensor x = o.x();
         ops::narrow(o.runtime, o.filled({o.N, o.D}, o.accumulate), x);
         o.expect("narrow", x, {o.N, o.D}, o.type);
       },
       moves},
      {"copy",
       [](Operands& o) {
         ops::copy(o.runtime, o.x(), o.runtime.empty({o.N, o.D}, o.type));
       },
       moves},
      {"contiguous",
       [](Operands& o) {
         const Tensor wide = o.filled({o.N, o.D + 3}, o.type);
         o.expect("contiguous", ops::contiguous(o.runtime, wide.slice_columns(1, 1 + o.D)), {o.N, o.D}, o.type);
       },
       moves, any},
      {"upload",
       [](Operands& o) {
         const std::vector<std::int32_t> host{1, 2, 3};
         ops::upload(o.runtime, host.data(), o.runtime.empty({3}, DType::i32));
       },
       moves},
      {"download",
       [](Operands& o) {
         std::vector<double> host(static_cast<std::size_t>(o.n));
         ops::download(o.runtime, o.flat(DType::f64), host.data());
       },
       moves},
      {"to_device",
       [](Operands& o) {
         o.expect("to_device", ops::to_device(o.runtime, std::vector<std::int32_t>{1, 2, 3}, DType::i32), {3},
                  DType::i32);
       },
       moves, any},

      // Linear layers
      {"linear",
       [](Operands& o) {
         o.expect("linear", ops::linear(o.runtime, "product", o.x(), o.weight(), o.bias(), o.type), {o.N, o.out},
                  o.type);
         o.expect("linear to logits", ops::linear(o.runtime, "logits", o.x(), o.weight(), {}, o.accumulate),
                  {o.N, o.out}, o.accumulate);
       }},
      {"linear_activation",
       [](Operands& o) {
         for (const auto kind : kinds) {
           const std::int64_t inputs = kernels::inputs_per_output(kind);
           Tensor before;
           o.expect("linear_activation",
                    ops::linear_activation(o.runtime, "product", kind, o.x(), o.filled({inputs * o.out, o.D}, o.type),
                                           {}, before),
                    {o.N, o.out}, o.type);
           o.expect("before the activation", before, {o.N, inputs * o.out}, o.type);
         }
       }},
      {"linear_input_gradient",
       [](Operands& o) {
         o.expect("linear_input_gradient", ops::linear_input_gradient(o.runtime, "product", o.dy(), o.weight()),
                  {o.N, o.D}, o.type);
         const Tensor dx = o.x();
         ops::linear_input_gradient(o.runtime, "product", o.dy(), o.weight(), dx);
         o.expect("linear_input_gradient of a chunk", dx, {o.N, o.D}, o.type);
       }},
      {"linear_input_gradient_activation",
       [](Operands& o) {
         for (const auto kind : kinds) {
           const Tensor before = o.filled({o.N, kernels::inputs_per_output(kind) * o.out}, o.type);
           o.expect("linear_input_gradient_activation",
                    ops::linear_input_gradient_activation(o.runtime, "product", kind, o.x(),
                                                          o.filled({o.D, o.out}, o.type), before),
                    before.shape(), o.type);
         }
       }},
      {"linear_weight_gradient",
       [](Operands& o) {
         const Tensor dweight = o.filled({o.out, o.D}, o.accumulate);
         ops::linear_weight_gradient(o.runtime, "product", o.dy(), o.x(), dweight, {}, ops::Into::overwrite);
         ops::linear_weight_gradient(o.runtime, "product", o.dy(), o.x(), dweight, o.dbias());
         o.expect("linear_weight_gradient", dweight, {o.out, o.D}, o.accumulate);
       }},
      {"grouped_linear",
       [](Operands& o) {
         o.expect("grouped_linear",
                  ops::grouped_linear(o.runtime, "product", o.x(), o.filled({3 * o.out, o.D}, o.type), 3), {o.N, o.out},
                  o.type);
       }},
      {"grouped_linear_input_gradient",
       [](Operands& o) {
         o.expect(
             "grouped_linear_input_gradient",
             ops::grouped_linear_input_gradient(o.runtime, "product", o.dy(), o.filled({3 * o.out, o.D}, o.type), 3),
             {o.N, o.D}, o.type);
       }},
      {"grouped_linear_weight_gradient",
       [](Operands& o) {
         const Tensor dweight = o.filled({3 * o.out, o.D}, o.accumulate);
         ops::grouped_linear_weight_gradient(o.runtime, "product", o.dy(), o.x(), dweight, 3, ops::Into::overwrite);
         ops::grouped_linear_weight_gradient(o.runtime, "product", o.dy(), o.x(), dweight, 3);
         o.expect("grouped_linear_weight_gradient", dweight, {3 * o.out, o.D}, o.accumulate);
       }},
      {"bias_gradient",
       [](Operands& o) {
         const Tensor dbias = o.dbias();
         ops::bias_gradient(o.runtime, o.dy(), dbias);
         o.expect("bias_gradient", dbias, {o.out}, o.accumulate);
       }},

      // In 8 bits
      {"scale_exponents",
       [](Operands& o) {
         const Tensor exponents = o.runtime.empty({o.D}, DType::u8);
         ops::scale_exponents(o.runtime, o.filled({o.N, o.D}, DType::bf16), ops::ScaledBy::columns, exponents);
         o.expect("scale_exponents of columns", exponents, {o.D}, DType::u8);
       },
       rounds},
      {"quantise",
       [](Operands& o) {
         const Tensor exponents = o.of_host(std::vector<std::uint8_t>(o.N, 127), DType::u8);
         const ops::ScaledRows rows =
             ops::quantise(o.runtime, o.filled({o.N, o.D}, DType::bf16), ops::ScaledBy::rows, exponents);
         o.expect("quantise", rows.codes, {o.N, 16}, DType::u8);
         o.expect("quantise's scales", rows.scales, {o.N}, DType::f32);
         for (const auto by : {ops::ScaledBy::rows, ops::ScaledBy::columns})
           o.expect("quantise with its own exponents",
                    ops::quantise(o.runtime, o.filled({o.D, o.D}, DType::bf16), by).codes, {o.D, 16}, DType::u8);
       },
       rounds},
      {"scaled_linear",
       [](Operands& o) {
         const ops::ScaledRows x = o.scaled(ops::ScaledBy::rows, o.filled({o.N, o.D}, DType::bf16));
         const ops::ScaledRows weight = o.scaled(ops::ScaledBy::columns, o.filled({o.D, o.out}, DType::bf16));
         const Tensor bias = o.filled({o.out}, DType::bf16);
         const Tensor y = o.runtime.empty({o.N, o.out}, DType::bf16);
         ops::scaled_linear(o.runtime, "product", x, weight, bias, y);
         o.expect("scaled_linear", y, {o.N, o.out}, DType::bf16);
       },
       rounds},

      // Norms
      {"norm",
       [](Operands& o) {
         for (const bool rms : {false, true}) {
           const Tensor scale = o.filled({o.D}, o.accumulate), shift = rms ? Tensor{} : o.filled({o.D}, o.accumulate);
           ops::NormStatistics statistics;
           o.expect("norm", ops::norm(o.runtime, o.x(), scale, shift, rms, 1e-5, statistics), {o.N, o.D}, o.type);
           o.expect("rstd", statistics.rstd, {o.N}, o.accumulate);
           if (!rms) o.expect("mean", statistics.mean, {o.N}, o.accumulate);
         }
       }},
      {"residual_norm",
       [](Operands& o) {
         for (const bool rms : {false, true})
           for (const double p : {0.0, 0.25}) {
             const Tensor scale = o.filled({o.D}, o.accumulate), shift = rms ? Tensor{} : o.filled({o.D}, o.accumulate);
             const ops::Branch branch{o.x(), o.filled({o.D}, o.accumulate), ops::dropout_for(o.runtime, p, "test", {})};
             ops::NormStatistics statistics;
             const auto [sum, norm] = ops::residual_norm(o.runtime, o.x(), branch, scale, shift, rms, 1e-5, statistics);
             o.expect("sum", sum, {o.N, o.D}, o.type);
             o.expect("norm", norm, {o.N, o.D}, o.type);
             o.expect("rstd", statistics.rstd, {o.N}, o.accumulate);
           }
       }},
      {"norm_backward",
       [](Operands& o) {
         for (const bool rms : {false, true}) {
           const Tensor scale = o.filled({o.D}, o.accumulate), shift = rms ? Tensor{} : o.filled({o.D}, o.accumulate);
           const ops::NormStatistics statistics{rms ? Tensor{} : o.filled({o.N}, o.accumulate),
                                                o.filled({o.N}, o.accumulate)};
           o.expect(
               "norm_backward",
               ops::norm_backward(o.runtime, o.x(), o.x(), scale, statistics, rms ? o.x() : Tensor{}, scale, shift),
               {o.N, o.D}, o.type);
         }
       }},

      // Activations
      {"activation",
       [](Operands& o) {
         for (const auto kind : kinds)
           o.expect("activation",
                    ops::activation(o.runtime, kind, o.filled({o.N, kernels::inputs_per_output(kind) * o.D}, o.type)),
                    {o.N, o.D}, o.type);
       }},
      {"activation_backward",
       [](Operands& o) {
         for (const auto kind : kinds) {
           const Tensor in = o.filled({o.N, kernels::inputs_per_output(kind) * o.D}, o.type);
           o.expect("activation_backward", ops::activation_backward(o.runtime, kind, o.x(), in), in.shape(), o.type);
         }
       }},

      // Attention
      {"attention",
       [](Operands& o) {
         const Tensor qkv = o.qkv();
         Tensor lse;
         o.expect("attention", ops::attention(o.runtime, o.options, o.q(qkv), o.k(qkv), o.v(qkv), lse),
                  {o.N, o.H * o.E}, o.type);
         o.expect("lse", lse, {3, o.H, o.N / 3}, o.accumulate);
       }},
      {"attention_backward",
       [](Operands& o) {
         const Tensor qkv = o.qkv(), dqkv = o.qkv();
         Tensor lse;
         const Tensor mixed = ops::attention(o.runtime, o.options, o.q(qkv), o.k(qkv), o.v(qkv), lse);
         ops::attention_backward(o.runtime, o.options, o.q(qkv), o.k(qkv), o.v(qkv), mixed, lse, mixed, o.q(dqkv),
                                 o.k(dqkv), o.v(dqkv));
         o.expect("attention_backward", dqkv, qkv.shape(), o.type);
       }},
      {"attention_sink",
       [](Operands& o) {
         const Tensor out = o.filled({o.N, o.H * o.E}, o.type), lse = o.filled({3, o.H, o.N / 3}, o.accumulate);
         ops::attention_sink(o.runtime, o.options, o.filled({o.H}, o.accumulate), out, lse);
         o.expect("attention_sink", out, {o.N, o.H * o.E}, o.type);
         o.expect("lse", lse, {3, o.H, o.N / 3}, o.accumulate);
       }},
      {"attention_sink_backward",
       [](Operands& o) {
         const Tensor out = o.filled({o.N, o.H * o.E}, o.type), lse = o.filled({3, o.H, o.N / 3}, o.accumulate);
         const Tensor dsinks = o.filled({o.H}, o.accumulate);
         ops::attention_sink_backward(o.runtime, o.options, o.filled({o.H}, o.accumulate), out, lse, out, dsinks);
         o.expect("attention_sink_backward", dsinks, {o.H}, o.accumulate);
       }},
      {"merge_attention",
       [](Operands& o) {
         const Tensor total = o.filled({o.N, o.H * o.E}, o.accumulate), lse = o.filled({o.N * o.H}, o.accumulate);
         ops::merge_attention(o.runtime, o.options, o.filled({o.N, o.H * o.E}, o.type), lse, total,
                              o.filled({o.N * o.H}, o.accumulate));
         o.expect("merge_attention", total, {o.N, o.H * o.E}, o.accumulate);
       },
       "backward is that of attention, by the merged log-sum-exp: tests/parallel/context_mpi_test.cpp"},
      {"decay",
       [](Operands& o) {
         const Tensor z = o.filled({o.N, o.H}, o.accumulate);
         o.expect("decay", ops::decay(o.runtime, z, Operands::sequences(), {}), {o.N, o.H}, o.accumulate);
       }},
      {"decay_backward",
       [](Operands& o) {
         const Tensor g = o.filled({o.N, o.H}, o.accumulate, -0.5f);
         o.expect("decay_backward", ops::decay_backward(o.runtime, g, g), {o.N, o.H}, o.accumulate);
       }},
      {"linear_attention",
       [](Operands& o) {
         const Tensor all = o.filled({o.N, 3 * o.H * o.E}, o.type), out = o.runtime.empty({o.N, o.H * o.E}, o.type);
         const Tensor state = o.filled({3 * o.H, o.E * o.E}, o.accumulate);
         ops::linear_attention(o.runtime, Operands::linear(), Operands::third(all, 0), Operands::third(all, 1),
                               Operands::third(all, 2), o.decays(), state, out, state);
         o.expect("linear_attention", out, {o.N, o.H * o.E}, o.type);
         const Tensor of_delta = o.runtime.empty({o.N, o.H * o.E}, o.type);
         ops::linear_attention(o.runtime, Operands::linear(), Operands::third(all, 0), Operands::third(all, 1),
                               Operands::third(all, 2), o.decays(), state, of_delta, state, o.decays());
         o.expect("linear_attention by the delta rule", of_delta, {o.N, o.H * o.E}, o.type);
       }},
      {"linear_attention_backward",
       [](Operands& o) {
         const Tensor all = o.filled({o.N, 3 * o.H * o.E}, o.type), gradient = o.filled(all.shape(), o.type);
         const Tensor state = o.filled({3 * o.H, o.E * o.E}, o.accumulate), dg = o.decays();
         ops::linear_attention_backward(o.runtime, Operands::linear(), Operands::third(all, 0), Operands::third(all, 1),
                                        Operands::third(all, 2), o.filled({o.N, o.H * o.E}, o.type), o.decays(), state,
                                        state, Operands::third(gradient, 0), Operands::third(gradient, 1),
                                        Operands::third(gradient, 2), dg);
         o.expect("linear_attention_backward", dg, {o.N, o.H}, o.accumulate);
         const Tensor of_delta = o.decays(), of_rates = o.decays();
         ops::linear_attention_backward(o.runtime, Operands::linear(), Operands::third(all, 0), Operands::third(all, 1),
                                        Operands::third(all, 2), o.filled({o.N, o.H * o.E}, o.type), o.decays(), state,
                                        state, Operands::third(gradient, 0), Operands::third(gradient, 1),
                                        Operands::third(gradient, 2), of_delta, o.decays(), of_rates);
         o.expect("linear_attention_backward by the delta rule", of_delta, {o.N, o.H}, o.accumulate);
         o.expect("linear_attention_backward of rates", of_rates, {o.N, o.H}, o.accumulate);
       }},
      {"linear_attention_state",
       [](Operands& o) {
         const Tensor all = o.filled({o.N, 3 * o.H * o.E}, o.type);
         const Tensor state = o.filled({3 * o.H, o.E * o.E}, o.accumulate);
         ops::linear_attention_state(o.runtime, Operands::linear(), Operands::third(all, 1), Operands::third(all, 2),
                                     o.decays(), state, o.filled({3 * o.H}, o.accumulate));
         o.expect("linear_attention_state", state, {3 * o.H, o.E * o.E}, o.accumulate);
         const Tensor of_delta = o.filled(state.shape(), o.accumulate),
                      transition = o.filled(state.shape(), o.accumulate);
         ops::linear_attention_state(o.runtime, Operands::linear(), Operands::third(all, 1), Operands::third(all, 2),
                                     o.decays(), of_delta, transition, o.decays());
         o.expect("linear_attention_state by the delta rule", of_delta, {3 * o.H, o.E * o.E}, o.accumulate);
         o.expect("linear_attention_state's transition", transition, {3 * o.H, o.E * o.E}, o.accumulate);
       }},
      {"linear_attention_state_gradient",
       [](Operands& o) {
         const Tensor all = o.filled({o.N, 3 * o.H * o.E}, o.type);
         const Tensor state = o.filled({3 * o.H, o.E * o.E}, o.accumulate);
         const auto gradient = [&](const Tensor& dstate, const Tensor& log_rate) {
           ops::linear_attention_state_gradient(o.runtime, Operands::linear(), Operands::third(all, 0),
                                                Operands::third(all, 1), Operands::third(all, 2), o.decays(), dstate,
                                                log_rate);
         };
         gradient(state, {});
         o.expect("linear_attention_state_gradient", state, {3 * o.H, o.E * o.E}, o.accumulate);
         const Tensor of_delta = o.filled(state.shape(), o.accumulate);
         gradient(of_delta, o.decays());
         o.expect("linear_attention_state_gradient by the delta rule", of_delta, of_delta.shape(), o.accumulate);
       }},
      {"carry_state",
       [](Operands& o) {
         const Tensor state = o.filled({4, 9}, o.accumulate);
         ops::carry_state(o.runtime, o.filled({4, 9}, o.accumulate), o.filled({4}, o.accumulate, -1), state);
         o.expect("carry_state", state, {4, 9}, o.accumulate);
         const Tensor through = o.filled({4, 9}, o.accumulate);
         ops::carry_state(o.runtime, o.filled({4, 9}, o.accumulate), o.filled({4, 9}, o.accumulate), through, true);
         o.expect("carry_state through a matrix", through, {4, 9}, o.accumulate);
       }},
      {"rotary",
       [](Operands& o) {
         const Tensor qkv = o.qkv(), table = o.filled({o.positions, o.E}, o.accumulate);
         ops::rotary(o.runtime, o.q(qkv), table, o.E,
                     kernels::RowMap{.sequences = o.N, .runs = {{2, 2 + o.length}, {0, 0}}}, false);
         o.expect("rotary", qkv, qkv.shape(), o.type);
       }},
      {"rotary_table",
       [](Operands& o) {
         o.expect("rotary_table", ops::rotary_table(o.runtime, o.positions, o.E, 100), {o.positions, o.E},
                  o.accumulate);
       },
       "it has no operands", "it has no operands"},

      // Embeddings
      {"embedding",
       [](Operands& o) {
         o.expect("embedding", ops::embedding(o.runtime, o.ids(), o.filled({o.V, o.D}, o.type), 0), {o.N, o.D}, o.type);
       }},
      {"embedding_backward",
       [](Operands& o) {
         const Tensor dtable = o.filled({o.V, o.D}, o.accumulate);
         ops::embedding_backward(o.runtime, o.ids(), o.x(), dtable, 0);
         o.expect("embedding_backward", dtable, {o.V, o.D}, o.accumulate);
       }},
      {"add_position",
       [](Operands& o) {
         o.expect("add_position",
                  ops::add_position(o.runtime, o.x(), o.filled({o.positions, o.D}, o.type),
                                    {.sequences = o.N, .runs = {{1, 1 + o.length}, {0, 0}}, .first_row = 2}),
                  {o.N, o.D}, o.type);
       }},
      {"add_position_backward",
       [](Operands& o) {
         const Tensor dtable = o.filled({o.positions, o.D}, o.accumulate);
         ops::add_position_backward(o.runtime, o.x(), dtable,
                                    {.sequences = o.N, .runs = {{0, o.length}, {0, 0}}, .first_row = 2});
         o.expect("add_position_backward", dtable, {o.positions, o.D}, o.accumulate);
       }},

      // One row of each sequence
      {"pool",
       [](Operands& o) {
         o.expect("pool", ops::pool(o.runtime, o.x(), o.sequences(), {0, o.length}), {3, o.D}, o.accumulate);
       }},
      {"pool_backward",
       [](Operands& o) {
         o.expect("pool_backward",
                  ops::pool_backward(o.runtime, o.filled({3, o.D}, o.type), o.N, o.sequences(), {0, 1}), {o.N, o.D},
                  o.type);
       }},

      // Experts
      {"route",
       [](Operands& o) {
         for (const auto score : {ops::ExpertScore::softmax, ops::ExpertScore::sigmoid})
           for (const Tensor& bias : {Tensor{}, o.filled({o.experts}, o.accumulate)}) {
             const ops::Routed routed = ops::route(o.runtime, o.logits(), bias, {}, o.chosen, score);
             o.expect("choices", routed.choices, {o.N, o.chosen}, DType::i32);
             o.expect("weights", routed.weights, {o.N, o.chosen}, o.accumulate);
           }
       }},
      {"count_choices",
       [](Operands& o) {
         o.expect("count_choices", ops::count_choices(o.runtime, o.routed().choices, o.experts, o.sequences()),
                  {3, 2, o.experts}, DType::i32);
       },
       moves},
      {"add_imbalance",
       [](Operands& o) {
         const ops::Routed routed = o.routed();
         const Tensor gradient = o.filled({o.experts}, o.accumulate);
         ops::add_imbalance(o.runtime, ops::count_choices(o.runtime, routed.choices, o.experts, o.sequences()),
                            routed.choices.count(), gradient);
         o.expect("add_imbalance", gradient, {o.experts}, o.accumulate);
       },
       moves},
      {"assign_slots",
       [](Operands& o) {
         const ops::Slots slots = o.slots(o.routed());
         o.expect("slots", slots.of_rows, {o.N, o.chosen}, DType::i32);
         o.expect("rows of slots", slots.rows_of_slots, {o.num_slots}, DType::i32);
       },
       moves},
      {"gather_slots",
       [](Operands& o) {
         const ops::Routed routed = o.routed();
         for (const Tensor& weights : {Tensor{}, routed.weights})
           o.expect("gather_slots", ops::gather_slots(o.runtime, o.x(), weights, o.slots(routed)), {o.num_slots, o.D},
                    o.type);
       }},
      {"combine_slots",
       [](Operands& o) {
         const ops::Routed routed = o.routed();
         for (const Tensor& weights : {Tensor{}, routed.weights})
           o.expect("combine_slots",
                    ops::combine_slots(o.runtime, o.filled({o.num_slots, o.D}, o.type), weights, o.slots(routed)),
                    {o.N, o.D}, o.type);
       }},
      {"combine_weight_gradient",
       [](Operands& o) {
         o.expect(
             "combine_weight_gradient",
             ops::combine_weight_gradient(o.runtime, o.x(), o.filled({o.num_slots, o.D}, o.type), o.slots(o.routed())),
             {o.N, o.chosen}, o.accumulate);
       }},
      {"route_gradient",
       [](Operands& o) {
         const ops::Routed routed = o.routed();
         const Tensor counts = ops::count_choices(o.runtime, routed.choices, o.experts, o.sequences());
         for (const ops::BalanceLoss& balance : {ops::BalanceLoss{}, ops::BalanceLoss{counts, 0.1}})
           o.expect("route_gradient",
                    ops::route_gradient(o.runtime, o.logits(), routed, o.filled({o.N, o.chosen}, o.accumulate),
                                        ops::ExpertScore::softmax, balance, o.sequences()),
                    {o.N, o.experts}, o.accumulate);
       }},
      {"add_expert_sums",
       [](Operands& o) {
         const ops::Routed routed = o.routed();
         const Tensor counts = ops::count_choices(o.runtime, routed.choices, o.experts, o.sequences());
         const Tensor sums = o.filled({3}, DType::f64, 0);
         ops::add_expert_sums(o.runtime, o.logits(), o.slots(routed), ops::ExpertScore::sigmoid, {counts, 0.1}, sums,
                              o.sequences());
         o.expect("add_expert_sums", sums, {3}, DType::f64);
       }},

      // Heads
      {"head_rows",
       [](Operands& o) {
         const ops::HeadRows rows = o.head_rows(o.routed());
         o.expect("slots of rows", rows.slots.of_rows, {o.N * o.H, 1}, DType::i32);
         o.expect("rows of slots", rows.slots.rows_of_slots, {3 * o.length * o.H}, DType::i32);
         o.expect("gates", rows.gates, {o.N * o.H, 1}, o.accumulate);
         o.expect("ranges", rows.ranges, {3 * o.H * 2 * o.length, 2}, DType::i32);
       }},
      {"head_weight_gradient",
       [](Operands& o) {
         const Tensor dgates = o.filled({o.N * o.H, 1}, o.accumulate);
         o.expect("head_weight_gradient", ops::head_weight_gradient(o.runtime, dgates, o.routed(), o.head_rule()),
                  {o.N, o.chosen}, o.accumulate);
       }},
      {"add_head_counts",
       [](Operands& o) {
         const Tensor sums = o.filled({o.experts}, DType::f64, 0);
         ops::add_head_counts(o.runtime, o.slots(o.routed()), sums);
         o.expect("add_head_counts", sums, {o.experts}, DType::f64);
       },
       moves},

      // Residual branches
      {"dropout_for", [](Operands& o) { ops::dropout_for(o.runtime, 0.25, "test", {}); }, "it makes a key",
       "it has no tensors"},
      {"residual",
       [](Operands& o) {
         for (const double p : {0.0, 0.25}) {
           const ops::Dropout dropout = ops::dropout_for(o.runtime, p, "test", {});
           o.expect("residual", ops::residual(o.runtime, o.x(), o.x(), o.filled({o.D}, o.accumulate), dropout),
                    {o.N, o.D}, o.type);
         }
       }},
      {"residual_backward",
       [](Operands& o) {
         for (const double p : {0.0, 0.25}) {
           const ops::Dropout dropout = ops::dropout_for(o.runtime, p, "test", {});
           o.expect("residual_backward", ops::residual_backward(o.runtime, o.x(), dropout), {o.N, o.D}, o.type);
         }
       }},

      // Cross-entropy, with three columns of padding
      {"cross_entropy_statistics",
       [](Operands& o) {
         o.expect("cross_entropy_statistics",
                  ops::cross_entropy_statistics(o.runtime, o.filled({o.N, o.V + 3}, o.type), o.ids(), o.V, 0), {3, o.N},
                  o.accumulate);
       }},
      {"cross_entropy",
       [](Operands& o) {
         for (const bool gradient : {false, true}) {
           const Tensor logits = o.filled({o.N, o.V + 3}, o.type), losses = o.filled({o.N}, DType::f64),
                        right = gradient ? Tensor{} : o.filled({o.N}, DType::f64),
                        statistics = gradient ? Tensor{} : o.filled({2 * 3, o.N}, o.accumulate);
           ops::cross_entropy(o.runtime, logits, statistics, o.ids(), losses, right, o.V, 0, 0.1, gradient);
           if (gradient) o.expect("cross_entropy", logits, {o.N, o.V + 3}, o.type);
           o.expect("losses", losses, {o.N}, DType::f64);
         }
       }},
      {"sum_of_losses",
       [](Operands& o) {
         const Tensor sum = o.filled({1}, DType::f64);
         ops::sum_of_losses(o.runtime, o.filled({o.N}, DType::f64), sum);
         o.expect("sum_of_losses", sum, {1}, DType::f64);
       }},

      // Optimizers
      {"squared_norm",
       [](Operands& o) {
         const Tensor ranges = o.of_host(std::vector<kernels::Range>{{0, 20}, {30, o.n}}, DType::u8);
         const Tensor sum = o.filled({1}, DType::f64);
         ops::squared_norm(o.runtime, o.flat(), ranges, o.n - 10, sum);
         o.expect("squared_norm", sum, {1}, DType::f64);
       },
       updates, flat_only},
      {"clip_factor", [](Operands& o) { ops::clip_factor(o.runtime, o.filled({1}, DType::f64), 1); }, updates,
       flat_only},
      {"make_update_table",
       [](Operands& o) {
         const ops::UpdateTable table = o.updates(o.flat(), {});
         o.expect("segments", table.segments, {2 * sizeof(kernels::OptimizerSegment)}, DType::u8);
       },
       updates},
      {"adamw",
       [](Operands& o) {
         for (const Tensor& rounded : {Tensor{}, o.flat(DType::bf16)}) {
           const Tensor master = o.flat();
           for (const DType moments : {DType::f32, DType::bf16})
             ops::adamw(o.runtime, o.updates(master, rounded), o.flat(moments), o.flat(moments), 0.9, 0.99, 1e-8f);
           o.expect("adamw", master, {o.n}, DType::f32);
         }
       },
       updates},
      {"sgd",
       [](Operands& o) {
         for (const Tensor& rounded : {Tensor{}, o.flat(DType::bf16)})
           for (const float momentum : {0.0f, 0.9f}) {
             const Tensor master = o.flat();
             ops::sgd(o.runtime, o.updates(master, rounded), momentum > 0 ? o.flat() : Tensor{}, momentum);
             o.expect("sgd", master, {o.n}, DType::f32);
           }
       },
       updates},
      {"sign_step",
       [](Operands& o) {
         const Tensor master = o.flat();
         ops::sign_step(o.runtime, master, o.flat(), 0.1f);
         o.expect("sign_step", master, {o.n}, DType::f32);
       },
       updates},
      {"digest",
       [](Operands& o) {
         const Tensor ranges = o.of_host(std::vector<kernels::Range>{{0, 20}, {30, o.n}}, DType::u8);
         const Tensor digests = o.runtime.empty({2 * sizeof(std::uint64_t)}, DType::u8);
         ops::digest(o.runtime, o.flat(), ranges, digests);
         o.expect("digests", digests, {2 * sizeof(std::uint64_t)}, DType::u8);
       },
       updates},
      {"judge_step",
       [](Operands& o) {
         const Tensor one = o.filled({1}, DType::f64),
                      window = o.of_host(std::vector<kernels::SpikeWindow>(1), DType::u8);
         ops::judge_step(o.runtime, {}, one, {}, 0, 0);
         ops::judge_step(o.runtime, one, one, window, 8, 3, o.of_host(std::vector<std::uint64_t>(1), DType::u8));
       },
       updates},
  };
}

/// All of them, one after another.
inline std::vector<Returned> call_every_operation(Runtime& runtime) {
  Operands operands(runtime);
  for (const Operation& operation : every_operation()) operation.call(operands);
  return operands.returned;
}

}  // namespace choir::tests

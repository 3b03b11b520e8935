#include "framework/ops/linear_attention.h"

#include <cmath>

#include "framework/ops/dispatch.h"
#include "framework/ops/elementwise.h"
#include "kernels/delta_attention.h"

namespace choir::ops {

Tensor decay(Runtime& runtime, const Tensor& z, const kernels::RowMap& rows, const Tensor& documents, double root) {
  check(z.contiguous() && z.rows() == rows.sequences * rows.positions(), "decay: z [N, H] without gaps");
  check(!documents || (documents.dtype() == DType::i32 && documents.count() == 2 * rows.sequences * rows.length),
        "decay: documents [B * T, 2] i32");
  const Tensor log_decay = runtime.empty({z.rows(), z.width()}, z.dtype());
  with_type(z.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    const kernels::Decay<A> args{
        .rows = z.rows(),
        .heads = z.width(),
        .z = z.data<A>(),
        .log_decay = log_decay.data<A>(),
        .map = rows,
        .documents = static_cast<const kernels::DocumentRange*>(documents ? documents.raw() : nullptr),
        .root = root};
    launch<T>(runtime, "decay", {.flops = 6.0 * static_cast<double>(z.count()), .bytes = bytes_of({z, log_decay})},
              [args](auto device) { kernels::decay(device, args); });
  });
  return log_decay;
}

Tensor decay_backward(Runtime& runtime, const Tensor& log_decay, const Tensor& dlog_decay, double root) {
  check(log_decay.contiguous() && dlog_decay.contiguous() && log_decay.count() == dlog_decay.count(),
        "decay backward: log_decay and its gradient [N, H] without gaps");
  const Tensor dz = runtime.empty({log_decay.rows(), log_decay.width()}, log_decay.dtype());
  with_type(dz.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    const kernels::DecayGradient<A> args{.count = dz.count(),
                                         .log_decay = log_decay.data<A>(),
                                         .dlog_decay = dlog_decay.data<A>(),
                                         .dz = dz.data<A>(),
                                         .root = root};
    launch<T>(runtime, "decay backward",
              {.flops = 4.0 * static_cast<double>(dz.count()), .bytes = bytes_of({log_decay, dlog_decay, dz})},
              [args](auto device) { kernels::decay_gradient(device, args); });
  });
  return dz;
}

static kernels::LinearAttentionShape shape_of(const LinearAttentionOptions& o, std::int64_t rows, const Tensor& q,
                                              const Tensor& k, const Tensor& v, const Tensor& out,
                                              const Tensor& log_decay, const Tensor& log_rate) {
  const auto fits = [&](const Tensor& x) { return !x || (x.width() == o.heads * o.head_width && x.rows() == rows); };
  check(fits(q) && fits(k) && fits(v) && fits(out), "linear attention: q, k, v and out [B*T, H*E]");
  check(rows % o.batch == 0, "linear attention: rows are batch times tokens");
  check(log_decay.contiguous() && log_decay.rows() == rows && log_decay.width() == o.heads,
        "linear attention: log_decay [B*T, H] without gaps");
  check(!log_rate || (log_rate.contiguous() && log_rate.rows() == rows && log_rate.width() == o.heads),
        "linear attention: log_rate [B*T, H] without gaps");
  const auto stride = [](const Tensor& x) { return x ? x.row_stride() : 0; };
  return {.batch = o.batch,
          .length = rows / o.batch,
          .heads = o.heads,
          .head_width = o.head_width,
          .q_stride = stride(q),
          .k_stride = stride(k),
          .v_stride = stride(v),
          .out_stride = stride(out),
          .scale = log_rate ? 1 : 1 / std::sqrt(static_cast<double>(o.head_width)),
          .reverse = o.reverse};
}

static void check_state(const LinearAttentionOptions& o, const Tensor& state) {
  check(!state || (state.contiguous() && state.count() == o.batch * o.heads * o.head_width * o.head_width),
        "linear attention: states [B*H, E*E] without gaps");
}

/// Bytes of what is added to, in reverse: it is also read.
static double bytes_read(const LinearAttentionOptions& o, std::initializer_list<Tensor> added_to) {
  return o.reverse ? bytes_of(added_to) : 0;
}

/// Forward of the operands that are not empty.
static void run_forward(Runtime& runtime, const char* name, const LinearAttentionOptions& options, const Tensor& q,
                        const Tensor& k, const Tensor& v, const Tensor& log_decay, const Tensor& state,
                        const Tensor& out, const Tensor& last_state, const Tensor& total, const Tensor& log_rate) {
  const auto shape = shape_of(options, k.rows(), q, k, v, out, log_decay, log_rate);
  check_state(options, state);
  check_state(options, last_state);
  with_type(k.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return log_rate ? kernels::delta_attention_forward_workspace_bytes<T>(device, shape)
                      : kernels::linear_attention_forward_workspace_bytes<T>(device, shape);
    }));
    const kernels::LinearAttentionForward<T> args{.shape = shape,
                                                  .q = data_or_null<T>(q),
                                                  .k = k.data<T>(),
                                                  .v = v.data<T>(),
                                                  .log_decay = log_decay.data<A>(),
                                                  .state = data_or_null<A>(state),
                                                  .out = data_or_null<T>(out),
                                                  .last_state = data_or_null<A>(last_state),
                                                  .total = log_rate ? nullptr : data_or_null<A>(total),
                                                  .workspace = scratch.raw()};
    const double bytes = bytes_of({q, k, v, log_decay, log_rate, state, out, last_state});
    if (log_rate) {
      const kernels::DeltaAttentionForward<T> delta{args, log_rate.data<A>(), data_or_null<A>(total)};
      const kernels::DeltaAttentionFlops flops = delta_attention_flops(shape);
      launch<T>(runtime, name,
                {.flops = out ? flops.forward : flops.state, .bytes = bytes + bytes_read(options, {out})},
                [delta](auto device) { kernels::delta_attention_forward(device, delta); });
      return;
    }
    launch<T>(runtime, name,
              {.flops = out ? linear_attention_flops(shape) : linear_attention_state_flops(shape),
               .bytes = bytes + bytes_read(options, {out})},
              [args](auto device) { kernels::linear_attention_forward(device, args); });
  });
}

static void run_backward(Runtime& runtime, const char* name, const LinearAttentionOptions& options, const Tensor& q,
                         const Tensor& k, const Tensor& v, const Tensor& dout, const Tensor& log_decay,
                         const Tensor& state, const Tensor& dlast, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                         const Tensor& dlog_decay, const Tensor& dstate, const Tensor& log_rate,
                         const Tensor& dlog_rate) {
  const auto shape = shape_of(options, q.rows(), q, k, v, dout, log_decay, log_rate);
  check_state(options, state);
  check_state(options, dlast);
  check_state(options, dstate);
  with_type(q.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return log_rate ? kernels::delta_attention_backward_workspace_bytes<T>(device, shape)
                      : kernels::linear_attention_backward_workspace_bytes<T>(device, shape);
    }));
    const kernels::LinearAttentionBackward<T> args{.shape = shape,
                                                   .q = q.data<T>(),
                                                   .k = data_or_null<T>(k),
                                                   .v = data_or_null<T>(v),
                                                   .dout = dout.data<T>(),
                                                   .log_decay = log_decay.data<A>(),
                                                   .state = data_or_null<A>(state),
                                                   .dlast = data_or_null<A>(dlast),
                                                   .dq = data_or_null<T>(dq),
                                                   .dk = data_or_null<T>(dk),
                                                   .dv = data_or_null<T>(dv),
                                                   .dlog_decay = data_or_null<A>(dlog_decay),
                                                   .dstate = data_or_null<A>(dstate),
                                                   .workspace = scratch.raw()};
    const double bytes =
        bytes_of({q, k, v, dout, log_decay, log_rate, state, dlast, dq, dk, dv, dlog_decay, dlog_rate, dstate});
    if (log_rate) {
      const kernels::DeltaAttentionBackward<T> delta{args, log_rate.data<A>(), data_or_null<A>(dlog_rate)};
      const kernels::DeltaAttentionFlops flops = delta_attention_flops(shape);
      launch<T>(runtime, name,
                {.flops = dq ? flops.backward : flops.state_gradient,
                 .bytes = bytes + bytes_read(options, {dq, dk, dv, dlog_decay, dlog_rate})},
                [delta](auto device) { kernels::delta_attention_backward(device, delta); });
      return;
    }
    launch<T>(runtime, name,
              {.flops = dq ? 2.5 * linear_attention_flops(shape) : linear_attention_state_flops(shape),
               .bytes = bytes + bytes_read(options, {dq, dk, dv, dlog_decay})},
              [args](auto device) { kernels::linear_attention_backward(device, args); });
  });
}

void linear_attention(Runtime& runtime, const LinearAttentionOptions& options, const Tensor& q, const Tensor& k,
                      const Tensor& v, const Tensor& log_decay, const Tensor& state, const Tensor& out,
                      const Tensor& last_state, const Tensor& log_rate) {
  run_forward(runtime, "linear attention forward", options, q, k, v, log_decay, state, out, last_state, {}, log_rate);
}

void linear_attention_state(Runtime& runtime, const LinearAttentionOptions& options, const Tensor& k, const Tensor& v,
                            const Tensor& log_decay, const Tensor& last_state, const Tensor& total,
                            const Tensor& log_rate) {
  if (log_rate)
    check_state(options, total);
  else
    check(total.count() == options.batch * options.heads, "linear attention state: total [B*H]");
  run_forward(runtime, "linear attention state", options, {}, k, v, log_decay, {}, {}, last_state, total, log_rate);
}

void linear_attention_backward(Runtime& runtime, const LinearAttentionOptions& options, const Tensor& q,
                               const Tensor& k, const Tensor& v, const Tensor& dout, const Tensor& log_decay,
                               const Tensor& state, const Tensor& dlast, const Tensor& dq, const Tensor& dk,
                               const Tensor& dv, const Tensor& dlog_decay, const Tensor& log_rate,
                               const Tensor& dlog_rate) {
  const auto alike = [](const Tensor& a, const Tensor& b) {
    return a.rows() == b.rows() && a.width() == b.width() && a.row_stride() == b.row_stride();
  };
  check(alike(dq, q) && alike(dk, k) && alike(dv, v) && dlog_decay.contiguous() && alike(dlog_decay, log_decay) &&
            (!log_rate || (dlog_rate.contiguous() && alike(dlog_rate, log_rate))),
        "linear attention backward: gradients are shaped and strided like their tensors");
  run_backward(runtime, "linear attention backward", options, q, k, v, dout, log_decay, state, dlast, dq, dk, dv,
               dlog_decay, {}, log_rate, dlog_rate);
}

void linear_attention_state_gradient(Runtime& runtime, const LinearAttentionOptions& options, const Tensor& q,
                                     const Tensor& k, const Tensor& dout, const Tensor& log_decay, const Tensor& dstate,
                                     const Tensor& log_rate) {
  run_backward(runtime, "linear attention state gradient", options, q, log_rate ? k : Tensor{}, {}, dout, log_decay, {},
               {}, {}, {}, {}, {}, dstate, log_rate, {});
}

void carry_state(Runtime& runtime, const Tensor& next, const Tensor& total, const Tensor& state, bool gradient) {
  const bool matrices = total.shape().size() == 2;
  check(next.contiguous() && state.contiguous() && next.count() == state.count() && total.contiguous() &&
            total.count() == (matrices ? state.count() : state.rows()),
        "carry state: next and state [B*H, E*E], total [B*H] or [B*H, E*E]");
  with_type(state.dtype(), [&]<class T>() {
    using A = Accumulate<T>;
    if (!matrices) {
      const kernels::CarryState<A> args{.states = state.rows(),
                                        .elements = state.width(),
                                        .next = next.data<A>(),
                                        .total = total.data<A>(),
                                        .state = state.data<A>()};
      launch<T>(runtime, "carry state",
                {.flops = 2.0 * static_cast<double>(state.count()), .bytes = bytes_of({next, state, state})},
                [args](auto device) { kernels::carry_state(device, args); });
      return;
    }
    const auto width = std::llround(std::sqrt(static_cast<double>(state.width())));
    const Tensor out = runtime.empty({state.rows(), state.width()}, state.dtype());
    const kernels::CarryThrough<A> args{.states = state.rows(),
                                        .width = width,
                                        .next = next.data<A>(),
                                        .transition = total.data<A>(),
                                        .state = state.data<A>(),
                                        .out = out.data<A>(),
                                        .transposed = gradient};
    launch<T>(runtime, "carry state",
              {.flops = 2.0 * static_cast<double>(state.count() * width), .bytes = bytes_of({next, total, state, out})},
              [args](auto device) { kernels::carry_through(device, args); });
    copy(runtime, out, state);
  });
}

}  // namespace choir::ops

#include "framework/ops/attention.h"

#include <cmath>

#include "framework/ops/dispatch.h"
#include "framework/ops/elementwise.h"
#include "framework/ops/linear.h"
#include "kernels/attention_merge.h"
#include "kernels/attention_sink.h"
#include "kernels/rotary.h"

namespace choir::ops {

static kernels::AttentionShape shape_of(const AttentionOptions& o, const Tensor& q, const Tensor& k, const Tensor& v,
                                        std::int64_t out_stride) {
  check(q.width() == o.heads * o.head_width && k.width() == o.kv_heads * o.head_width && v.width() == k.width(),
        "attention: columns are heads times head width");
  check(q.rows() % o.batch == 0 && k.rows() % o.batch == 0 && k.rows() == v.rows(),
        "attention: rows are batch times tokens");
  check((o.group_offset + o.heads - 1) / o.group_size < o.kv_heads,
        "attention: every query head has its key/value head");
  const std::int64_t document_heads = o.documents_of_heads ? o.heads : 1, sequences = o.batch * document_heads;
  check(!o.documents ||
            (o.documents.dtype() == DType::i32 && o.documents.width() == 2 && o.documents.rows() % sequences == 0 &&
             o.first_query + q.rows() / o.batch <= o.documents.rows() / sequences &&
             o.first_key + k.rows() / o.batch <= o.documents.rows() / sequences),
        "attention: documents [B * T, 2] i32, of all queries and keys, or [B * H * T, 2] of heads");
  return {.batch = o.batch,
          .q_length = q.rows() / o.batch,
          .kv_length = k.rows() / o.batch,
          .heads = o.heads,
          .kv_heads = o.kv_heads,
          .head_width = o.head_width,
          .group_size = o.group_size,
          .group_offset = o.group_offset,
          .q_stride = q.row_stride(),
          .k_stride = k.row_stride(),
          .v_stride = v.row_stride(),
          .out_stride = out_stride,
          .band = o.band,
          .scale = 1.0 / std::sqrt(static_cast<double>(o.head_width)),
          .score = o.score,
          .documents = {.separate = static_cast<bool>(o.documents),
                        .ranges = static_cast<const kernels::DocumentRange*>(o.documents ? o.documents.raw() : nullptr),
                        .length = o.documents ? o.documents.rows() / sequences : 0,
                        .first_query = o.first_query,
                        .first_key = o.first_key,
                        .heads = document_heads},
          .dropout = o.dropout};
}

Tensor attention(Runtime& runtime, const AttentionOptions& options, const Tensor& q, const Tensor& k, const Tensor& v,
                 Tensor& lse) {
  Tensor out = runtime.empty({q.rows(), q.width()}, q.dtype());
  lse = runtime.empty({options.batch, options.heads, q.rows() / options.batch}, accumulate_type(q.dtype()));
  attention(runtime, options, q, k, v, out, lse);
  return out;
}

void attention(Runtime& runtime, const AttentionOptions& options, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& out, const Tensor& lse) {
  const auto shape = shape_of(options, q, k, v, out.row_stride());
  check(out.rows() == q.rows() && out.width() == q.width() && lse.count() == options.heads * q.rows(),
        "attention: out like q, lse [B, H, Tq]");
  with_type(q.dtype(), [&]<class T>() {
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return kernels::attention_forward_workspace_bytes<T>(device, shape);
    }));
    const kernels::AttentionForward<T> args{.shape = shape,
                                            .q = q.data<T>(),
                                            .k = k.data<T>(),
                                            .v = v.data<T>(),
                                            .out = out.data<T>(),
                                            .lse = lse.data<Accumulate<T>>(),
                                            .workspace = scratch.raw()};
    launch<T>(runtime, "attention forward",
              {.flops = options.counted_share * kernels::attention_flops(shape), .bytes = bytes_of({q, k, v, out})},
              [args](auto device) { kernels::attention_forward(device, args); });
  });
}

void merge_attention(Runtime& runtime, const AttentionOptions& options, const Tensor& part, const Tensor& part_lse,
                     const Tensor& total, const Tensor& total_lse) {
  check(part.contiguous() && total.contiguous() && part.count() == total.count() &&
            part.width() == options.heads * options.head_width && part_lse.count() == options.heads * part.rows() &&
            total_lse.count() == part_lse.count(),
        "merge attention: out [B*Tq, H*E] and lse [B, H, Tq], twice");
  with_type(part.dtype(), [&]<class T>() {
    const kernels::AttentionMerge<T> args{.batch = options.batch,
                                          .queries = part.rows() / options.batch,
                                          .heads = options.heads,
                                          .head_width = options.head_width,
                                          .part = part.data<T>(),
                                          .part_lse = part_lse.data<Accumulate<T>>(),
                                          .total = total.data<Accumulate<T>>(),
                                          .total_lse = total_lse.data<Accumulate<T>>()};
    launch<T>(runtime, "attention merge",
              {.flops = 3.0 * static_cast<double>(part.count()), .bytes = bytes_of({part, total, total})},
              [args](auto device) { kernels::attention_merge(device, args); });
  });
}

void attention_sink(Runtime& runtime, const AttentionOptions& options, const Tensor& sinks, const Tensor& out,
                    const Tensor& lse) {
  check(out.contiguous() && out.width() == options.heads * options.head_width &&
            lse.count() == options.heads * out.rows() && sinks.count() == options.heads,
        "attention sink: out [B*Tq, H*E], lse [B, H, Tq], sinks [H]");
  with_type(out.dtype(), [&]<class T>() {
    const kernels::AttentionSink<T> args{.batch = options.batch,
                                         .queries = out.rows() / options.batch,
                                         .heads = options.heads,
                                         .head_width = options.head_width,
                                         .sinks = sinks.data<Accumulate<T>>(),
                                         .out = out.data<T>(),
                                         .lse = lse.data<Accumulate<T>>()};
    launch<T>(runtime, "attention sink", {.flops = static_cast<double>(out.count()), .bytes = bytes_of({out, out})},
              [args](auto device) { kernels::attention_sink(device, args); });
  });
}

void attention_sink_backward(Runtime& runtime, const AttentionOptions& options, const Tensor& sinks, const Tensor& out,
                             const Tensor& lse, const Tensor& dout, const Tensor& dsinks) {
  check(out.contiguous() && dout.contiguous() && out.count() == dout.count() &&
            out.width() == options.heads * options.head_width && lse.count() == options.heads * out.rows() &&
            sinks.count() == options.heads && dsinks.count() == options.heads,
        "attention sink backward: out and dout [B*Tq, H*E], lse [B, H, Tq], sinks and dsinks [H]");
  const Tensor terms = runtime.empty({out.rows(), options.heads}, accumulate_type(out.dtype()));
  with_type(out.dtype(), [&]<class T>() {
    const kernels::AttentionSinkGradient<T> args{.batch = options.batch,
                                                 .queries = out.rows() / options.batch,
                                                 .heads = options.heads,
                                                 .head_width = options.head_width,
                                                 .sinks = sinks.data<Accumulate<T>>(),
                                                 .out = out.data<T>(),
                                                 .dout = dout.data<T>(),
                                                 .lse = lse.data<Accumulate<T>>(),
                                                 .terms = terms.data<Accumulate<T>>()};
    launch<T>(runtime, "attention sink backward",
              {.flops = 2.0 * static_cast<double>(out.count()), .bytes = bytes_of({out, dout})},
              [args](auto device) { kernels::attention_sink_gradient(device, args); });
  });
  bias_gradient(runtime, terms, dsinks);
}

void attention_backward(Runtime& runtime, const AttentionOptions& options, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dq,
                        const Tensor& dk, const Tensor& dv) {
  const auto alike = [](const Tensor& a, const Tensor& b) {
    return a.rows() == b.rows() && a.width() == b.width() && a.row_stride() == b.row_stride();
  };
  check(alike(dq, q) && alike(dk, k) && alike(dv, v) && alike(dout, out),
        "attention backward: gradients are shaped and strided like their tensors");
  check(out.rows() == q.rows() && out.width() == q.width() && lse.count() == options.heads * q.rows(),
        "attention backward: out like q, lse [B, H, Tq]");
  const auto shape = shape_of(options, q, k, v, out.row_stride());
  with_type(q.dtype(), [&]<class T>() {
    const Tensor scratch = workspace(runtime, runtime.device.with_kernels<T>([&](auto device) {
      return kernels::attention_backward_workspace_bytes<T>(device, shape);
    }));
    const kernels::AttentionBackward<T> args{.shape = shape,
                                             .q = q.data<T>(),
                                             .k = k.data<T>(),
                                             .v = v.data<T>(),
                                             .out = out.data<T>(),
                                             .dout = dout.data<T>(),
                                             .lse = lse.data<Accumulate<T>>(),
                                             .dq = dq.data<T>(),
                                             .dk = dk.data<T>(),
                                             .dv = dv.data<T>(),
                                             .workspace = scratch.raw()};
    launch<T>(runtime, "attention backward",
              {.flops = 2.5 * options.counted_share * kernels::attention_flops(shape),
               .bytes = bytes_of({q, k, v, out, dout, dq, dk, dv})},
              [args](auto device) { kernels::attention_backward(device, args); });
  });
}

void rotary(Runtime& runtime, const Tensor& x, const Tensor& table, std::int64_t head_width,
            const kernels::RowMap& rows, bool inverse, const Tensor& positions) {
  check(table.width() == head_width && x.width() % head_width == 0, "rotary: x [N, heads * E], table [positions, E]");
  check(rows.last_position() < table.rows(), "rotary: positions within the table");
  check(!positions || (positions.dtype() == DType::i32 && positions.count() >= x.rows()), "rotary: positions [N] i32");
  with_type(x.dtype(), [&]<class T>() {
    const kernels::Rotary<T> args{.x = x.data<T>(),
                                  .table = table.data<Accumulate<T>>(),
                                  .rows = x.rows(),
                                  .heads = x.width() / head_width,
                                  .head_width = head_width,
                                  .stride = x.row_stride(),
                                  .map = rows,
                                  .positions = data_or_null<std::int32_t>(positions),
                                  .inverse = inverse};
    launch<T>(runtime, "rotary",
              {.flops = 3.0 * static_cast<double>(x.count()), .bytes = 2.0 * static_cast<double>(x.bytes())},
              [args](auto device) { kernels::rotary(device, args); });
  });
}

Tensor rotary_table(Runtime& runtime, std::int64_t positions, std::int64_t head_width, double base,
                    const kernels::Grid& grid) {
  for (const RotaryTable& made : runtime.rotary_tables)
    if (made.positions == positions && made.head_width == head_width && made.base == base && made.grid == grid)
      return made.values;
  Tensor table = runtime.empty({positions, head_width}, accumulate_type(runtime.compute_type), MemoryKind::parameters);
  runtime.rotary_tables.push_back({positions, head_width, base, grid, table});
  if (runtime.device.counts_only()) return table;
  const auto make = [&]<class A>() {
    std::vector<A> host(static_cast<std::size_t>(table.count()));
    kernels::rotary_table(host.data(), positions, head_width, base, grid);
    upload(runtime, host.data(), table);
  };
  table.dtype() == DType::f64 ? make.template operator()<double>() : make.template operator()<float>();
  return table;
}

}  // namespace choir::ops

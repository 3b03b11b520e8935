#include "framework/parallel/context_axis.h"

namespace choir {

HeadRange heads_of(const AttentionSpec& a, std::int64_t tensor_rank) {
  return {a.heads.query(tensor_rank), a.heads.key_value(tensor_rank)};
}

HeadRange share_of_heads(const AttentionSpec& a, std::int64_t tensor_rank, std::int64_t ranks, std::int64_t rank) {
  const Slice all = a.heads.query(tensor_rank), share = even_slice(all.count(), ranks, rank);
  const Slice query{all.begin + share.begin, all.begin + share.end};
  return {query, {query.begin / a.heads.group_size(), (query.end - 1) / a.heads.group_size() + 1}};
}

Tensor of_run(const Tensor& x, const Rows& rows, int run) {
  const std::int64_t begin = run == 0 ? 0 : rows.count(0);
  return x.slice_rows(begin, begin + rows.count(run));
}

Tensor lse_of_run(const Tensor& lse, const Rows& rows, int run, std::int64_t heads) {
  const std::int64_t begin = run == 0 ? 0 : rows.count(0);
  return lse.slice_columns(heads * begin, heads * (begin + rows.count(run)));
}

void for_each_run(const Tensor& x, const Rows& rows, const Tensor& whole,
                  const std::function<void(const Tensor&, const Tensor&)>& body) {
  const std::int64_t width = x.width();
  const Tensor sequences = whole.reshape({rows.sequences, rows.length * width});
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const auto [begin, end] = rows.runs[run];
    if (begin >= end) continue;
    body(of_run(x, rows, run).reshape({rows.sequences, (end - begin) * width}),
         sequences.slice_columns(begin * width, end * width));
  }
}

bool sees(const kernels::Run& queries, const kernels::Run& keys, kernels::Band band) {
  if (queries.empty() || keys.empty()) return false;
  const kernels::VisiblePairs<std::int64_t> pairs(kernels::band_between(band, queries.begin, keys.begin),
                                                  queries.count(), keys.count());
  return pairs.any({0, queries.count()}, {0, keys.count()});
}

Tensor attend_here(const ContextAxis& axis, const Tensor& qkv, const HeadRange& heads, Attended& saved) {
  const Tensor kv = axis.kv(qkv, heads);
  saved.qkv = keep(qkv);
  saved.out = keep(
      ops::attention(axis.runtime, axis.options(heads, 0, 0), axis.q(qkv, heads), axis.k(kv), axis.v(kv), saved.lse));
  keep(saved.lse);
  axis.add_sinks(heads, saved.out, saved.lse);
  return saved.out;
}

Tensor attend_here_backward(const ContextAxis& axis, const Tensor& dout, const HeadRange& heads,
                            const Attended& saved) {
  axis.add_sinks_backward(heads, saved.out, saved.lse, dout);
  const Tensor dqkv = axis.runtime.empty({saved.qkv.rows(), saved.qkv.width()}, saved.qkv.dtype());
  const Tensor kv = axis.kv(saved.qkv, heads), dkv = axis.kv(dqkv, heads);
  ops::attention_backward(axis.runtime, axis.options(heads, 0, 0), axis.q(saved.qkv, heads), axis.k(kv), axis.v(kv),
                          saved.out, saved.lse, dout, axis.q(dqkv, heads), axis.k(dkv), axis.v(dkv));
  return dqkv;
}

}  // namespace choir

// Token and position embeddings on the CPU.
//
// Forward is divided by rows. Backward is divided so that no two threads write to one element and each element adds
// its rows in ascending order: by columns for tokens (which rows have the same token is known only at run time), by
// positions for positions.
#include "kernels/embedding.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cpp"
#include "hwy/foreach_target.h"
#include "kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace choir::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void embed(const EmbeddingForward<T>& args, Part rows) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.width) * sizeof(T);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const std::int64_t token = args.ids[row] - args.first_token;
    T* y = args.y + row * args.width;
    if (token >= 0 && token < args.num_tokens) {
      std::memcpy(y, args.table + token * args.width, row_bytes);
    } else {
      std::memset(static_cast<void*>(y), 0, row_bytes);
    }
  }
}

/// sum[i] += x[i]
template <class T>
HWY_INLINE void accumulate(Accumulate<T>* sum, const T* x, std::int64_t count) {
  const Tag<T> d;
  for_each_vector(d, count, [&](auto i, auto extent) HWY_ATTR {
    store(d, hn::Add(load(d, sum + i, extent), load(d, x + i, extent)), sum + i, extent);
  });
}

template <class T>
void embed_backward(const EmbeddingBackward<T>& args, Part columns) {
  const std::int64_t count = columns.end - columns.begin;
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const std::int64_t token = args.ids[row] - args.first_token;
    if (token < 0 || token >= args.num_tokens) continue;
    accumulate(args.dtable + token * args.width + columns.begin, args.dy + row * args.width + columns.begin, count);
  }
}

template <class T>
void add_position(const PositionForward<T>& args, Part rows) {
  const Tag<T> d;
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = args.x + row * args.width;
    const std::int64_t position = args.positions ? args.positions[row] : args.map.position(row);
    const T* table = args.table + position * args.width;
    T* y = args.y + row * args.width;
    for_each_vector(d, args.width, [&](auto i, auto extent) HWY_ATTR {
      store(d, hn::Add(load(d, x + i, extent), load(d, table + i, extent)), y + i, extent);
    });
  }
}

template <class T>
void add_position_backward(const PositionBackward<T>& args, Part positions) {
  for (std::int64_t position = positions.begin; position < positions.end; ++position) {
    const RowMap::RowsOfPosition rows = args.map.rows_of(position, args.rows);
    for (std::int64_t row = rows.begin; row < rows.end; row += rows.step) {
      accumulate(args.dtable + rows.position * args.width, args.dy + row * args.width, args.width);
    }
  }
}

cpu::KernelSet<EmbeddingForward<float>, EmbeddingForward<bf16>, EmbeddingForward<double>, EmbeddingBackward<float>,
               EmbeddingBackward<bf16>, EmbeddingBackward<double>, PositionForward<float>, PositionForward<bf16>,
               PositionForward<double>, PositionBackward<float>, PositionBackward<bf16>, PositionBackward<double>>
kernels() {
  return {embed<float>,
          embed<bf16>,
          embed<double>,
          embed_backward<float>,
          embed_backward<bf16>,
          embed_backward<double>,
          add_position<float>,
          add_position<bf16>,
          add_position<double>,
          add_position_backward<float>,
          add_position_backward<bf16>,
          add_position_backward<double>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace choir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace choir::kernels {
HWY_EXPORT(kernels);

template <class T>
void embedding_forward(Cpu cpu, const EmbeddingForward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width);
}

template <class T>
void embedding_backward(Cpu cpu, const EmbeddingBackward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.width, args.rows, 16);
}

template <class T>
void position_forward(Cpu cpu, const PositionForward<T>& args) {
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, args.rows, args.width);
}

template <class T>
void position_backward(Cpu cpu, const PositionBackward<T>& args) {
  const std::int64_t positions = args.map.positions();
  cpu::run_parts(cpu, HWY_DYNAMIC_DISPATCH(kernels)(), args, positions, args.rows * args.width / positions);
}

template void embedding_forward(Cpu, const EmbeddingForward<float>&);
template void embedding_forward(Cpu, const EmbeddingForward<bf16>&);
template void embedding_forward(Cpu, const EmbeddingForward<double>&);
template void embedding_backward(Cpu, const EmbeddingBackward<float>&);
template void embedding_backward(Cpu, const EmbeddingBackward<bf16>&);
template void embedding_backward(Cpu, const EmbeddingBackward<double>&);
template void position_forward(Cpu, const PositionForward<float>&);
template void position_forward(Cpu, const PositionForward<bf16>&);
template void position_forward(Cpu, const PositionForward<double>&);
template void position_backward(Cpu, const PositionBackward<float>&);
template void position_backward(Cpu, const PositionBackward<bf16>&);
template void position_backward(Cpu, const PositionBackward<double>&);

}  // namespace choir::kernels
#endif

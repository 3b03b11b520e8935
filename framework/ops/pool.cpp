#include "framework/ops/pool.h"

#include "framework/ops/dispatch.h"

namespace choir::ops {

static kernels::PoolShape shape_of(std::int64_t rows, std::int64_t width, const kernels::RowMap& map,
                                   const kernels::Run& positions, const Tensor& documents) {
  check(!documents || (documents.dtype() == DType::i32 && documents.width() == 2 &&
                       documents.rows() == map.sequences * map.length),
        "pool: documents [B * T, 2] i32");
  return {.rows = rows,
          .width = width,
          .map = map,
          .positions = positions,
          .documents = static_cast<const kernels::DocumentRange*>(documents ? documents.raw() : nullptr)};
}

Tensor pool(Runtime& runtime, const Tensor& x, const kernels::RowMap& rows, const kernels::Run& positions,
            const Tensor& documents) {
  check(x.contiguous(), "pool: x [N, D] is contiguous");
  const kernels::PoolShape shape = shape_of(x.rows(), x.width(), rows, positions, documents);
  Tensor means = runtime.empty({rows.sequences, x.width()}, accumulate_type(x.dtype()));
  with_type(x.dtype(), [&]<class T>() {
    const kernels::PoolForward<T> args{.shape = shape, .x = x.data<T>(), .means = means.data<Accumulate<T>>()};
    launch<T>(runtime, "pool forward", {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x})},
              [args](auto device) { kernels::pool_forward(device, args); });
  });
  return means;
}

Tensor pool_backward(Runtime& runtime, const Tensor& dmeans, std::int64_t rows, const kernels::RowMap& map,
                     const kernels::Run& positions, const Tensor& documents) {
  check(dmeans.contiguous() && dmeans.rows() == map.sequences, "pool backward: a row of dmeans for each sequence");
  const kernels::PoolShape shape = shape_of(rows, dmeans.width(), map, positions, documents);
  Tensor dx = runtime.empty({rows, dmeans.width()}, dmeans.dtype());
  with_type(dmeans.dtype(), [&]<class T>() {
    const kernels::PoolBackward<T> args{.shape = shape, .dmeans = dmeans.data<T>(), .dx = dx.data<T>()};
    launch<T>(runtime, "pool backward", {.flops = static_cast<double>(dx.count()), .bytes = bytes_of({dx})},
              [args](auto device) { kernels::pool_backward(device, args); });
  });
  return dx;
}

}  // namespace choir::ops

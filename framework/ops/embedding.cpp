#include "framework/ops/embedding.h"

#include "framework/ops/dispatch.h"
#include "kernels/embedding.h"

namespace choir::ops {

Tensor embedding(Runtime& runtime, const Tensor& ids, const Tensor& table, std::int64_t first_token) {
  check(ids.dtype() == DType::i32 && table.contiguous(), "embedding: ids are i32, the table is contiguous");
  Tensor y = runtime.empty({ids.count(), table.width()}, table.dtype());
  with_type(table.dtype(), [&]<class T>() {
    const kernels::EmbeddingForward<T> args{.ids = ids.data<std::int32_t>(),
                                            .table = table.data<T>(),
                                            .y = y.data<T>(),
                                            .rows = y.rows(),
                                            .width = y.width(),
                                            .first_token = first_token,
                                            .num_tokens = table.rows()};
    launch<T>(runtime, "embedding forward", {.bytes = 2 * bytes_of({y})},
              [args](auto device) { kernels::embedding_forward(device, args); });
  });
  return y;
}

void embedding_backward(Runtime& runtime, const Tensor& ids, const Tensor& dy, const Tensor& dtable,
                        std::int64_t first_token) {
  check(ids.dtype() == DType::i32 && dy.contiguous() && dtable.contiguous() && dy.rows() == ids.count() &&
            dy.width() == dtable.width(),
        "embedding backward: ids [N], dy [N, D], dtable [V, D]");
  with_type(dy.dtype(), [&]<class T>() {
    const kernels::EmbeddingBackward<T> args{.ids = ids.data<std::int32_t>(),
                                             .dy = dy.data<T>(),
                                             .dtable = dtable.data<Accumulate<T>>(),
                                             .rows = dy.rows(),
                                             .width = dy.width(),
                                             .first_token = first_token,
                                             .num_tokens = dtable.rows()};
    launch<T>(runtime, "embedding backward", {.flops = static_cast<double>(dy.count()), .bytes = 3 * bytes_of({dy})},
              [args](auto device) { kernels::embedding_backward(device, args); });
  });
}

Tensor add_position(Runtime& runtime, const Tensor& x, const Tensor& table, const kernels::RowMap& rows,
                    const Tensor& positions) {
  check(x.contiguous() && table.contiguous() && x.width() == table.width(),
        "positions: x [N, D], table [positions, D]");
  check(positions || rows.last_position() < table.rows(), "positions: within the table");
  check(!positions || (positions.dtype() == DType::i32 && positions.count() == x.rows()), "positions: [N] i32");
  Tensor y = runtime.empty({x.rows(), x.width()}, x.dtype());
  with_type(x.dtype(), [&]<class T>() {
    const kernels::PositionForward<T> args{.x = x.data<T>(),
                                           .table = table.data<T>(),
                                           .y = y.data<T>(),
                                           .rows = x.rows(),
                                           .width = x.width(),
                                           .map = rows,
                                           .positions = data_or_null<std::int32_t>(positions)};
    launch<T>(runtime, "position forward", {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x, y})},
              [args](auto device) { kernels::position_forward(device, args); });
  });
  return y;
}

void add_position_backward(Runtime& runtime, const Tensor& dy, const Tensor& dtable, const kernels::RowMap& rows) {
  check(dy.contiguous() && dtable.contiguous() && dy.width() == dtable.width(), "position backward: dy [N, D]");
  check(rows.last_position() < dtable.rows(), "position backward: within the table");
  with_type(dy.dtype(), [&]<class T>() {
    const kernels::PositionBackward<T> args{.dy = dy.data<T>(),
                                            .dtable = dtable.data<Accumulate<T>>(),
                                            .rows = dy.rows(),
                                            .width = dy.width(),
                                            .map = rows};
    launch<T>(runtime, "position backward", {.flops = static_cast<double>(dy.count()), .bytes = bytes_of({dy})},
              [args](auto device) { kernels::position_backward(device, args); });
  });
}

}  // namespace choir::ops

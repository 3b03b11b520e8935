#include "framework/nn/text_rows.h"

#include "framework/ops/elementwise.h"

namespace choir {
namespace {

/// Calls body(the rows of text `text` in `all`, the same rows of `of_text`) for each run of positions; both are
/// [samples, positions * width].
template <class Body>
void for_each_run(const Tensor& all, const Tensor& of_text, const Rows& rows, std::int64_t texts, std::int64_t text,
                  const Body& body) {
  const std::int64_t samples = rows.sequences / texts;
  std::int64_t begin = 0;
  for (int run = 0; run < 2; ++run) {
    const std::int64_t end = begin + rows.count(run), width = rows.runs[run].count() * all.width();
    if (begin < end)
      body(all.slice_rows(begin, end).reshape({samples, texts * width}).slice_columns(text * width, (text + 1) * width),
           of_text.slice_rows(begin / texts, end / texts).reshape({samples, width}));
    begin = end;
  }
}

}  // namespace

Rows rows_of_a_text(const Rows& rows, std::int64_t texts) {
  Rows of_one = rows;
  of_one.first_sample /= texts;
  of_one.sequences /= texts;
  return of_one;
}

Tensor text_rows(Runtime& runtime, const Tensor& x, const Rows& rows, std::int64_t texts, std::int64_t text) {
  if (texts == 1) return x;
  const Tensor of_text = runtime.empty({rows.count() / texts, x.width()}, x.dtype());
  for_each_run(x, of_text, rows, texts, text,
               [&](const Tensor& from, const Tensor& to) { ops::copy(runtime, from, to); });
  return of_text;
}

Tensor join_texts(Runtime& runtime, const std::vector<Tensor>& texts, const Rows& rows) {
  const std::int64_t count = std::ssize(texts);
  if (count == 1) return texts[0];
  const Tensor all = runtime.empty({rows.count(), texts[0].width()}, texts[0].dtype());
  for (std::int64_t text = 0; text < count; ++text)
    for_each_run(all, texts[static_cast<std::size_t>(text)], rows, count, text,
                 [&](const Tensor& to, const Tensor& from) { ops::copy(runtime, from, to); });
  return all;
}

}  // namespace choir

#include "framework/data/token_file_writer.h"

#include <bit>
#include <cassert>
#include <cstring>

#include "framework/core/error.h"
#include "framework/data/file_seal.h"
#include "framework/data/hdf5_file.h"

namespace choir {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian and read as they are");

constexpr std::size_t buffer_bytes = 1 << 20;

template <class T>
std::span<const char> bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

TokenFileWriter::TokenFileWriter(std::string path, Tokenizer tokenizer)
    : path_(std::move(path)),
      tokenizer_(std::move(tokenizer)),
      wide_(tokenizer_.vocabulary() > 65536),
      spill_(File::nameless_beside(path_)) {}

void TokenFileWriter::append(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    assert(token >= 0 && token < tokenizer_.vocabulary());
    text_bytes_ += tokenizer_.byte_length(token);
    char bytes[sizeof(token)];  // little-endian: the lower half comes first
    std::memcpy(bytes, &token, sizeof(token));
    buffer_.insert(buffer_.end(), bytes, bytes + (wide_ ? 4 : 2));
    if (buffer_.size() >= buffer_bytes) flush();
  }
  digest_.add(tokens);
  num_tokens_ += static_cast<std::int64_t>(tokens.size());
}

void TokenFileWriter::end_document() {
  const std::int32_t end = tokenizer_.end_of_document();
  append({&end, 1});
  document_offsets_.push_back(num_tokens_);
}

void TokenFileWriter::end_document(std::int32_t label) {
  end_document();
  labels_.push_back(label);
}

void TokenFileWriter::flush() {
  spill_.write(spilt_bytes_, buffer_);
  spilt_bytes_ += buffer_.size();
  buffer_.clear();
}

TokenFileWriter::Layout TokenFileWriter::write_structure(const std::string& path) const {
  std::vector<std::int32_t> token_bytes;
  for (std::int32_t token = 0; token < tokenizer_.vocabulary(); ++token)
    token_bytes.push_back(tokenizer_.byte_length(token));

  const std::string names = text_of_lines(class_names_);
  constexpr std::uint64_t headers = 1 << 16;  // more than HDF5 takes for six datasets and seven attributes
  const std::uint64_t room = spilt_bytes_ + bytes_of(document_offsets_).size() + bytes_of(token_bytes).size() +
                             tokenizer_.serialized().size() + bytes_of(labels_).size() + names.size() + headers;
  const Hdf5Silence silence;
  Hdf5Handle file = create_hdf5(path, FileSeal::block_bytes, room);
  write_attribute(file, "format_version", FileSeal::format);
  write_attribute(file, "text_bytes", text_bytes_);
  write_attribute(file, "tokens_digest", digest_.text());
  write_attribute(file, "tokenizer_kind", tokenizer_.kind());
  write_attribute(file, "tokenizer_digest", tokenizer_.digest());
  write_attribute(file, "end_of_document", tokenizer_.end_of_document());
  if (documents_of_item_ == 2) write_attribute(file, "pairs", num_documents() / 2);
  if (documents_of_item_ == 3) write_attribute(file, "triples", num_documents() / 3);
  const std::string& model = tokenizer_.serialized();
  write_dataset(file, "tokenizer_model", H5T_STD_U8LE, H5T_NATIVE_UINT8, model.data(), model.size());
  write_dataset(file, "token_bytes", H5T_STD_I32LE, H5T_NATIVE_INT32, token_bytes.data(), token_bytes.size());

  if (!labels_.empty()) {
    write_dataset(file, "labels", H5T_STD_I32LE, H5T_NATIVE_INT32, labels_.data(), labels_.size());
    write_dataset(file, "class_names", H5T_STD_U8LE, H5T_NATIVE_UINT8, names.data(), names.size());
  }

  // Only space for these two: their elements are written without HDF5, so that a full disk is an error in one place.
  Layout layout = {};
  const auto make_room = [&](const char* name, hid_t type, std::size_t count) -> std::uint64_t {
    return hdf5_extent(create_dataset(file, name, type, count), UINT64_MAX).offset;
  };
  layout.document_offsets_offset = make_room("document_offsets", H5T_STD_I64LE, document_offsets_.size());
  layout.tokens_offset =
      make_room("tokens", wide_ ? H5T_STD_I32LE : H5T_STD_U16LE, static_cast<std::size_t>(num_tokens_));
  file.close();
  return layout;
}

void TokenFileWriter::finish() {
  assert(num_documents() > 0 && document_offsets_.back() == num_tokens_);
  flush();
  TemporaryFile temporary(path_);
  File& file = temporary.file();
  Layout layout = {};
  try {
    layout = write_structure(file.path());
  } catch (const Hdf5Failure& failure) {
    throw Error(
        {.what = "cannot write " + file.path(), .why = failure.what(), .fix = "free space there, or write elsewhere"});
  }
  file.write(layout.document_offsets_offset, bytes_of(document_offsets_));
  buffer_.resize(buffer_bytes);
  for (std::uint64_t done = 0; done < spilt_bytes_;) {
    const std::size_t count = spill_.read(done, buffer_);
    file.write(layout.tokens_offset + done, std::span(buffer_).first(count));
    done += count;
  }
  write_seal(file, token_file_kind, layout.tokens_offset, spilt_bytes_);
  temporary.publish();
}

}  // namespace choir

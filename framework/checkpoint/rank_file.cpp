#include "framework/checkpoint/rank_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "framework/core/error.h"

namespace choir {

Manifest write_rank_file(const std::string& folder, int rank, const std::vector<Piece>& pieces,
                         const std::vector<std::uint64_t>& digests) {
  Manifest report;
  std::vector<ElementBytes> elements;
  std::map<std::string, std::size_t> places;
  const MemoryFile image;
  {
    const Hdf5Silence silence;
    std::int64_t bytes = 0;
    for (const Piece& piece : pieces) bytes += piece.count() * 4 + 1024;
    image.check_limit(bytes);
    Hdf5Handle file = image.create_hdf5();
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const Piece& piece = pieces[i];
      if (piece.count() == 0) continue;
      const auto [place, fresh] = places.emplace(piece.name, report.tensors.size());
      if (fresh) report.tensors.push_back({piece.name, piece.shape, 0, {}});
      TensorEntry& tensor = report.tensors[place->second];
      tensor.digest += digests[i];
      tensor.parts.push_back({rank, piece.extent(), 0, digests[i]});
      const std::string name = dataset_names(tensor).back();
      const Hdf5Handle dataset =
          create_dataset(file, name.c_str(), H5T_IEEE_F32LE, static_cast<hsize_t>(piece.count()));
      const haddr_t offset = H5Dget_offset(dataset);
      if (offset == HADDR_UNDEF)
        throw Error({.what = fmt::format("HDF5 gave dataset '{}' no place in its file", name)});
      tensor.parts.back().offset = static_cast<std::int64_t>(offset);
      elements.push_back({tensor.parts.back().offset,
                          {reinterpret_cast<const char*>(piece.data), static_cast<std::size_t>(piece.count()) * 4}});
    }
    file.close();
  }
  std::sort(elements.begin(), elements.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  report.files.push_back(write_image(folder, rank_file_name(rank), image, elements));
  return report;
}

}  // namespace choir

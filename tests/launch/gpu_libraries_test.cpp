// The GPU's libraries are opened at their first call: the program starts without them, and what is missing is named.
#ifdef CHOIR_CUDA

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <nccl.h>
#if __has_include(<cudnn.h>)
#include <cudnn.h>
#else
#define CUDNN_MAJOR 9
#endif

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch/gpu_libraries/shared_library.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

namespace fs = std::filesystem;

/// A folder in which these names are links to the C library's mathematics: libraries without the functions of CUDA.
class Folder {
 public:
  explicit Folder(const std::vector<std::string>& names) {
    fs::remove_all(path_);
    fs::create_directories(path_);
    Dl_info mathematics{};
    if (dladdr(dlsym(RTLD_DEFAULT, "cos"), &mathematics) == 0) throw std::runtime_error("no library has cos");
    for (const std::string& name : names) fs::create_symlink(mathematics.dli_fname, path_ + "/" + name);
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_ = ::testing::TempDir() + "choir-gpu-libraries";
};

TEST(GpuLibraries, TheProgramStartsWithoutThem) {
  const Finished loaded = shell("LD_TRACE_LOADED_OBJECTS=1 " CHOIR_BINARY);
  EXPECT_NE(loaded.output.find("libmpi"), std::string::npos) << loaded.output;
  for (const char* name : {"libcuda", "libcublas", "libcudnn", "libnccl"})
    EXPECT_EQ(loaded.output.find(name), std::string::npos) << loaded.output;
}

TEST(GpuLibraries, AMissingLibraryIsNamedWithThePlacesSearched) {
  SharedLibrary library("libchoir_absent.so.7", "/nowhere");
  EXPECT_EQ(library.find<double(double)>("cos"), nullptr);
  const std::string problem = library.problem();
  EXPECT_NE(problem.find("libchoir_absent.so.7: cannot open shared object file"), std::string::npos) << problem;
  EXPECT_NE(problem.find("/nowhere/libchoir_absent.so.7"), std::string::npos) << problem;
}

TEST(GpuLibraries, ALibraryIsFoundInItsFolderAndAMissingFunctionIsNamed) {
  const Folder folder({"libchoir_present.so.7"});
  SharedLibrary library("libchoir_present.so.7", folder.path());
  EXPECT_STREQ(library.problem(), "");
  const auto cosine = library.find<double(double)>("cos");
  ASSERT_NE(cosine, nullptr);
  EXPECT_EQ(cosine(0), 1);
  EXPECT_EQ(library.find<void()>("choir_absent"), nullptr);
  const std::string problem = library.problem();
  EXPECT_NE(problem.find("undefined symbol: choir_absent"), std::string::npos) << problem;
  EXPECT_EQ(library.find<void()>("choir_also_absent"), nullptr);
  EXPECT_EQ(library.problem(), problem) << "the first problem is the reason";
}

TEST(GpuLibraries, TheDoctorSaysWhichCannotBeUsed) {
  const Folder folder({"libnccl.so." + std::to_string(NCCL_MAJOR), "libcudnn.so." + std::to_string(CUDNN_MAJOR)});
  const Finished doctor =
      shell("LD_LIBRARY_PATH=" + folder.path() + " " CHOIR_BINARY " doctor " + folder.path() + "/runs");
  EXPECT_EQ(doctor.code, 0) << doctor.output;
  const auto says = [&](const char* words) { return doctor.output.find(words) != std::string::npos; };
  EXPECT_TRUE(says("\nNCCL          limited")) << doctor.output;
  EXPECT_TRUE(says("undefined symbol: ncclGetVersion")) << doctor.output;
  EXPECT_TRUE(says("\ncuDNN         limited")) << doctor.output;
  EXPECT_TRUE(says("undefined symbol: cudnnGetVersion") || says("this build has no cuDNN")) << doctor.output;
  EXPECT_TRUE(says("attention on GPUs runs on Choir's own flash kernels")) << doctor.output;
}

}  // namespace
}  // namespace choir::tests

#endif

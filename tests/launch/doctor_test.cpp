// choir doctor names everything that it checks, and its exit code says whether Choir can run on this machine.
#include <gtest/gtest.h>

#include <filesystem>

#include "kernels/types.h"
#include "tests/launch/runs.h"

namespace choir::tests {
namespace {

Finished doctor(const std::string& folder) { return shell(CHOIR_BINARY " doctor " + folder); }

TEST(Doctor, NamesWhatTheMachineHas) {
  const std::string folder = ::testing::TempDir() + "choir-doctor-runs";
  const Finished finished = doctor(folder);
  EXPECT_EQ(finished.code, 0) << finished.output;
  for (const char* name : {"MPI", "HDF5", "processor", "run folder", "CUDA toolkit"})
    EXPECT_NE(finished.output.find(std::string("\n") + name + " "), std::string::npos) << name << "\n"
                                                                                       << finished.output;
  if constexpr (kernels::built_with_cuda) {
    for (const char* name : {"CUDA driver", "GPU", "NCCL", "cuDNN"})
      EXPECT_NE(finished.output.find(std::string("\n") + name), std::string::npos) << name << "\n" << finished.output;
  }
  EXPECT_NE(finished.output.find("written and read back"), std::string::npos) << finished.output;
  EXPECT_FALSE(std::filesystem::exists(folder)) << "the doctor left a folder behind";
}

TEST(Doctor, SaysWhatToDoAboutAFolderThatCannotBeWritten) {
  const Finished finished = doctor("/proc/runs");
  EXPECT_EQ(finished.code, 1) << finished.output;
  EXPECT_NE(finished.output.find("BROKEN"), std::string::npos) << finished.output;
  EXPECT_NE(finished.output.find("choir doctor FOLDER"), std::string::npos) << finished.output;
}

}  // namespace
}  // namespace choir::tests

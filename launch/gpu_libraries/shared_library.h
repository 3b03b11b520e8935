// A library that is opened at the first call of one of its functions, and not when the program starts: a run on the CPU
// does not load the GPU's libraries and does not need them.
//
// The files beside this one define, under their own names, the functions of cuBLASLt, NCCL and cuDNN that Choir calls.
// Each looks the real function up once. If it is missing, it returns an error status of its library, and the
// library's functions that explain errors answer with the reason.
#pragma once

#include <mutex>
#include <string>

namespace choir {

class SharedLibrary {
 public:
  /// Opens `name` ("libnccl.so.2") on the search path of the system, else in `folder`. It stays open: its threads
  /// and handles may outlive this object.
  SharedLibrary(const std::string& name, const std::string& folder);

  /// Null if the library or the function is missing.
  template <class Function>
  Function* find(const char* function) {
    return reinterpret_cast<Function*>(address_of(function));
  }

  /// The system's message about what was missing first; empty: nothing. The text does not change once it is set.
  const char* problem();

 private:
  void* address_of(const char* function);
  void note(const std::string& problem);

  void* handle_ = nullptr;
  std::mutex noting_;
  std::string problem_;
};

}  // namespace choir

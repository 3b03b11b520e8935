#include "launch/gpu_libraries/shared_library.h"

#include <dlfcn.h>

namespace choir {

SharedLibrary::SharedLibrary(const std::string& name, const std::string& folder) {
  std::string tried;
  for (const std::string& path : {name, folder + "/" + name}) {
    handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) return;
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  note(tried);
}

void* SharedLibrary::address_of(const char* function) {
  if (handle_ == nullptr) return nullptr;
  void* address = dlsym(handle_, function);
  if (address == nullptr) note(dlerror());
  return address;
}

const char* SharedLibrary::problem() {
  const std::lock_guard lock(noting_);
  return problem_.c_str();
}

void SharedLibrary::note(const std::string& problem) {
  const std::lock_guard lock(noting_);
  if (problem_.empty()) problem_ = problem;
}

}  // namespace choir

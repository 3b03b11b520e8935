// A GPU that is described but not present: what cuDNN and cudnn-frontend query about it.
#pragma once

#include <string>

namespace choir::cudnn_test {

/// tests/cudnn/<name>.json: the properties as cuDNN serializes them (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION), all
/// keys mandatory, filled in from public figures. From now on the doubles of cudaGetDevice and cudaGetDeviceProperties
/// describe this GPU: cudnn-frontend gets its generation from them.
std::string describe_gpu(const std::string& name);

}  // namespace choir::cudnn_test

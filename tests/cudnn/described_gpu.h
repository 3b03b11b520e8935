// A GPU that is described but not there: what cuDNN and cudnn-frontend ask about it.
#pragma once

#include <string>

namespace choir::cudnn_test {

/// tests/cudnn/<name>.json: the properties as cuDNN serializes them (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION), all
/// keys mandatory, filled in from public figures. From here on the doubles of cudaGetDevice and
/// cudaGetDeviceProperties answer for this GPU: cudnn-frontend asks them for the generation.
std::string describe_gpu(const std::string& name);

}  // namespace choir::cudnn_test

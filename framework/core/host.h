// The name of this host, and the time: what reports, logs and locks say of where and when.
#pragma once

#include <string>

namespace choir {

/// "unknown" if the system does not say.
std::string host_name();

/// "2026-01-01T12:00:00.000Z"
std::string utc_now();

}  // namespace choir

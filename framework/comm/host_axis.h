// The axis of Mesh::host, whose messages are between hosts and not those of a mesh axis: the ledger leaves them out.
#pragma once

namespace choir {

inline constexpr char host_axis[] = "host";

}  // namespace choir

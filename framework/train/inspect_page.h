// The page of `choir inspect` as text of the program; "CHOIR_DATA" stands where the data goes.
#pragma once

namespace choir {

extern const char* const inspect_page;

}  // namespace choir

// choir: see command_line.h.
#include "launch/command_line.h"

int main(int argc, char** argv) { return choir::run_command_line(argc, argv); }

// The memory of this process, as the kernel counts it.

#pragma once

#include <cstdint>

struct Memory {
  std::int64_t anonymous_bytes = 0;  // the process's own
  std::int64_t file_bytes = 0;       // resident pages of files, which processes share and the system can drop
};

Memory measure_memory();

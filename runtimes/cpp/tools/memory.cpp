#include "memory.hpp"

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

Memory measure_memory() {
  std::ifstream file("/proc/self/smaps_rollup");
  std::int64_t resident = -1;
  std::int64_t anonymous = -1;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::int64_t kilobytes = 0;
    words >> name >> kilobytes;
    if (name == "Rss:") resident = kilobytes * 1024;
    if (name == "Anonymous:") anonymous = kilobytes * 1024;
  }
  if (resident < 0 || anonymous < 0) throw std::runtime_error("cannot read /proc/self/smaps_rollup");
  return {anonymous, resident - anonymous};
}

// Unicode as Python treats it, and the ways lists are written in messages.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace skrr {

bool is_utf8(std::string_view text);

// Without white space at both ends, as Python's str.strip; the text must be UTF-8.
std::string_view strip(std::string_view text);

// In lower case, as Python's str.lower; the text must be UTF-8. Without ICU only ASCII can be: anything else is an
// Error.
std::string lower(std::string_view text);

// Without another text, wherever it stands, as Python's str.replace with nothing takes it out.
std::string without(const std::string& text, const std::string& removed);

std::string join(const std::vector<std::string>& parts);

// As Python prints a list: [2, 3].
template <typename Integers>
std::string list_of(const Integers& values) {
  std::vector<std::string> parts;
  for (const auto value : values) parts.push_back(std::to_string(value));
  return "[" + join(parts) + "]";
}

}  // namespace skrr

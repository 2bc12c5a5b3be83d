#include "error.hpp"

#include <algorithm>
#include <system_error>

namespace skrr {
namespace {

// Messages quote names from bundles, which may hold anything, a terminal's control sequences included.
std::string one_line(std::string message) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  std::replace_if(message.begin(), message.end(), is_control, ' ');
  return message;
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& message) : std::runtime_error(one_line(message)), kind_(kind) {}

Error::~Error() = default;

std::string first_line(std::string_view message) {
  const std::size_t begin = message.find_first_not_of(" \r\n\t");
  if (begin == std::string_view::npos) return "it does not say why";
  return std::string(message.substr(begin, message.find_first_of("\r\n", begin) - begin));
}

std::string reason(int error_number) { return std::generic_category().message(error_number); }

}  // namespace skrr

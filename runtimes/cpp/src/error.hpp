// Errors as they are thrown within the library: `throw bad_bundle(path + " is missing")`.

#pragma once

#include <string>
#include <string_view>

#include "skrr/encoder.hpp"

namespace skrr {

inline Error bad_input(const std::string& message) { return {ErrorKind::bad_input, message}; }
inline Error bad_bundle(const std::string& message) { return {ErrorKind::bad_bundle, message}; }
inline Error missing_dependency(const std::string& message) { return {ErrorKind::missing_dependency, message}; }
inline Error failed(const std::string& message) { return {ErrorKind::failed, message}; }

// Other libraries' messages may go on for pages.
std::string first_line(std::string_view message);

// What errno means, such as "No such file or directory".
std::string reason(int error_number);

}  // namespace skrr

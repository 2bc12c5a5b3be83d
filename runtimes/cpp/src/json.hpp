// JSON that came from anywhere, read strictly.

#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace skrr {

using Json = nlohmann::json;

// A document is not what it should be; whoever knows its file makes an Error of it.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Parses a document, which may nest 64 levels deep, and in which a key may stand once in its object: parsers differ in
// which of two they take.
Json parse_json(std::string_view text);

// As it is quoted in a message: a string as Python quotes it, and nothing at length.
std::string quoted(const Json& value);

// A member of an object.
const Json& member(const Json& object, const char* key);
// A member that may be absent or null.
const Json* optional_member(const Json& object, const char* key);

// Values of a certain kind; anything else is Malformed.
const std::string& as_text(const Json& value);
bool as_boolean(const Json& value);
const Json& as_list(const Json& value);
const Json& as_object(const Json& value);
std::int64_t as_integer(const Json& value);
std::int64_t as_natural(const Json& value);   // 0 and more
std::int64_t as_positive(const Json& value);  // 1 and more
std::vector<std::int64_t> as_naturals(const Json& value);
std::vector<std::string> as_texts(const Json& value);

}  // namespace skrr

#include "json.hpp"

#include <limits>
#include <set>

#include "error.hpp"

namespace skrr {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxQuoted = 80;

// What nlohmann::json asks while it parses.
class Guard {
 public:
  bool operator()(int /*depth*/, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (keys_.size() == kMaxDepth) throw Malformed("it nests deeper than " + std::to_string(kMaxDepth) + " levels");
      keys_.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      keys_.pop_back();
    } else if (event == Event::key && !keys_.back().insert(parsed.get_ref<const std::string&>()).second) {
      throw Malformed("the key '" + parsed.get_ref<const std::string&>() + "' stands twice in one object");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> keys_;  // of each object around the current place
};

[[noreturn]] void refuse(const Json& value, const char* wanted) {
  throw Malformed(quoted(value) + " is not " + wanted);
}

}  // namespace

Json parse_json(std::string_view text) {
  Guard guard;
  try {
    return Json::parse(text.begin(), text.end(), std::ref(guard));
  } catch (const Json::exception& error) {
    throw Malformed(first_line(error.what()));
  }
}

std::string quoted(const Json& value) {
  std::string text = value.is_string() ? "'" + value.get<std::string>() + "'"
                                       : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() <= kMaxQuoted) return text;
  std::size_t end = kMaxQuoted;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
  return text.substr(0, end) + "...";
}

const Json& member(const Json& object, const char* key) {
  const auto found = as_object(object).find(key);
  if (found == object.end()) throw Malformed("the key '" + std::string(key) + "' is missing");
  return *found;
}

const Json* optional_member(const Json& object, const char* key) {
  const auto found = as_object(object).find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const std::string& as_text(const Json& value) {
  if (!value.is_string()) refuse(value, "a text");
  return value.get_ref<const std::string&>();
}

bool as_boolean(const Json& value) {
  if (!value.is_boolean()) refuse(value, "true or false");
  return value.get<bool>();
}

const Json& as_list(const Json& value) {
  if (!value.is_array()) refuse(value, "a list");
  return value;
}

const Json& as_object(const Json& value) {
  if (!value.is_object()) refuse(value, "an object");
  return value;
}

std::int64_t as_integer(const Json& value) {
  const bool too_large = value.is_number_unsigned() &&
                         value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  if (!value.is_number_integer() || too_large) refuse(value, "an integer");
  return value.get<std::int64_t>();
}

std::int64_t as_natural(const Json& value) {
  if (!value.is_number_integer() || as_integer(value) < 0) refuse(value, "a natural number");
  return value.get<std::int64_t>();
}

std::int64_t as_positive(const Json& value) {
  if (!value.is_number_integer() || as_integer(value) < 1) refuse(value, "a positive integer");
  return value.get<std::int64_t>();
}

std::vector<std::int64_t> as_naturals(const Json& value) {
  std::vector<std::int64_t> numbers;
  for (const Json& item : as_list(value)) numbers.push_back(as_natural(item));
  return numbers;
}

std::vector<std::string> as_texts(const Json& value) {
  std::vector<std::string> texts;
  for (const Json& item : as_list(value)) texts.push_back(as_text(item));
  return texts;
}

}  // namespace skrr

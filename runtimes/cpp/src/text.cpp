#include "text.hpp"

#include <algorithm>
#include <iterator>

#include "error.hpp"

#ifdef SKRR_WITH_ICU
#include <unicode/ucasemap.h>

#include <memory>
#endif

namespace skrr {
namespace {

constexpr char32_t kInvalid = 0xFFFFFFFF;

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Takes the first character off a text; kInvalid where that is no UTF-8.
char32_t next_character(std::string_view& text) {
  const auto lead = static_cast<unsigned char>(text.front());
  std::size_t length = 1;
  if (lead >= 0xF0) {
    length = 4;
  } else if (lead >= 0xE0) {
    length = 3;
  } else if (lead >= 0xC0) {
    length = 2;
  }
  if (length == 1) {
    text.remove_prefix(1);
    return lead < 0x80 ? lead : kInvalid;
  }
  if (lead > 0xF4 || text.size() < length) return kInvalid;
  char32_t character = lead & (0x7F >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return kInvalid;
    character = character << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  }
  constexpr char32_t kSmallest[] = {0x80, 0x800, 0x10000};  // of each length; smaller ones have a shorter form
  const bool surrogate = character >= 0xD800 && character < 0xE000;
  if (character < kSmallest[length - 2] || character > 0x10FFFF || surrogate) return kInvalid;
  text.remove_prefix(length);
  return character;
}

// Python's str.isspace, which also holds for four control characters that Unicode does not call white space.
bool is_space(char32_t c) {
  constexpr char32_t kOthers[] = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F) || (c >= 0x2000 && c <= 0x200A) ||
         std::find(std::begin(kOthers), std::end(kOthers), c) != std::end(kOthers);
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    if (next_character(text) == kInvalid) return false;
  }
  return true;
}

std::string_view strip(std::string_view text) {
  for (std::string_view rest = text; !rest.empty() && is_space(next_character(rest));) text = rest;
  while (!text.empty()) {
    std::size_t begin = text.size() - 1;
    while (begin > 0 && is_continuation(text[begin])) --begin;
    std::string_view last = text.substr(begin);
    if (!is_space(next_character(last))) break;
    text = text.substr(0, begin);
  }
  return text;
}

#ifdef SKRR_WITH_ICU

std::string lower(std::string_view text) {
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<UCaseMap, decltype(&ucasemap_close)> map(ucasemap_open("", 0, &status), &ucasemap_close);
  // No character's lower case takes more than three times its bytes.
  std::string result(3 * text.size() + 1, '\0');
  const int32_t size = ucasemap_utf8ToLower(map.get(), result.data(), static_cast<int32_t>(result.size()), text.data(),
                                            static_cast<int32_t>(text.size()), &status);
  if (U_FAILURE(status)) throw failed(std::string("ICU cannot lower-case a prompt: ") + u_errorName(status));
  result.resize(static_cast<std::size_t>(size));
  return result;
}

#else

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (static_cast<unsigned char>(c) >= 0x80) {
      throw missing_dependency(
          "this pipeline lower-cases its prompts, and this build of skrr can do that with ASCII only: "
          "configure it with -DSKRR_WITH_ICU=ON");
    }
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

#endif

std::string without(const std::string& text, const std::string& removed) {
  if (removed.empty()) return text;
  std::string left;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find(removed, begin)) != std::string::npos; begin = end + removed.size()) {
    left.append(text, begin, end - begin);
  }
  return left.append(text, begin);
}

std::string join(const std::vector<std::string>& parts) {
  std::string joined;
  for (const std::string& part : parts) joined += (joined.empty() ? "" : ", ") + part;
  return joined;
}

}  // namespace skrr

#include "plan.hpp"

#include <algorithm>
#include <array>

namespace skrr {
namespace {

constexpr char kFormat[] = "skrr-plan/1";
constexpr std::array<const char*, 2> kKinds = {"attention", "feed_forward"};
constexpr std::size_t kMaxFamily = 64;

// A name such as t5 or umt5.
bool is_family(const std::string& name) {
  const auto is_alphanumeric = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  };
  return !name.empty() && name.size() <= kMaxFamily && is_alphanumeric(name.front()) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return is_alphanumeric(c) || c == '_' || c == '.' || c == '-'; });
}

void check_source(const Json& layers, std::size_t layer, const char* kind) {
  const Json& source = member(layers[layer], kind);
  if (source.is_null()) return;
  const std::string position = "layers[" + std::to_string(layer) + "]." + kind;
  const std::int64_t number = as_integer(source);
  if (number < 0 || number >= static_cast<std::int64_t>(layers.size())) {
    throw Malformed(position + " re-uses layer " + std::to_string(number) + ", but the encoder has layers 0 to " +
                    std::to_string(layers.size() - 1));
  }
  if (member(layers[static_cast<std::size_t>(number)], kind) != number) {
    throw Malformed(position + " re-uses layer " + std::to_string(number) + ", which is not kept at its own position");
  }
}

}  // namespace

void check_plan(const Json& plan) {
  if (member(plan, "format") != kFormat) throw Malformed("the plan's format is " + quoted(plan["format"]));
  const Json& encoder = member(plan, "encoder");
  if (!is_family(as_text(member(encoder, "family")))) throw Malformed("the plan's family must be a name such as t5");
  const Json& layers = as_list(member(plan, "layers"));
  if (layers.empty() || as_integer(member(encoder, "num_layers")) != static_cast<std::int64_t>(layers.size())) {
    throw Malformed("the plan's layers are not num_layers");
  }
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    for (const char* kind : kKinds) check_source(layers, layer, kind);
  }
}

}  // namespace skrr

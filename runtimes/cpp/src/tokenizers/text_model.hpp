// The libraries that make ids of text, each in a file of its own so that its headers stay there.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace skrr {

class TextModel {
 public:
  virtual ~TextModel() = default;

  // Ids of a text, which must be UTF-8, without special tokens; safe to call from many threads.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
};

std::unique_ptr<TextModel> open_sentencepiece(const std::string& model);
// By the plug-in, which not every build has.
std::unique_ptr<TextModel> open_openvino(const std::string& graph, const std::string& vocabulary);

}  // namespace skrr

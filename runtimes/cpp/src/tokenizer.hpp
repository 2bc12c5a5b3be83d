// Prompts to token ids, as a pipeline does it.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "skrr/encoder.hpp"
#include "tokenizers/text_model.hpp"

namespace skrr {

class Tokenizer {
 public:
  // The tokenizer that a bundle carries; an Error where it carries none, or one for Python only, or its library is
  // missing here.
  explicit Tokenizer(const Bundle& bundle);

  // Tokenises, truncates and pads a batch as a pipeline does, the bundle's or what that is for negative prompts; safe
  // to call from many threads.
  Ids operator()(const std::vector<std::string>& prompts, const Pipeline& pipeline) const;

 private:
  std::string prepare(const std::string& prompt, const Pipeline& pipeline) const;
  std::vector<std::int64_t> encode(const std::string& prompt, const Pipeline& pipeline) const;

  TokenizerEntry entry_;
  std::unique_ptr<TextModel> model_;
};

}  // namespace skrr

#include "tokenizer.hpp"

#include <algorithm>

#include "error.hpp"
#include "limits.hpp"
#include "text.hpp"

namespace skrr {
namespace {

bool carries_tokenizer(const Bundle& bundle) {
  const auto& files = bundle.manifest().files;
  const std::string folder = std::string(kTokenizerFolder) + "/";
  const auto found = files.lower_bound(folder);
  return found != files.end() && found->first.rfind(folder, 0) == 0;
}

const TokenizerEntry& entry_of(const Bundle& bundle) {
  const auto& entry = bundle.manifest().tokenizer;
  if (!entry && carries_tokenizer(bundle)) {
    throw bad_bundle(bundle.directory() +
                     " carries a tokenizer for Python only, so here it takes token ids only; "
                     "export again with the package openvino-tokenizers installed to give it another");
  }
  if (!entry) {
    throw bad_bundle(bundle.directory() +
                     " carries no tokenizer, so it takes token ids only; "
                     "export again with --tokenizer DIRECTORY to give it one");
  }
  return *entry;
}

std::unique_ptr<TextModel> open_model(const Bundle& bundle, const TokenizerEntry& entry) {
  if (entry.kind == "openvino") return open_openvino(bundle.path(entry.file), bundle.path(entry.data));
  return open_sentencepiece(bundle.path(entry.file));
}

}  // namespace

Tokenizer::Tokenizer(const Bundle& bundle) : entry_(entry_of(bundle)), model_(open_model(bundle, entry_)) {}

Ids Tokenizer::operator()(const std::vector<std::string>& prompts, const Pipeline& pipeline) const {
  if (prompts.empty()) throw bad_input("no prompt given");
  std::vector<std::vector<std::int64_t>> rows;
  std::size_t length = 0;
  for (const std::string& prompt : prompts) {
    rows.push_back(encode(prompt, pipeline));
    length = std::max(length, rows.back().size());
  }
  if (pipeline.pads_to_max_length) length = static_cast<std::size_t>(pipeline.max_length);
  const std::size_t multiple = static_cast<std::size_t>(pipeline.multiple_of);
  const std::size_t width = length + (multiple - length % multiple) % multiple;
  check_size(rows.size(), width);

  Ids ids{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(width), {}, {}};
  ids.input_ids.resize(rows.size() * width, entry_.pad);
  ids.attention_mask.resize(rows.size() * width, 0);
  for (std::size_t number = 0; number < rows.size(); ++number) {
    const std::vector<std::int64_t>& row = rows[number];
    const std::size_t before = width - length + (entry_.pads_left ? length - row.size() : 0);
    const auto begin = static_cast<std::ptrdiff_t>(number * width + before);
    std::copy(row.begin(), row.end(), ids.input_ids.begin() + begin);
    std::fill_n(ids.attention_mask.begin() + begin, row.size(), 1);
  }
  return ids;
}

// The text that the library gets for a prompt.
std::string Tokenizer::prepare(const std::string& prompt, const Pipeline& pipeline) const {
  if (!is_utf8(prompt)) throw bad_input("a prompt is not UTF-8 text");
  std::string text = pipeline.lowercase ? std::string(strip(lower(prompt))) : prompt;
  for (const std::string& removed : pipeline.removed) text = without(text, removed);
  for (const std::string& token : entry_.special) {
    if (!token.empty() && text.find(token) != std::string::npos) {
      throw bad_input(
          "a prompt holds '" + token +
          "', which transformers reads as a token and this tokenizer as text: take it out, or pass token ids");
    }
  }
  return pipeline.prefix + text + pipeline.suffix;
}

std::vector<std::int64_t> Tokenizer::encode(const std::string& prompt, const Pipeline& pipeline) const {
  const std::vector<std::int64_t> pieces = model_->encode(prepare(prompt, pipeline));
  const std::size_t room = static_cast<std::size_t>(pipeline.max_length) - entry_.prefix.size() - entry_.suffix.size();
  std::vector<std::int64_t> ids = entry_.prefix;
  ids.insert(ids.end(), pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(std::min(room, pieces.size())));
  ids.insert(ids.end(), entry_.suffix.begin(), entry_.suffix.end());
  return ids;
}

}  // namespace skrr

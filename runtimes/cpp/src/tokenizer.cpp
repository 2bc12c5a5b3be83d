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

Tokenizer::Tokenizer(const Bundle& bundle)
    : pipeline_(bundle.manifest().pipeline), entry_(entry_of(bundle)), model_(open_model(bundle, entry_)) {}

Ids Tokenizer::operator()(const std::vector<std::string>& prompts) const {
  if (prompts.empty()) throw bad_input("no prompt given");
  std::vector<std::vector<std::int64_t>> rows;
  std::size_t length = 0;
  for (const std::string& prompt : prompts) {
    rows.push_back(encode(prompt));
    length = std::max(length, rows.back().size());
  }
  if (pipeline_.pads_to_max_length) length = static_cast<std::size_t>(pipeline_.max_length);
  check_size(rows.size(), length);

  Ids ids{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(length), {}, {}};
  ids.input_ids.reserve(rows.size() * length);
  ids.attention_mask.reserve(rows.size() * length);
  for (const auto& row : rows) {
    ids.input_ids.insert(ids.input_ids.end(), row.begin(), row.end());
    ids.input_ids.resize(ids.input_ids.size() + length - row.size(), entry_.pad);
    ids.attention_mask.resize(ids.attention_mask.size() + row.size(), 1);
    ids.attention_mask.resize(ids.attention_mask.size() + length - row.size(), 0);
  }
  return ids;
}

std::vector<std::int64_t> Tokenizer::encode(const std::string& prompt) const {
  if (!is_utf8(prompt)) throw bad_input("a prompt is not UTF-8 text");
  const std::string text = pipeline_.lowercase ? std::string(strip(lower(prompt))) : prompt;
  for (const std::string& token : entry_.special) {
    if (!token.empty() && text.find(token) != std::string::npos) {
      throw bad_input(
          "a prompt holds '" + token +
          "', which transformers reads as a token and this tokenizer as text: take it out, or pass token ids");
    }
  }
  const std::vector<std::int64_t> pieces = model_->encode(text);
  const std::size_t room = static_cast<std::size_t>(pipeline_.max_length) - entry_.prefix.size() - entry_.suffix.size();
  std::vector<std::int64_t> ids = entry_.prefix;
  ids.insert(ids.end(), pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(std::min(room, pieces.size())));
  ids.insert(ids.end(), entry_.suffix.begin(), entry_.suffix.end());
  return ids;
}

}  // namespace skrr

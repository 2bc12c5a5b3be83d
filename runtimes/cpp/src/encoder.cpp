#include "skrr/encoder.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "error.hpp"
#include "limits.hpp"
#include "self_test.hpp"
#include "text.hpp"
#include "tokenizer.hpp"

namespace skrr {
namespace {

constexpr std::int64_t kBatch = 8;  // prompts a call, where the bundle does not fix it

std::size_t position(std::int64_t value) { return static_cast<std::size_t>(value); }

// Other libraries throw what they like; ours is the one kind of error that a user meets.
template <typename Function>
auto translated(Function function) {
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    throw failed(first_line(error.what()));
  }
}

void check_fixed(const char* axis, std::optional<std::int64_t> fixed, std::int64_t given) {
  if (fixed && given != *fixed) {
    throw bad_input(std::string("this bundle's ") + axis + " size is fixed at " + std::to_string(*fixed) + ", not " +
                    std::to_string(given));
  }
}

void check_ids(const Ids& ids, const Manifest& manifest) {
  check_fixed("sequence", manifest.sequence, ids.sequence);
  if (manifest.max_length && ids.sequence > *manifest.max_length) {
    throw bad_input(std::to_string(ids.sequence) + " tokens exceed this encoder's maximum of " +
                    std::to_string(*manifest.max_length));
  }
  const auto [least, most] = std::minmax_element(ids.input_ids.begin(), ids.input_ids.end());
  if (*least < 0 || *most >= manifest.vocab_size) {
    throw bad_input("input_ids must lie in 0 to " + std::to_string(manifest.vocab_size - 1) + "; these span " +
                    std::to_string(*least) + " to " + std::to_string(*most));
  }
}

// A caller's own ids; those of a tokenizer have these properties by construction.
void check_call(const Ids& ids, const Manifest& manifest) {
  if (ids.batch < 1 || ids.sequence < 1) {
    throw bad_input("input_ids must be integers [batch, sequence], not int64 " +
                    list_of(std::vector<std::int64_t>{ids.batch, ids.sequence}));
  }
  check_size(position(ids.batch), position(ids.sequence));
  const std::size_t size = position(ids.batch * ids.sequence);
  if (ids.input_ids.size() != size) {
    throw bad_input("input_ids holds " + std::to_string(ids.input_ids.size()) + " ids, not " +
                    std::to_string(ids.batch) + "x" + std::to_string(ids.sequence));
  }
  check_fixed("batch", manifest.batch, ids.batch);
  check_ids(ids, manifest);
  if (ids.attention_mask.empty()) return;
  if (!manifest.pipeline.masked) {
    throw bad_input("the pipeline '" + manifest.pipeline.name + "' passes its encoder no attention_mask; pass none");
  }
  if (ids.attention_mask.size() != size) {
    throw bad_input("attention_mask is [" + std::to_string(ids.attention_mask.size()) + "], input_ids [" +
                    std::to_string(size) + "]");
  }
}

// A fixed batch is filled up with its last row.
void fill_up(Ids& ids, std::int64_t batch) {
  for (; ids.batch % batch != 0; ++ids.batch) {
    for (auto* values : {&ids.input_ids, &ids.attention_mask}) {
      const std::vector<std::int64_t> last(values->end() - ids.sequence, values->end());
      values->insert(values->end(), last.begin(), last.end());
    }
  }
}

Info describe(const Manifest& manifest, const Options& options, const Backend& backend) {
  Info info;
  info.family = manifest.family;
  info.pipeline = manifest.pipeline.name;
  info.dtype = manifest.dtype;
  info.target = options.target;
  info.device = options.device;
  info.library = backend.library;
  info.computes_in = backend.computes_in;
  info.hidden_size = manifest.hidden_size;
  info.vocab_size = manifest.vocab_size;
  info.max_length = manifest.pipeline.max_length;
  info.batch = manifest.batch;
  info.sequence = manifest.sequence;
  info.pads_to_max_length = manifest.pipeline.pads_to_max_length;
  info.masked = manifest.pipeline.masked;
  return info;
}

}  // namespace

class Encoder::Impl {
 public:
  Impl(const std::string& directory, Options options) : bundle(directory) {
    if (options.check_weights) bundle.check_hashes();
    open_tokenizer();
    backend = open_backend(bundle, options);
    info = describe(bundle.manifest(), options, *backend);
    info.tokenizes = tokenizer.has_value();
  }

  // Who passes ids does without one.
  void open_tokenizer() {
    try {
      if (bundle.manifest().tokenizer) tokenizer.emplace(bundle);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::missing_dependency) throw;
    }
  }

  Ids tokenize(const std::vector<std::string>& prompts) const {
    return tokenizer ? (*tokenizer)(prompts) : Tokenizer(bundle)(prompts);  // which says why there is none
  }

  Output encode(const std::vector<std::string>& prompts) const {
    const auto fixed = bundle.manifest().batch;
    Ids ids = tokenize(prompts);
    const std::int64_t wanted = ids.batch;
    if (fixed) {
      check_size(position(*fixed), position(ids.sequence));
      fill_up(ids, *fixed);
    }
    check_ids(ids, bundle.manifest());
    Output output = run(std::move(ids), fixed.value_or(kBatch));
    output.batch = wanted;
    output.input_ids.resize(position(wanted * output.sequence));
    output.attention_mask.resize(position(wanted * output.sequence));
    output.last_hidden_state.resize(position(wanted * output.sequence * output.hidden_size));
    return output;
  }

  Output encode(Ids ids) const {
    check_call(ids, bundle.manifest());
    if (ids.attention_mask.empty()) ids.attention_mask.assign(ids.input_ids.size(), 1);
    const std::int64_t batch = ids.batch;
    return run(std::move(ids), batch);
  }

  Bundle bundle;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<Backend> backend;
  Info info;

 private:
  // Runs so many rows at a time, each time straight into its place in the output.
  Output run(Ids ids, std::int64_t rows) const {
    Output output{ids.batch, ids.sequence, info.hidden_size, std::move(ids.input_ids), std::move(ids.attention_mask),
                  {}};
    std::size_t count = output.input_ids.size();
    const bool overflows = __builtin_mul_overflow(count, position(output.hidden_size), &count);
    if (overflows || count > output.last_hidden_state.max_size()) throw std::bad_alloc();
    output.last_hidden_state.resize(count);
    for (std::int64_t row = 0; row < output.batch; row += rows) {
      const std::size_t token = position(row * output.sequence);
      Feed feed;
      feed.batch = std::min(rows, output.batch - row);
      feed.sequence = output.sequence;
      feed.hidden_size = output.hidden_size;
      feed.input_ids = &output.input_ids[token];
      feed.attention_mask = info.masked ? &output.attention_mask[token] : nullptr;
      backend->run(feed, &output.last_hidden_state[token * position(output.hidden_size)]);
    }
    return output;
  }
};

Encoder::Encoder(const std::string& bundle, const Options& options)
    : impl_(translated([&] { return std::make_unique<Impl>(bundle, options); })) {}

Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

const Info& Encoder::info() const noexcept { return impl_->info; }

Ids Encoder::tokenize(const std::vector<std::string>& prompts) const {
  return translated([&] { return impl_->tokenize(prompts); });
}

Output Encoder::encode(const std::vector<std::string>& prompts) const {
  return translated([&] { return impl_->encode(prompts); });
}

Output Encoder::encode(const Ids& ids) const {
  return translated([&] { return impl_->encode(ids); });
}

SelfTest Encoder::self_test() const {
  return translated([&] { return run_self_test(impl_->bundle, *this); });
}

void check_bundle(const std::string& bundle) {
  translated([&] { Bundle(bundle).check_hashes(); });
}

const char* version() noexcept { return SKRR_VERSION; }

}  // namespace skrr

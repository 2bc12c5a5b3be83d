#include "skrr/encoder.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "error.hpp"
#include "limits.hpp"
#include "rows.hpp"
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
  if (!manifest.pipeline.needs_mask()) {
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
  for (const OutputEntry& output : manifest.outputs) {
    info.outputs.push_back({output.name, output.pooled, output.shape(-1, -1)});
  }
  info.hidden_size = manifest.hidden_size;
  info.vocab_size = manifest.vocab_size;
  info.max_length = manifest.pipeline.max_length;
  info.batch = manifest.batch;
  info.sequence = manifest.sequence;
  info.pads_to_max_length = manifest.pipeline.pads_to_max_length;
  info.masked = manifest.pipeline.needs_mask();
  info.clean = manifest.pipeline.clean;
  info.unconditional = manifest.pipeline.unconditional;
  info.unconditional_text = manifest.pipeline.unconditional_text;
  return info;
}

// A tensor for an output of so many rows, which overflows in no size.
Tensor make_tensor(const OutputEntry& entry, std::int64_t batch, std::int64_t sequence) {
  Tensor tensor{entry.name, entry.shape(batch, sequence), {}};
  std::size_t count = 1;
  for (const std::int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(count, position(size), &count)) throw std::bad_alloc();
  }
  if (count > tensor.values.max_size()) throw std::bad_alloc();
  tensor.values.resize(count);
  return tensor;
}

// The first rows of a batch.
void keep_first(Tensor& tensor, std::int64_t batch) {
  if (tensor.shape.empty() || tensor.shape[0] == batch) return;
  tensor.values.resize(tensor.values.size() / position(tensor.shape[0]) * position(batch));
  tensor.shape[0] = batch;
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

  Pipeline pipeline(Role role) const {
    const Pipeline& own = bundle.manifest().pipeline;
    return role == Role::negative_prompt ? for_negatives(own) : own;
  }

  Ids tokenize(const std::vector<std::string>& prompts, Role role) const {
    if (!tokenizer) Tokenizer{bundle};  // which says why there is none
    return (*tokenizer)(prompts, pipeline(role));
  }

  Output encode(const std::vector<std::string>& prompts, Role role) const {
    const auto fixed = bundle.manifest().batch;
    Ids ids = tokenize(prompts, role);
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
    keep_first(output.rows, wanted);
    keep_first(output.pooled, wanted);
    finish(output, role);
    return output;
  }

  Output encode(Ids ids, Role role) const {
    Output output = run(std::move(ids));
    finish(output, role);
    return output;
  }

  // What the encoder gives, before the pipeline makes something of it.
  Output run(Ids ids) const {
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
    Output output;
    output.batch = ids.batch;
    output.sequence = ids.sequence;
    output.input_ids = std::move(ids.input_ids);
    output.attention_mask = std::move(ids.attention_mask);
    const Manifest& manifest = bundle.manifest();
    for (const OutputEntry& entry : manifest.outputs) {
      (entry.pooled ? output.pooled : output.rows) = make_tensor(entry, output.batch, output.sequence);
    }
    for (std::int64_t row = 0; row < output.batch; row += rows) {
      const std::size_t token = position(row * output.sequence);
      Feed feed;
      feed.batch = std::min(rows, output.batch - row);
      feed.sequence = output.sequence;
      feed.input_ids = &output.input_ids[token];
      feed.attention_mask = manifest.pipeline.masked ? &output.attention_mask[token] : nullptr;
      std::vector<Place> places;
      for (const OutputEntry& entry : manifest.outputs) {
        Tensor& whole = entry.pooled ? output.pooled : output.rows;
        const std::size_t begin = whole.values.size() / position(output.batch) * position(row);
        places.push_back({whole.name.c_str(), entry.shape(feed.batch, feed.sequence), &whole.values[begin]});
      }
      backend->run(feed, places);
    }
    return output;
  }

  // What the pipeline makes of what its encoder gives.
  void finish(Output& output, Role role) const {
    if (output.rows.shape.empty()) return;
    const Pipeline own = pipeline(role);
    Rows rows = rows_of(own, output.batch, output.sequence, output.attention_mask);
    take(own, rows, output.rows);
    output.rows_mask = std::move(rows.mask);
  }
};

Encoder::Encoder(const std::string& bundle, const Options& options)
    : impl_(translated([&] { return std::make_unique<Impl>(bundle, options); })) {}

Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

const Info& Encoder::info() const noexcept { return impl_->info; }

Ids Encoder::tokenize(const std::vector<std::string>& prompts, Role role) const {
  return translated([&] { return impl_->tokenize(prompts, role); });
}

Output Encoder::encode(const std::vector<std::string>& prompts, Role role) const {
  return translated([&] { return impl_->encode(prompts, role); });
}

Output Encoder::encode(const Ids& ids, Role role) const {
  return translated([&] { return impl_->encode(ids, role); });
}

SelfTest Encoder::self_test() const {
  return translated([&] {
    const auto tokenize = [&](const std::vector<std::string>& prompts) {
      return impl_->tokenize(prompts, Role::prompt);
    };
    const auto run = [&](const Ids& ids) { return impl_->run(ids); };
    return run_self_test(impl_->bundle, impl_->info, tokenize, run);
  });
}

void check_bundle(const std::string& bundle) {
  translated([&] { Bundle(bundle).check_hashes(); });
}

const char* version() noexcept { return SKRR_VERSION; }

}  // namespace skrr

/* example_c BUNDLE PROMPT... : prints the size of the embeddings, and the norm of each prompt's first row. */

#include <math.h>
#include <stdio.h>

#include <skrr/skrr.h>

static int fail(void) {
  fprintf(stderr, "error: %s\n", skrr_last_error());
  return 2;
}

static void print_norms(const skrr_output* output) {
  const size_t hidden_size = skrr_output_hidden_size(output);
  const size_t sequence = skrr_output_sequence(output);
  for (size_t prompt = 0; prompt < skrr_output_batch(output); ++prompt) {
    const float* row = skrr_output_last_hidden_state(output) + prompt * sequence * hidden_size;
    double square = 0;
    for (size_t i = 0; i < hidden_size; ++i) square += (double)row[i] * row[i];
    printf("%g\n", sqrt(square));
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: %s BUNDLE PROMPT...\n", argv[0]);
    return 2;
  }
  skrr_options options = SKRR_OPTIONS_INIT;
  options.device = "cpu";
  skrr_encoder* encoder = NULL;
  if (skrr_encoder_open(argv[1], &options, &encoder) != SKRR_OK) return fail();

  skrr_output* output = NULL;
  const size_t count = (size_t)argc - 2;
  const int status = skrr_encode_prompts(encoder, (const char* const*)argv + 2, count, &output) == SKRR_OK ? 0 : fail();
  if (status == 0) {
    printf("%zu x %zu x %zu\n", skrr_output_batch(output), skrr_output_sequence(output),
           skrr_output_hidden_size(output));
    print_norms(output);
  }
  skrr_output_free(output);
  skrr_encoder_close(encoder);
  return status;
}

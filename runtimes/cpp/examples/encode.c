/* example_c BUNDLE PROMPT... : prints the shape of each output, and the norm of each prompt's first row in it. */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include <skrr/skrr.h>

static int fail(void) {
  fprintf(stderr, "error: %s\n", skrr_last_error());
  return 2;
}

static void print(const skrr_tensor* tensor) {
  if (tensor == NULL) return; /* the bundle has no such output */
  const size_t rank = skrr_tensor_rank(tensor);
  const int64_t* shape = skrr_tensor_shape(tensor);
  size_t prompt_size = 1;
  printf("%s", skrr_tensor_name(tensor));
  for (size_t axis = 0; axis < rank; ++axis) {
    printf(" %" PRId64, shape[axis]);
    if (axis > 0) prompt_size *= (size_t)shape[axis];
  }
  printf("\n");
  for (int64_t prompt = 0; prompt < shape[0]; ++prompt) {
    const float* row = skrr_tensor_values(tensor) + (size_t)prompt * prompt_size;
    double square = 0;
    for (int64_t i = 0; i < shape[rank - 1]; ++i) square += (double)row[i] * row[i];
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
  const char* const* prompts = (const char* const*)argv + 2;
  const int status = skrr_encode_prompts(encoder, prompts, count, SKRR_PROMPT, &output) == SKRR_OK ? 0 : fail();
  print(skrr_output_rows(output));
  print(skrr_output_pooled(output));
  skrr_output_free(output);
  skrr_encoder_close(encoder);
  return status;
}

/* The C interface of skrr, for C and for every language that can call it. C99; needs no other header of skrr.
 *
 *   skrr_encoder *encoder = NULL;
 *   skrr_output *output = NULL;
 *   const char *prompts[] = {"a cat", "two dogs"};
 *   if (skrr_encoder_open("t5.bundle", NULL, &encoder) != SKRR_OK) puts(skrr_last_error());
 *   if (skrr_encode_prompts(encoder, prompts, 2, SKRR_PROMPT, &output) != SKRR_OK) puts(skrr_last_error());
 *   skrr_output_free(output);
 *   skrr_encoder_close(encoder);
 *
 * Threads: an encoder may be used by many threads at once, as long as none closes it. An output is read-only.
 * Ownership: what a function writes through a `**` belongs to the caller, who frees it with the function named there;
 *   every other pointer that is returned belongs to its object and lives as long. Arguments are copied or only read.
 * Errors: a function that fails writes NULL (or 0) through its result and says why in skrr_last_error(). Null pointers
 *   and sizes out of range are SKRR_BAD_INPUT. No exception and no signal leaves the library.
 * Compatibility: functions, codes and the members of skrr_options are only ever added. */
#ifndef SKRR_H
#define SKRR_H

#include <stddef.h>
#include <stdint.h>

#include "skrr/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a function returns; of fixed width, which an enum is not. */
typedef int32_t skrr_status;
#define SKRR_OK 0
#define SKRR_BAD_INPUT 1          /* an argument, a prompt or ids that the encoder cannot take */
#define SKRR_BAD_BUNDLE 2         /* missing, damaged, or not for this machine */
#define SKRR_MISSING_DEPENDENCY 3 /* this build or machine lacks what runs the target */
#define SKRR_FAILED 4             /* anything else, such as a GPU out of memory */
#define SKRR_OUT_OF_MEMORY 5      /* of the host */

typedef struct skrr_encoder skrr_encoder;
typedef struct skrr_output skrr_output;
typedef struct skrr_tensor skrr_tensor;

/* What is tokenised: some pipelines put no text around negative prompts. */
typedef int32_t skrr_role;
#define SKRR_PROMPT 0
#define SKRR_NEGATIVE_PROMPT 1

/* How to open a bundle; start from SKRR_OPTIONS_INIT. See skrr::Options in encoder.hpp for what each means. */
typedef struct skrr_options {
  size_t struct_size;    /* sizeof(skrr_options) of the caller, so that the library knows which members there are */
  const char* target;    /* NULL: the best that the bundle has and that runs here */
  const char* device;    /* "cpu" or "cuda"; NULL: as the target wants */
  int32_t threads;       /* 0: the default */
  int32_t prepacked;     /* 0 or 1 */
  int32_t check_weights; /* 0 or 1 */
  int32_t reserved;      /* 0; there would be a hole here otherwise, which nobody knows the content of */
} skrr_options;
#define SKRR_OPTIONS_INIT {sizeof(skrr_options), NULL, NULL, 0, 0, 0, 0}

/* The version of the library, such as "0.1.0"; static. */
SKRR_EXPORT const char* skrr_version(void);

/* Why the last call of this thread failed, one line of UTF-8; "" if it did not. Valid until this thread's next call
 * of a function that returns a skrr_status. */
SKRR_EXPORT const char* skrr_last_error(void);

/* Opens a bundle; options may be NULL. Free *encoder with skrr_encoder_close. */
SKRR_EXPORT skrr_status skrr_encoder_open(const char* bundle, const skrr_options* options, skrr_encoder** encoder);

/* Closes an encoder that no thread is using; NULL does nothing. Its outputs stay valid. */
SKRR_EXPORT void skrr_encoder_close(skrr_encoder* encoder);

/* What was opened, as JSON: family, pipeline, dtype, target, device, library, computes_in, outputs (of each: name,
 * pooled, and shape, null where a size depends on the prompts), hidden_size, vocab_size, max_length, batch and sequence
 * (null if free), pads_to_max_length, masked, tokenizes, clean, unconditional, unconditional_text; skrr::Info in
 * encoder.hpp says what each means. "" for NULL. */
SKRR_EXPORT const char* skrr_encoder_info(const skrr_encoder* encoder);

/* Tokenises prompts, NUL-terminated UTF-8; *output has ids and their mask only. Free it with skrr_output_free. */
SKRR_EXPORT skrr_status skrr_tokenize(const skrr_encoder* encoder, const char* const* prompts, size_t count,
                                      skrr_role role, skrr_output** output);

/* Tokenises and encodes prompts. Free *output with skrr_output_free. */
SKRR_EXPORT skrr_status skrr_encode_prompts(const skrr_encoder* encoder, const char* const* prompts, size_t count,
                                            skrr_role role, skrr_output** output);

/* Encodes token ids, [batch, sequence] each; attention_mask may be NULL: all ones, and the only choice where the
 * pipeline passes its encoder no mask. Free *output with skrr_output_free. */
SKRR_EXPORT skrr_status skrr_encode_ids(const skrr_encoder* encoder, const int64_t* input_ids,
                                        const int64_t* attention_mask, size_t batch, size_t sequence, skrr_role role,
                                        skrr_output** output);

/* Compares this machine's results with those the bundle carries: *passed is 1 or 0. If line is not NULL, the result in
 * words is written there, cut to line_size bytes with the NUL. */
SKRR_EXPORT skrr_status skrr_self_test(const skrr_encoder* encoder, int32_t* passed, char* line, size_t line_size);

/* Sizes and buffers of an output, row-major and contiguous; 0 and NULL for NULL. */
SKRR_EXPORT size_t skrr_output_batch(const skrr_output* output);
SKRR_EXPORT size_t skrr_output_sequence(const skrr_output* output);
SKRR_EXPORT const int64_t* skrr_output_input_ids(const skrr_output* output);      /* [batch, sequence] */
SKRR_EXPORT const int64_t* skrr_output_attention_mask(const skrr_output* output); /* [batch, sequence] */

/* What the pipeline takes of its encoder; NULL where that is not one of the bundle's outputs.
 * A row a token: [batch, length, features], or of layers that are stacked [batch, layers, length, features]; and which
 * of them the denoiser is told to read, [batch, length]. The length is the sequence's, less what is left out. */
SKRR_EXPORT const skrr_tensor* skrr_output_rows(const skrr_output* output);
SKRR_EXPORT const int64_t* skrr_output_rows_mask(const skrr_output* output);
/* A row a prompt: [batch, features]. */
SKRR_EXPORT const skrr_tensor* skrr_output_pooled(const skrr_output* output);

/* A tensor of an output, which it lives as long as; "", 0 and NULL for NULL. */
SKRR_EXPORT const char* skrr_tensor_name(const skrr_tensor* tensor); /* such as "last_hidden_state" */
SKRR_EXPORT size_t skrr_tensor_rank(const skrr_tensor* tensor);
SKRR_EXPORT const int64_t* skrr_tensor_shape(const skrr_tensor* tensor); /* [rank] */
SKRR_EXPORT const float* skrr_tensor_values(const skrr_tensor* tensor);

/* Frees an output; NULL does nothing. */
SKRR_EXPORT void skrr_output_free(skrr_output* output);

#ifdef __cplusplus
}
#endif

#endif /* SKRR_H */

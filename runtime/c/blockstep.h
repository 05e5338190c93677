/* libblockstep: block decoding of an exported bundle, from C or C++.

   Python is inside. The library starts an interpreter at its first call, one per process, in the environment that it
   was built in; the environment variable BLOCKSTEP_PYTHON names the python executable of another environment of the same
   Python version. In a host that already runs Python it uses that one.
   Signals, locale and stdio stay as the host has them. Load it before other threads change the environment, do not use
   it in a child of fork(), and do not call it from a signal handler. It stays in the process once it is loaded.

   Every function may be called from any thread, several at once on one model. They return a code, and
   blockstep_last_error() the reason in one line, kept for each thread. Structs are to be zeroed before they are filled
   ("= {0}"): zero is the default of every field. Texts are UTF-8. Pointers that are handed in need to last for the call. */

#ifndef BLOCKSTEP_H
#define BLOCKSTEP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BLOCKSTEP_PUBLIC __attribute__((visibility("default")))
#else
#define BLOCKSTEP_PUBLIC
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* declarations */

/* Version of this header. It grows with each change that makes a host compile again. */
#define BLOCKSTEP_VERSION 2

/* What the functions return. */
#define BLOCKSTEP_OK 0
#define BLOCKSTEP_MISTAKE 1   /* a mistake of the caller; the reason has what was got, what was expected, what to do */
#define BLOCKSTEP_NUMERICAL 2 /* the model gave scores that are not numbers */
#define BLOCKSTEP_DEVICE 3    /* a call of the GPU's driver or of TensorRT failed */
#define BLOCKSTEP_PYTHON 4    /* Python cannot be started, or its environment lacks something */
#define BLOCKSTEP_INTERNAL 5  /* any other fault, out of memory included */
#define BLOCKSTEP_DIFFERS 6   /* blockstep_verify: the engine differs from its recorded reference by more than a bound */

/* How an answer ended. */
#define BLOCKSTEP_EOS 1       /* by an end token, which is in token_ids and not in text */
#define BLOCKSTEP_LENGTH 2    /* at max_new_tokens */
#define BLOCKSTEP_CANCELLED 3 /* by on_block or cancel */

/* A loaded bundle. One that was closed is refused with BLOCKSTEP_MISTAKE by all functions. */
typedef struct blockstep_model blockstep_model;

typedef struct {
    const char *engine; /* name of an engine, or ort, or trt; NULL: the bundle's first of ONNX Runtime */
    const char *device; /* device of an ONNX Runtime engine, cpu or cuda; NULL: cpu */
    int threads;        /* threads per forward pass; 0: the physical cores within the CPU quota */
    int at_once;        /* requests decoded at once, each with a KV cache of its own; further ones wait. 0: 2, or 1
                           if the engine has one KV cache */
    int verify_always;  /* check the files' hashes at each load, not only at the first */
    int trust_engine;   /* load a TensorRT engine that this machine did not build; it is native code and runs as you */
    int no_allow_spinning; /* let ONNX Runtime's threads sleep while they wait, which spares CPU time if other work
                              shares the cores; 0: they spin */
} blockstep_options;

/* A finished block; its pointers last until on_block returns. */
typedef struct {
    int index; /* from 0 */
    int last;
    const char *text; /* text that the block completes; a character split over two blocks comes with the later one */
    size_t text_length;
    const int64_t *token_ids;
    size_t token_count;
} blockstep_block;

typedef struct {
    const char *prompt;       /* ends with a zero byte; give either this or token_ids */
    const int64_t *token_ids; /* [token_count] */
    size_t token_count;
    int raw;                 /* use prompt as it is, without the bundle's chat template */
    int max_new_tokens;      /* maximum new tokens; 0: 256, or fewer if the capacity has no room */
    const double *threshold; /* threshold of the gate: a probability, nats or a factor; NULL: the bundle's */
    /* Called on the calling thread for each finished block; a return value other than 0 cancels. It may call the
       library; it must neither throw nor jump out. */
    int (*on_block)(const blockstep_block *block, void *user);
    void *user;
    /* Read at each forward pass, and while the request waits: a value other than 0 cancels. Another thread should
       store to it atomically (__atomic_store_n, or a std::atomic<int>). */
    const int *cancel;
} blockstep_request;

/* How tokens are chosen, for blockstep_decode. It may grow: size is the number of bytes that the host knows. */
typedef struct {
    size_t size;         /* sizeof(blockstep_decoding) */
    double temperature;  /* 0: the top-1 tokens; up to 5: tokens are sampled, from a bundle exported with --top-k */
    const int64_t *seed; /* sampling seed; the same seed gives the same answer; NULL: random, not reported */
    const char *mode;    /* "block", "speculative" or "causal", of the modes that the model has; NULL: its first, block with a threshold */
} blockstep_decoding;

/* Freed with blockstep_free. Of a cancelled answer, the finished blocks; its counts and times are 0. */
typedef struct {
    int finish;
    int steps;    /* forward passes with a masked position */
    int commits;  /* finished blocks whose keys and values were committed */
    int forwards; /* forward passes of both, a fused one counted once */
    int blocks;   /* blocks begun */
    double seconds;
    double prefill_seconds;
    const char *text; /* ends with a zero byte, and may contain others */
    size_t text_length;
    const int64_t *token_ids;
    size_t token_count;
} blockstep_answer;

/* How blockstep_decide decides. It may grow: size is the number of bytes that the host knows. */
typedef struct {
    size_t size;             /* sizeof(blockstep_deciding) */
    const char *probability; /* meaning of the probabilities, "parallel" or "ordered" (docs/decisions.md); NULL: parallel */
    int max_forwards;        /* maximum forward passes; 0: as many as it takes */
} blockstep_deciding;

/* A decided JSON document; free it with blockstep_free_decision. */
typedef struct {
    int partial;  /* max_forwards or cancel ended it before every field had a value */
    int forwards; /* forward passes, without the prompt's prefill */
    double seconds;
    const char *text; /* compact JSON; if partial, only up to the first field without a value. Ends with a zero byte */
    size_t text_length;
    const char *json; /* {"fields": [{"path", "value", "confidence", "distribution": [{"value", "probability"}, ...]}, ...],
                         "forwards", "partial", "probability"}. Ends with a zero byte */
    size_t json_length;
} blockstep_decision;

/* What a model is; it lasts until the model is closed. */
typedef struct {
    int block;      /* tokens per block */
    int canvas;     /* answer positions that a bidirectional model runs */
    int capacity;   /* KV-cache capacity: positions for prompt and answer */
    int max_prompt; /* maximum tokens of a prompt; 0 if capacity alone bounds it */
    int vocab;
    int64_t mask_id;
    int64_t pad_id;
    const int64_t *eos_ids;
    size_t eos_count;
    double threshold; /* of the gate, if a request gives none */
    const char *json; /* {"engine", "precision", "contract"}: all of it, as in the bundle's manifest */
} blockstep_contract;

/* BLOCKSTEP_VERSION of the library, to compare with the header's. Does not start Python. */
BLOCKSTEP_PUBLIC int blockstep_version(void);

/* Loads the bundle in a folder. options may be NULL. *model is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_load(const char *bundle, const blockstep_options *options, blockstep_model **model);

/* Replays what PyTorch computed when the bundle was exported on the engine that the options choose (NULL: the first for
   ONNX Runtime), as `blockstep verify` does; at_once and verify_always do not matter. Returns BLOCKSTEP_OK if each
   bound is kept; BLOCKSTEP_DIFFERS if not, and blockstep_last_error names it; BLOCKSTEP_MISTAKE for a bundle
   without a reference. */
BLOCKSTEP_PUBLIC int blockstep_verify(const char *bundle, const blockstep_options *options);

/* Generates the answer to a request. *answer is NULL after an error; answer itself may be NULL if on_block takes it. */
BLOCKSTEP_PUBLIC int blockstep_generate(
    blockstep_model *model, const blockstep_request *request, blockstep_answer **answer);

/* As blockstep_generate, with tokens sampled at a temperature above 0 to 5; 0 takes the top-1 tokens. It needs a bundle
   that was exported with --top-k. The same seed gives the same answer; NULL: a random seed, not reported. */
BLOCKSTEP_PUBLIC int blockstep_sample(
    blockstep_model *model, const blockstep_request *request, double temperature, const int64_t *seed,
    blockstep_answer **answer);

/* As blockstep_generate, with tokens chosen as decoding describes. decoding may be NULL. */
BLOCKSTEP_PUBLIC int blockstep_decode(
    blockstep_model *model, const blockstep_request *request, const blockstep_decoding *decoding,
    blockstep_answer **answer);

/* Decides a JSON document of a JSON schema, supported subset: docs/decisions.md. Each field is chosen among its
   values, so the document never leaves the schema. Of the request it takes prompt or token_ids, raw, threshold (of free
   texts) and cancel; max_new_tokens and on_block have to be 0. deciding may be NULL. *decision is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_decide(
    blockstep_model *model, const blockstep_request *request, const char *schema, const blockstep_deciding *deciding,
    blockstep_decision **decision);

/* Frees a decision; NULL is fine. */
BLOCKSTEP_PUBLIC void blockstep_free_decision(blockstep_decision *decision);

/* Returns the model's contract. *contract is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_describe(blockstep_model *model, const blockstep_contract **contract);

/* Frees an answer; NULL is fine. */
BLOCKSTEP_PUBLIC void blockstep_free(blockstep_answer *answer);

/* Closes a model; its memory is freed when its running requests have ended. NULL is fine. */
BLOCKSTEP_PUBLIC int blockstep_close(blockstep_model *model);

/* Returns why this thread's last call failed, "" if it did not; the text lasts until the thread's next call. */
BLOCKSTEP_PUBLIC const char *blockstep_last_error(void);

/* end of declarations */

#ifdef __cplusplus
}
#endif

#endif

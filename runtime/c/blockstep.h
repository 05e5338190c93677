/* libblockstep: block decoding of an exported bundle, from C or C++.

   Python is inside. The library starts an interpreter at its first call, one a process, in the environment that it was
   built in; the environment variable BLOCKSTEP_PYTHON names the python executable of another one of the same version. In
   a host that already runs Python it uses that one.
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

/* Of this header. It grows with every change that a host would have to be compiled again for. */
#define BLOCKSTEP_VERSION 2

/* What the functions return. */
#define BLOCKSTEP_OK 0
#define BLOCKSTEP_MISTAKE 1   /* the caller's: what was got, what was expected, what to do */
#define BLOCKSTEP_NUMERICAL 2 /* the model gave scores that are not numbers */
#define BLOCKSTEP_DEVICE 3    /* a call of the GPU's driver or of TensorRT failed */
#define BLOCKSTEP_PYTHON 4    /* Python cannot be started, or its environment lacks something */
#define BLOCKSTEP_INTERNAL 5  /* anything else, memory that ran out included */
#define BLOCKSTEP_DIFFERS 6   /* blockstep_verify: the engine is off its recorded reference by more than a bound */

/* How an answer ended. */
#define BLOCKSTEP_EOS 1       /* with an end token, which is in token_ids and not in text */
#define BLOCKSTEP_LENGTH 2    /* at max_new_tokens */
#define BLOCKSTEP_CANCELLED 3 /* by on_block or cancel */

/* A loaded bundle. One that was closed is refused with BLOCKSTEP_MISTAKE wherever it is used. */
typedef struct blockstep_model blockstep_model;

typedef struct {
    const char *engine; /* NULL: the bundle's first for ONNX Runtime; otherwise its name, or ort, or trt */
    const char *device; /* NULL: cpu; or cuda, of an ONNX Runtime engine */
    int threads;        /* of a forward; 0: the physical cores within the CPU quota */
    int at_once;        /* requests answered at the same time, each with a cache; further ones wait. 0: 2, or 1 where
                           the engine has one cache */
    int verify_always;  /* check the files' hashes at every load, not only at the first */
    int trust_engine;   /* load a TensorRT engine that this machine did not build: native code, which runs as you */
    int no_allow_spinning; /* let ONNX Runtime's threads sleep while they wait, which spares CPU time where other work
                              shares the cores; 0: they spin */
} blockstep_options;

/* A finished block; its pointers last until on_block returns. */
typedef struct {
    int index; /* from 0 */
    int last;
    const char *text; /* what the block completes; a character split over two blocks comes with the later one */
    size_t text_length;
    const int64_t *token_ids;
    size_t token_count;
} blockstep_block;

typedef struct {
    const char *prompt;       /* ends with a zero byte; either this or token_ids */
    const int64_t *token_ids; /* [token_count] */
    size_t token_count;
    int raw;                 /* leave the bundle's chat template out of a text */
    int max_new_tokens;      /* 0: 256, cut to the room that the prompt leaves */
    const double *threshold; /* of the accept rule, in its metric's unit; NULL: the bundle's */
    /* Called on the calling thread for every block as it becomes final; anything but 0 cancels. It may call the
       library, and must not throw nor jump out. */
    int (*on_block)(const blockstep_block *block, void *user);
    void *user;
    /* Read at every forward, and while the request waits for its turn: not 0 cancels. Another thread should store to it
       atomically (__atomic_store_n, or a std::atomic<int>). */
    const int *cancel;
} blockstep_request;

/* How tokens are chosen, for blockstep_decode. It may grow: a host says with size how much of it it knows. */
typedef struct {
    size_t size;         /* sizeof(blockstep_decoding) */
    double temperature;  /* 0: the best tokens; above it, to 5, tokens are drawn, of a bundle exported with --top-k */
    const int64_t *seed; /* of the draws: with the same one the same answer; NULL draws one, which is not told */
    const char *mode;    /* "block", "speculative" or "causal", as far as the model can; NULL: its own */
} blockstep_decoding;

/* Freed with blockstep_free. Of a cancelled answer, the finished blocks; its counts and times are 0. */
typedef struct {
    int finish;
    int steps;    /* forwards with an open position */
    int commits;  /* finished blocks whose keys and values were kept */
    int forwards; /* both, a fused one counted once */
    int blocks;   /* begun */
    double seconds;
    double prefill_seconds;
    const char *text; /* ends with a zero byte, and may hold others */
    size_t text_length;
    const int64_t *token_ids;
    size_t token_count;
} blockstep_answer;

/* How blockstep_decide decides. It may grow: a host says with size how much of it it knows. */
typedef struct {
    size_t size;             /* sizeof(blockstep_deciding) */
    const char *probability; /* what the probabilities mean, "parallel" or "ordered" (docs/decisions.md); NULL: parallel */
    int max_forwards;        /* forward passes at most; 0: as many as it takes */
} blockstep_deciding;

/* A decided JSON document; freed with blockstep_free_decision. */
typedef struct {
    int partial;  /* max_forwards or cancel ended it before every field had a value */
    int forwards; /* without the prompt's prefill */
    double seconds;
    const char *text; /* compact JSON; if partial up to the first field without a value. Ends with a zero byte */
    size_t text_length;
    const char *json; /* {"fields": [{"path", "value", "confidence", "distribution": [{"value", "probability"}, ...]}, ...],
                         "forwards", "partial", "probability"}. Ends with a zero byte */
    size_t json_length;
} blockstep_decision;

/* What a model is; it lasts until the model is closed. */
typedef struct {
    int block;      /* tokens a block */
    int canvas;     /* answer positions that a bidirectional model is run with */
    int capacity;   /* positions for prompt and answer */
    int max_prompt; /* tokens; 0 where capacity alone bounds it */
    int vocab;
    int64_t mask_id;
    int64_t pad_id;
    const int64_t *eos_ids;
    size_t eos_count;
    double threshold; /* of the gate, where a request gives none */
    const char *json; /* {"engine", "precision", "contract"}: all of it, as in the bundle's manifest */
} blockstep_contract;

/* BLOCKSTEP_VERSION of the library; to be compared with the header's. It does not start Python. */
BLOCKSTEP_PUBLIC int blockstep_version(void);

/* Loads the bundle in a folder. options may be NULL. *model is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_load(const char *bundle, const blockstep_options *options, blockstep_model **model);

/* Replays what PyTorch computed when the bundle was exported on the engine that the options choose (NULL: the first for
   ONNX Runtime), as `blockstep verify` does; at_once and verify_always do not matter. BLOCKSTEP_OK if every bound is kept;
   BLOCKSTEP_DIFFERS if not, and blockstep_last_error says which; BLOCKSTEP_MISTAKE for a bundle without a reference. */
BLOCKSTEP_PUBLIC int blockstep_verify(const char *bundle, const blockstep_options *options);

/* Answers a request. *answer is NULL after an error; answer itself may be NULL where on_block has it all. */
BLOCKSTEP_PUBLIC int blockstep_generate(
    blockstep_model *model, const blockstep_request *request, blockstep_answer **answer);

/* As blockstep_generate, with tokens drawn at a temperature above 0 to 5; 0 takes the best ones. It needs a bundle that
   was exported with --top-k. With the same seed the same answer; NULL draws one, which is not told. */
BLOCKSTEP_PUBLIC int blockstep_sample(
    blockstep_model *model, const blockstep_request *request, double temperature, const int64_t *seed,
    blockstep_answer **answer);

/* As blockstep_generate, with tokens chosen as told. decoding may be NULL. */
BLOCKSTEP_PUBLIC int blockstep_decode(
    blockstep_model *model, const blockstep_request *request, const blockstep_decoding *decoding,
    blockstep_answer **answer);

/* Decides a JSON document of a JSON schema, which docs/decisions.md has the subset of: each field is chosen among its
   values, and nothing outside the schema can come. Of the request it takes prompt or token_ids, raw, threshold (of free
   texts) and cancel; max_new_tokens and on_block have to be 0. deciding may be NULL. *decision is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_decide(
    blockstep_model *model, const blockstep_request *request, const char *schema, const blockstep_deciding *deciding,
    blockstep_decision **decision);

/* Frees a decision; NULL is fine. */
BLOCKSTEP_PUBLIC void blockstep_free_decision(blockstep_decision *decision);

/* The model's contract. *contract is NULL after an error. */
BLOCKSTEP_PUBLIC int blockstep_describe(blockstep_model *model, const blockstep_contract **contract);

/* Frees an answer; NULL is fine. */
BLOCKSTEP_PUBLIC void blockstep_free(blockstep_answer *answer);

/* Closes a model; its memory goes when the requests that are in it end. NULL is fine. */
BLOCKSTEP_PUBLIC int blockstep_close(blockstep_model *model);

/* Why this thread's last call failed, "" if it did not; it lasts until the thread's next call. */
BLOCKSTEP_PUBLIC const char *blockstep_last_error(void);

/* end of declarations */

#ifdef __cplusplus
}
#endif

#endif

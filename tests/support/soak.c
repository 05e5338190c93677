/* Opens the library as a plugin would, asks from many short-lived threads, and prints what they got as JSON:
   soak LIBRARY BUNDLE THREADS REQUESTS LEAK < lines of token ids

   LEAK bytes are lost with every request, on purpose: to see that the measure notices. An answer that differs from the first one to
   its prompt, or a signal handler or locale that changed, ends it with exit code 1. */

#include <dlfcn.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockstep.h"

#define PROMPTS 16
#define LONGEST 1024
#define WAVES 10

static int (*load)(const char *, const blockstep_options *, blockstep_model **);
static int (*generate)(blockstep_model *, const blockstep_request *, blockstep_answer **);
static void (*release)(blockstep_answer *);
static int (*close_model)(blockstep_model *);
static const char *(*last_error)(void);

static blockstep_model *model;
static int64_t prompts[PROMPTS][LONGEST];
static size_t lengths[PROMPTS], prompt_count;
static blockstep_answer *first[PROMPTS];
static int each, differ; /* requests of a thread in a wave; answers unlike the first */
static size_t leak;

static void stop(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    _exit(1);
}

static blockstep_answer *ask(size_t i)
{
    blockstep_request request = {0};
    blockstep_answer *answer;
    request.token_ids = prompts[i];
    request.token_count = lengths[i];
    if (generate(model, &request, &answer) != BLOCKSTEP_OK)
        stop("generate", last_error());
    return answer;
}

static void *work(void *given)
{
    size_t start = (size_t)given;
    for (int n = 0; n < each; n++) {
        size_t i = (start + (size_t)n) % prompt_count;
        blockstep_answer *answer = ask(i);
        if (answer->token_count != first[i]->token_count
            || memcmp(answer->token_ids, first[i]->token_ids, 8 * answer->token_count) != 0)
            __atomic_fetch_add(&differ, 1, __ATOMIC_RELAXED);
        release(answer);
        if (leak > 0)
            memset(malloc(leak), 1, leak);
    }
    return NULL;
}

static void wave(size_t threads)
{
    pthread_t running[64];
    for (size_t t = 0; t < threads; t++)
        if (pthread_create(&running[t], NULL, work, (void *)t) != 0)
            stop("pthread_create", "failed");
    for (size_t t = 0; t < threads; t++)
        pthread_join(running[t], NULL);
}

static long resident(void) /* bytes */
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1)
        stop("statm", "cannot be read");
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static void read_prompts(void)
{
    static char line[16 * LONGEST];
    while (prompt_count < PROMPTS && fgets(line, sizeof line, stdin)) {
        char *rest = line, *next;
        size_t length = 0;
        for (int64_t id = strtoll(rest, &next, 10); next != rest && length < LONGEST; id = strtoll(rest, &next, 10)) {
            prompts[prompt_count][length++] = id;
            rest = next;
        }
        lengths[prompt_count++] = length;
    }
}

static void *found(void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL)
        stop(name, "is not in the library");
    return symbol;
}

static void open_library(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        stop("dlopen", dlerror());
    *(void **)&load = found(library, "blockstep_load");
    *(void **)&generate = found(library, "blockstep_generate");
    *(void **)&release = found(library, "blockstep_free");
    *(void **)&close_model = found(library, "blockstep_close");
    *(void **)&last_error = found(library, "blockstep_last_error");
    if (((int (*)(void))found(library, "blockstep_version"))() != BLOCKSTEP_VERSION)
        stop("version", "is not the header's");
}

static void same_signals(struct sigaction *kept, int compare)
{
    for (int s = 1; s < 32; s++) {
        struct sigaction now;
        memset(&now, 0, sizeof now);
        sigaction(s, NULL, &now);
        if (compare && now.sa_handler != kept[s].sa_handler)
            stop("signal", "a handler was changed");
        kept[s] = now;
    }
}

int main(int argc, char **argv)
{
    struct sigaction kept[32];
    blockstep_options options = {0};
    size_t threads;

    if (argc != 6)
        return 2;
    threads = (size_t)atoi(argv[3]);
    each = (int)(atoi(argv[4]) / (WAVES * (int)threads));
    leak = (size_t)atoi(argv[5]);
    read_prompts();
    same_signals(kept, 0);
    open_library(argv[1]);
    options.threads = 1;
    options.at_once = (int)threads;
    if (load(argv[2], &options, &model) != BLOCKSTEP_OK)
        stop("load", last_error());
    for (size_t i = 0; i < prompt_count; i++)
        first[i] = ask(i);
    for (int n = 0; each > 0 && n < WAVES / 2; n++) /* every copy of the model has its buffers then */
        wave(threads);
    long before = resident();
    for (int n = 0; each > 0 && n < WAVES; n++)
        wave(threads);
    long after = resident();
    same_signals(kept, 1);
    if (strcmp(setlocale(LC_ALL, NULL), "C") != 0)
        stop("locale", setlocale(LC_ALL, NULL));
    printf("{\"differ\": %d, \"grown\": %ld, \"answers\": [", differ, after - before);
    for (size_t i = 0; i < prompt_count; i++) {
        printf(i ? ", [" : "[");
        for (size_t k = 0; k < first[i]->token_count; k++)
            printf(k ? ", %lld" : "%lld", (long long)first[i]->token_ids[k]);
        printf("]");
        release(first[i]);
    }
    printf("]}\n");
    return close_model(model) == BLOCKSTEP_OK && differ == 0 ? 0 : 1;
}

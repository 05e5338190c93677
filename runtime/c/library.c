/* The public functions of libblockstep: they start Python once, call into it, and keep each thread's last error.

   Compiled after cffi's own code and the macros BUILT_IN_PYTHON and BUILT_IN_PACKAGE, see runtime/capi.py. */

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "blockstep.h"

static int python_attach(int chosen, char *package);
static int python_load(char *bundle, blockstep_options *options, blockstep_model **model);
static int python_verify(char *bundle, blockstep_options *options);
static int python_generate(
    blockstep_model *model, blockstep_request *request, blockstep_decoding *decoding, blockstep_answer **answer);
static int python_decide(
    blockstep_model *model, blockstep_request *request, char *schema, blockstep_deciding *deciding,
    blockstep_decision **decision);
static int python_describe(blockstep_model *model, blockstep_contract **contract);
static int python_close(blockstep_model *model);

static _Thread_local char said[1024];
static char unusable[1024]; /* why Python cannot be used; written inside pthread_once alone */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What the embedded Python calls. */

static void tell(const char *message)
{
    snprintf(said, sizeof said, "%s", message);
}

static int raised(const int *flag)
{
    return flag != NULL && __atomic_load_n(flag, __ATOMIC_ACQUIRE) != 0;
}

/* One allocation: the struct, then the ids, then the text; NULL if no memory is left. */
static blockstep_answer *new_answer(size_t text_length, size_t token_count)
{
    size_t ids = token_count * sizeof(int64_t);
    blockstep_answer *answer = calloc(1, sizeof *answer + ids + text_length + 1);
    if (answer == NULL)
        return NULL;
    answer->token_ids = (const int64_t *)(answer + 1);
    answer->token_count = token_count;
    answer->text = (const char *)(answer + 1) + ids;
    answer->text_length = text_length;
    return answer;
}

/* Allocates a decision in the same way: the struct, then both texts. */
static blockstep_decision *new_decision(size_t text_length, size_t json_length)
{
    blockstep_decision *decision = calloc(1, sizeof *decision + text_length + json_length + 2);
    if (decision == NULL)
        return NULL;
    decision->text = (const char *)(decision + 1);
    decision->text_length = text_length;
    decision->json = decision->text + text_length + 1;
    decision->json_length = json_length;
    return decision;
}

/* Starting. */

static int complain(const char *form, ...)
{
    va_list parts;
    va_start(parts, form);
    vsnprintf(unusable, sizeof unusable, form, parts);
    va_end(parts);
    return -1;
}

static PyStatus initialise(const char *executable)
{
    PyPreConfig before;
    PyConfig config;
    PyStatus status;

    /* Isolated: no signal handlers, no setlocale, no PYTHON* variables, stdio as it is. */
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* otherwise a host in the C locale could not open files whose names are not ASCII */
    status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status))
        return status;
    PyConfig_InitIsolatedConfig(&config);
    status = PyConfig_SetBytesString(&config, &config.program_name, executable);
    if (!PyStatus_Exception(status)) /* the folder of pyvenv.cfg, and so of the environment's packages */
        status = PyConfig_SetBytesString(&config, &config.executable, executable);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

static int begin(const char *executable)
{
    if (access(executable, X_OK) != 0)
        return complain("there is no python executable at %s; set BLOCKSTEP_PYTHON to that of an environment with "
                        "blockstep[cpu,capi], or build the library again", executable);
    PyStatus status = initialise(executable);
    if (PyStatus_Exception(status))
        return complain("Python does not start in the environment of %s: %s", executable,
                        status.err_msg ? status.err_msg : "no reason given");
    PyEval_SaveThread();
    return 0;
}

/* Starts cffi; the caller holds the GIL. */
static int start_cffi(const char *executable)
{
    PyObject *module = PyImport_ImportModule("_cffi_backend"); /* if it is missing, cffi prints a traceback */
    if (module == NULL) {
        PyErr_Clear();
        return complain("the environment of %s has no cffi for Python %d.%d; pip install 'blockstep[cpu,capi]' into it",
                        executable, PY_MAJOR_VERSION, PY_MINOR_VERSION);
    }
    Py_DECREF(module);
    /* Before 3.12 cffi takes this type's version tag for a spin lock, and waits for ever if a host's own Python has
       used a capsule and so has a tag there. This removes it; with the GIL held, no other thread adds one. */
    PyType_Modified(&PyCapsule_Type);
    if (cffi_start_python() != 0)
        return complain("cffi in the environment of %s does not start; it wrote why to stderr", executable);
    return 0;
}

static void start(void)
{
    Dl_info python;
    const char *chosen = getenv("BLOCKSTEP_PYTHON");
    const char *executable = chosen && *chosen ? chosen : BUILT_IN_PYTHON;

    /* numpy and others look Python's symbols up globally, which fails if the host opened us RTLD_LOCAL. They
       are global already if the host is a python executable with Python in it, and then there is no such file to open. */
    if (dladdr((void *)Py_IsInitialized, &python))
        dlopen(python.dli_fname, RTLD_LAZY | RTLD_GLOBAL | RTLD_NOLOAD);
    if (!Py_IsInitialized() && begin(executable) != 0)
        return;
    PyGILState_STATE state = PyGILState_Ensure();
    if (start_cffi(executable) == 0 && python_attach(executable == chosen, BUILT_IN_PACKAGE) != 0)
        complain("%s", said);
    PyGILState_Release(state);
}

static int ready(void)
{
    said[0] = '\0';
    pthread_once(&once, start);
    if (unusable[0] == '\0')
        return 1;
    tell(unusable);
    return 0;
}

static int mistake(const char *message)
{
    tell(message);
    return BLOCKSTEP_MISTAKE;
}

/* What hosts call. */

int blockstep_version(void)
{
    return BLOCKSTEP_VERSION;
}

int blockstep_load(const char *bundle, const blockstep_options *options, blockstep_model **model)
{
    if (model != NULL)
        *model = NULL;
    if (!ready())
        return BLOCKSTEP_PYTHON;
    if (bundle == NULL || model == NULL)
        return mistake("bundle or model is NULL; expected a folder and where to put the model");
    return python_load((char *)bundle, (blockstep_options *)options, model);
}

int blockstep_verify(const char *bundle, const blockstep_options *options)
{
    if (!ready())
        return BLOCKSTEP_PYTHON;
    if (bundle == NULL)
        return mistake("bundle is NULL; expected a folder");
    return python_verify((char *)bundle, (blockstep_options *)options);
}

int blockstep_generate(blockstep_model *model, const blockstep_request *request, blockstep_answer **answer)
{
    return blockstep_decode(model, request, NULL, answer);
}

int blockstep_sample(
    blockstep_model *model, const blockstep_request *request, double temperature, const int64_t *seed,
    blockstep_answer **answer)
{
    blockstep_decoding decoding = {.size = sizeof decoding, .temperature = temperature, .seed = seed};

    return blockstep_decode(model, request, &decoding, answer);
}

int blockstep_decode(
    blockstep_model *model, const blockstep_request *request, const blockstep_decoding *decoding,
    blockstep_answer **answer)
{
    blockstep_decoding known = {0};

    if (answer != NULL)
        *answer = NULL;
    if (!ready())
        return BLOCKSTEP_PYTHON;
    if (request == NULL)
        return mistake("request is NULL; expected a prompt to answer");
    if (decoding != NULL) {
        if (decoding->size < sizeof decoding->size || decoding->size > sizeof known)
            return mistake("decoding has a size that is none of this library's; set it to sizeof(blockstep_decoding)");
        memcpy(&known, decoding, decoding->size);
    }
    return python_generate(model, (blockstep_request *)request, &known, answer);
}

int blockstep_decide(
    blockstep_model *model, const blockstep_request *request, const char *schema, const blockstep_deciding *deciding,
    blockstep_decision **decision)
{
    blockstep_deciding known = {0};

    if (decision != NULL)
        *decision = NULL;
    if (!ready())
        return BLOCKSTEP_PYTHON;
    if (request == NULL || schema == NULL || decision == NULL)
        return mistake("request, schema or decision is NULL; expected a prompt, a schema and where to put it");
    if (deciding != NULL) {
        if (deciding->size < sizeof deciding->size || deciding->size > sizeof known)
            return mistake("deciding has a size that is none of this library's; set it to sizeof(blockstep_deciding)");
        memcpy(&known, deciding, deciding->size);
    }
    return python_decide(model, (blockstep_request *)request, (char *)schema, &known, decision);
}

void blockstep_free_decision(blockstep_decision *decision)
{
    free(decision);
}

int blockstep_describe(blockstep_model *model, const blockstep_contract **contract)
{
    if (contract != NULL)
        *contract = NULL;
    if (!ready())
        return BLOCKSTEP_PYTHON;
    if (contract == NULL)
        return mistake("contract is NULL; expected where to put it");
    return python_describe(model, (blockstep_contract **)contract);
}

int blockstep_close(blockstep_model *model)
{
    said[0] = '\0';
    if (model == NULL)
        return BLOCKSTEP_OK;
    return ready() ? python_close(model) : BLOCKSTEP_PYTHON;
}

void blockstep_free(blockstep_answer *answer)
{
    free(answer);
}

const char *blockstep_last_error(void)
{
    return said;
}

/* Decides a JSON document of a JSON schema, and prints it with each field's probability: ./decide BUNDLE PROMPT SCHEMA.json

   For BUNDLE, a bundle exported with --candidates. The second and further lines each have a field's path, its value and
   the value's probability, as JSON; null: a free text has no probability. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockstep.h"

#define LONGEST (1 << 20) /* bytes of a schema */

static void check(int code)
{
    if (code == BLOCKSTEP_OK)
        return;
    fprintf(stderr, "error: %s\n", blockstep_last_error());
    exit(code == BLOCKSTEP_MISTAKE || code == BLOCKSTEP_PYTHON ? 2 : 1); /* 2: the user can mend it */
}

/* Returns the text of a file, for the caller to free. Ends the program if it cannot be read. */
static char *read_text(const char *path)
{
    char *text = malloc(LONGEST + 1);
    FILE *file = fopen(path, "rb");
    size_t length = file != NULL && text != NULL ? fread(text, 1, LONGEST + 1, file) : 0;

    if (file == NULL || text == NULL || ferror(file)) {
        fprintf(stderr, "error: cannot read %s (%s); expected a file with a JSON schema\n", path, strerror(errno));
        exit(2);
    }
    fclose(file);
    if (length > LONGEST || memchr(text, '\0', length) != NULL) {
        fprintf(stderr, "error: %s has a zero byte or more than %d bytes; expected a JSON schema\n", path, LONGEST);
        exit(2);
    }
    text[length] = '\0';
    return text;
}

/* Returns the end of the JSON value at p. The library writes valid JSON, so nothing is checked. */
static const char *end_of(const char *p)
{
    int depth = 0;

    do {
        if (*p == '"') {
            for (p++; *p != '"'; p++)
                if (*p == '\\')
                    p++;
            p++;
        } else if (*p == '{' || *p == '[') {
            depth++, p++;
        } else if (*p == '}' || *p == ']') {
            depth--, p++;
        } else {
            p += strcspn(p, "\"{}[],: "); /* a number, true, false or null */
        }
        if (depth > 0)
            p += strspn(p, ",: ");
    } while (depth > 0);
    return p;
}

/* Returns the value of a member, which has to be there, of the JSON object at p. */
static const char *member(const char *p, const char *name)
{
    size_t length = strlen(name);

    for (p++;;) {
        const char *value = end_of(p);
        value += strspn(value, ": ");
        if (strncmp(p + 1, name, length) == 0 && p[1 + length] == '"')
            return value;
        p = end_of(value);
        p += strspn(p, ", ");
    }
}

static void print_json(const char *value, char after)
{
    printf("%.*s%c", (int)(end_of(value) - value), value, after);
}

int main(int argc, char **argv)
{
    blockstep_model *model;
    blockstep_decision *decision;
    blockstep_request request = {0};

    if (argc != 4 || blockstep_version() != BLOCKSTEP_VERSION) {
        fprintf(stderr, "error: expected BUNDLE, PROMPT and SCHEMA.json, and version %d of the library\n",
                BLOCKSTEP_VERSION);
        return 2;
    }
    char *schema = read_text(argv[3]);
    check(blockstep_load(argv[1], NULL, &model));
    request.prompt = argv[2];
    check(blockstep_decide(model, &request, schema, NULL, &decision));
    printf("%s\n", decision->text);
    const char *field = member(decision->json, "fields") + 1;
    while (*field == '{') {
        print_json(member(field, "path"), ' ');
        print_json(member(field, "value"), ' ');
        print_json(member(field, "confidence"), '\n');
        field = end_of(field);
        field += strspn(field, ", ");
    }
    blockstep_free_decision(decision);
    free(schema);
    check(blockstep_close(model));
    if (fflush(stdout) != 0) { /* a full disk, say: an answer that is cut must not look whole */
        perror("error: the output cannot be written");
        return 2;
    }
    return 0;
}

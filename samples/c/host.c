/* Answers a prompt, each block as it becomes final: ./host BUNDLE PROMPT */

#include <stdio.h>
#include <stdlib.h>

#include "blockstep.h"

static void check(int code)
{
    if (code == BLOCKSTEP_OK)
        return;
    fprintf(stderr, "error: %s\n", blockstep_last_error());
    exit(code == BLOCKSTEP_MISTAKE || code == BLOCKSTEP_PYTHON ? 2 : 1); /* 2: the user can mend it */
}

static int print_block(const blockstep_block *block, void *user)
{
    (void)user;
    fwrite(block->text, 1, block->text_length, stdout);
    fflush(stdout);
    return 0; /* anything else cancels */
}

int main(int argc, char **argv)
{
    blockstep_model *model;
    blockstep_answer *answer;
    blockstep_request request = {0};

    if (argc != 3 || blockstep_version() != BLOCKSTEP_VERSION) {
        fprintf(stderr, "error: expected BUNDLE and PROMPT, and version %d of the library\n", BLOCKSTEP_VERSION);
        return 2;
    }
    check(blockstep_load(argv[1], NULL, &model));
    request.prompt = argv[2];
    request.on_block = print_block;
    check(blockstep_generate(model, &request, &answer));
    printf("\n-- %zu tokens in %d forward passes\n", answer->token_count, answer->forwards);
    blockstep_free(answer);
    check(blockstep_close(model));
    if (fflush(stdout) != 0) { /* a full disk, say: an answer that is cut must not look whole */
        perror("error: the output cannot be written");
        return 2;
    }
    return 0;
}

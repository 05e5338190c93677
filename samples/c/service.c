/* Answers prompts on a Unix socket, one thread a client: ./service BUNDLE SOCKET [AT_ONCE]

   A client writes its prompt and shuts its side down for writing. It gets the text, block by block, then a zero byte, the
   token ids and a newline; or a zero byte, "error: ", the reason and a newline. A client that leaves cancels its answer. */

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockstep.h"

#define LONGEST 65536 /* bytes of a prompt */

static blockstep_model *model; /* one, for all threads */

static int send_all(int client, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(client, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        bytes += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static int send_block(const blockstep_block *block, void *client)
{
    return send_all(*(int *)client, block->text, block->text_length); /* not 0 cancels */
}

static int read_prompt(int client, char *prompt)
{
    size_t length = 0;
    while (length < LONGEST) {
        ssize_t got = recv(client, prompt + length, LONGEST - length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            prompt[length] = '\0';
            return got == 0 ? 0 : -1;
        }
        length += (size_t)got;
    }
    return -1;
}

static void reply(int client, char *prompt)
{
    blockstep_answer *answer = NULL;
    blockstep_request request = {0};
    char part[1100];

    request.prompt = prompt;
    request.on_block = send_block;
    request.user = &client;
    if (blockstep_generate(model, &request, &answer) != BLOCKSTEP_OK) {
        int length = snprintf(part, sizeof part, "%cerror: %s\n", '\0', blockstep_last_error());
        send_all(client, part, (size_t)length);
        return;
    }
    int gone = answer->finish == BLOCKSTEP_CANCELLED || send_all(client, "", 1) != 0;
    for (size_t i = 0; i < answer->token_count && !gone; i++) {
        int length = snprintf(part, sizeof part, i ? " %lld" : "%lld", (long long)answer->token_ids[i]);
        gone = send_all(client, part, (size_t)length) != 0;
    }
    if (!gone)
        send_all(client, "\n", 1);
    blockstep_free(answer);
}

static void *serve(void *given)
{
    int client = *(int *)given;
    char *prompt = malloc(LONGEST + 1);

    free(given);
    if (prompt != NULL && read_prompt(client, prompt) == 0)
        reply(client, prompt);
    free(prompt);
    close(client);
    return NULL;
}

static int listening(const char *path)
{
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    struct stat there;
    int door = socket(AF_UNIX, SOCK_STREAM, 0);

    if (strlen(path) >= sizeof place.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (door < 0)
        return -1;
    strcpy(place.sun_path, path);
    if (lstat(path, &there) == 0 && S_ISSOCK(there.st_mode))
        unlink(path); /* of an earlier service; nothing else is removed */
    return bind(door, (struct sockaddr *)&place, sizeof place) || listen(door, 64) ? -1 : door;
}

int main(int argc, char **argv)
{
    blockstep_options options = {0};
    char *end = "";
    long at_once = argc == 4 ? strtol(argv[3], &end, 10) : 0;

    if (argc < 3 || argc > 4 || *end != '\0' || at_once < 0 || at_once > INT_MAX) {
        fprintf(stderr, "error: expected BUNDLE and SOCKET, and AT_ONCE as a whole number or nothing\n");
        return 2;
    }
    options.at_once = (int)at_once;
    options.threads = 1; /* of a forward pass: the cores are shared by requests */
    int code = blockstep_load(argv[1], &options, &model);
    if (code != BLOCKSTEP_OK) {
        fprintf(stderr, "error: %s\n", blockstep_last_error());
        return code == BLOCKSTEP_MISTAKE || code == BLOCKSTEP_PYTHON ? 2 : 1; /* 2: the user can mend it */
    }
    int door = listening(argv[2]);
    if (door < 0) {
        fprintf(stderr, "error: cannot listen on %s (%s); give another path for SOCKET\n", argv[2], strerror(errno));
        return 2;
    }
    printf("answering on %s\n", argv[2]);
    fflush(stdout);
    for (;;) {
        pthread_t thread;
        int *client = malloc(sizeof *client);
        if (client == NULL || (*client = accept(door, NULL, NULL)) < 0) {
            free(client);
            continue;
        }
        if (pthread_create(&thread, NULL, serve, client) == 0) {
            pthread_detach(thread);
        } else {
            close(*client);
            free(client);
        }
    }
}

/* Lets the n-th call of a kind fail on files below a folder: what a disk does that is full, gone or not ours.

   Preloaded (LD_PRELOAD) it sees the calls of Python and of all libraries alike. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536

static char prefix[PATH_MAX];
static size_t prefix_length;
static long calls, failing = -1;
static int error_number, lasting;
static char last_path[PATH_MAX], last_kind[16];
static char *names[FILES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Counts calls on files below `folder`; the one numbered `number` fails with `error`, and if it lasts all that write after it. */
void fault_arm(const char *folder, long number, int error, int lasts) {
    pthread_mutex_lock(&mutex);
    snprintf(prefix, sizeof prefix, "%s", folder);
    prefix_length = strlen(prefix);
    calls = 0, failing = number, error_number = error, lasting = lasts;
    last_path[0] = last_kind[0] = 0;
    pthread_mutex_unlock(&mutex);
}

long fault_calls(void) { return calls; }
const char *fault_path(void) { return last_path; }
const char *fault_kind(void) { return last_kind; }

static int fails(const char *path, const char *kind, int writes) {
    char whole[PATH_MAX * 2];
    int result = 0;
    if (!prefix_length || !path) return 0;
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    if (strncmp(path, prefix, prefix_length)) return 0;
    pthread_mutex_lock(&mutex);
    long number = calls++;
    if (number == failing || (lasting && writes && failing >= 0 && number > failing)) {
        if (number == failing) {
            snprintf(last_path, sizeof last_path, "%s", path);
            snprintf(last_kind, sizeof last_kind, "%s", kind);
        }
        result = 1;
    }
    pthread_mutex_unlock(&mutex);
    if (result) errno = error_number;
    return result;
}

static void note(int file, const char *path) {
    if (file < 0 || file >= FILES || !prefix_length || !path) return;
    char *old = names[file];
    names[file] = path[0] == '/' && !strncmp(path, prefix, prefix_length) ? strdup(path) : NULL;
    free(old);
}

static const char *name_of(int file) { return file >= 0 && file < FILES ? names[file] : NULL; }

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                            \
    int name(const char *path, int flags, ...) {                              \
        NEXT(name);                                                           \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if (fails(path, "open", flags & (O_CREAT | O_WRONLY | O_RDWR))) return -1; \
        int file = next(path, flags, mode);                                   \
        note(file, path);                                                     \
        return file;                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                          \
    int name(int folder, const char *path, int flags, ...) {                  \
        NEXT(name);                                                           \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if (folder == AT_FDCWD && fails(path, "open", flags & (O_CREAT | O_WRONLY | O_RDWR))) return -1; \
        int file = next(folder, path, flags, mode);                           \
        note(file, folder == AT_FDCWD ? path : NULL);                         \
        return file;                                                          \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                           \
    FILE *name(const char *path, const char *mode) {                          \
        NEXT(name);                                                           \
        if (fails(path, "open", mode[0] != 'r' || strchr(mode, '+'))) return NULL; \
        FILE *file = next(path, mode);                                        \
        if (file) note(fileno(file), path);                                   \
        return file;                                                          \
    }
FOPEN(fopen)
FOPEN(fopen64)

int close(int file) {
    NEXT(close);
    if (file >= 0 && file < FILES && names[file]) {
        free(names[file]);
        names[file] = NULL;
    }
    return next(file);
}

ssize_t write(int file, const void *data, size_t size) {
    NEXT(write);
    return name_of(file) && fails(name_of(file), "write", 1) ? -1 : next(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    NEXT(writev);
    return name_of(file) && fails(name_of(file), "write", 1) ? -1 : next(file, parts, count);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    NEXT(pwrite);
    return name_of(file) && fails(name_of(file), "write", 1) ? -1 : next(file, data, size, at);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    NEXT(pwrite64);
    return name_of(file) && fails(name_of(file), "write", 1) ? -1 : next(file, data, size, at);
}

int fsync(int file) {
    NEXT(fsync);
    return name_of(file) && fails(name_of(file), "fsync", 1) ? -1 : next(file);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return fails(path, "mkdir", 1) ? -1 : next(path, mode);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return fails(to, "rename", 1) ? -1 : next(from, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    NEXT(renameat2);
    return fails(to, "rename", 1) ? -1 : next(from_folder, from, to_folder, to, flags);
}

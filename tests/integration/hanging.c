// Preloaded: while the file HANG_WHILE is there, whoever opens, lists or looks at what lies under HANG_UNDER waits, as on
// a network's file system whose server is gone.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_if_under(const char *path) {
    const char *under = getenv("HANG_UNDER"), *there = getenv("HANG_WHILE");
    if (under && there && path && !strncmp(path, under, strlen(under)))
        while (!syscall(SYS_access, there, F_OK)) usleep(20000);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                                                  \
        wait_if_under(path);                                                                                           \
        return REAL(name)(path, flags, mode);                                                                          \
    }
#define STAT(name, kind)                                                                                               \
    int name(const char *path, struct kind *found) {                                                                   \
        wait_if_under(path);                                                                                           \
        return REAL(name)(path, found);                                                                                \
    }

OPEN(open)
OPEN(open64)
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

int fstatat(int at, const char *path, struct stat *found, int flags) {
    wait_if_under(path);
    return REAL(fstatat)(at, path, found, flags);
}

int fstatat64(int at, const char *path, struct stat64 *found, int flags) {
    wait_if_under(path);
    return REAL(fstatat64)(at, path, found, flags);
}

DIR *opendir(const char *path) {
    wait_if_under(path);
    return REAL(opendir)(path);
}

/* Loaded before the C library: while there is the file named by HOLDFAST_TEST_FAILING_DISK, "sync PART" or "write PART" in
   it makes that of files whose path contains PART fail with EIO, and "slow MILLISECONDS PART" makes each of their syncs
   take so much longer.

   A sync that fails takes a while, as in a real failure, in which whoever does not wait for it has time to acknowledge; then
   what no earlier sync has confirmed is gone, and nothing is written to such a file any more. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 4096
#define FAILURE_TAKES_US 300000

/* The sizes of files at their last good sync; a replica has few open, and numbers are used again. */
static struct { dev_t device; ino_t inode; off_t size; } confirmed[FILES];
static size_t files;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Held to write; held alone to take away what was written. */
static pthread_rwlock_t writing = PTHREAD_RWLOCK_INITIALIZER;
static int a_sync_has_failed;

static off_t *size_of(const struct stat *file) {
    for (size_t at = 0; at < files; at++)
        if (confirmed[at].device == file->st_dev && confirmed[at].inode == file->st_ino)
            return &confirmed[at].size;
    if (files == FILES)
        abort();
    confirmed[files].device = file->st_dev;
    confirmed[files].inode = file->st_ino;
    confirmed[files].size = 0;
    return &confirmed[files++].size;
}

/* What follows `word`, which ends with a space, in the order; null if it begins with another word, or there is none. */
static char *ordered(const char *word, char *order, size_t size) {
    const char *name = getenv("HOLDFAST_TEST_FAILING_DISK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return NULL;
    ssize_t length = read(file, order, size - 1);
    close(file);
    if (length <= 0)
        return NULL;
    order[length] = 0;
    return strncmp(order, word, strlen(word)) == 0 ? order + strlen(word) : NULL;
}

static int path_contains(int fd, const char *part) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

/* Whether `call`, with a space after it, is to fail on this file. */
static int is_ordered(const char *call, int fd) {
    char order[4096];
    const char *part = ordered(call, order, sizeof order);
    return part && path_contains(fd, part);
}

/* How much longer a sync of this file is to take, in microseconds. */
static useconds_t delay(int fd) {
    char order[4096], *part;
    const char *milliseconds = ordered("slow ", order, sizeof order);
    if (!milliseconds)
        return 0;
    unsigned long number = strtoul(milliseconds, &part, 10);
    return *part == ' ' && path_contains(fd, part + 1) ? (useconds_t)(number * 1000) : 0;
}

static int synced(int fd, const char *call) {
    struct stat file;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    if (!real)
        abort();
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode))
        return real(fd);
    if (is_ordered("sync ", fd)) {
        usleep(FAILURE_TAKES_US);
        pthread_rwlock_wrlock(&writing);
        a_sync_has_failed = 1;
        pthread_mutex_lock(&lock);
        off_t size = *size_of(&file);
        /* By its name, for it may be open to be read alone. */
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        if (size < file.st_size && truncate(name, size) != 0)
            abort();
        pthread_mutex_unlock(&lock);
        pthread_rwlock_unlock(&writing);
        errno = EIO;
        return -1;
    }
    usleep(delay(fd));
    int result = real(fd);
    if (result == 0) {
        pthread_mutex_lock(&lock);
        /* The size from before the sync: what was added since is not confirmed by it. */
        *size_of(&file) = file.st_size;
        pthread_mutex_unlock(&lock);
    }
    return result;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    ssize_t (*real)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    ssize_t result = -1;
    if (!real)
        abort();
    pthread_rwlock_rdlock(&writing);
    if (is_ordered("write ", fd) || (a_sync_has_failed && is_ordered("sync ", fd)))
        errno = EIO;
    else
        result = real(fd, bytes, length);
    pthread_rwlock_unlock(&writing);
    return result;
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }

/* Makes the n-th operation that changes the disk below a folder fail, for whatever language asked for it.
 *
 *   cc -shared -fPIC -o faults.so faults.c -ldl
 *   LD_PRELOAD=faults.so python ...        and in there ctypes.CDLL("faults.so").fault_arm(folder, n, errno, sticky)
 *
 * Counted are: open for writing, write, truncate, fsync, mkdir, rename, unlink, rmdir.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long number, seen, fired, added;
static int error, sticky;
enum { ADDING, MAKING, REMOVING }; /* a folder that is there need not be made */

void fault_arm(const char *where, long n, int err, int stay) {
    strncpy(folder, where, sizeof folder - 1);
    number = n, error = err, sticky = stay, seen = fired = added = 0;
}
void fault_disarm(void) { folder[0] = 0; }
long fault_fired(void) { return fired; }
long fault_added(void) { return added; } /* of the fired ones, those that were to add something */

static int fails(const char *path, int kind) {
    if (!folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
    if (kind == REMOVING && error == ENOSPC) return 0; /* a full disk can still be cleared */
    seen++;
    if (!number || (sticky ? seen < number : seen != number)) return 0;
    fired++;
    added += kind == ADDING;
    errno = error;
    return 1;
}
static int fails_fd(int fd) {
    char link[64], path[4096];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = folder[0] ? readlink(link, path, sizeof path - 1) : -1;
    errno = before;
    if (size < 0) return 0;
    path[size] = 0;
    return fails(path, ADDING);
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define MODE va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest)

int open(const char *path, int flags, ...) { MODE; return (flags & WRITES) && fails(path, ADDING) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return (flags & WRITES) && fails(path, ADDING) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE; return (flags & WRITES) && fails(path, ADDING) ? -1 : REAL(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE; return (flags & WRITES) && fails(path, ADDING) ? -1 : REAL(openat64)(at, path, flags, mode); }
FILE *fopen(const char *path, const char *mode) { return mode[0] != 'r' && fails(path, ADDING) ? NULL : REAL(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) { return mode[0] != 'r' && fails(path, ADDING) ? NULL : REAL(fopen64)(path, mode); }
ssize_t write(int fd, const void *data, size_t size) { return fails_fd(fd) ? -1 : REAL(write)(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return fails_fd(fd) ? -1 : REAL(writev)(fd, parts, count); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return fails_fd(fd) ? -1 : REAL(pwrite64)(fd, data, size, at); }
int ftruncate64(int fd, off64_t size) { return fails_fd(fd) ? -1 : REAL(ftruncate64)(fd, size); }
int fsync(int fd) { return fails_fd(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_fd(fd) ? -1 : REAL(fdatasync)(fd); }
int mkdir(const char *path, mode_t mode) { return fails(path, MAKING) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails(to, REMOVING) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return fails(to, REMOVING) ? -1 : REAL(renameat)(a, from, b, to); }
int unlink(const char *path) { return fails(path, REMOVING) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails(path, REMOVING) ? -1 : REAL(rmdir)(path); }
static int fails_at(int at, const char *path) {
    return path[0] == '/' ? fails(path, REMOVING) : fails_fd(at);
}
int unlinkat(int at, const char *path, int flags) { return fails_at(at, path) ? -1 : REAL(unlinkat)(at, path, flags); }

/* Have chosen files fail with EIO, as files on bad sectors do. It is loaded by LD_PRELOAD.
 *
 * The file that TEST_BAD_SECTORS names has a line for each bad file: `KIND DEVICE INODE`. KIND is `read` if
 * only its content cannot be read, and `open` if it cannot be opened or looked at either. It may be a folder,
 * whose content is the names in it. A file is known by its inode: a good file that is renamed over a bad one
 * is good.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_bad(int folder, const char *path, int flags, int is_read)
{
    const char *list = getenv("TEST_BAD_SECTORS");
    struct statx found;
    char text[65536];
    long size;
    int saved = errno, file, answer = 0;

    if (list == NULL || path == NULL)
        return 0;
    file = (int)syscall(SYS_openat, AT_FDCWD, list, O_RDONLY | O_CLOEXEC, 0);
    if (file >= 0) {
        size = syscall(SYS_read, file, text, sizeof text - 1);
        syscall(SYS_close, file);
        if (size > 0 && syscall(SYS_statx, folder, path, flags, STATX_INO, &found) == 0) {
            char *line, *rest = text;
            text[size] = 0;
            while ((line = strsep(&rest, "\n")) != NULL) {
                char kind[8];
                unsigned long long device, inode;
                if (sscanf(line, "%7s %llu %llu", kind, &device, &inode) != 3)
                    continue;
                if (inode == found.stx_ino && device == makedev(found.stx_dev_major, found.stx_dev_minor)
                    && (is_read || strcmp(kind, "open") == 0))
                    answer = 1;
            }
        }
    }
    errno = saved;
    return answer;
}

#define FAIL_IF(condition) \
    if (condition) { \
        errno = EIO; \
        return -1; \
    }
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list rest; \
        mode_t mode; \
        va_start(rest, flags); \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        FAIL_IF(is_bad(AT_FDCWD, path, 0, 0)) \
        return NEXT(name)(path, flags, mode); \
    }
#define DEFINE_OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        va_list rest; \
        mode_t mode; \
        va_start(rest, flags); \
        mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        FAIL_IF(is_bad(folder, path, 0, 0)) \
        return NEXT(name)(folder, path, flags, mode); \
    }
#define DEFINE_STAT(name, type, how) \
    int name(const char *path, type *found) \
    { \
        FAIL_IF(is_bad(AT_FDCWD, path, how, 0)) \
        return NEXT(name)(path, found); \
    }
#define DEFINE_FSTATAT(name, type) \
    int name(int folder, const char *path, type *found, int flags) \
    { \
        FAIL_IF(is_bad(folder, path, flags & (AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH), 0)) \
        return NEXT(name)(folder, path, found, flags); \
    }
#define IS_BAD_FILE(file) is_bad(file, "", AT_EMPTY_PATH, 1)

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)
DEFINE_STAT(stat, struct stat, 0)
DEFINE_STAT(stat64, struct stat64, 0)
DEFINE_STAT(lstat, struct stat, AT_SYMLINK_NOFOLLOW)
DEFINE_STAT(lstat64, struct stat64, AT_SYMLINK_NOFOLLOW)
DEFINE_FSTATAT(fstatat, struct stat)
DEFINE_FSTATAT(fstatat64, struct stat64)

DIR *opendir(const char *path)
{
    if (is_bad(AT_FDCWD, path, 0, 1)) {
        errno = EIO;
        return NULL;
    }
    return NEXT(opendir)(path);
}

ssize_t read(int file, void *memory, size_t size)
{
    FAIL_IF(IS_BAD_FILE(file))
    return NEXT(read)(file, memory, size);
}

#define DEFINE_PREAD(name, type) \
    ssize_t name(int file, void *memory, size_t size, type offset) \
    { \
        FAIL_IF(IS_BAD_FILE(file)) \
        return NEXT(name)(file, memory, size, offset); \
    }
#define DEFINE_PREADV(name, type) \
    ssize_t name(int file, const struct iovec *parts, int count, type offset) \
    { \
        FAIL_IF(IS_BAD_FILE(file)) \
        return NEXT(name)(file, parts, count, offset); \
    }
#define DEFINE_PREADV2(name, type) \
    ssize_t name(int file, const struct iovec *parts, int count, type offset, int flags) \
    { \
        FAIL_IF(IS_BAD_FILE(file)) \
        return NEXT(name)(file, parts, count, offset, flags); \
    }
#define DEFINE_SENDFILE(name, type) \
    ssize_t name(int out, int file, type *offset, size_t size) \
    { \
        FAIL_IF(IS_BAD_FILE(file)) \
        return NEXT(name)(out, file, offset, size); \
    }

ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile64(int, int, off64_t *, size_t);

DEFINE_PREAD(pread, off_t)
DEFINE_PREAD(pread64, off64_t)
DEFINE_PREADV(preadv, off_t)
DEFINE_PREADV(preadv64, off64_t)
DEFINE_PREADV2(preadv2, off_t)
DEFINE_PREADV2(preadv64v2, off64_t)
DEFINE_SENDFILE(sendfile, off_t)
DEFINE_SENDFILE(sendfile64, off64_t)

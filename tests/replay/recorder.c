/* Record the system calls by which a process changes files and folders. It is loaded by LD_PRELOAD.
 *
 * The file that TEST_REPLAY_LOG names gets one record for each call, after the call has succeeded. A lock makes the
 * order of the records the order of the calls, also where several threads write. `tests/replay/log.py` reads the file.
 *
 * A file or folder is known by its device and inode; a name by the inode of its folder. Every call goes to the kernel
 * directly, so the many names that the C library has for one call lead to one function here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { CREATE = 1, MKDIR, SYMLINK, LINK, RENAME, UNLINK, RMDIR, WRITE, RESIZE, ALLOCATE, SYNC, SYNC_ALL, MARK, UNSUPPORTED };

struct id {
    uint64_t device, inode;
};

struct record {
    uint32_t size, kind;
    struct id first, second;
    int64_t offset, length;
    uint32_t name_size, name2_size;
};

/* A name, and the folder that it is in. */
struct place {
    struct id folder;
    char name[256];
};

static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;
static int log_file = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TEST_REPLAY_LOG");
    int file = path == NULL ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (file >= 0) {
        /* A high number, because programs close low ones. */
        log_file = fcntl(file, F_DUPFD_CLOEXEC, 700);
        syscall(SYS_close, file);
    }
}

static void fail(const char *why)
{
    dprintf(2, "the recorder failed: %s: %s\n", why, strerror(errno));
    abort();
}

static int find(int folder, const char *path, int flags, struct id *found, unsigned *mode)
{
    struct statx status;

    if (syscall(SYS_statx, folder, path, flags, STATX_INO | STATX_TYPE, &status) != 0)
        return 0;
    found->device = makedev(status.stx_dev_major, status.stx_dev_minor);
    found->inode = status.stx_ino;
    if (mode != NULL)
        *mode = status.stx_mode;
    return 1;
}

static int is_file(int file, struct id *found)
{
    unsigned mode;
    int saved = errno, answer;

    answer = log_file >= 0 && file >= 0 && find(file, "", AT_EMPTY_PATH, found, &mode) && S_ISREG(mode);
    errno = saved;
    return answer;
}

static struct place place_of(int folder, const char *path)
{
    struct place place;
    char parent[4096];
    size_t size = strlen(path);
    const char *slash;

    memset(&place, 0, sizeof place);
    if (size >= sizeof parent)
        return place;
    memcpy(parent, path, size + 1);
    while (size > 1 && parent[size - 1] == '/')
        parent[--size] = 0;
    slash = strrchr(parent, '/');
    strncpy(place.name, slash == NULL ? parent : slash + 1, sizeof place.name - 1);
    if (slash == NULL)
        strcpy(parent, ".");
    else
        parent[slash - parent + 1] = 0;
    find(folder, parent, 0, &place.folder, NULL);
    return place;
}

static void add(enum kind kind, struct id first, struct id second, int64_t offset, int64_t length, const char *name,
                const char *name2, const struct iovec *parts, int count, size_t data_size)
{
    struct record record = {.kind = kind, .first = first, .second = second, .offset = offset, .length = length};
    size_t done, size;
    char *memory;

    if (log_file < 0)
        return;
    record.name_size = (uint32_t)strlen(name);
    record.name2_size = (uint32_t)strlen(name2);
    size = sizeof record + record.name_size + record.name2_size + data_size;
    record.size = (uint32_t)size;
    memory = malloc(size);
    if (memory == NULL)
        fail("memory");
    memcpy(memory, &record, sizeof record);
    done = sizeof record;
    memcpy(memory + done, name, record.name_size);
    done += record.name_size;
    memcpy(memory + done, name2, record.name2_size);
    done += record.name2_size;
    for (int number = 0; number < count && done < size; number++) {
        size_t part = parts[number].iov_len < size - done ? parts[number].iov_len : size - done;
        memcpy(memory + done, parts[number].iov_base, part);
        done += part;
    }
    if (done != size || syscall(SYS_write, log_file, memory, size) != (long)size)
        fail("its log");
    free(memory);
}

static const struct id none = {0, 0};

static void add_name(enum kind kind, struct place place, struct id object, const char *target)
{
    add(kind, place.folder, object, 0, 0, place.name, target, NULL, 0, 0);
}

static void add_unsupported(struct id where, const char *what)
{
    add(UNSUPPORTED, where, none, 0, 0, what, "", NULL, 0, 0);
}

/* Run something while no other thread records, and keep errno. */
#define RECORDED(...) \
    { \
        int saved; \
        pthread_mutex_lock(&recording); \
        __VA_ARGS__; \
        saved = errno; \
        pthread_mutex_unlock(&recording); \
        errno = saved; \
    }
#define KEEPING_ERRNO(...) \
    { \
        int kept = errno; \
        __VA_ARGS__; \
        errno = kept; \
    }

/* Record that a line is true from now on, for example that a push has returned. */
void replay_mark(const char *line)
{
    RECORDED(add(MARK, none, none, 0, 0, line, "", NULL, 0, 0))
}

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    struct id object, before;
    int file, existed;

    if (!(flags & (O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY))) || log_file < 0)
        return (int)syscall(SYS_openat, folder, path, flags, mode);
    RECORDED({
        existed = find(folder, path, 0, &before, NULL);
        file = (int)syscall(SYS_openat, folder, path, flags, mode);
        KEEPING_ERRNO(if (file >= 0 && find(file, "", AT_EMPTY_PATH, &object, NULL)) {
            if ((flags & O_TMPFILE) == O_TMPFILE)
                add_unsupported(before, "a file without a name");
            else if (!existed)
                add_name(CREATE, place_of(folder, path), object, "");
            else if (flags & O_TRUNC)
                add(RESIZE, object, none, 0, 0, "", "", NULL, 0, 0);
        })
    })
    return file;
}

#define MODE_OF(flags, mode) \
    { \
        va_list rest; \
        va_start(rest, flags); \
        mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
    }
#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        mode_t mode; \
        MODE_OF(flags, mode) \
        return opened(AT_FDCWD, path, flags, mode); \
    }
#define DEFINE_OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        mode_t mode; \
        MODE_OF(flags, mode) \
        return opened(folder, path, flags, mode); \
    }

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

int creat(const char *path, mode_t mode)
{
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Write at `offset`, or at the current position if it is negative. */
static ssize_t written(int file, const struct iovec *parts, int count, int64_t offset)
{
    struct id object;
    ssize_t size;

    if (!is_file(file, &object)) {
        if (offset < 0)
            return syscall(SYS_writev, file, parts, count);
        return syscall(SYS_pwritev, file, parts, count, (long)offset, 0L);
    }
    RECORDED({
        if (offset < 0)
            size = syscall(SYS_writev, file, parts, count);
        else
            size = syscall(SYS_pwritev, file, parts, count, (long)offset, 0L);
        KEEPING_ERRNO(if (size > 0) {
            if (offset < 0)
                offset = syscall(SYS_lseek, file, 0L, SEEK_CUR) - size;
            add(WRITE, object, none, offset, size, "", "", parts, count, (size_t)size);
        })
    })
    return size;
}

ssize_t write(int file, const void *memory, size_t size)
{
    struct iovec part = {(void *)memory, size};
    return written(file, &part, 1, -1);
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    return written(file, parts, count, -1);
}

#define DEFINE_PWRITE(name, type) \
    ssize_t name(int file, const void *memory, size_t size, type offset) \
    { \
        struct iovec part = {(void *)memory, size}; \
        return written(file, &part, 1, offset); \
    }
#define DEFINE_PWRITEV(name, type) \
    ssize_t name(int file, const struct iovec *parts, int count, type offset) \
    { \
        return written(file, parts, count, offset); \
    }
#define DEFINE_PWRITEV2(name, type) \
    ssize_t name(int file, const struct iovec *parts, int count, type offset, int flags) \
    { \
        struct id object; \
        if (flags != 0 && is_file(file, &object)) \
            RECORDED(add_unsupported(object, "pwritev2 with flags")) \
        return written(file, parts, count, offset); \
    }

DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)
DEFINE_PWRITEV(pwritev, off_t)
DEFINE_PWRITEV(pwritev64, off64_t)
DEFINE_PWRITEV2(pwritev2, off_t)
DEFINE_PWRITEV2(pwritev64v2, off64_t)

/* Record bytes that the kernel copied from `source` on. */
static void add_copied(struct id object, int64_t offset, int source, int64_t start, ssize_t size)
{
    struct iovec part = {malloc((size_t)size), (size_t)size};

    if (part.iov_base == NULL || syscall(SYS_pread64, source, part.iov_base, (size_t)size, (long)start) != size)
        fail("a copy");
    add(WRITE, object, none, offset, size, "", "", &part, 1, (size_t)size);
    free(part.iov_base);
}

static ssize_t sent(int out, int in, int64_t *offset, size_t size)
{
    struct id object;
    ssize_t count;

    if (!is_file(out, &object))
        return syscall(SYS_sendfile, out, in, offset, size);
    RECORDED({
        int64_t start = offset == NULL ? syscall(SYS_lseek, in, 0L, SEEK_CUR) : *offset;
        int64_t place = syscall(SYS_lseek, out, 0L, SEEK_CUR);
        count = syscall(SYS_sendfile, out, in, offset, size);
        KEEPING_ERRNO(if (count > 0) add_copied(object, place, in, start, count))
    })
    return count;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    return sent(out, in, (int64_t *)offset, size);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size)
{
    return sent(out, in, (int64_t *)offset, size);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    struct id object;
    ssize_t count;

    if (!is_file(out, &object))
        return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    RECORDED({
        int64_t start = from == NULL ? syscall(SYS_lseek, in, 0L, SEEK_CUR) : *from;
        int64_t place = to == NULL ? syscall(SYS_lseek, out, 0L, SEEK_CUR) : *to;
        count = syscall(SYS_copy_file_range, in, from, out, to, size, flags);
        KEEPING_ERRNO(if (count > 0) add_copied(object, place, in, start, count))
    })
    return count;
}

ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    struct id object;

    if (is_file(out, &object))
        RECORDED(add_unsupported(object, "splice"))
    return syscall(SYS_splice, in, from, out, to, size, flags);
}

static int resized(int file, int64_t size)
{
    struct id object;
    int answer;

    if (!is_file(file, &object))
        return (int)syscall(SYS_ftruncate, file, size);
    RECORDED({
        answer = (int)syscall(SYS_ftruncate, file, size);
        KEEPING_ERRNO(if (answer == 0) add(RESIZE, object, none, 0, size, "", "", NULL, 0, 0))
    })
    return answer;
}

static int path_resized(const char *path, int64_t size)
{
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0), answer;

    if (file < 0)
        return -1;
    answer = resized(file, size);
    KEEPING_ERRNO(syscall(SYS_close, file))
    return answer;
}

int ftruncate(int file, off_t size)
{
    return resized(file, size);
}

int ftruncate64(int file, off64_t size)
{
    return resized(file, size);
}

int truncate(const char *path, off_t size)
{
    return path_resized(path, size);
}

int truncate64(const char *path, off64_t size)
{
    return path_resized(path, size);
}

static int allocated(int file, int mode, int64_t offset, int64_t size)
{
    struct id object;
    int answer;

    if (!is_file(file, &object))
        return (int)syscall(SYS_fallocate, file, mode, offset, size);
    RECORDED({
        answer = (int)syscall(SYS_fallocate, file, mode, offset, size);
        KEEPING_ERRNO(if (answer == 0 && mode == 0) add(ALLOCATE, object, none, offset, size, "", "", NULL, 0, 0);
                      else if (answer == 0 && mode != FALLOC_FL_KEEP_SIZE) add_unsupported(object, "fallocate");)
    })
    return answer;
}

/* It returns its error, and leaves errno. */
static int posix_allocated(int file, int64_t offset, int64_t size)
{
    int saved = errno, answer = allocated(file, 0, offset, size) == 0 ? 0 : errno;

    errno = saved;
    return answer;
}

int fallocate(int file, int mode, off_t offset, off_t size)
{
    return allocated(file, mode, offset, size);
}

int fallocate64(int file, int mode, off64_t offset, off64_t size)
{
    return allocated(file, mode, offset, size);
}

int posix_fallocate(int file, off_t offset, off_t size)
{
    return posix_allocated(file, offset, size);
}

int posix_fallocate64(int file, off64_t offset, off64_t size)
{
    return posix_allocated(file, offset, size);
}

static int synced(long call, int file)
{
    struct id object = none;
    int answer;

    RECORDED({
        answer = (int)syscall(call, file);
        KEEPING_ERRNO(if (answer == 0) {
            if (call == SYS_syncfs)
                add(SYNC_ALL, none, none, 0, 0, "", "", NULL, 0, 0);
            else if (find(file, "", AT_EMPTY_PATH, &object, NULL))
                add(SYNC, object, none, 0, 0, "", "", NULL, 0, 0);
        })
    })
    return answer;
}

int fsync(int file)
{
    return synced(SYS_fsync, file);
}

int fdatasync(int file)
{
    return synced(SYS_fdatasync, file);
}

int syncfs(int file)
{
    return synced(SYS_syncfs, file);
}

void sync(void)
{
    RECORDED({
        syscall(SYS_sync);
        add(SYNC_ALL, none, none, 0, 0, "", "", NULL, 0, 0);
    })
}

static int made(int folder, const char *path, mode_t mode)
{
    struct id object;
    int answer;

    RECORDED({
        answer = (int)syscall(SYS_mkdirat, folder, path, mode);
        KEEPING_ERRNO(if (answer == 0 && find(folder, path, AT_SYMLINK_NOFOLLOW, &object, NULL))
                          add_name(MKDIR, place_of(folder, path), object, "");)
    })
    return answer;
}

int mkdir(const char *path, mode_t mode)
{
    return made(AT_FDCWD, path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    return made(folder, path, mode);
}

static int removed(int folder, const char *path, int flags)
{
    int answer;

    RECORDED({
        struct place place = place_of(folder, path);
        answer = (int)syscall(SYS_unlinkat, folder, path, flags);
        KEEPING_ERRNO(if (answer == 0) add_name(flags & AT_REMOVEDIR ? RMDIR : UNLINK, place, none, ""))
    })
    return answer;
}

int unlink(const char *path)
{
    return removed(AT_FDCWD, path, 0);
}

int unlinkat(int folder, const char *path, int flags)
{
    return removed(folder, path, flags);
}

int rmdir(const char *path)
{
    return removed(AT_FDCWD, path, AT_REMOVEDIR);
}

static int renamed(int folder, const char *path, int folder2, const char *path2, unsigned flags)
{
    int answer;

    RECORDED({
        struct place from = place_of(folder, path);
        struct place to = place_of(folder2, path2);
        answer = (int)syscall(SYS_renameat2, folder, path, folder2, path2, flags);
        KEEPING_ERRNO(if (answer == 0) {
            if (flags & ~RENAME_NOREPLACE)
                add_unsupported(from.folder, "renameat2 with flags");
            add(RENAME, from.folder, to.folder, 0, 0, from.name, to.name, NULL, 0, 0);
        })
    })
    return answer;
}

int rename(const char *path, const char *path2)
{
    return renamed(AT_FDCWD, path, AT_FDCWD, path2, 0);
}

int renameat(int folder, const char *path, int folder2, const char *path2)
{
    return renamed(folder, path, folder2, path2, 0);
}

int renameat2(int folder, const char *path, int folder2, const char *path2, unsigned flags)
{
    return renamed(folder, path, folder2, path2, flags);
}

static int linked(int folder, const char *path, int folder2, const char *path2, int flags)
{
    struct id object;
    int answer;

    RECORDED({
        answer = (int)syscall(SYS_linkat, folder, path, folder2, path2, flags);
        KEEPING_ERRNO(if (answer == 0 && find(folder2, path2, AT_SYMLINK_NOFOLLOW, &object, NULL))
                          add_name(LINK, place_of(folder2, path2), object, "");)
    })
    return answer;
}

int link(const char *path, const char *path2)
{
    return linked(AT_FDCWD, path, AT_FDCWD, path2, 0);
}

int linkat(int folder, const char *path, int folder2, const char *path2, int flags)
{
    return linked(folder, path, folder2, path2, flags);
}

static int pointed(const char *target, int folder, const char *path)
{
    struct id object;
    int answer;

    RECORDED({
        answer = (int)syscall(SYS_symlinkat, target, folder, path);
        KEEPING_ERRNO(if (answer == 0 && find(folder, path, AT_SYMLINK_NOFOLLOW, &object, NULL))
                          add_name(SYMLINK, place_of(folder, path), object, target);)
    })
    return answer;
}

int symlink(const char *target, const char *path)
{
    return pointed(target, AT_FDCWD, path);
}

int symlinkat(const char *target, int folder, const char *path)
{
    return pointed(target, folder, path);
}

/* Stores to mapped memory are not calls. Only SQLite's shared memory, which no crash leaves, may be mapped for writing. */
static void *mapped(void *place, size_t size, int protection, int flags, int file, int64_t offset)
{
    struct id object;

    if (!(flags & MAP_ANONYMOUS) && flags & MAP_SHARED && protection & PROT_WRITE && is_file(file, &object)) {
        char link[64], path[4096];
        ssize_t length;
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        length = readlink(link, path, sizeof path);
        if (length < 4 || memcmp(path + length - 4, "-shm", 4) != 0)
            RECORDED(add_unsupported(object, "a shared mapping for writing"))
    }
    return (void *)syscall(SYS_mmap, place, size, protection, flags, file, offset);
}

void *mmap(void *place, size_t size, int protection, int flags, int file, off_t offset)
{
    return mapped(place, size, protection, flags, file, offset);
}

void *mmap64(void *place, size_t size, int protection, int flags, int file, off64_t offset)
{
    return mapped(place, size, protection, flags, file, offset);
}

// One guest for what a container can be asked: each word of argv is a step, so one start shows much.
// Every failure prints the errno's name, because tests tell "not found" from "not permitted".
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static const char *name_of(int e) {
    switch (e) {
    case ENOENT: return "ENOENT";
    case EACCES: return "EACCES";
    case EPERM: return "EPERM";
    case EROFS: return "EROFS";
    case ENOTDIR: return "ENOTDIR";
    case ELOOP: return "ELOOP";
    case EXDEV: return "EXDEV";
    case EBADF: return "EBADF";
    case ENOTCAPABLE: return "ENOTCAPABLE";
    case EEXIST: return "EEXIST";
    case ENOSYS: return "ENOSYS";
    case EISDIR: return "EISDIR";
    default: return strerror(e);
    }
}

static int say(const char *what, const char *path, int bad) {
    if (bad) printf("%s %s: %s\n", what, path, name_of(errno));
    else printf("%s %s: ok\n", what, path);
    fflush(stdout);
    return bad;
}

static void read_file(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) { say("read", path, 1); return; }
    char buf[4096];
    ssize_t n;
    printf("read %s: [", path);
    while ((n = read(fd, buf, sizeof buf)) > 0) fwrite(buf, 1, (size_t)n, stdout);
    printf("]%s\n", n < 0 ? name_of(errno) : "");
    close(fd);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) { say("write", path, 1); return; }
    ssize_t n = write(fd, text, strlen(text));
    say("write", path, n != (ssize_t)strlen(text));
    close(fd);
}

static void list(const char *path) {
    DIR *d = opendir(path);
    if (!d) { say("list", path, 1); return; }
    printf("list %s:", path);
    struct dirent *e;
    while ((e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) printf(" %s", e->d_name);
    printf("\n");
    closedir(d);
}

static int copy_stdin(void) {
    char buf[4096];
    ssize_t n;
    while ((n = read(0, buf, sizeof buf)) > 0)
        if (write(1, buf, (size_t)n) != n) return 1;
    return n < 0;
}

static void show_link(const char *path) {
    char buf[1024];
    ssize_t n = readlink(path, buf, sizeof buf - 1);
    if (n < 0) { say("readlink", path, 1); return; }
    buf[n] = 0;
    printf("readlink %s: %s\n", path, buf);
}

static volatile unsigned spun;

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        const char *a = i + 1 < argc ? argv[i + 1] : "", *b = i + 2 < argc ? argv[i + 2] : "";
        if (!strcmp(argv[i], "args")) {
            for (int j = 0; j < argc; j++) printf("arg %d [%s]\n", j, argv[j]);
            return 0;
        } else if (!strcmp(argv[i], "env")) for (char **e = environ; *e; e++) printf("env [%s]\n", *e);
        else if (!strcmp(argv[i], "exit")) return atoi(a);
        else if (!strcmp(argv[i], "read")) read_file(a), i += 1;
        else if (!strcmp(argv[i], "write")) write_file(a, b), i += 2;
        else if (!strcmp(argv[i], "open-rw")) {
            int fd = open(a, O_RDWR);
            say("open-rw", a, fd < 0), i += 1;
            if (fd >= 0) close(fd);
        } else if (!strcmp(argv[i], "list")) list(a), i += 1;
        else if (!strcmp(argv[i], "mkdir")) say("mkdir", a, mkdir(a, 0755)), i += 1;
        else if (!strcmp(argv[i], "unlink")) say("unlink", a, unlink(a)), i += 1;
        else if (!strcmp(argv[i], "rename")) say("rename", a, rename(a, b)), i += 2;
        else if (!strcmp(argv[i], "symlink")) say("symlink", b, symlink(a, b)), i += 2;
        else if (!strcmp(argv[i], "readlink")) show_link(a), i += 1;
        else if (!strcmp(argv[i], "cat")) { if (copy_stdin()) return 1; }
        else if (!strcmp(argv[i], "clock")) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            printf("realtime %lld\n", (long long)t.tv_sec);
            clock_gettime(CLOCK_MONOTONIC, &t);
            printf("monotonic %lld\n", (long long)t.tv_sec);
        } else if (!strcmp(argv[i], "say")) printf("%s\n", a), i += 1;
        else if (!strcmp(argv[i], "err")) fprintf(stderr, "%s\n", a), i += 1;
        else if (!strcmp(argv[i], "trap")) __builtin_trap();
        else if (!strcmp(argv[i], "spin")) for (;;) spun++;
        else if (!strcmp(argv[i], "sleep")) sleep((unsigned)atoi(a)), i += 1;
        else if (!strcmp(argv[i], "grow")) {
            // MiB, touched: what the memory cgroup counts.
            for (int m = 0; m < atoi(a); m++) {
                char *volatile p = malloc(1 << 20); // volatile: clang would see that nobody reads it
                if (!p) { printf("grow: refused at %d\n", m); break; }
                memset(p, 1, 1 << 20);
            }
            printf("grow: done\n"), i += 1;
        } else {
            fprintf(stderr, "probe: unknown step %s\n", argv[i]);
            return 2;
        }
    }
    return 0;
}

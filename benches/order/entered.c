/* entered FUNCTIONS COMMAND...: prints which of the functions the command and its children enter, in order: once after `p`
 * if the command's own process does, once after `c` if a child does.
 *
 * FUNCTIONS has an address in each line, in hexadecimal, of the program that COMMAND names. Each gets a breakpoint, which
 * goes when it is met; a child begins with all of them. It is followed until it becomes another program. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 1 << 18, PIDS = 1 << 22, BREAKPOINT = 0xcc };

static unsigned long address[MOST];
static unsigned char original[MOST], printed[2][MOST], known[PIDS];
static int count;

static int by_address(const void *a, const void *b)
{
	unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;
	return (x > y) - (x < y);
}

static void put_back(pid_t pid, int i)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	int file = open(path, O_RDWR);
	if (file < 0 || pwrite(file, &original[i], 1, address[i]) != 1)
		err(1, "%s at %lx", path, address[i]);
	close(file);
}

/* The whole of the program's text at once. */
static void set_all(pid_t pid)
{
	size_t size = address[count - 1] - address[0] + 1;
	unsigned char *text = malloc(size);
	struct iovec here = { text, size }, there = { (void *)address[0], size };
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	int file = open(path, O_RDWR);
	if (!text || file < 0 || process_vm_readv(pid, &here, 1, &there, 1, 0) != (ssize_t)size)
		err(1, "read %s", path);
	for (int i = 0; i < count; i++) {
		unsigned char *byte = &text[address[i] - address[0]];
		if (*byte != BREAKPOINT)
			original[i] = *byte;
		*byte = BREAKPOINT;
	}
	if (pwrite(file, text, size, address[0]) != (ssize_t)size)
		err(1, "write %s", path);
	close(file);
	free(text);
}

/* Whether it stands behind a breakpoint, which then is none any more. */
static int met(pid_t pid, int child)
{
	unsigned long rip = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), 0) - 1;
	unsigned long *found = bsearch(&rip, address, count, sizeof *address, by_address);
	if (!found)
		return 0;
	int i = found - address;
	put_back(pid, i);
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rip), rip);
	if (!printed[child][i])
		printf("%c %lx\n", "pc"[child], rip);
	printed[child][i] = 1;
	return 1;
}

int main(int argc, char **argv)
{
	FILE *functions = argc > 2 ? fopen(argv[1], "r") : NULL;
	if (!functions)
		errx(1, "entered FUNCTIONS COMMAND...");
	while (count < MOST && fscanf(functions, "%lx", &address[count]) == 1)
		count++;
	qsort(address, count, sizeof *address, by_address);

	pid_t first = fork();
	if (first == 0) {
		int null = open("/dev/null", O_RDWR);
		dup2(null, 0);
		dup2(null, 1);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execv(argv[2], argv + 2);
		err(1, "%s", argv[2]);
	}
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;) {
		if (!WIFSTOPPED(status)) {
			known[pid] = 0;
			if (pid == first)
				break;
			continue;
		}
		int event = status >> 16, begins = !known[pid];
		known[pid] = 1;
		if (begins)
			ptrace(PTRACE_SETOPTIONS, pid, 0,
			       PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC);
		if (event == PTRACE_EVENT_EXEC && pid != first) {
			known[pid] = 0;
			ptrace(PTRACE_DETACH, pid, 0, 0);
			continue;
		}
		if (event == PTRACE_EVENT_EXEC || begins)
			set_all(pid);
		int ours = event || begins || (WSTOPSIG(status) == SIGTRAP && met(pid, pid != first));
		ptrace(PTRACE_CONT, pid, 0, ours ? 0 : WSTOPSIG(status));
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		errx(1, "%s %s: status %x", argv[2], argv[3] ? argv[3] : "", status);
}

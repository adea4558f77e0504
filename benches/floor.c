/* The least a container can cost: one clone with all namespaces, a proc, pivot_root, exec. floor ROOTFS PROGRAM */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		_exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	struct clone_args args = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
		.exit_signal = SIGCHLD,
	};
	long pid = syscall(SYS_clone3, &args, sizeof args);
	must(pid, "clone3");
	if (pid > 0) {
		int status;
		must(waitpid(pid, &status, 0), "waitpid");
		return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	}
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	must(mount(argv[1], argv[1], NULL, MS_BIND | MS_REC, NULL), "bind");
	must(chdir(argv[1]), "chdir");
	must(mount("proc", "proc", "proc", 0, NULL), "proc");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "chdir /");
	execl(argv[2], argv[2], NULL);
	must(-1, "exec");
}

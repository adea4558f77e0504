// A library: nothing to start, functions to call.
#include <stdio.h>

static int ready;

__attribute__((constructor)) static void initialise(void) { ready = 1; }

__attribute__((export_name("say"))) void say(void) {
    printf("called, %s initialised\n", ready ? "and" : "but not");
    fflush(stdout);
}

__attribute__((export_name("add"))) int add(int a, int b) { return a + b; }

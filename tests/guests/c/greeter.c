// A library of a component: what the greeted ones are composed with. In C, with a memory of its own.
#include "greeter.h"
#include <stdio.h>
#include <string.h>

void exports_runw_guests_greeting_greet(greeter_string_t *name, greeter_string_t *ret) {
    static int calls;
    char text[128];
    snprintf(text, sizeof text, "hello %.*s, from component %d", (int)name->len, (char *)name->ptr, ++calls);
    greeter_string_free(name);
    greeter_string_dup(ret, text);
}

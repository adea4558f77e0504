#include <stdio.h>

int main(void) {
    puts("hello from wasm (c)");
    return 0;
}

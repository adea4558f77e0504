// The key-value guest: counts in both interfaces that can.
#include "counter.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

bool exports_wasi_cli_run_run(void) {
    wasi_keyvalue_store_own_bucket_t own;
    wasi_keyvalue_store_error_t error;
    counter_string_t name, plain, atomic;
    counter_string_set(&name, ""), counter_string_set(&plain, "plain"), counter_string_set(&atomic, "atomic");
    if (!wasi_keyvalue_store_open(&name, &own, &error)) return false;
    wasi_keyvalue_store_borrow_bucket_t bucket = wasi_keyvalue_store_borrow_bucket(own);
    counter_option_list_u8_t old;
    if (!wasi_keyvalue_store_method_bucket_get(bucket, &plain, &old, &error)) return false;
    char text[24] = "0";
    if (old.is_some) snprintf(text, sizeof text, "%.*s", (int)old.val.len, (char *)old.val.ptr);
    int length = snprintf(text, sizeof text, "%d", atoi(text) + 1);
    counter_list_u8_t value = {(uint8_t *)text, (size_t)length};
    if (!wasi_keyvalue_store_method_bucket_set(bucket, &plain, &value, &error)) return false;
    uint64_t count;
    if (!wasi_keyvalue_atomics_increment(bucket, &atomic, 1, &count, &error)) return false;
    printf("plain %s, atomic %" PRIu64 "\n", text, count);
    fflush(stdout);
    return true;
}

// The shell round QuickJS (Debian's source package): the engine is untouched; `print`, `read`, `write` and
// `args` are what a script needs to prove files and output.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

static char *slurp(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    size_t cap = 1 << 16, n = 0;
    char *buf = malloc(cap + 1);
    while (buf) {
        size_t got = fread(buf + n, 1, cap - n, f);
        if (got == 0) break;
        n += got;
        if (n == cap) buf = realloc(buf, (cap *= 2) + 1);
    }
    fclose(f);
    if (buf) buf[n] = 0, *len = n;
    return buf;
}

static JSValue js_print(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv) {
    for (int i = 0; i < argc; i++) {
        const char *s = JS_ToCString(ctx, argv[i]);
        if (!s) return JS_EXCEPTION;
        printf("%s%s", i ? " " : "", s);
        JS_FreeCString(ctx, s);
    }
    printf("\n");
    return JS_UNDEFINED;
}

static JSValue js_read(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv) {
    size_t len;
    const char *path = JS_ToCString(ctx, argv[0]);
    if (!path) return JS_EXCEPTION;
    char *text = slurp(path, &len);
    JSValue v = text ? JS_NewStringLen(ctx, text, len) : JS_ThrowReferenceError(ctx, "cannot read %s", path);
    JS_FreeCString(ctx, path);
    free(text);
    return v;
}

static JSValue js_write(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv) {
    size_t len;
    const char *path = JS_ToCString(ctx, argv[0]), *text = JS_ToCStringLen(ctx, &len, argv[1]);
    if (!path || !text) return JS_EXCEPTION;
    FILE *f = fopen(path, "wb");
    int ok = f && fwrite(text, 1, len, f) == len;
    if (f) ok = !fclose(f) && ok;
    JSValue v = ok ? JS_UNDEFINED : JS_ThrowReferenceError(ctx, "cannot write %s", path);
    JS_FreeCString(ctx, path);
    JS_FreeCString(ctx, text);
    return v;
}

int main(int argc, char **argv) {
    size_t len;
    if (argc < 2) return fprintf(stderr, "usage: qjs SCRIPT [ARG...]\n"), 2;
    char *script = slurp(argv[1], &len);
    if (!script) return fprintf(stderr, "qjs: cannot read %s\n", argv[1]), 2;
    JSContext *ctx = JS_NewContext(JS_NewRuntime());
    JSValue global = JS_GetGlobalObject(ctx), args = JS_NewArray(ctx);
    for (int i = 1; i < argc; i++) JS_SetPropertyUint32(ctx, args, i - 1, JS_NewString(ctx, argv[i]));
    JS_SetPropertyStr(ctx, global, "args", args);
    JS_SetPropertyStr(ctx, global, "print", JS_NewCFunction(ctx, js_print, "print", 1));
    JS_SetPropertyStr(ctx, global, "read", JS_NewCFunction(ctx, js_read, "read", 1));
    JS_SetPropertyStr(ctx, global, "write", JS_NewCFunction(ctx, js_write, "write", 2));
    JSValue v = JS_Eval(ctx, script, len, argv[1], JS_EVAL_TYPE_GLOBAL);
    if (JS_IsException(v)) {
        const char *s = JS_ToCString(ctx, JS_GetException(ctx));
        fprintf(stderr, "qjs: %s\n", s ? s : "exception");
        return 1;
    }
    return 0;
}

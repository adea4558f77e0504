// The C guest that is served: `/` and `/get/http:HOST:PORT/PATH`, as rust/http does.
#include "web.h"
#include <stdio.h>
#include <string.h>

static web_string_t text_of(const char *text) { return (web_string_t){(uint8_t *)text, strlen(text)}; }

static void answer(wasi_http_types_own_response_outparam_t out, uint16_t status, const char *text, size_t length) {
    wasi_http_types_result_own_outgoing_response_error_code_t result = {.is_err = false};
    result.val.ok = wasi_http_types_constructor_outgoing_response(wasi_http_types_constructor_fields());
    wasi_http_types_borrow_outgoing_response_t response = wasi_http_types_borrow_outgoing_response(result.val.ok);
    wasi_http_types_method_outgoing_response_set_status_code(response, status);
    wasi_http_types_own_outgoing_body_t body;
    wasi_http_types_method_outgoing_response_body(response, &body);
    wasi_http_types_static_response_outparam_set(out, &result);
    wasi_io_streams_own_output_stream_t stream;
    wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream);
    web_list_u8_t bytes = {(uint8_t *)text, length};
    wasi_io_streams_stream_error_t end;
    wasi_io_streams_method_output_stream_blocking_write_and_flush(wasi_io_streams_borrow_output_stream(stream), &bytes, &end);
    wasi_io_streams_output_stream_drop_own(stream);
    wasi_http_types_error_code_t error;
    wasi_http_types_static_outgoing_body_finish(body, NULL, &error);
}

// The response as `STATUS BODY`; -1 if there was none.
static int get(char *host, char *text, size_t room) {
    char path[256];
    char *slash = strchr(host, '/');
    snprintf(path, sizeof path, "%s", slash ? slash : "/");
    if (slash) *slash = 0;
    web_string_t authority = text_of(host), place = text_of(path);
    wasi_http_types_scheme_t scheme = {.tag = WASI_HTTP_TYPES_SCHEME_HTTP};
    wasi_http_types_own_outgoing_request_t own = wasi_http_types_constructor_outgoing_request(wasi_http_types_constructor_fields());
    wasi_http_types_borrow_outgoing_request_t request = wasi_http_types_borrow_outgoing_request(own);
    wasi_http_types_method_outgoing_request_set_scheme(request, &scheme);
    wasi_http_types_method_outgoing_request_set_authority(request, &authority);
    wasi_http_types_method_outgoing_request_set_path_with_query(request, &place);
    wasi_http_types_own_future_incoming_response_t future;
    wasi_http_types_error_code_t error;
    if (!wasi_http_outgoing_handler_handle(own, NULL, &future, &error)) return -1;
    wasi_http_types_borrow_future_incoming_response_t waiting = wasi_http_types_borrow_future_incoming_response(future);
    wasi_io_poll_own_pollable_t ready = wasi_http_types_method_future_incoming_response_subscribe(waiting);
    wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(ready));
    wasi_io_poll_pollable_drop_own(ready);
    wasi_http_types_result_result_own_incoming_response_error_code_void_t result;
    if (!wasi_http_types_method_future_incoming_response_get(waiting, &result) || result.is_err || result.val.ok.is_err) return -1;
    wasi_http_types_borrow_incoming_response_t response = wasi_http_types_borrow_incoming_response(result.val.ok.val.ok);
    int length = snprintf(text, room, "%d ", wasi_http_types_method_incoming_response_status(response));
    wasi_http_types_own_incoming_body_t body;
    wasi_io_streams_own_input_stream_t stream;
    if (!wasi_http_types_method_incoming_response_consume(response, &body)) return -1;
    if (!wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(body), &stream)) return -1;
    web_list_u8_t piece;
    wasi_io_streams_stream_error_t end;
    while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(stream), room - length, &piece, &end)) {
        memcpy(text + length, piece.ptr, piece.len), length += (int)piece.len;
        web_list_u8_free(&piece);
    }
    return length;
}

void exports_wasi_http_incoming_handler_handle(exports_wasi_http_incoming_handler_own_incoming_request_t request,
                                               exports_wasi_http_incoming_handler_own_response_outparam_t out) {
    web_string_t given = {0};
    wasi_http_types_method_incoming_request_path_with_query(wasi_http_types_borrow_incoming_request(request), &given);
    char path[256], text[8192] = "hello from wasm\n";
    snprintf(path, sizeof path, "%.*s", (int)given.len, (char *)given.ptr);
    if (!strncmp(path, "/get/http:", 10)) {
        int length = get(path + 10, text, sizeof text);
        answer(out, length < 0 ? 502 : 200, text, length < 0 ? 0 : (size_t)length);
    } else if (!strcmp(path, "/")) answer(out, 200, text, strlen(text));
    else answer(out, 404, "no such step\n", 13);
}

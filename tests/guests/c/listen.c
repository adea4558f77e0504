// Echoes over TCP what one client sends: `listen A.B.C.D:PORT`. WASI 0.1 has no sockets of its own, so these are
// wasi:sockets, called as they are.
#include "command.h"
#include <stdio.h>
#include <stdlib.h>

static wasi_sockets_tcp_error_code_t why;
static void must(bool done, const char *what) {
    if (!done) fprintf(stderr, "%s: error %d\n", what, why), exit(1);
}

static void wait_for(wasi_sockets_tcp_borrow_tcp_socket_t socket) {
    wasi_io_poll_own_pollable_t ready = wasi_sockets_tcp_method_tcp_socket_subscribe(socket);
    wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(ready));
    wasi_io_poll_pollable_drop_own(ready);
}

static wasi_sockets_network_ip_socket_address_t parse(const char *text) {
    wasi_sockets_network_ip_socket_address_t a = {.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV4};
    wasi_sockets_network_ipv4_address_t *ip = &a.val.ipv4.address;
    must(sscanf(text, "%hhu.%hhu.%hhu.%hhu:%hu", &ip->f0, &ip->f1, &ip->f2, &ip->f3, &a.val.ipv4.port) == 5, text);
    return a;
}

bool exports_wasi_cli_run_run(void) {
    command_list_string_t args;
    wasi_cli_environment_get_arguments(&args);
    command_string_t last = args.ptr[args.len - 1];
    char text[32];
    snprintf(text, sizeof text, "%.*s", (int)last.len, (char *)last.ptr);
    wasi_sockets_network_ip_socket_address_t address = parse(text);

    wasi_sockets_tcp_own_tcp_socket_t own;
    must(wasi_sockets_tcp_create_socket_create_tcp_socket(WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV4, &own, &why), "socket");
    wasi_sockets_tcp_borrow_tcp_socket_t socket = wasi_sockets_tcp_borrow_tcp_socket(own);
    wasi_sockets_network_own_network_t network = wasi_sockets_instance_network_instance_network();
    must(wasi_sockets_tcp_method_tcp_socket_start_bind(socket, wasi_sockets_network_borrow_network(network), &address, &why), "bind");
    must(wasi_sockets_tcp_method_tcp_socket_finish_bind(socket, &why), "bind");
    must(wasi_sockets_tcp_method_tcp_socket_start_listen(socket, &why), "listen");
    must(wasi_sockets_tcp_method_tcp_socket_finish_listen(socket, &why), "listen");
    puts("listening");
    fflush(stdout);
    wait_for(socket);

    wasi_sockets_tcp_tuple3_own_tcp_socket_own_input_stream_own_output_stream_t client;
    must(wasi_sockets_tcp_method_tcp_socket_accept(socket, &client, &why), "accept");
    command_list_u8_t piece;
    wasi_io_streams_stream_error_t end;
    while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(client.f1), 4096, &piece, &end)) {
        if (!wasi_io_streams_method_output_stream_blocking_write_and_flush(wasi_io_streams_borrow_output_stream(client.f2), &piece, &end)) return false;
        command_list_u8_free(&piece);
    }
    return true;
}

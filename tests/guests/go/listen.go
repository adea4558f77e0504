// Echoes over TCP what one client sends: `listen A.B.C.D:PORT`. WASI 0.1 has no sockets of its own, so these are
// wasi:sockets, called as they are.
package export_wasi_cli_run

import (
	"fmt"
	"net/netip"

	. "go.bytecodealliance.org/pkg/wit/types"
	"wit_component/wasi_cli_environment"
	"wit_component/wasi_sockets_instance_network"
	"wit_component/wasi_sockets_network"
	"wit_component/wasi_sockets_tcp_create_socket"
)

func Run() Result[Unit, Unit] {
	args := wasi_cli_environment.GetArguments()
	address := netip.MustParseAddrPort(args[len(args)-1])
	ip := address.Addr().As4()
	local := wasi_sockets_network.MakeIpSocketAddressIpv4(wasi_sockets_network.Ipv4SocketAddress{
		Port: address.Port(), Address: Tuple4[uint8, uint8, uint8, uint8]{F0: ip[0], F1: ip[1], F2: ip[2], F3: ip[3]},
	})
	socket := wasi_sockets_tcp_create_socket.CreateTcpSocket(wasi_sockets_network.IpAddressFamily_Ipv4).Ok()
	socket.StartBind(wasi_sockets_instance_network.InstanceNetwork(), local).Ok()
	socket.FinishBind().Ok()
	socket.StartListen().Ok()
	socket.FinishListen().Ok()
	fmt.Println("listening")
	socket.Subscribe().Block()
	client := socket.Accept().Ok()
	for {
		piece := client.F1.BlockingRead(4096)
		if piece.IsErr() { // the end is an error of its own
			return Ok[Unit, Unit](Unit{})
		}
		client.F2.BlockingWriteAndFlush(piece.Ok()).Ok()
	}
}

// The Go guest that is served: `/` and `/get/http:HOST:PORT/PATH`, as rust/http does.
package export_wasi_http_incoming_handler

import (
	"fmt"
	"strings"

	. "go.bytecodealliance.org/pkg/wit/types"
	"wit_component/wasi_http_outgoing_handler"
	. "wit_component/wasi_http_types"
)

func Handle(request *IncomingRequest, out *ResponseOutparam) {
	path := request.PathWithQuery().SomeOr("")
	status, text := uint16(200), "hello from wasm\n"
	if what, found := strings.CutPrefix(path, "/get/http:"); found {
		text = get(what)
	} else if path != "/" {
		status, text = 404, "no such step\n"
	}
	response := MakeOutgoingResponse(MakeFields())
	response.SetStatusCode(status)
	body := response.Body().Ok()
	ResponseOutparamSet(out, Ok[*OutgoingResponse, ErrorCode](response))
	stream := body.Write().Ok()
	stream.BlockingWriteAndFlush([]uint8(text)).Ok()
	stream.Drop()
	OutgoingBodyFinish(body, None[*Fields]())
}

func get(what string) string {
	authority, path, _ := strings.Cut(what, "/")
	request := MakeOutgoingRequest(MakeFields())
	request.SetScheme(Some(MakeSchemeHttp()))
	request.SetAuthority(Some(authority))
	request.SetPathWithQuery(Some("/" + path))
	future := wasi_http_outgoing_handler.Handle(request, None[*RequestOptions]()).Ok()
	future.Subscribe().Block()
	response := future.Get().Some().Ok().Ok()
	text := fmt.Sprintf("%d ", response.Status())
	stream := response.Consume().Ok().Stream().Ok()
	for piece := stream.BlockingRead(4096); piece.IsOk(); piece = stream.BlockingRead(4096) {
		text += string(piece.Ok())
	}
	return text
}

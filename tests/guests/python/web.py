"""The Python guest that is served: `/` and `/get/http:HOST:PORT/PATH`, as rust/http does."""
import asyncio
from urllib.parse import urlsplit

import poll_loop
from poll_loop import PollLoop, Sink, Stream
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields, IncomingRequest, Method_Get, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme_Http,
)


async def get(what):
    url = urlsplit(what.replace(":", "://", 1))
    request = OutgoingRequest(Fields())
    request.set_method(Method_Get())
    request.set_scheme(Scheme_Http())
    request.set_authority(url.netloc)
    request.set_path_with_query(url.path)
    response = await poll_loop.send(request)
    stream, text = Stream(response.consume()), b""
    while (piece := await stream.next()) is not None:
        text += piece
    return f"{response.status()} ".encode() + text


async def handle(request, out):
    status, text = 200, b"hello from wasm\n"
    path = request.path_with_query()
    if path.startswith("/get/"):
        text = await get(path.removeprefix("/get/"))
    elif path != "/":
        status, text = 404, b"no such step\n"
    response = OutgoingResponse(Fields())
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(out, Ok(response))
    sink = Sink(body)
    await sink.send(text)
    sink.close()


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam):
        loop = PollLoop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(handle(request, response_out))

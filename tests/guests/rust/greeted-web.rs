//! A handler that has another component greet for it.

#[path = "../greeted_web.rs"]
mod bindings;

use bindings::wasi::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Greeted;
bindings::export!(Greeted with_types_in bindings);

impl bindings::exports::wasi::http::incoming_handler::Guest for Greeted {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let text = bindings::runw::guests::greeting::greet(path.trim_start_matches('/'));
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().unwrap();
        ResponseOutparam::set(out, Ok(response));
        body.write().unwrap().blocking_write_and_flush(text.as_bytes()).unwrap();
        OutgoingBody::finish(body, None).unwrap();
    }
}
